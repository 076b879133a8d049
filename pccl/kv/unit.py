"""unit.py - one layer of one group of a transfer, as its receiver sees it: which parts are ready, asked for, landed,
verified; and the next ask. Pure: arrays, no network, no clock.

A piece that is larger than an ask is moved in equal *parts*, each with a digest of its own; parts that are neighbours
on both sides are one run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pccl.kv.memory import Array, Ids, Numbers
from pccl.types import PartDigests

if TYPE_CHECKING:
    from pccl.kv.parcel import Parcel

__all__ = ["ASK_BYTES", "Ask", "Mask", "Unit", "split_of", "spread"]

ASK_BYTES = 4 << 20
RUNS_MAX = 4096
SPLIT_MAX = 4096
TRIES = 2
#: The engine takes digests of parts of at most so many bytes, whole words of eight.
ENGINE_BYTES_MAX = 16 << 20

Mask = np.ndarray[Any, np.dtype[np.bool_]]


def split_of(nbytes: int) -> int:
    """How many equal parts a piece of so many bytes has: the fewest of an ask's size at most, if there are such."""
    least = -(-nbytes // ASK_BYTES)
    return next((count for count in range(least, SPLIT_MAX + 1) if nbytes % count == 0), 1)


def spread(offsets: Numbers, nbytes: int) -> tuple[Numbers, int]:
    """The parts of pieces at these offsets, and their size."""
    split = split_of(nbytes)
    size = nbytes // split
    return (offsets[:, None] + np.arange(split, dtype=np.uint64) * np.uint64(size)).ravel(), size


@dataclass(slots=True, eq=False)
class Ask:
    """One ask. `nbytes`: that travel; `ready_bytes`: of those that are ready at the other side; `runs`: rows of (offset
    there, bytes, offset here). `digests`: what the engine is to find out of the parts as they come. Of a `parcel`: no
    runs and no such digests, it comes into `data`.
    """

    unit: Unit
    parts: Ids
    runs: Numbers
    nbytes: int
    ready_bytes: int
    token: int = 0
    parcel: Parcel | None = None
    data: Array | None = None
    digests: PartDigests | None = None

    @property
    def plain_bytes(self) -> int:
        """Of the blocks."""
        return int(self.parts.size) * self.unit.part_bytes


class Unit:
    """`source`, `target`: offsets of every position's piece in buffer `there` of the sender and `here` of ours; `need`:
    which positions are to be fetched. `codec`: by which they travel.
    """

    codec = "raw"

    def __init__(
        self, group: int, layer: int, there: int, source: Numbers, here: int, target: Numbers, nbytes: int, need: Mask
    ) -> None:
        self.group, self.layer = group, layer
        self.there, self.here = there, here
        self.positions = need.size
        self.split = split_of(nbytes)
        self._source, self.part_bytes = spread(source, nbytes)
        self.target, _ = spread(target, nbytes)
        count = self.target.size
        self.need: Mask = np.repeat(need, self.split)
        self.ready = np.zeros(count, bool)
        self.known = np.zeros(count, bool)  # its digest has come
        self.sums = np.zeros(count, np.uint64)
        self.verified = ~self.need
        self.tries = np.zeros(count, np.uint8)
        self.digested = self.part_bytes % 8 == 0 and self.part_bytes <= ENGINE_BYTES_MAX  # by the engine, as they come
        self.found = np.zeros(count if self.digested else 0, np.uint64)
        self.left = self.unasked = int(self.need.sum())  # not verified; not asked for
        self._asked = np.zeros(count, bool)
        self._landed = np.zeros(count, bool)
        self._checking = np.zeros(count, bool)

    def parts_of(self, positions: Ids) -> Ids:
        """All parts of these positions."""
        found: Ids = (positions[:, None] * self.split + np.arange(self.split)).ravel()
        return found

    def complete(self) -> bool:
        """Everything needed has been announced, with its digest."""
        return bool((self.known & self.ready | ~self.need).all())

    @property
    def left_bytes(self) -> int:
        """Of what is not verified."""
        return self.left * self.part_bytes

    # -- what is said of it --

    def announce(self, parts: Ids) -> None:
        """They are ready."""
        self.ready[parts] = True

    def ready_bytes_of(self, ask: Ask) -> int:
        """Of what it asks for, how much is ready."""
        return int(self.ready[ask.parts].sum()) * self.part_bytes

    def hear(self, parts: Ids, sums: Numbers) -> int | None:
        """Their digests; a part that had another one before, or None."""
        wrong = parts[self.known[parts] & (self.sums[parts] != sums)]
        if wrong.size:
            return int(wrong[0])
        self.sums[parts], self.known[parts] = sums, True
        return None

    # -- asking --

    def next_ask(self, ahead: bool, nbytes: int = ASK_BYTES) -> Ask | None:
        """Of what is ready, about so much; `ahead`: of what is not."""
        mask = self.need & ~self.verified & ~self._asked & (~self.ready if ahead else self.ready)
        parts = np.flatnonzero(mask)[: max(1, min(RUNS_MAX, nbytes // self.part_bytes))]
        if not parts.size:
            return None
        self._asked[parts] = True
        self.unasked -= parts.size
        found = parts.size * self.part_bytes
        return Ask(self, parts, self._runs(parts), found, 0 if ahead else found)

    def again(self, ask: Ask) -> None:
        """It brought nothing."""
        self._asked[ask.parts] = False
        self.unasked += ask.parts.size

    def digest(self, ask: Ask, seeds: Numbers) -> None:
        """Has the engine take digests of what comes for it, if it can. What came wrong comes with checksums then: they
        find what is wrong frame by frame.
        """
        if self.digested:
            is_new = not self.tries[ask.parts].any()
            ask.digests = PartDigests(self.part_bytes, seeds, np.zeros(ask.parts.size, np.uint64), is_new)

    def landed(self, ask: Ask) -> None:
        """All of it is there."""
        self._landed[ask.parts] = True
        if ask.digests is not None:
            self.found[ask.parts] = ask.digests.found

    def to_check(self) -> Ids:
        """Parts to be verified now, each given once."""
        mask = self._landed & self.known & ~self.verified & ~self._checking
        self._checking |= mask
        return np.flatnonzero(mask).astype(np.int64, copy=False)

    def checked(self, parts: Ids, good: Mask) -> int | None:
        """What their digests said: bad ones are fetched again; a part that was bad twice, or None."""
        self._checking[parts] = False
        self.verified[parts[good]] = True
        self.left -= int(good.sum())
        bad = parts[~good]
        self.tries[bad] += 1
        hopeless = bad[self.tries[bad] >= TRIES]
        if hopeless.size:
            return int(hopeless[0])
        self._landed[bad] = self._asked[bad] = False
        self.unasked += bad.size
        return None

    def _runs(self, parts: Ids) -> Numbers:
        """Rows of (offset there, bytes, offset here), joined where they are neighbours on both sides."""
        source, target, size = self._source[parts], self.target[parts], np.uint64(self.part_bytes)
        apart = (source[1:] != source[:-1] + size) | (target[1:] != target[:-1] + size)
        begins = np.flatnonzero(np.concatenate(([True], apart)))
        counts = np.diff(begins, append=parts.size).astype(np.uint64)
        return np.stack([source[begins], counts * size, target[begins]], axis=1)
