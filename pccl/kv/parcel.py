"""parcel.py - groups that do not travel raw: parcels, which are parts of one layer, encoded together. Pure.

A parcel has a number, of its transfer, and lies at the sender in memory of its own from when it is announced until the
receiver has taken it. It is good or bad as a whole.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from pccl.errors import ProtocolError
from pccl.kv import messages as m
from pccl.kv.binding import unpacked
from pccl.kv.memory import Ids, Numbers
from pccl.kv.unit import ASK_BYTES, RUNS_MAX, Ask, Mask, Unit

__all__ = ["CodedUnit", "Parcel", "bound", "parts_per_parcel"]

#: Of what is encoded together.
PARCEL_BYTES = ASK_BYTES


@dataclass(slots=True, frozen=True)
class Parcel:
    """`parts`: of its unit; `nbytes`: encoded."""

    number: int
    parts: Ids
    nbytes: int


def parts_per_parcel(part_bytes: int) -> int:
    """As many as are encoded together, at most."""
    return max(1, min(RUNS_MAX, PARCEL_BYTES // part_bytes))


def bound(nbytes: int) -> int:
    """What no codec makes more of so many bytes."""
    return nbytes + nbytes // 1024 + 64


class CodedUnit(Unit):
    """A Unit whose parts come in parcels, by a codec: what is asked for next is the next parcel."""

    def __init__(self, group: int, layer: int, here: int, target: Numbers, nbytes: int, need: Mask, codec: str) -> None:
        super().__init__(group, layer, 0, target, here, target, nbytes, need)
        if self.part_bytes > PARCEL_BYTES:
            raise ProtocolError(f"pieces of {nbytes} bytes, which are not divided, cannot travel by {codec!r}")
        self.codec = codec
        self._parcels: deque[Parcel] = deque()

    def announced(self, message: m.Coded) -> None:
        """A parcel can be read. Raises ProtocolError for one that cannot be."""
        parts = self._parts(message)
        wrong = parts[~self.need[parts] | self.known[parts]]
        if wrong.size:
            raise ProtocolError(f"part {int(wrong[0])} is not needed, or came in another parcel")
        plain = parts.size * self.part_bytes
        if not 1 <= parts.size <= parts_per_parcel(self.part_bytes) or not 1 <= message.nbytes <= bound(plain):
            raise ProtocolError(f"a parcel of {parts.size} parts of {self.part_bytes} in {message.nbytes} bytes")
        if len(message.digests) != 8 * parts.size:
            raise ProtocolError(f"{len(message.digests)} bytes of digests for {parts.size} parts")
        self.announce(parts)
        self.hear(parts, np.frombuffer(message.digests, "<u8").astype(np.uint64))
        self._parcels.append(Parcel(message.number, parts, message.nbytes))

    def next_ask(self, ahead: bool, nbytes: int = ASK_BYTES) -> Ask | None:
        """The next parcel; nothing ahead, for its size is not known before it is there."""
        if ahead or not self._parcels:
            return None
        parcel = self._parcels.popleft()
        self._asked[parcel.parts] = True
        self.unasked -= parcel.parts.size
        return Ask(self, parcel.parts, _NO_RUNS, parcel.nbytes, parcel.nbytes, parcel=parcel)

    def again(self, ask: Ask) -> None:
        """It brought nothing."""
        super().again(ask)
        assert ask.parcel is not None
        self._parcels.appendleft(ask.parcel)

    def decoded(self, ask: Ask, good: bool) -> bool:
        """What came of it; whether it was bad for the last time."""
        assert ask.parcel is not None
        hopeless = self.checked(ask.parts, np.full(ask.parts.size, good)) is not None
        if not good:
            self._parcels.appendleft(ask.parcel)
        return hopeless

    def _parts(self, message: m.Coded) -> Ids:
        count = self.need.size
        if not message.parts:
            if message.first + message.count > count:
                raise ProtocolError(f"part {message.first + message.count - 1} is none of the {count}")
            return np.arange(message.first, message.first + message.count, dtype=np.int64)
        parts = unpacked(message.parts, count)
        if np.unique(parts).size != parts.size:
            raise ProtocolError("a parcel has a part twice")
        return parts


_NO_RUNS: Numbers = np.empty((0, 3), np.uint64)
