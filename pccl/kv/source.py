"""source.py - where the pieces of one layer of a send are: in the cache itself, or converted in memory of the send.

A *place* is what the receiver is told of: the number of a region, the offset of place 0 in it, and the step from one to
the next. Positions are the receiver's.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from pccl.kv.convert import GroupMatch
from pccl.kv.memory import Array, Ids, Memory, Numbers

__all__ = ["Cached", "Place", "Source", "Staged"]

Place = tuple[int, int, int]


class Source(Protocol):
    """One layer. `view`: the memory of the region; `nbytes`: of a piece, laid out as the receiver wants it."""

    place: Place
    view: Array
    nbytes: int

    def offsets(self, positions: Ids) -> Numbers:
        """In the view."""


class Cached:
    """In the cache: nothing is copied."""

    def __init__(self, memory: Memory, group: int, layer: int, blocks: Ids) -> None:
        found = memory.pieces(group, layer, np.array([0, 1], np.int64))
        self._of = memory, group, layer, blocks
        self.place: Place = found.buffer, int(found.offsets[0]), int(found.offsets[1] - found.offsets[0])
        self.view = memory.views[found.buffer]
        self.nbytes = found.nbytes

    def offsets(self, positions: Ids) -> Numbers:
        """See Source."""
        memory, group, layer, blocks = self._of
        found: Numbers = memory.pieces(group, layer, blocks[positions]).offsets
        return found


class Staged:
    """Converted: `fill` reads the cache, once, when the layer is ready. `number`: of the region. `view`: None until
    memory was allocated.
    """

    def __init__(self, memory: Memory, found: GroupMatch, layer: int, blocks: Ids, wanted: int, number: int) -> None:
        self._of = memory, found, layer, blocks, wanted
        self.nbytes = found.target.bytes_per_block_layer
        self.place: Place = number, 0, self.nbytes
        self.view: Any = None

    @property
    def staging_bytes(self) -> int:
        """That it takes."""
        return self._of[4] * self.nbytes

    def allocate(self) -> None:
        """Takes them. MemoryError."""
        self.view = np.empty(self.staging_bytes, np.uint8)

    def fill(self) -> None:
        """Takes a while."""
        memory, found, layer, blocks, wanted = self._of
        self.view[:] = found.stage(memory, layer, blocks, wanted).ravel()

    def offsets(self, positions: Ids) -> Numbers:
        """See Source."""
        found: Numbers = positions.astype(np.uint64) * np.uint64(self.nbytes)
        return found
