"""streams.py - what staging needs of an accelerator: pinned memory, copies on side streams, events; nothing else.

`cuda.py` is it for torch.cuda. Pool and pipeline know this interface only, so that tests drive them with threads in
the place of streams.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import torch

from pccl.device.cuda import Cuda

__all__ = ["MAKERS", "Copies", "Device", "Event", "Way", "device_of"]

Copies = Iterable[tuple[torch.Tensor, torch.Tensor]]  # (to, from)
Way = Literal["out", "back"]


class Event(Protocol):
    """A point of a stream."""

    def query(self) -> bool:
        """Whether all before it is done."""

    def synchronize(self) -> None:
        """Blocks the calling thread, and nothing else, until it is."""


class Device(Protocol):
    """One accelerator, with two side streams: "out" of its memory, and "back". Any thread."""

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Host memory that the device copies from and to by itself: flat uint8. Slow: for a pool."""

    def mark(self) -> Event:
        """What the calling thread has put on its current stream so far."""

    def fence(self, event: Event) -> None:
        """The calling thread's current stream, and not the thread, waits for the event."""

    def copy(self, way: Way, copies: Copies, after: Event | None) -> Event:
        """Puts copies on a side stream, behind `after`; the event of the last. Memory stays until they are done, even
        if nobody refers to it any more.
        """

    def aside(self) -> AbstractContextManager[Any]:
        """In it the stream "back" is the calling thread's current one."""


#: By torch's names of device types.
MAKERS: dict[str, Callable[[int], Device]] = {"cuda": Cuda}

_made: dict[tuple[str, int], Device] = {}
_lock = threading.Lock()


def device_of(tensor: torch.Tensor, what: str) -> Device:
    """Where a tensor lies that is not in host memory. TypeError, which names tensor and device, for one that cannot be
    staged.
    """
    kind, index = tensor.device.type, tensor.device.index or 0
    if kind not in MAKERS:
        raise TypeError(f"{what}: the tensor is on {tensor.device}; only {', '.join(MAKERS)} is staged, pass .cpu()")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{what}: the tensor is sparse ({tensor.layout}); pass tensor.to_dense()")
    if tensor.numel() and not tensor.data_ptr():
        kind_of = type(tensor).__name__
        raise TypeError(
            f"{what}: a {kind_of} on {tensor.device} has no memory of its own; pass to_local() of a DTensor"
        )
    with _lock:
        made = _made.get((kind, index))
        if made is None:
            made = _made[kind, index] = MAKERS[kind](index)
        return made
