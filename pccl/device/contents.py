"""contents.py - the bytes of a tensor in device memory, for state that is compared and moved (pccl/sharing).

They are read piece by piece through pinned memory, the next while the last is looked at: a digest needs no copy of the
whole in host memory. Only whoever has to send or receive a part in place makes one (`read`). Blocks. What the current
stream of the maker had to do comes first, whichever thread reads; what was written is there on return.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from pccl.device.pipeline import Stager
from pccl.device.pool import Block
from pccl.device.streams import Event, device_of
from pccl.errors import ArgumentError
from pccl.transfer.manifest import digest_of
from pccl.transfer.target import Bytes

__all__ = ["Contents"]

_STEP_BYTES = 8 << 20
_PATIENCE_S = 600.0  # for pinned memory, which ops in flight give back


class Contents:
    """The bytes of one tensor."""

    def __init__(self, tensor: torch.Tensor, stager: Stager, writable: bool, what: str) -> None:
        """Raises TypeError or ArgumentError, which name the tensor, if it cannot be read, or written to."""
        self._device = device_of(tensor, what)
        self._begun = self._device.mark()
        self._home = tensor.detach()
        self._stager = stager
        if self._home.is_neg() or self._home.is_conj():
            raise ArgumentError(f"{what}: the tensor is a lazy negation or conjugation; pass tensor.resolve_neg()")
        if writable and any(s == 0 and size > 1 for s, size in zip(tensor.stride(), tensor.shape, strict=True)):
            raise ArgumentError(f"{what}: elements of the tensor share memory (it was expanded); pass .contiguous()")
        self.nbytes = tensor.numel() * tensor.element_size()

    def digests(self, chunk_bytes: int) -> bytes:
        """16 bytes for each chunk."""
        step = max(1, _STEP_BYTES // chunk_bytes) * chunk_bytes
        return b"".join(
            digest_of(piece[start : start + chunk_bytes])
            for _, piece in self._pieces(step)
            for start in range(0, piece.size, chunk_bytes)
        )

    def read(self) -> Bytes:
        """All of them, in memory of their own."""
        whole = np.empty(self.nbytes, np.uint8)
        for offset, piece in self._pieces(_STEP_BYTES):
            whole[offset : offset + piece.size] = piece
        return whole

    def write(self, pieces: Iterable[tuple[int, Bytes]]) -> None:
        """Overwrites some: (offset, bytes) each."""
        with torch.no_grad():
            whole = self._home.contiguous()
            flat = whole.view(-1).view(torch.uint8)
            for offset, data in pieces:
                flat[offset : offset + data.size].copy_(torch.from_numpy(data))
            if whole.data_ptr() != self._home.data_ptr():
                self._home.copy_(whole)

    def _pieces(self, step: int) -> Iterator[tuple[int, Bytes]]:
        """(offset, bytes) of all, in order; valid until the next is asked for."""
        flat = self._home.contiguous().view(-1).view(torch.uint8)
        ahead: deque[tuple[int, int, Block, Event]] = deque()
        pool = self._stager.pool
        try:
            for offset in range(0, self.nbytes, step):
                size = min(step, self.nbytes - offset)
                block = pool.take(size, self._device.pinned, time.monotonic() + _PATIENCE_S)
                assert block is not None
                copies = [(block.memory[:size], flat[offset : offset + size])]
                ahead.append((offset, size, block, self._device.copy("out", copies, self._begun)))
                if len(ahead) > 1:
                    yield _arrived(*ahead[0])
                    pool.give(ahead.popleft()[2])
            while ahead:
                yield _arrived(*ahead[0])
                pool.give(ahead.popleft()[2])
        finally:
            for _, _, block, event in ahead:
                pool.give(block, event)


def _arrived(offset: int, size: int, block: Block, event: Any) -> tuple[int, Bytes]:
    event.synchronize()
    return offset, block.memory[:size].numpy()
