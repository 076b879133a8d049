"""The two state machines of a transfer, told events by hand; and against each other, with events in any order."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from unit.kv_walk import walk

from pccl.errors import ProtocolError
from pccl.kv import messages as m
from pccl.kv.binding import packed
from pccl.kv.ends import End, State
from pccl.kv.machine import Over, Say, Stop, Tick
from pccl.kv.receive import GONE_S, AskEnded, Check, Checked, Drop, Landed, ReceiveMachine
from pccl.kv.send import GRACE_S, Announce, Digest, Expose, FinishNow, Hide, SendMachine, SendUnit, Summed, Withdrawn
from pccl.kv.unit import ASK_BYTES, Unit, split_of
from pccl.types import Status

TID = bytes(16)
NBYTES = 4096
OPEN = m.Open(TID, 5.0, ())


def offsets(places: Any, nbytes: int = NBYTES) -> Any:
    return np.array(places, np.uint64) * np.uint64(nbytes)


def units(count: int = 4, layers: int = 2, nbytes: int = NBYTES, need: Any = None) -> list[Unit]:
    mask = np.ones(count, bool) if need is None else np.array(need, bool)
    at = offsets(range(count), nbytes)
    return [Unit(0, layer, layer, at, layer, at, nbytes, mask) for layer in range(layers)]


def receiver(**options: Any) -> ReceiveMachine:
    made = units(**options)
    return ReceiveMachine(TID, 10.0, lambda _: made)


def ready(layer: int, count: int = 4) -> m.Ready:
    return m.Ready(TID, 0, layer, packed(np.arange(count)))


def sums(layer: int, count: int = 4, seed: int = 0) -> m.Sums:
    return m.Sums(TID, 0, layer, 0, count, b"", np.arange(seed, seed + count, dtype="<u8").tobytes())


def kinds(effects: list[Any]) -> list[str]:
    return [type(e.message).__name__ if isinstance(e, Say) else type(e).__name__ for e in effects]


def land(machine: ReceiveMachine, now: float, ahead: bool = False) -> list[Any]:
    """Everything that can be asked for is, and comes."""
    effects, token = [], 1000
    while (ask := machine.take(ahead)) is not None:
        machine.posted(ask, token := token + 1)
    for ask in list(machine.asks.values()):
        effects += machine.handle(AskEnded(ask, Status.OK), now)
    return effects


def verify(machine: ReceiveMachine, effects: list[Any], good: bool = True) -> list[Any]:
    checks = [effect for effect in effects if isinstance(effect, Check)]
    return [
        done
        for check in checks
        for done in machine.handle(Checked(check.unit, check.parts, np.full(check.parts.size, good)), 1.0)
    ]


def test_a_receive_that_goes_well() -> None:
    machine = receiver()
    assert machine.handle(OPEN, 0.0) == [] and machine.state is State.STREAMING
    assert machine.take(ahead=False) is None
    machine.handle(ready(0), 0.1)
    assert kinds(land(machine, 0.2)) == []  # no digests yet
    assert kinds(verify(machine, machine.handle(sums(0), 0.3))) == ["Landed"]
    machine.handle(sums(1), 0.3)
    machine.handle(ready(1), 0.3)
    assert machine.handle(m.Finish(TID, b"meta"), 0.4) == []
    effects = land(machine, 0.5)
    assert kinds(effects) == ["Check"]
    assert kinds(verify(machine, effects)) == ["Landed", "Committed", "Over"]
    assert machine.state is State.COMMITTED and machine.meta == b"meta" and machine.flowing_bytes == 0


def test_asks_ahead_wait_and_flow_when_their_layer_is_ready() -> None:
    machine = receiver()
    machine.handle(OPEN, 0.0)
    for token in (1, 2):
        ask = machine.take(ahead=True)
        assert ask is not None
        machine.posted(ask, token)
    assert machine.take(ahead=True) is None and machine.waiting() == (2, 8 * NBYTES) and machine.flowing_bytes == 0
    machine.handle(m.Ready(TID, 0, 0, packed(np.arange(1, 3))), 0.1)
    assert machine.flowing_bytes == 2 * NBYTES and machine.waiting() == (2, 6 * NBYTES)
    machine.handle(ready(0), 0.1)
    assert machine.flowing_bytes == 4 * NBYTES and machine.waiting() == (1, 4 * NBYTES)
    machine.handle(AskEnded(machine.asks[1], Status.OK), 0.2)
    assert machine.flowing_bytes == 0 and machine.landed_bytes == 4 * NBYTES


def test_what_comes_wrong_is_fetched_once_more_and_then_fails() -> None:
    machine = receiver(layers=1)
    machine.handle(OPEN, 0.0)
    machine.handle(ready(0), 0.0)
    machine.handle(sums(0), 0.0)
    effects = verify(machine, land(machine, 0.1), good=False)
    assert effects == [] and machine.state is State.STREAMING
    effects = verify(machine, land(machine, 0.2), good=False)
    assert kinds(effects) == ["End", "Over"] and effects[0].message.cause == "checksum"
    assert machine.state is State.FAILED


def test_memory_is_not_free_before_the_last_ask_and_the_last_check_have_ended() -> None:
    machine = receiver()
    machine.handle(OPEN, 0.0)
    machine.handle(ready(0), 0.0)
    machine.handle(sums(0), 0.0)
    (check,) = land(machine, 0.1)
    ask = machine.take(ahead=True)
    assert ask is not None
    machine.posted(ask, 7)
    effects = machine.handle(Stop(End(State.ABORTED, "user"), True), 0.2)
    assert kinds(effects) == ["End", "Drop"] and effects[1] == Drop((7,)) and not machine.over
    assert machine.handle(AskEnded(ask, Status.ECANCELLED), 0.3) == [] and not machine.over
    (over,) = machine.handle(Checked(check.unit, check.parts, np.ones(4, bool)), 0.4)
    assert over == Over(End(State.ABORTED, "user")) and machine.over
    late = machine.late
    assert machine.handle(Stop(End(State.FAILED, "x"), True), 0.5) == [] and machine.late == late + 1
    assert machine.handle(m.Finish(TID, b""), 0.6) == [] and machine.state is State.ABORTED


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (m.Ready(TID, 0, 2, bytes(4)), "protocol"),
        (m.Ready(TID, 1, 0, bytes(4)), "protocol"),
        (m.Ready(TID, 0, 0, packed(np.array([3, 4]))), "protocol"),
        (m.Ready(TID, 0, 0, bytes(5)), "protocol"),
        (m.Ready(TID, 0, 0, packed(np.array([2]))), "protocol"),  # one that is not needed
        (m.Sums(TID, 0, 0, 0, 0, packed(np.arange(2)), bytes(15)), "protocol"),
        (m.Sums(TID, 0, 0, 2, 3, b"", bytes(24)), "protocol"),
        (m.Finish(TID, b""), "incomplete"),
    ],
)
def test_messages_that_cannot_be(message: m.Message, cause: str) -> None:
    machine = receiver(need=[1, 1, 0, 1])
    machine.handle(OPEN, 0.0)
    effects = machine.handle(message, 0.1)
    assert kinds(effects) == ["End", "Over"] and effects[1].end.cause == cause


def test_two_digests_of_one_part_and_an_open_that_cannot_be() -> None:
    machine = receiver()
    machine.handle(OPEN, 0.0)
    machine.handle(sums(0), 0.0)
    assert machine.handle(sums(0), 0.0) == []
    assert kinds(machine.handle(sums(0, seed=1), 0.0)) == ["End", "Over"]

    def refuse(_: m.Open) -> list[Unit]:
        raise ProtocolError("no")

    machine = ReceiveMachine(TID, 10.0, refuse)
    assert machine.handle(OPEN, 0.0)[1].end == End(State.FAILED, "protocol", "no")


def test_time_and_lost_regions() -> None:
    machine = receiver()
    assert machine.deadline() == 10.0 and machine.handle(Tick(), 9.9) == []
    assert machine.handle(Tick(), 10.0)[-1].end.cause == "deadline" and machine.deadline() == float("inf")
    machine = receiver()
    machine.handle(OPEN, 0.0)
    ask = machine.take(ahead=True)
    assert ask is not None
    machine.posted(ask, 1)
    assert machine.handle(AskEnded(ask, Status.EGONE), 1.0) == []
    assert machine.take(ahead=True) is None and machine.deadline() == 1.0 + GONE_S
    assert machine.handle(Tick(), 1.0 + GONE_S)[-1].end.cause == "gone"
    machine = receiver()
    machine.handle(OPEN, 0.0)
    ask = machine.take(ahead=True)
    assert ask is not None
    machine.posted(ask, 1)
    machine.handle(AskEnded(ask, Status.ENOMEM), 1.0)
    assert machine.take(ahead=True) is None
    machine.handle(Tick(), machine.deadline())
    assert machine.take(ahead=True) is not None
    machine = receiver()
    machine.handle(OPEN, 0.0)
    ask = machine.take(ahead=True)
    assert ask is not None
    machine.posted(ask, 1)
    assert machine.handle(AskEnded(ask, Status.EPEER), 1.0)[-1].end.cause == "lost"


def sender(**options: Any) -> SendMachine:
    need = np.ones(4, bool)
    made = SendMachine(OPEN, [SendUnit(0, layer, need, NBYTES) for layer in range(2)], 0.0, 10.0, **options)
    assert kinds(made.begin()) == ["Open"]
    return made


def positions(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


def summed(machine: SendMachine, effect: Digest, seed: int = 0) -> list[Any]:
    return machine.handle(Summed(effect.unit, effect.positions, effect.positions.astype(np.uint64) + seed), 1.0)


def test_a_send_that_goes_well_says_finish_behind_all_digests() -> None:
    machine = sender()
    one, two = machine.units
    effects = machine.handle(Announce(one, positions(0, 1, 2, 3)), 0.1)
    assert kinds(effects) == ["Expose", "Ready", "Digest"]
    more = machine.handle(Announce(two, positions(0, 1, 2, 3)), 0.1)
    assert machine.handle(FinishNow(b"x"), 0.2) == [] and machine.state is State.FINISHING
    assert kinds(summed(machine, effects[2])) == ["Sums"]
    assert kinds(summed(machine, more[2])) == ["Sums", "Finish"]
    assert kinds(machine.handle(m.Committed(TID), 0.5)) == ["Hide"] and not machine.over
    assert kinds(machine.handle(Withdrawn(), 0.6)) == ["Over"] and machine.state is State.COMMITTED


def test_a_layer_announced_twice_and_one_that_is_not() -> None:
    machine = sender()
    unit = machine.units[0]
    first = machine.handle(Announce(unit, positions(0, 1)), 0.1)
    summed(machine, first[2])
    again = machine.handle(Announce(unit, positions(0, 1)), 0.2)
    assert kinds(again) == ["Digest"] and summed(machine, again[0]) == []
    again = machine.handle(Announce(unit, positions(1)), 0.3)
    effects = summed(machine, again[0], seed=1)
    assert kinds(effects) == ["End", "Hide"] and effects[0].message.cause == "protocol"
    machine = sender()
    assert machine.handle(FinishNow(b""), 0.1)[-2].message.cause == "incomplete"
    machine = sender()
    assert machine.handle(m.Committed(TID), 0.1)[-2].message.cause == "protocol"


def test_the_senders_time() -> None:
    machine = sender(lease_s=3.0)
    assert machine.deadline() == 3.0
    machine.handle(m.Beat((TID,)), 2.0)
    assert machine.deadline() == 5.0 and machine.handle(Tick(), 4.0) == []
    assert machine.handle(Tick(), 5.0)[0].message.cause == "lease"
    machine = sender()
    assert machine.deadline() == 10.0 + GRACE_S
    effects = machine.handle(Tick(), 10.0 + GRACE_S)
    assert effects[0].message.cause == "deadline" and isinstance(effects[1], Hide)
    assert not machine.over and machine.handle(Withdrawn(), 11.0)[0].end.state is State.EXPIRED


def test_parts_and_runs() -> None:
    assert [split_of(n) for n in (1, ASK_BYTES, ASK_BYTES + 64, 64 * ASK_BYTES)] == [1, 1, 2, 64]
    assert split_of(ASK_BYTES * 2 + 1) == next((n for n in range(3, 4097) if (ASK_BYTES * 2 + 1) % n == 0), 1)
    here, there = [0, 1, 2, 4, 5, 3], [7, 8, 9, 10, 11, 12]
    unit = Unit(0, 0, 0, offsets(there), 0, offsets(here), NBYTES, np.ones(6, bool))
    ask = unit.next_ask(ahead=True)
    assert ask is not None
    assert ask.runs.tolist() == [
        [7 * NBYTES, 3 * NBYTES, 0],
        [10 * NBYTES, 2 * NBYTES, 4 * NBYTES],
        [12 * NBYTES, NBYTES, 3 * NBYTES],
    ]
    large = Unit(0, 0, 0, offsets([1], 3 * ASK_BYTES), 0, offsets([0], 3 * ASK_BYTES), 3 * ASK_BYTES, np.ones(1, bool))
    found = [large.next_ask(ahead=True) for _ in range(4)]
    assert [one.runs.tolist() if one else None for one in found] == [
        *([[(3 + part) * ASK_BYTES, ASK_BYTES, part * ASK_BYTES]] for part in range(3)),
        None,
    ]


class Simulated:
    """Both machines, and what is between them: mail in order, asks and digests in any."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.now = 0.0
        self.d = receiver(layers=3, count=4)
        need = np.ones(4, bool)
        units = [SendUnit(0, layer, need, NBYTES) for layer in range(3)]
        self.p = SendMachine(OPEN, units, 0.0, 10.0)
        self.to_d: list[m.Message] = []
        self.to_p: list[m.Message] = []
        self.steps: list[Any] = []
        self.ends: dict[str, End] = {}
        self.exposed: set[tuple[int, int]] = set()
        self.token = 0
        self.run("p", self.p.begin())

    def run(self, side: str, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Say):
                (self.to_d if side == "p" else self.to_p).append(effect.message)
            elif isinstance(effect, Over):
                assert side not in self.ends, "one end on each side"
                self.ends[side] = effect.end
            elif isinstance(effect, Check):
                good = np.ones(effect.parts.size, bool)
                self.steps.append(lambda e=effect, g=good: self.tell("d", Checked(e.unit, e.parts, g)))
            elif isinstance(effect, Drop):
                for token in effect.tokens:
                    ask = self.d.asks[token]
                    self.steps.append(lambda ask=ask: self.end_ask(ask, Status.ECANCELLED))
            elif isinstance(effect, Expose):
                self.exposed |= {(effect.unit.layer, int(at)) for at in effect.positions}
            elif isinstance(effect, Digest):
                found = effect.positions.astype(np.uint64)
                self.steps.append(lambda e=effect, f=found: self.tell("p", Summed(e.unit, e.positions, f)))
            elif isinstance(effect, Hide):
                self.steps.append(lambda: self.tell("p", Withdrawn()))
            else:
                assert isinstance(effect, Landed)

    def tell(self, side: str, event: Any) -> None:
        self.run(side, (self.d if side == "d" else self.p).handle(event, self.now))

    def end_ask(self, ask: Any, status: int) -> None:
        if ask.token in self.d.asks:
            self.tell("d", AskEnded(ask, status))

    def mail(self, side: str) -> None:
        message = (self.to_d if side == "d" else self.to_p).pop(0)
        is_end = isinstance(message, m.End)
        self.tell(side, Stop(End(State(message.state), message.cause), False) if is_end else message)

    def ask(self, ahead: bool) -> None:
        ask = self.d.take(ahead)
        if ask is not None:
            self.token += 1
            self.d.posted(ask, self.token)

    def possible(self) -> list[Any]:
        found = [lambda: self.mail("d")] * bool(self.to_d) + [lambda: self.mail("p")] * bool(self.to_p)
        found += [lambda at=at: self.steps.pop(at)() for at in range(len(self.steps))]
        for ask in self.d.asks.values():
            if all((ask.unit.layer, int(part)) in self.exposed for part in ask.parts):
                found.append(lambda ask=ask: self.end_ask(ask, Status.OK))
        return [*found, lambda: self.ask(True), lambda: self.ask(False)]


