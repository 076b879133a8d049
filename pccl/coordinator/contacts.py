"""contacts.py - who has links to whom across the groups of a run, for transfers alone, and of which incarnation.

A peer seeks others, in any group, for as long as its transfers name them; a pair has a link as long as one of the two
seeks the other and both are there. Membership, plans and ops know nothing of it. Nothing here is durable: a peer tells
anew what it seeks, and which links it has, so that another coordinator leaves them as they are. Pure, like run.py,
whose helper it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pccl import messages as m
from pccl.coordinator.events import Send
from pccl.coordinator.links import pair_of
from pccl.coordinator.plan import Pair
from pccl.coordinator.roster import Peer, wire_members

__all__ = ["Contacts"]

#: Of a link between two hosts, of whose path nothing is known.
STREAMS = 4
SPOKE_MAX = 1 << 16

Find = Callable[[bytes], "tuple[int, Peer] | None"]


@dataclass(slots=True)
class _Said:
    """What a peer was told last; `content` None: it may not have heard it."""

    content: tuple[tuple[m.Contact, ...], tuple[tuple[bytes, str], ...]] | None


class Contacts:
    """Of one run. `find`: the group of a peer, and what is known of it; None: it is in no group."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self._seeks: dict[bytes, m.Seek] = {}
        self._numbers: dict[Pair, int] = {}
        self._said: dict[bytes, _Said] = {}
        self._spoke: set[bytes] = set()  # who has told this coordinator whom it seeks, if anybody
        self._last = 0

    def seek(self, incarnation: int, peer: bytes, message: m.Seek) -> None:
        """A peer says whom it wants links to, and which it has: news of those that an earlier coordinator gave it, if
        it is the first that is heard of it. What this one has ended must not come back by the same number.
        """
        self._seeks[peer] = message
        self._said[peer] = _Said(None)
        for other, number in () if peer in self._spoke else message.links:
            pair = pair_of(peer, other)
            if other != peer and number < _first_of(incarnation):
                self._numbers[pair] = max(number, self._numbers.get(pair, 0))
        self.spoke(peer)

    def spoke(self, peer: bytes) -> None:
        """A peer has said something else; what it seeks it would have said before. What it was told before its first
        word to this coordinator may have found no connection.
        """
        if peer not in self._spoke:
            self.forget(peer)
        self._spoke.add(peer)
        if len(self._spoke) > SPOKE_MAX:
            self._spoke = {peer for peer in self._spoke if self._find(peer) is not None}

    def forget(self, peer: bytes) -> None:
        """It may not have heard what it was told."""
        if peer in self._said:
            self._said[peer] = _Said(None)

    def news(self, incarnation: int) -> list[Send]:
        """What is to be said now."""
        if not self._seeks and not self._said and not self._numbers:
            return []
        self._seeks = {peer: seek for peer, seek in self._seeks.items() if self._find(peer) is not None}
        self._said = {peer: said for peer, said in self._said.items() if self._find(peer) is not None}
        self._decide(incarnation)
        out: list[Send] = []
        ends = {peer for pair in self._numbers for peer in pair}
        for peer in sorted(self._seeks.keys() | self._said.keys() | ends):
            out += self._tell(peer)
        return out

    def _decide(self, incarnation: int) -> None:
        """Which pairs have a link."""
        wanted = {pair_of(a, b) for a, seek in self._seeks.items() for b in seek.peers if a != b}
        for pair in list(self._numbers):
            unheard = self._numbers[pair] < _first_of(incarnation) and not self._spoke.issuperset(pair)
            if self._obstacle(*pair) is not None or (pair not in wanted and not unheard):
                del self._numbers[pair]
        for pair in sorted(wanted - self._numbers.keys()):
            if self._obstacle(*pair) is None:
                self._last = self._numbers[pair] = max(self._last + 1, _first_of(incarnation))

    def _obstacle(self, a: bytes, b: bytes) -> str | None:
        """Why they have no link, in words; "": they need none, or have to wait; None: they can have one."""
        here, there = self._find(a), self._find(b)
        if here is None or there is None:
            return "it is in no group of this run, or no longer"
        (group, one), (other_group, other) = here, there
        if group == other_group or not (one.checked and other.checked):
            return ""
        if not one.inbound and not other.inbound:
            return "neither of the two can be dialled"
        return None

    def _tell(self, peer: bytes) -> list[Send]:
        found = self._find(peer)
        if found is None:
            return []
        seek = self._seeks.get(peer)
        sought = () if seek is None else seek.peers
        others = {b if a == peer else a: number for (a, b), number in self._numbers.items() if peer in (a, b)}
        contacts = tuple(m.Contact(self._member(other), number) for other, number in sorted(others.items()))
        missing = tuple((other, why) for other in sought if (why := self._obstacle(peer, other)))
        said = self._said.get(peer)
        if (said is None and not contacts and not missing) or (said and said.content == (contacts, missing)):
            return []
        self._said[peer] = _Said((contacts, missing))
        number = 0 if seek is None else seek.seek
        return [Send(peer, m.Contacts(m.VERSION, number, contacts, missing, STREAMS, found[1].inbound))]

    def _member(self, peer: bytes) -> m.Member:
        found = self._find(peer)
        assert found is not None
        return wire_members([found[1]])[0]


def _first_of(incarnation: int) -> int:
    """The first number that a coordinator gives."""
    return incarnation << 32 | 1
