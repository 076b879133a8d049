"""Who is whose neighbour, without a network: those after it in the order of ids, whatever becomes of the source."""

from __future__ import annotations

from typing import Any

import pytest
from unit.weights_reads import Reads

from pccl.types import Status
from pccl.weights.certificate import Version
from pccl.weights.errors import DamageError
from pccl.weights.line import _sealed
from pccl.weights.neighbours import NEIGHBOURS_MAX, SERVED_MAX, Neighbours
from pccl.weights.records import PEERS_MAX, Peers, Tip

SCHEMA = bytes(32)
SOURCES = [bytes([200]) * 16, bytes([201]) * 16]


def peer(number: int) -> bytes:
    return bytes([number]) * 16


class Here:
    """Neighbours of peer 5, whose steps run at once."""

    def __init__(self) -> None:
        self.reads = Reads()
        self.reads.peer_id = peer(5)  # type: ignore[attr-defined]
        self.moved = 0
        self.now = 0.0
        made: Any = self.reads
        self.them = Neighbours(made, "weights", SCHEMA, lambda step: step(), self._on_moved)

    def _on_moved(self) -> None:
        self.moved += 1

    def say(self, source: bytes, numbers: list[int], sources: list[bytes] = SOURCES) -> None:
        self.them.hear(source, Peers([peer(n) for n in numbers]).encode(), sources)
        self.them.tend(self.now)

    def asked(self) -> list[int]:
        self.reads.settle()
        return sorted({one.peer[0] for one in self.reads.waiting})

    def tip(self, number: int, version: int, schema: bytes = SCHEMA) -> None:
        record = Tip(version, bytes([version]) * 32, b"", schema, 0, (0, 0)).encode()
        self.reads.take(peer(number)).answer(_sealed(version + 1, record))


def test_those_that_come_next_are_followed_and_never_itself_or_a_source() -> None:
    here = Here()
    here.say(SOURCES[0], [1, 2, 3, 4, 5, 6, 7, 200])
    assert here.asked() == [1, 2, 6, 7] and len(here.asked()) == NEIGHBOURS_MAX
    here.say(SOURCES[1], [8, 9])
    assert here.asked() == [6, 7, 8, 9]
    here.say(SOURCES[1], [], SOURCES[1:])  # the other source is gone, and so is what it said
    assert here.asked() == []


def test_they_stay_when_the_source_is_gone() -> None:
    here = Here()
    here.say(SOURCES[0], [5, 6])
    here.tip(6, 3)
    assert here.moved == 1
    assert here.them.helpers(Version(3, bytes([3]) * 32)) == ([], [peer(6)])
    for behind in range(1, SERVED_MAX):
        assert here.them.helpers(Version(3 - behind, bytes(32))) == ([peer(6)], [])
    assert here.them.helpers(Version(3 - SERVED_MAX, bytes(32))) == ([], [])
    here.reads.take(peer(6)).done(Status.EPEER)
    assert here.them.helpers(Version(2, bytes(32))) == ([], [])


def test_a_neighbour_that_says_something_else_is_left_alone() -> None:
    here = Here()
    here.say(SOURCES[0], [6, 7])
    here.tip(6, 3, schema=b"x" * 32)
    here.reads.take(peer(7)).answer(_sealed(1, b"no record"))
    assert here.moved == 0 and here.them.helpers(Version(2, bytes(32))) == ([], [])


@pytest.mark.parametrize("ids", [[b"short"], [peer(n) for n in range(PEERS_MAX + 1)]])
def test_a_source_that_names_what_is_no_peer_is_refused(ids: list[bytes]) -> None:
    with pytest.raises(DamageError):
        Here().them.hear(SOURCES[0], Peers(ids).encode(), SOURCES)
