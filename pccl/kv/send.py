"""send.py - the sending side of one transfer, as a table: streaming, finishing, ending, over. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from pccl.errors import ArgumentError
from pccl.kv import messages as m
from pccl.kv.binding import packed, positions_of
from pccl.kv.ends import End, State
from pccl.kv.machine import Machine, Stop, Tick
from pccl.kv.memory import Ids, Numbers
from pccl.kv.parcel import parts_per_parcel
from pccl.kv.unit import Mask, split_of
from pccl.table import row

__all__ = [
    "Announce",
    "Digest",
    "Encode",
    "Encoded",
    "Expose",
    "FinishNow",
    "Free",
    "Hide",
    "SendMachine",
    "SendUnit",
    "Summed",
    "Withdrawn",
]

#: So long after the receiver's deadline its last word may still come.
GRACE_S = 0.5
LEASE_S = 30.0
#: So much is digested in one go, and told in one message, which takes some hundred microseconds on either side: no
#: more digests than one slot of mail holds.
HASH_BYTES, SUMS = 64 << 20, 1000


class SendUnit:
    """One layer of one group, by the receiver's numbers. `need`: positions that are to be sent; `codec`: by which.
    `known`, `sums`: the digests of every position's parts.
    """

    def __init__(self, group: int, layer: int, need: Mask, nbytes: int, codec: str = "raw") -> None:
        self.group, self.layer, self.need, self.codec = group, layer, need, codec
        self.split = split_of(nbytes)
        self.part_bytes = nbytes // self.split
        self.parcel = parts_per_parcel(self.part_bytes)
        self.batch = max(1, min(HASH_BYTES // nbytes, SUMS // self.split))  # positions that are digested in one go
        self.ready = np.zeros(need.size, bool)
        self.known = np.zeros((need.size, self.split), bool)
        self.sums = np.zeros((need.size, self.split), np.uint64)


@dataclass(slots=True, frozen=True)
class Announce:
    """The user says: these positions hold what they are to hold."""

    unit: SendUnit
    positions: Ids


@dataclass(slots=True, frozen=True)
class Summed:
    """The digests that were asked for, of all parts."""

    unit: SendUnit
    positions: Ids
    sums: Numbers


@dataclass(slots=True, frozen=True)
class Encode:
    """What `next_parcel` gives: to be encoded; Encoded follows exactly once. `parts`: of all positions."""

    unit: SendUnit
    number: int
    parts: Ids


@dataclass(slots=True, frozen=True)
class Encoded:
    """It is there, in so many bytes, and can be read; the digests of what its parts are decoded to."""

    parcel: Encode
    nbytes: int
    sums: Numbers


@dataclass(slots=True, frozen=True)
class Free:
    """Effect: a parcel is not read any more."""

    number: int


@dataclass(slots=True, frozen=True)
class FinishNow:
    """The user has announced everything."""

    meta: bytes


@dataclass(slots=True, frozen=True)
class Withdrawn:
    """Nothing of it is read any more."""


@dataclass(slots=True, frozen=True)
class Expose:
    """Effect: these may be fetched from now on."""

    unit: SendUnit
    positions: Ids


@dataclass(slots=True, frozen=True)
class Digest:
    """Effect: take their digests; Summed follows exactly once."""

    unit: SendUnit
    positions: Ids


@dataclass(slots=True, frozen=True)
class Hide:
    """Effect: withdraw everything; Withdrawn follows."""


class SendMachine(Machine):
    """`open_message` is said first. `lease_s`: without a word from the receiver it ends after that."""

    def __init__(
        self, open_message: m.Open, units: list[SendUnit], now: float, deadline_at: float, lease_s: float = LEASE_S
    ) -> None:
        super().__init__(open_message.transfer, State.STREAMING, deadline_at + GRACE_S)
        self.units = units
        self.lease_s = lease_s
        self.lease_until = now + lease_s
        self._meta: bytes | None = None
        self._digests = 0  # under way, or parcels
        self._hidden = False
        self._to_encode: deque[tuple[SendUnit, Ids]] = deque()
        self._numbers = 0
        self._offered: set[int] = set()  # parcels
        self._say(open_message)

    def deadline(self) -> float:
        """When Tick is due."""
        if self.state not in (State.STREAMING, State.FINISHING):
            return float("inf")
        return min(self.deadline_at, self.lease_until)

    def next_parcel(self) -> Encode | None:
        """To be encoded next, when there is room for it."""
        if not self._to_encode:
            return None
        unit, parts = self._to_encode.popleft()
        self._numbers += 1
        self._digests += 1
        return Encode(unit, self._numbers, parts)

    # -- rows --

    def _announce(self, event: Announce) -> None:
        """makes new positions readable, or has them encoded; says so, takes all digests"""
        unit, positions = event.unit, event.positions[event.unit.need[event.positions]]
        if not positions.size:
            return
        new = positions[~unit.ready[positions]]
        if unit.codec != "raw":
            positions = positions[unit.ready[positions]]
            unit.ready[new] = True
            parts = (new[:, None] * unit.split + np.arange(unit.split)).ravel()
            self._to_encode += ((unit, parts[at : at + unit.parcel]) for at in range(0, parts.size, unit.parcel))
        elif new.size:
            unit.ready[new] = True
            self._effects.append(Expose(unit, new))
            is_all = new.size == np.count_nonzero(unit.need)
            self._say(m.Ready(self.transfer, unit.group, unit.layer, b"" if is_all else packed(new)))
        for at in range(0, positions.size, unit.batch):
            self._digests += 1
            self._effects.append(Digest(unit, positions[at : at + unit.batch]))

    def _summed(self, event: Summed) -> None:
        """says digests that are new; one that has changed fails it; Finish behind the last"""
        self._digests -= 1
        unit, positions = event.unit, event.positions
        sums = event.sums.reshape(-1, unit.split)
        changed = positions[(unit.known[positions] & (unit.sums[positions] != sums)).any(axis=1)]
        if changed.size:
            text = f"position {int(changed[0])} of layer {unit.layer} was announced again with other bytes"
            self._stop(Stop(End(State.FAILED, "protocol", text), True))
            return
        old = unit.known[positions].all(axis=1)
        new, sums = positions[~old], sums[~old]
        if new.size and unit.codec == "raw":  # of others when they are encoded
            unit.sums[new], unit.known[new] = sums, True
            first, data = int(new[0]), sums.astype("<u8").tobytes()
            in_a_row = bool((new == np.arange(first, first + new.size)).all())
            ids = b"" if in_a_row else packed(new)
            self._say(m.Sums(self.transfer, unit.group, unit.layer, first, new.size, ids, data))
        self._look()

    def _summed_late(self, _: Summed | Encoded) -> None:
        """over when it was the last and nothing is read any more"""
        self._digests -= 1
        self._leave()

    def _encoded(self, event: Encoded) -> None:
        """says that a parcel is there, with its digests; Finish behind the last"""
        self._digests -= 1
        unit, parts, number = event.parcel.unit, event.parcel.parts, event.parcel.number
        unit.sums.reshape(-1)[parts], unit.known.reshape(-1)[parts] = event.sums, True
        self._offered.add(number)
        in_a_row = bool((parts == np.arange(parts[0], parts[0] + parts.size)).all())
        told = (int(parts[0]), int(parts.size), b"" if in_a_row else packed(parts), event.sums.astype("<u8").tobytes())
        self._say(m.Coded(self.transfer, unit.group, unit.layer, number, event.nbytes, *told))
        self._look()

    def _taken(self, event: m.Taken) -> None:
        """frees a parcel; one that is none fails it"""
        if event.number not in self._offered:
            self._stop(Stop(End(State.FAILED, "protocol", f"there is no parcel {event.number} to be taken"), True))
            return
        self._offered.discard(event.number)
        self._effects.append(Free(event.number))

    def _finish(self, event: FinishNow) -> None:
        """fails if something was never ready; else says Finish behind the last digest"""
        missing = next((unit for unit in self.units if (unit.need & ~unit.ready).any()), None)
        if missing is not None:
            at = int(positions_of(missing.need & ~missing.ready)[0])
            text = f"position {at} of layer {missing.layer} of group {missing.group} was never ready"
            self._stop(Stop(End(State.FAILED, "incomplete", text), True))
            return
        self._meta = event.meta
        self.state = State.FINISHING
        self._look()

    def _look(self) -> None:
        if self._meta is not None and not self._digests and not self._to_encode:
            self._say(m.Finish(self.transfer, self._meta))
            self._meta = None

    def _beat(self, _: m.Beat) -> None:
        """extends the lease"""
        self.lease_until = self.now + self.lease_s

    def _committed(self, _: m.Committed) -> None:
        """withdraws everything; over when nothing is read any more"""
        self._stop(Stop(End(State.COMMITTED), False))

    def _early(self, _: m.Committed) -> None:
        """fails it"""
        self._stop(Stop(End(State.FAILED, "protocol", "it was committed before it was finished"), True))

    def _tick(self, _: Tick) -> None:
        """expires at the deadline, or when the lease is over"""
        if self.now >= self.deadline_at:
            self._stop(Stop(End(State.EXPIRED, "deadline", "the receiver has not committed in time"), True))
        elif self.now >= self.lease_until:
            self._stop(Stop(End(State.EXPIRED, "lease", f"the receiver is silent for {self.lease_s:g} s"), True))

    def _stop(self, event: Stop) -> None:
        """withdraws everything; over when nothing is read any more"""
        self._decide(event.end, event.say)
        self._to_encode.clear()
        self._effects.append(Hide())

    def _withdrawn(self, _: Withdrawn) -> None:
        """over when no digests are being taken"""
        self._hidden = True
        self._leave()

    def _leave(self) -> None:
        if self._hidden and not self._digests:
            self._close()


def check_meta(meta: bytes) -> bytes:
    """What travels with Finish. ArgumentError if it is too long."""
    if len(meta) > m.META_BYTES_MAX:
        raise ArgumentError(f"meta has {len(meta)} bytes, more than {m.META_BYTES_MAX}")
    return bytes(meta)


_OVER = (State.COMMITTED, State.ABORTED, State.EXPIRED, State.FAILED)
_LIVE = (State.STREAMING, State.FINISHING)
_S = SendMachine
SendMachine.table = {
    **{(state, Announce): row(_S._announce) for state in _LIVE},
    **{(state, Summed): row(_S._summed, State.ENDING) for state in _LIVE},
    **{(state, Encoded): row(_S._encoded, State.ENDING) for state in _LIVE},
    **{(state, m.Taken): row(_S._taken, State.ENDING) for state in _LIVE},
    **{(State.ENDING, event): row(_S._summed_late, *_OVER) for event in (Summed, Encoded)},
    (State.STREAMING, FinishNow): row(_S._finish, State.FINISHING, State.ENDING),
    (State.STREAMING, m.Committed): row(_S._early, State.ENDING),
    (State.FINISHING, m.Committed): row(_S._committed, State.ENDING),
    **{(state, m.Beat): row(_S._beat) for state in _LIVE},
    **{(state, Stop): row(_S._stop, State.ENDING) for state in _LIVE},
    **{(state, Tick): row(_S._tick, State.ENDING) for state in _LIVE},
    (State.ENDING, Withdrawn): row(_S._withdrawn, *_OVER),
}
