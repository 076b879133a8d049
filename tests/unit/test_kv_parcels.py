"""Groups that come in parcels: both machines, told events by hand; and against each other, with events in any order."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.kv_walk import walk

from pccl.errors import ProtocolError
from pccl.kv import messages as m
from pccl.kv.binding import packed
from pccl.kv.ends import End, State
from pccl.kv.machine import Over, Say, Stop
from pccl.kv.parcel import PARCEL_BYTES, CodedUnit, bound, parts_per_parcel
from pccl.kv.receive import AskEnded, Decode, Decoded, Drop, Landed, ReceiveMachine
from pccl.kv.send import (
    Announce,
    Digest,
    Encode,
    Encoded,
    FinishNow,
    Free,
    Hide,
    SendMachine,
    SendUnit,
    Summed,
    Withdrawn,
)
from pccl.types import Status

TID = bytes(16)
NBYTES = PARCEL_BYTES // 2  # two are a parcel
COUNT = 5
OPEN = m.Open(TID, 5.0, ())


def unit(layer: int = 0, nbytes: int = NBYTES, count: int = COUNT, need: Any = None) -> CodedUnit:
    at = np.arange(count, dtype=np.uint64) * np.uint64(nbytes)
    mask = np.ones(count, bool) if need is None else np.array(need, bool)
    return CodedUnit(0, layer, 0, at, nbytes, mask, "bf16-exp")


def receiver(layers: int = 1, **options: Any) -> ReceiveMachine:
    machine = ReceiveMachine(TID, 10.0, lambda _: [unit(layer, **options) for layer in range(layers)])
    machine.handle(OPEN, 0.0)
    return machine


def sender(layers: int = 1, nbytes: int = NBYTES) -> SendMachine:
    need = np.ones(COUNT, bool)
    made = SendMachine(OPEN, [SendUnit(0, at, need, nbytes, "bf16-exp") for at in range(layers)], 0.0, 10.0)
    made.begin()
    return made


def coded(number: int, parts: Any, nbytes: int = 1000, layer: int = 0, digests: bytes | None = None) -> m.Coded:
    sums = np.array(parts, "<u8").tobytes() if digests is None else digests
    return m.Coded(TID, 0, layer, number, nbytes, 0, 0, packed(np.array(parts)), sums)


def kinds(effects: list[Any]) -> list[str]:
    return [type(e.message).__name__ if isinstance(e, Say) else type(e).__name__ for e in effects]


def positions(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


def land(machine: ReceiveMachine, token: int) -> Decode:
    ask = machine.take(ahead=False)
    assert ask is not None
    machine.posted(ask, token)
    (effect,) = machine.handle(AskEnded(ask, Status.OK), 0.2)
    assert isinstance(effect, Decode)
    return effect


def test_parcels_are_fetched_decoded_and_taken_and_the_last_one_commits() -> None:
    machine = receiver()
    assert machine.take(ahead=False) is None and machine.take(ahead=True) is None
    machine.handle(coded(7, [0, 1]), 0.1)
    assert machine.take(ahead=True) is None
    first = land(machine, 1)
    assert first.ask.nbytes == machine.held_bytes == machine.wire_bytes == 1000 and machine.flowing_bytes == 0
    assert machine.landed_bytes == 2 * NBYTES and machine.left_bytes == 3 * NBYTES * 1000 // (2 * NBYTES)
    (taken,) = machine.handle(Decoded(first.ask, True), 0.3)
    assert taken.message == m.Taken(TID, 7) and machine.held_bytes == 0
    machine.handle(m.Coded(TID, 0, 0, 9, 1000, 2, 2, b"", bytes(16)), 0.3)
    machine.handle(coded(8, [4]), 0.3)
    assert kinds(machine.handle(m.Finish(TID, b"meta"), 0.3)) == []
    two, three = land(machine, 2), land(machine, 3)
    assert kinds(machine.handle(Decoded(three.ask, True), 0.4)) == ["Taken"]
    assert kinds(machine.handle(Decoded(two.ask, True), 0.4)) == ["Taken", "Landed", "Committed", "Over"]
    assert machine.state is State.COMMITTED


@pytest.mark.parametrize(("wrong", "cause"), [("", "checksum"), ("it is none", "protocol")])
def test_a_bad_parcel_is_fetched_once_more_and_then_fails(wrong: str, cause: str) -> None:
    machine = receiver()
    machine.handle(coded(1, [0, 1]), 0.1)
    assert machine.handle(Decoded(land(machine, 1).ask, False, wrong), 0.2) == []
    effects = machine.handle(Decoded(land(machine, 2).ask, False, wrong), 0.3)
    assert kinds(effects) == ["End", "Over"] and effects[0].message.cause == cause


def test_a_parcel_that_was_not_fetched_is_asked_for_again() -> None:
    machine = receiver()
    machine.handle(coded(1, [0, 1]), 0.1)
    ask = machine.take(ahead=False)
    assert ask is not None and ask.parcel is not None
    machine.posted(ask, 1)
    machine.handle(AskEnded(ask, Status.ECANCELLED), 0.2)
    again = machine.take(ahead=False)
    assert again is not None and again.parcel is ask.parcel


def test_the_blocks_are_not_free_before_the_last_decoding_has_ended() -> None:
    machine = receiver()
    machine.handle(coded(1, [0, 1]), 0.1)
    decode = land(machine, 1)
    assert kinds(machine.handle(Stop(End(State.ABORTED, "user"), True), 0.2)) == ["End"] and not machine.over
    assert kinds(machine.handle(Decoded(decode.ask, False), 0.3)) == ["Over"] and machine.over


@pytest.mark.parametrize(
    "message",
    [
        coded(1, [0, 1, 2]),  # more than a parcel
        coded(1, []),
        coded(1, [0, 0]),
        coded(1, [5]),
        coded(1, [3]),  # not needed
        coded(1, [4]),  # came already
        coded(1, [0], layer=1),
        coded(1, [0], nbytes=0),
        coded(1, [0], nbytes=bound(NBYTES) + 1),
        coded(1, [0], digests=bytes(16)),
        m.Coded(TID, 0, 0, 1, 10, 4, 2, b"", bytes(16)),
        m.Coded(TID, 0, 0, 1, 10, 0, 1, bytes(5), bytes(8)),
        m.Ready(TID, 0, 0, b""),
        m.Sums(TID, 0, 0, 0, 1, b"", bytes(8)),
    ],
)
def test_parcels_that_cannot_be(message: m.Message) -> None:
    machine = receiver(need=[1, 1, 1, 0, 1])
    machine.handle(coded(9, [4]), 0.0)
    effects = machine.handle(message, 0.1)
    assert kinds(effects) == ["End", "Over"] and effects[1].end.cause == "protocol"


def test_a_parcel_of_what_travels_raw_and_pieces_that_cannot_be_divided() -> None:
    with pytest.raises(ProtocolError, match="cannot travel"):
        unit(nbytes=(1 << 32) - 5)  # a prime
    assert parts_per_parcel(PARCEL_BYTES) == 1 and parts_per_parcel(1) == 4096


def test_a_send_says_finish_behind_its_last_parcel_and_frees_what_was_taken() -> None:
    machine = sender()
    (one,) = machine.units
    assert machine.next_parcel() is None
    assert machine.handle(Announce(one, positions(4, 0, 2)), 0.1) == []
    first = machine.next_parcel()
    assert first is not None and first.parts.tolist() == [4, 0]
    machine.handle(Announce(one, positions(1, 3)), 0.1)
    assert machine.handle(FinishNow(b"x"), 0.1) == [] and machine.state is State.FINISHING
    (said,) = machine.handle(Encoded(first, 500, np.array([7, 8], np.uint64)), 0.2)
    assert said.message == m.Coded(TID, 0, 0, 1, 500, 4, 2, packed(positions(4, 0)), np.array([7, 8], "<u8").tobytes())
    second, third = machine.next_parcel(), machine.next_parcel()
    assert second is not None and third is not None and machine.next_parcel() is None
    assert [second.parts.tolist(), third.parts.tolist()] == [[2], [1, 3]]
    assert kinds(machine.handle(Encoded(second, 5, np.zeros(1, np.uint64)), 0.2)) == ["Coded"]
    assert kinds(machine.handle(Encoded(third, 5, np.zeros(2, np.uint64)), 0.2)) == ["Coded", "Finish"]
    assert machine.handle(m.Taken(TID, 2), 0.3) == [Free(2)]
    effects = machine.handle(m.Taken(TID, 2), 0.3)
    assert kinds(effects) == ["End", "Hide"] and effects[0].message.cause == "protocol"


def test_what_is_announced_again_is_compared_and_not_said_again() -> None:
    machine = sender()
    (one,) = machine.units
    machine.handle(Announce(one, positions(0, 1)), 0.1)
    parcel = machine.next_parcel()
    assert parcel is not None
    early = machine.handle(Announce(one, positions(0, 1)), 0.1)
    assert kinds(early) == ["Digest"]
    assert machine.handle(Summed(one, positions(0, 1), np.array([3, 3], np.uint64)), 0.1) == []  # before it is encoded
    machine.handle(Encoded(parcel, 5, np.array([1, 2], np.uint64)), 0.2)
    (again,) = machine.handle(Announce(one, positions(0, 1)), 0.2)
    assert isinstance(again, Digest)
    assert machine.handle(Summed(one, positions(0, 1), np.array([1, 2], np.uint64)), 0.2) == []
    machine.handle(Announce(one, positions(1)), 0.2)
    assert kinds(machine.handle(Summed(one, positions(1), np.array([3], np.uint64)), 0.2)) == ["End", "Hide"]


def test_a_send_that_is_stopped_waits_for_what_is_being_encoded() -> None:
    machine = sender()
    machine.handle(Announce(machine.units[0], positions(0, 1, 2, 3, 4)), 0.1)
    parcel = machine.next_parcel()
    assert parcel is not None
    machine.handle(Stop(End(State.ABORTED, "x"), True), 0.1)
    assert machine.next_parcel() is None
    assert machine.handle(Withdrawn(), 0.2) == [] and not machine.over
    assert kinds(machine.handle(Encoded(parcel, 5, np.zeros(2, np.uint64)), 0.3)) == ["Over"]


@given(st.integers(1, 3 * PARCEL_BYTES), st.lists(st.integers(0, 255), min_size=0, max_size=12), st.binary(max_size=64))
def test_whatever_a_parcel_says_it_is_taken_or_a_protocol_error(nbytes: int, parts: list[int], digests: bytes) -> None:
    machine = receiver()
    effects = machine.handle(coded(1, parts, nbytes, digests=digests), 0.1)
    if effects:
        assert kinds(effects) == ["End", "Over"] and effects[1].end.cause == "protocol"
    else:
        ask = machine.take(ahead=False)
        assert ask is not None and ask.nbytes == nbytes <= bound(ask.plain_bytes) and len(digests) == 8 * len(parts)


class Simulated:
    """Both machines, and what is between them: mail in order, all else in any. Now and then a parcel is bad, once."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.now = 0.0
        self.d = ReceiveMachine(TID, 10.0, lambda _: [unit(layer) for layer in range(3)])
        need = np.ones(COUNT, bool)
        self.p = SendMachine(OPEN, [SendUnit(0, at, need, NBYTES, "bf16-exp") for at in range(3)], 0.0, 10.0)
        self.to_d: list[m.Message] = []
        self.to_p: list[m.Message] = []
        self.steps: list[Any] = []
        self.ends: dict[str, End] = {}
        self.served: set[int] = set()
        self.bad: set[int] = set()
        self.token = 0
        self.run("p", self.p.begin())

    def run(self, side: str, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Say):
                (self.to_d if side == "p" else self.to_p).append(effect.message)
            elif isinstance(effect, Over):
                assert side not in self.ends, "one end on each side"
                self.ends[side] = effect.end
            elif isinstance(effect, Decode):
                number = effect.ask.parcel.number  # type: ignore[union-attr]
                good = number in self.bad or self.chance.random() < 0.8
                if not good:
                    self.bad.add(number)
                self.steps.append(lambda e=effect, g=good: self.tell("d", Decoded(e.ask, g)))
            elif isinstance(effect, Drop):
                for token in effect.tokens:
                    ask = self.d.asks[token]
                    self.steps.append(lambda ask=ask: self.end_ask(ask, Status.ECANCELLED))
            elif isinstance(effect, Free):
                self.served.remove(effect.number)
            elif isinstance(effect, Hide):
                self.served.clear()
                self.steps.append(lambda: self.tell("p", Withdrawn()))
            else:
                assert isinstance(effect, Landed)

    def tell(self, side: str, event: Any) -> None:
        self.run(side, (self.d if side == "d" else self.p).handle(event, self.now))

    def end_ask(self, ask: Any, status: int) -> None:
        if ask.token in self.d.asks:
            self.tell("d", AskEnded(ask, status))

    def fetched(self, ask: Any) -> None:
        self.end_ask(ask, Status.OK if ask.parcel.number in self.served else Status.EGONE)

    def mail(self, side: str) -> None:
        message = (self.to_d if side == "d" else self.to_p).pop(0)
        is_end = isinstance(message, m.End)
        self.tell(side, Stop(End(State(message.state), message.cause), False) if is_end else message)

    def ask(self) -> None:
        ask = self.d.take(False)
        if ask is not None:
            self.token += 1
            self.d.posted(ask, self.token)

    def encode(self) -> None:
        parcel = self.p.next_parcel()
        if parcel is not None:
            self.steps.append(lambda: self.encoded(parcel))

    def encoded(self, parcel: Encode) -> None:
        if self.p.end is None:
            self.served.add(parcel.number)
        self.tell("p", Encoded(parcel, 100, parcel.parts.astype(np.uint64)))

    def possible(self) -> list[Any]:
        found = [lambda: self.mail("d")] * bool(self.to_d) + [lambda: self.mail("p")] * bool(self.to_p)
        found += [lambda at=at: self.steps.pop(at)() for at in range(len(self.steps))]
        found += [lambda ask=ask: self.fetched(ask) for ask in self.d.asks.values()]
        return [*found, self.ask, self.encode]


@pytest.mark.parametrize("seed", range(60))
def test_both_sides_end_once_and_alike_whatever_happens_in_which_order(seed: int) -> None:
    chance = random.Random(seed)
    both = Simulated(chance)
    layers = chance.sample(range(3), 3)
    script: list[Any] = [
        *(lambda at=at: both.tell("p", Announce(both.p.units[at], positions(3, 1, 2, 0, 4))) for at in layers),
        lambda: both.tell("p", FinishNow(b"m")),
    ]
    walk(both, chance, script, 6000)
    assert both.d.flowing_bytes == both.d.held_bytes == 0 and not both.d.asks and not both.served