@pytest.mark.parametrize("seed", range(60))
def test_both_sides_end_once_and_alike_whatever_happens_in_which_order(seed: int) -> None:
    chance = random.Random(seed)
    both = Simulated(chance)
    layers = chance.sample(range(3), 3)
    script: list[Any] = [
        *(lambda at=at: both.tell("p", Announce(both.p.units[at], positions(0, 1, 2, 3))) for at in layers),
        lambda: both.tell("p", FinishNow(b"m")),
    ]
    walk(both, chance, script, 4000)
    assert both.d.flowing_bytes == 0 and not both.d.asks


def test_who_never_gets_room_hears_that_at_the_deadline() -> None:
    """Back-pressure of the other side: asked again until then, and the cause is what was in the way last."""
    for served, state, cause in ((False, State.FAILED, "no_space"), (True, State.EXPIRED, "deadline")):
        machine = receiver()
        machine.handle(OPEN, 0.0)
        machine.handle(ready(0), 0.1)
        ask = machine.take(ahead=False)
        assert ask is not None
        machine.posted(ask, 1)
        machine.handle(AskEnded(ask, Status.ENOMEM), 0.2)
        assert machine.take(ahead=False) is None  # not at once
        machine.handle(Tick(), machine.deadline())
        assert machine.state is State.STREAMING
        if served:
            land(machine, 0.5)
        machine.handle(Tick(), 10.0)
        assert machine.end is not None and (machine.end.state, machine.end.cause) == (state, cause)


def test_what_came_wrong_comes_with_checksums_the_second_time() -> None:
    (unit,) = units(layers=1)
    unit.announce(np.arange(4))
    unit.hear(np.arange(4), np.arange(10, 14, dtype=np.uint64))
    for expected in (True, False):
        ask = unit.next_ask(ahead=False)
        assert ask is not None
        unit.digest(ask, np.zeros(ask.parts.size, np.uint64))
        assert ask.digests is not None and ask.digests.bare is expected
        ask.digests.found[:] = 0 if expected else unit.sums[ask.parts]
        unit.landed(ask)
        parts = unit.to_check()
        assert unit.checked(parts, unit.found[parts] == unit.sums[parts]) is None
    assert not unit.left


def test_the_engine_takes_no_digests_of_parts_that_are_no_words() -> None:
    (unit,) = units(layers=1, nbytes=NBYTES + 4)
    unit.announce(np.arange(4))
    ask = unit.next_ask(ahead=False)
    assert ask is not None
    unit.digest(ask, np.zeros(ask.parts.size, np.uint64))
    assert ask.digests is None and not unit.digested
