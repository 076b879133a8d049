"""unit.py - one layer of one group of a transfer, as its receiver sees it: which pieces are ready, asked for, landed,
verified; and the next ask. Pure: arrays, no network, no clock.

A piece larger than an ask is moved in *parts*; parts that are neighbours on both sides are one run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pccl.kv.memory import Ids, Numbers

__all__ = ["ASK_BYTES", "Ask", "Unit"]

ASK_BYTES = 4 << 20
RUNS_MAX = 4096
TRIES = 2

Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(slots=True, eq=False)
class Ask:
    """One ask. `parts`: what it brings; `ready_bytes`: of those that are ready at the other side; `runs`: rows of
    (offset there, bytes, offset here)."""

    unit: Unit
    parts: Ids
    runs: Numbers
    nbytes: int
    ready_bytes: int
    token: int = 0


class Unit:
    """`source`, `target`: offsets of every position's piece in buffer `there` of the sender and `here` of ours."""

    def __init__(
        self, group: int, layer: int, there: int, source: Numbers, here: int, target: Numbers, nbytes: int, need: Mask
    ) -> None:
        count = need.size
        self.group, self.layer = group, layer
        self.there, self.here, self.nbytes = there, here, nbytes
        self.target = target
        self.need = need
        self.ready = np.zeros(count, bool)
        self.known = np.zeros(count, bool)  # its digest has come
        self.sums = np.zeros(count, np.uint64)
        self.verified = ~need
        self.tries = np.zeros(count, np.uint8)
        self.left = int(need.sum())  # pieces that are not verified
        self._source = source
        self._split = -(-nbytes // ASK_BYTES)
        self._asked = np.zeros(count * self._split, bool)
        self._missing = np.full(count, self._split, np.uint32)  # parts of each piece that have not landed
        self._checking = np.zeros(count, bool)
        self.unasked = self.left * self._split  # parts

    @property
    def part_bytes(self) -> int:
        """The most that a part has."""
        return min(self.nbytes, ASK_BYTES)

    def complete(self) -> bool:
        """Everything needed has been announced, with its digest."""
        return bool((self.known | ~self.need).all() and (self.ready | ~self.need).all())

    # -- what is said of it --

    def announce(self, positions: Ids) -> None:
        """They are ready."""
        self.ready[positions] = True

    def ready_bytes_of(self, ask: Ask) -> int:
        """Of what it asks for, how much is ready."""
        return int(self._sizes(ask.parts)[self.ready[ask.parts // self._split]].sum())

    def hear(self, positions: Ids, sums: Numbers) -> int | None:
        """Their digests; a position that had another one before, or None."""
        old = self.known[positions]
        wrong = positions[old & (self.sums[positions] != sums)]
        if wrong.size:
            return int(wrong[0])
        self.sums[positions] = sums
        self.known[positions] = True
        return None

    # -- asking --

    def next_ask(self, ahead: bool) -> Ask | None:
        """Of what is ready; `ahead`: of what is not."""
        ready = np.repeat(self.ready, self._split)
        mask = self._open() & (~ready if ahead else ready)
        parts = np.flatnonzero(mask)[: max(1, min(RUNS_MAX, ASK_BYTES // self.part_bytes))]
        if not parts.size:
            return None
        self._asked[parts] = True
        self.unasked -= parts.size
        sizes = self._sizes(parts)
        ask = Ask(self, parts, self._runs(parts, sizes), int(sizes.sum()), 0)
        ask.ready_bytes = self.ready_bytes_of(ask)
        return ask

    def again(self, ask: Ask) -> None:
        """It brought nothing."""
        self._asked[ask.parts] = False
        self.unasked += ask.parts.size

    def landed(self, ask: Ask) -> None:
        """All of it is there."""
        np.subtract.at(self._missing, ask.parts // self._split, 1)

    def to_check(self) -> Ids:
        """Positions to be verified now, each given once."""
        mask = (self._missing == 0) & self.known & ~self.verified & ~self._checking
        self._checking |= mask
        return np.flatnonzero(mask).astype(np.int64, copy=False)

    def checked(self, positions: Ids, good: Mask) -> int | None:
        """What their digests said: bad ones are fetched again; a position that was bad twice, or None."""
        self._checking[positions] = False
        self.verified[positions[good]] = True
        self.left -= int(good.sum())
        bad = positions[~good]
        self.tries[bad] += 1
        hopeless = bad[self.tries[bad] >= TRIES]
        if hopeless.size:
            return int(hopeless[0])
        self._missing[bad] = self._split
        self._asked.reshape(-1, self._split)[bad] = False
        self.unasked += bad.size * self._split
        return None

    def _open(self) -> Mask:
        return np.repeat(self.need & ~self.verified, self._split) & ~self._asked

    def _sizes(self, parts: Ids) -> Numbers:
        number = (parts % self._split).astype(np.uint64)
        left = np.uint64(self.nbytes) - number * np.uint64(ASK_BYTES)
        sizes: Numbers = np.minimum(left, np.uint64(ASK_BYTES))
        return sizes

    def _runs(self, parts: Ids, sizes: Numbers) -> Numbers:
        """Rows of (offset there, bytes, offset here), joined where they are neighbours on both sides."""
        at = parts // self._split
        into = (parts % self._split).astype(np.uint64) * np.uint64(ASK_BYTES)
        source, target = self._source[at] + into, self.target[at] + into
        joins = (source[1:] == source[:-1] + sizes[:-1]) & (target[1:] == target[:-1] + sizes[:-1])
        begins = np.flatnonzero(np.concatenate(([True], ~joins)))
        return np.stack([source[begins], np.add.reduceat(sizes, begins), target[begins]], axis=1)
