"""Which transfer asks next, how much is kept asked for, who owns blocks, and leases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from pccl.errors import ArgumentError
from pccl.kv.leases import Lease, Leases
from pccl.kv.ledger import REQUEST, WRITER, Ledger
from pccl.kv.schedule import (
    AHEAD,
    AHEAD_ALL,
    PROMOTE_S,
    WINDOW_MIN,
    WINDOW_START,
    ask_bytes,
    class_of,
    plan,
    suggestions,
    window,
)
from pccl.types import Priority

MIB = 1 << 20


@dataclass(eq=False)
class Fake:
    """`ready`, `more`: asks of 4 MiB that it could make, of what is ready and of what is not."""

    name: str
    priority: str = "normal"
    since: float = 0.0
    deadline_at: float = 60.0
    ready: int = 0
    more: int = 0
    flowing_bytes: int = 0
    ahead: int = 0
    log: list[tuple[str, bool, Priority]] = field(default_factory=list)

    @property
    def left_bytes(self) -> int:
        return (self.ready + self.more) * 4 * MIB + self.flowing_bytes

    def waiting(self) -> tuple[int, int]:
        return self.ahead, self.ahead * 4 * MIB

    def ask(self, ahead: bool, priority: Priority) -> int | None:
        if not (self.more if ahead else self.ready):
            return None
        if ahead:
            self.more, self.ahead = self.more - 1, self.ahead + 1
        else:
            self.ready, self.flowing_bytes = self.ready - 1, self.flowing_bytes + 4 * MIB
        self.log.append((self.name, ahead, priority))
        return 4 * MIB


def asked(*askers: Fake, now: float = 0.0, room: int = 16 * MIB) -> list[tuple[str, bool, Priority]]:
    log: list[Any] = []
    for asker in askers:
        asker.log = log
    plan(askers, now, room)
    return log


def test_classes_then_deadlines_within_the_room() -> None:
    late, soon = Fake("late", ready=9), Fake("soon", deadline_at=5.0, ready=2)
    urgent = Fake("urgent", "critical", deadline_at=90.0, ready=1)
    found = asked(late, soon, urgent)
    assert [name for name, _, _ in found] == ["urgent", "soon", "soon", "late"]
    assert [priority for _, _, priority in found] == [Priority.HIGH, *[Priority.NORMAL] * 3]
    assert asked(late, soon, urgent) == []
    late.flowing_bytes = 0
    assert [name for name, _, _ in asked(late, soon, urgent)] == ["late"]


def test_what_waits_long_is_promoted_so_that_nothing_starves() -> None:
    assert [class_of("prefetch", age) for age in (0.0, PROMOTE_S, 2 * PROMOTE_S, 9 * PROMOTE_S)] == [
        Priority.LOW, Priority.NORMAL, Priority.HIGH, Priority.HIGH,
    ]  # fmt: skip
    old, new = (
        Fake("old", "prefetch", since=-2.5 * PROMOTE_S, deadline_at=10.0, ready=1),
        Fake("new", "normal", ready=9),
    )
    assert asked(old, new)[0] == ("old", False, Priority.HIGH)


def test_asks_ahead_are_few_and_leave_room_for_what_is_ready() -> None:
    waiting = [Fake(str(number), more=50) for number in range(200)]
    found = asked(*waiting, Fake("ready", ready=4))
    assert [name for name, ahead, _ in found if not ahead] == ["ready"] * 4
    assert sum(ahead for _, ahead, _ in found) == AHEAD_ALL
    assert max(one.ahead for one in waiting) <= AHEAD
    alone = Fake("alone", more=50)
    asked(alone, room=1 << 30)
    assert alone.ahead == AHEAD


def test_the_window_follows_the_rate() -> None:
    assert window(0.0, 0.1) == WINDOW_START
    assert window(1e6, 0.0) == WINDOW_MIN
    assert window(1.25e9, 0.08) >= 2 * 1.25e9 * 0.08


def test_asks_grow_with_the_rate() -> None:
    assert [ask_bytes(rate) // MIB for rate in (0.0, 1.25e8, 1.7e9, 1e11)] == [4, 4, 16, 32]


def test_what_will_be_too_late_is_said() -> None:
    first = Fake("first", deadline_at=1.0, ready=25)  # 100 MiB
    second = Fake("second", deadline_at=1.5, ready=25)
    third = Fake("third", deadline_at=9.0, ready=1)
    found: list[str] = []
    suggestions([first, second, third], 0.0, 75.0 * MIB, lambda one: found.append(one.name))  # type: ignore[attr-defined]
    assert found == ["second"]
    suggestions([first, second], 0.0, 0.0, lambda one: found.append("unknown rate"))
    assert found == ["second"]


def ids(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


def test_blocks_are_free_when_both_owners_let_go() -> None:
    ledger = Ledger([8, 4], ["full", "state"])
    ledger.take(b"a", [ids(1, 2), ids(0)], True)
    with pytest.raises(ArgumentError, match=r"blocks\[1\] of 'full' is 2"):
        ledger.take(b"b", [ids(3, 2), ids()], True)
    with pytest.raises(ArgumentError, match=r"blocks\[0\] of 'state' is 0"):
        ledger.take(b"b", [ids(3), ids(0)], False)
    assert not ledger.let_go(b"a", REQUEST) and ledger.busy(0).tolist() == [1, 2]
    assert ledger.let_go(b"a", WRITER) and ledger.let_go(b"a", WRITER) and not ledger.busy(0).size
    ledger.take(b"b", [ids(1), ids()], False)
    ledger.take(b"c", [ids(1), ids()], False)  # two may send a block
    with pytest.raises(ArgumentError):
        ledger.take(b"d", [ids(1), ids()], True)
    for transfer in (b"b", b"c"):
        ledger.let_go(transfer, WRITER)
        ledger.let_go(transfer, REQUEST)
    ledger.take(b"d", [ids(1), ids()], True)
    assert ledger.transfers == 1


def test_leases() -> None:
    leases = Leases(bytes_per_peer=100)

    def lease(name: str, until: float) -> Lease:
        return Lease(name, [], [], b"", None, until, 50.0)  # type: ignore[arg-type]

    one, two = lease("one", 30.0), lease("two", 10.0)
    leases.add(one)
    leases.add(two)
    with pytest.raises(ArgumentError, match="'one'"):
        leases.add(lease("one", 1.0))
    assert leases.deadline() == 10.0
    leases.pulled(two, b"t", b"peer", 60)
    assert not leases.fits(b"peer", 41) and leases.fits(b"peer", 40) and leases.fits(b"other", 100)
    leases.beat("two", 9.0)
    assert two.until == 29.0
    leases.beat("two", 45.0)
    assert two.until == 50.0  # the most
    leases.over("two", b"t")
    assert leases.fits(b"peer", 100) and not two.pulls
    assert [gone.name for gone in leases.expired(30.0)] == ["one"]
    assert "lease" in leases.why_gone("one") and "nothing" in leases.why_gone("three")
