"""frozen.py - what a peer's Frozen says of ops: which are pending, which called, which over. Decides nothing."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

from pccl.messages import Frozen, OpRef, Pending
from pccl.types import Lanes, OpName


@dataclass(slots=True, frozen=True)
class Report:
    """What one survivor had at the moment it froze."""

    boundary: int
    lanes: Lanes
    pending: Mapping[OpName, Pending]
    _known: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_known", tuple(sorted(self.lanes)))

    def called(self, op: OpName) -> bool:
        """It has called the op, or forgotten what it called then: nobody has ops of so long ago."""
        if op.boundary > self.boundary:
            return False
        place = bisect_right(self._known, op.boundary)
        return not place or op.seq < self.lanes[self._known[place - 1]].get(op.lane, 0)

    def names(self, op: OpName) -> bool:
        """It says how far the op is. An op that the peer has called since is one that it does not name."""
        return op in self.pending or self.called(op)

    def over(self, op: OpName) -> bool:
        """It has called the op, and the op is not pending: it ended here."""
        return op not in self.pending and self.called(op)

    def done(self, op: OpName) -> bool:
        """Finished or over."""
        pending = self.pending.get(op)
        return pending.finished if pending is not None else self.over(op)


def name_of(op: OpRef) -> OpName:
    """The op's name."""
    return OpName(op.boundary, op.lane, op.seq)


def report_of(frozen: Frozen) -> Report:
    """What a Frozen says."""
    return Report(frozen.boundary, frozen.lanes, {name_of(entry.op): entry for entry in frozen.pending})
