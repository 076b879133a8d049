"""layout.py - how the bytes of an offer are cut: parts, one for each array of it, and chunks, of which none is in two.

Pure. Chunks and bytes are counted through, over all parts in their order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

__all__ = ["Layout"]


class Layout:
    """Parts of these sizes (0 too) in chunks of `chunk_bytes`; the last chunk of a part is what is left of it."""

    __slots__ = ("chunk_bytes", "count", "firsts", "nbytes", "offsets", "parts")

    def __init__(self, chunk_bytes: int, parts: Sequence[int]) -> None:
        self.chunk_bytes = chunk_bytes
        self.parts = tuple(parts)
        #: The first chunk of each part, and their number; the first byte of each part, and the number of all.
        self.firsts = list(accumulate((-(-size // chunk_bytes) for size in self.parts), initial=0))
        self.offsets = list(accumulate(self.parts, initial=0))
        self.count = self.firsts[-1]
        self.nbytes = self.offsets[-1]

    def part_of(self, chunk: int) -> int:
        """The part that a chunk belongs to."""
        return bisect_right(self.firsts, chunk) - 1

    def start(self, chunk: int) -> int:
        """The first byte of a chunk; of the one behind the last: the number of bytes."""
        if chunk >= self.count:
            return self.nbytes
        part = self.part_of(chunk)
        return self.offsets[part] + (chunk - self.firsts[part]) * self.chunk_bytes

    def span(self, chunk: int) -> tuple[int, int]:
        """(first byte, byte after the last) of one chunk."""
        return self.start(chunk), self.start(chunk + 1)

    def place(self, chunk: int) -> tuple[int, int]:
        """(part, first byte within it) of one chunk."""
        part = self.part_of(chunk)
        return part, (chunk - self.firsts[part]) * self.chunk_bytes

    def chunks(self, part: int) -> range:
        """Of one part."""
        return range(self.firsts[part], self.firsts[part + 1])
