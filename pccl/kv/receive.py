"""receive.py - the receiving side of one transfer, as a table: reserved, streaming, ending, over. Pure.

What it wants to ask for is taken by `take`, when schedule.py says so; everything else goes by events.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pccl.errors import ProtocolError
from pccl.kv import messages as m
from pccl.kv.binding import positions_of, unpacked
from pccl.kv.ends import End, State
from pccl.kv.machine import Machine, Stop, Tick
from pccl.kv.memory import Ids
from pccl.kv.parcel import CodedUnit
from pccl.kv.unit import ASK_BYTES, Ask, Mask, Unit
from pccl.table import row
from pccl.types import Status

__all__ = ["AskEnded", "Check", "Checked", "Decode", "Decoded", "Drop", "Landed", "ReceiveMachine"]

#: So long a region that is gone may be explained by a message that is still on its way.
GONE_S = 1.0
#: Before what the other side was too busy for is asked for again.
BUSY_S = 0.05


@dataclass(slots=True, frozen=True)
class AskEnded:
    """Nothing is written for this ask any more."""

    ask: Ask
    status: int


@dataclass(slots=True, frozen=True)
class Checked:
    """What digests said."""

    unit: Unit
    parts: Ids
    good: Mask


@dataclass(slots=True, frozen=True)
class Check:
    """Effect: verify these; Checked follows exactly once."""

    unit: Unit
    parts: Ids


@dataclass(slots=True, frozen=True)
class Decode:
    """Effect: decode this parcel, verify that, and only then write it to the blocks; Decoded follows exactly once."""

    ask: Ask


@dataclass(slots=True, frozen=True)
class Decoded:
    """What came of it. `wrong`: why the data are no encoding of its parts; "": they are one."""

    ask: Ask
    good: bool
    wrong: str = ""


@dataclass(slots=True, frozen=True)
class Drop:
    """Effect: cancel the asks with these tokens; AskEnded follows for each."""

    tokens: tuple[int, ...]


@dataclass(slots=True, frozen=True)
class Landed:
    """Effect: a layer is whole and verified."""

    unit: Unit


class ReceiveMachine(Machine):
    """`build`: what an Open means for our blocks; raises ProtocolError."""

    def __init__(self, transfer: bytes, deadline_at: float, build: Callable[[m.Open], list[Unit]]) -> None:
        super().__init__(transfer, State.RESERVED, deadline_at)
        self.units: list[Unit] = []
        self.asks: dict[int, Ask] = {}
        self.meta = b""
        self.flowing_bytes = 0  # asked for, and ready
        self.held_bytes = 0  # of parcels that have come, and are not decoded
        self.landed_bytes = 0
        self.wire_bytes = 0  # that came for those
        self.needed_bytes = 0
        self.rate: Callable[[], float] = lambda: 0.0  # of the link, in bytes/s, to be told to the other side
        self.ask_bytes = ASK_BYTES  # of an ask
        self._build = build
        self._of: dict[tuple[int, int], Unit] = {}
        self._checks = 0
        self._finished = False
        self._gone_at = float("inf")
        self._busy_until = 0.0
        self._refused = False  # what was asked for last, for want of room
        self._behind = 0  # units before this one have nothing left to ask for

    def deadline(self) -> float:
        """When Tick is due."""
        if self.state not in (State.RESERVED, State.STREAMING):
            return float("inf")
        busy = self._busy_until if self._busy_until > self.now else float("inf")
        return min(self.deadline_at, self._gone_at, busy)

    # -- asking --

    def take(self, ahead: bool) -> Ask | None:
        """The next ask, of what is ready; `ahead`: of what is not. It must be posted, and told of by `posted`."""
        if self.state is not State.STREAMING or self._gone_at < float("inf") or self.now < self._busy_until:
            return None
        while self._behind < len(self.units) and not self.units[self._behind].unasked:
            self._behind += 1
        for unit in self.units[self._behind :]:
            ask = unit.next_ask(ahead, self.ask_bytes) if unit.unasked else None
            if ask is not None:
                self.flowing_bytes += ask.ready_bytes
                return ask
        return None

    def posted(self, ask: Ask, token: int) -> None:
        """It is on its way."""
        ask.token = token
        self.asks[token] = ask

    def waiting(self) -> tuple[int, int]:
        """(asks, their bytes) that wait for something to become ready."""
        sizes = [ask.nbytes - ask.ready_bytes for ask in self.asks.values() if ask.ready_bytes < ask.nbytes]
        return len(sizes), sum(sizes)

    @property
    def left_bytes(self) -> int:
        """That have to come yet, if what is coded gets smaller as it did so far."""
        left = self.needed_bytes - self.landed_bytes
        return left * self.wire_bytes // self.landed_bytes if self.landed_bytes else left

    # -- rows --

    def _opened(self, message: m.Open) -> None:
        """lays out what is to be fetched; one that cannot be fails it"""
        try:
            self.units = self._build(message)
        except ProtocolError as error:
            self._stop(Stop(End(State.FAILED, "protocol", error.message), True))
            return
        self._of = {(unit.group, unit.layer): unit for unit in self.units}
        self.needed_bytes = sum(unit.left_bytes for unit in self.units)
        self.state = State.STREAMING
        for unit in self.units:
            if not unit.left:
                self._effects.append(Landed(unit))

    def _unit_of(self, message: m.Ready | m.Sums | m.Coded) -> Unit:
        unit = self._of.get((message.group, message.layer))
        if unit is None:
            raise ProtocolError(f"there is no layer {message.layer} of group {message.group}")
        if isinstance(unit, CodedUnit) is not isinstance(message, m.Coded):
            raise ProtocolError(f"layer {message.layer} of group {message.group} travels by {unit.codec!r}")
        return unit

    def _named(self, message: m.Ready | m.Sums) -> tuple[Unit, Ids] | None:
        """The parts that it speaks of; None: of nothing, and that ends it."""
        try:
            unit = self._unit_of(message)
            needed = unit.need[:: unit.split]
            positions = _positions(message, needed)
            wrong = positions[~needed[positions]]
            if wrong.size:
                raise ProtocolError(f"position {int(wrong[0])} is none of those that are needed")
        except ProtocolError as error:
            self._stop(Stop(End(State.FAILED, "protocol", error.message), True))
            return None
        return unit, unit.parts_of(positions)

    def _ready(self, message: m.Ready) -> None:
        """these may be asked for; asks that waited for them flow"""
        named = self._named(message)
        if named is not None:
            unit, parts = named
            unit.announce(parts)
            self._recount(unit)

    def _recount(self, unit: Unit) -> None:
        """What of its asks flows now."""
        for ask in self.asks.values():
            if ask.unit is unit and ask.ready_bytes < ask.nbytes:
                before, ask.ready_bytes = ask.ready_bytes, unit.ready_bytes_of(ask)
                self.flowing_bytes += ask.ready_bytes - before

    def _sums(self, message: m.Sums) -> None:
        """verifies what has landed of them; a part with two digests fails it"""
        named = self._named(message)
        if named is None:
            return
        unit, parts = named
        if len(message.digests) != 8 * parts.size:
            text = f"{len(message.digests)} bytes of digests for {parts.size} parts"
            self._stop(Stop(End(State.FAILED, "protocol", text), True))
            return
        again = unit.hear(parts, np.frombuffer(message.digests, "<u8").astype(np.uint64))
        if again is not None:
            self._stop(Stop(End(State.FAILED, "protocol", f"part {again} was announced with two digests"), True))
            return
        self._check(unit)

    def _coded(self, message: m.Coded) -> None:
        """a parcel may be asked for; one that cannot be fails it"""
        try:
            unit = self._unit_of(message)
            assert isinstance(unit, CodedUnit)
            unit.announced(message)
        except ProtocolError as error:
            self._stop(Stop(End(State.FAILED, "protocol", error.message), True))

    def _finish(self, message: m.Finish) -> None:
        """commits if everything is verified, fails if something was never ready"""
        missing = next((unit for unit in self.units if not unit.complete()), None)
        if missing is not None:
            text = f"layer {missing.layer} of group {missing.group} was never ready"
            self._stop(Stop(End(State.FAILED, "incomplete", text), True))
            return
        self.meta = message.meta
        self._finished = True
        self._look()

    def _ask_ended(self, event: AskEnded) -> None:
        """verifies what landed; asks again for the rest; one whose peer is lost fails it"""
        ask = self._forget(event)
        if event.status == Status.OK:
            self._refused = False
            ask.unit.landed(ask)
            self.landed_bytes += ask.plain_bytes
            self.wire_bytes += ask.nbytes
            if ask.parcel is None:
                self._check(ask.unit)
            else:
                self._checks += 1
                self.held_bytes += ask.nbytes
                self._effects.append(Decode(ask))
            return
        ask.unit.again(ask)
        self._behind = 0
        if event.status == Status.EGONE:
            self._gone_at = min(self._gone_at, self.now + GONE_S)
        elif event.status == Status.ENOMEM:
            self._busy_until, self._refused = self.now + BUSY_S, True
        elif event.status != Status.ECANCELLED:
            cause = "closed" if event.status == Status.ECLOSED else "lost"
            self._stop(Stop(End(State.FAILED, cause, "the other peer cannot be reached any more"), True))

    def _ask_over(self, event: AskEnded) -> None:
        """over when it was the last"""
        self._forget(event)
        self._leave()

    def _forget(self, event: AskEnded) -> Ask:
        self.asks.pop(event.ask.token, None)
        self.flowing_bytes -= event.ask.ready_bytes
        return event.ask

    def _check(self, unit: Unit) -> None:
        parts = unit.to_check()
        if parts.size:
            self._checks += 1
            self._effects.append(Check(unit, parts))

    def _checked(self, event: Checked) -> None:
        """asks again for what is wrong; fails it the second time; commits when all is well"""
        self._checks -= 1
        bad = event.unit.checked(event.parts, event.good)
        self._behind = 0
        if bad is not None:
            text = f"part {bad} of layer {event.unit.layer} of group {event.unit.group} came wrong twice"
            self._stop(Stop(End(State.FAILED, "checksum", text), True))
            return
        if not event.unit.left:
            self._effects.append(Landed(event.unit))
        self._look()

    def _decoded(self, event: Decoded) -> None:
        """says that it was taken; asks again for what is wrong, fails it the second time; commits when all is well"""
        self._checks -= 1
        ask, unit = event.ask, event.ask.unit
        assert isinstance(unit, CodedUnit) and ask.parcel is not None
        self.held_bytes -= ask.nbytes
        hopeless = unit.decoded(ask, event.good)
        self._behind = 0
        if hopeless:
            text = event.wrong or f"a parcel of layer {unit.layer} of group {unit.group} came wrong twice"
            self._stop(Stop(End(State.FAILED, "protocol" if event.wrong else "checksum", text), True))
            return
        if event.good:
            self._say(m.Taken(self.transfer, ask.parcel.number))
            if not unit.left:
                self._effects.append(Landed(unit))
        self._look()

    def _check_over(self, _: Checked) -> None:
        """over when it was the last"""
        self._checks -= 1
        self._leave()

    def _decode_over(self, event: Decoded) -> None:
        """over when it was the last"""
        self._checks -= 1
        self.held_bytes -= event.ask.nbytes
        self._leave()

    def _look(self) -> None:
        if self._finished and not any(unit.left for unit in self.units):
            self._say(m.Committed(self.transfer, self.rate()))
            self._decide(End(State.COMMITTED), False)
            self._leave()

    def _tick(self, _: Tick) -> None:
        """expires at the deadline, or fails for want of room; fails if what was gone was not explained"""
        if self.now >= self.deadline_at and self._refused:
            self._stop(Stop(End(State.FAILED, "no_space", "one of the two had no room for what was asked for"), True))
        elif self.now >= self.deadline_at:
            what = "nobody has opened it" if self.state is State.RESERVED else "not everything came in time"
            self._stop(Stop(End(State.EXPIRED, "deadline", what), True))
        elif self.now >= self._gone_at:
            self._stop(Stop(End(State.FAILED, "gone", "what was served is not there any more"), True))

    def _stop(self, event: Stop) -> None:
        """cancels all asks; over when the last has ended"""
        self._decide(event.end, event.say)
        if self.asks:
            self._effects.append(Drop(tuple(self.asks)))
        self._leave()

    def _leave(self) -> None:
        if not self.asks and not self._checks:
            self._close()


def _positions(message: m.Ready | m.Sums, needed: Mask) -> Ids:
    if message.positions:
        return unpacked(message.positions, needed.size)
    if isinstance(message, m.Ready):
        return positions_of(needed)
    if message.first + message.count > needed.size:
        raise ProtocolError(f"position {message.first + message.count - 1} is none of the {needed.size}")
    return np.arange(message.first, message.first + message.count, dtype=np.int64)


_OVER = (State.COMMITTED, State.ABORTED, State.EXPIRED, State.FAILED)
_ENDS = (State.ENDING, *_OVER)
_R = ReceiveMachine
ReceiveMachine.table = {
    (State.RESERVED, m.Open): row(_R._opened, State.STREAMING, *_ENDS),
    (State.STREAMING, m.Ready): row(_R._ready, *_ENDS),
    (State.STREAMING, m.Sums): row(_R._sums, *_ENDS),
    (State.STREAMING, m.Coded): row(_R._coded, *_ENDS),
    (State.STREAMING, m.Finish): row(_R._finish, *_ENDS),
    (State.STREAMING, AskEnded): row(_R._ask_ended, *_ENDS),
    (State.STREAMING, Checked): row(_R._checked, *_ENDS),
    (State.STREAMING, Decoded): row(_R._decoded, *_ENDS),
    (State.ENDING, AskEnded): row(_R._ask_over, *_OVER),
    (State.ENDING, Checked): row(_R._check_over, *_OVER),
    (State.ENDING, Decoded): row(_R._decode_over, *_OVER),
    **{(state, Stop): row(_R._stop, *_ENDS) for state in (State.RESERVED, State.STREAMING)},
    **{(state, Tick): row(_R._tick, *_ENDS) for state in (State.RESERVED, State.STREAMING)},
}
