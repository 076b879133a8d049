"""pieces.py - how a collective on device memory is cut: into pieces, each an op of the engine on pinned memory.

The cut is a function of sizes alone, so that all peers cut alike. What fits one piece is one op, and nothing overlaps;
of more there are about sixteen, so that the first is on its way soon and each is long enough for a link.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch

from pccl.device.streams import Copies
from pccl.runtime import Op

__all__ = ["Piece", "cut", "piece_bytes"]

_LEAST_BYTES = 4 << 20
_MOST_BYTES = 32 << 20
_PIECES = 16


class Piece(Protocol):
    """A part of a collective. `memory` has at least `nbytes`."""

    @property
    def nbytes(self) -> int:
        """The pinned memory that it takes."""

    def out(self, memory: torch.Tensor) -> Copies:
        """What is copied from the device before the op."""

    def op(self, memory: torch.Tensor) -> Op:
        """The op, on that memory."""

    def back(self, memory: torch.Tensor) -> Copies:
        """What is copied to the device after it. Not called of an op that failed."""


def piece_bytes(nbytes: int) -> int:
    """How long the pieces of so many bytes are: a power of two, as pinned memory is."""
    return min(_MOST_BYTES, max(_LEAST_BYTES, 1 << (-(-nbytes // _PIECES) - 1).bit_length()))


def cut(count: int, itemsize: int, copies: int = 1) -> Iterator[slice]:
    """The pieces of so many elements, of each of which pinned memory holds so many copies. One, if there are none."""
    step = max(1, piece_bytes(count * itemsize * copies) // (itemsize * copies))
    return (slice(start, min(count, start + step)) for start in range(0, max(1, count), step))
