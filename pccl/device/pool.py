"""pool.py - pinned host memory, used again and again: allocating it is slow, and there is only so much of it.

Blocks come in sizes that are powers of two. A block that is given back with the event of its last copy is used again
when that is done, never earlier. What is held, in use or not, stays below a limit: who wants more waits, for others'
blocks, and blocks of other sizes that lie idle are let go.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pccl.device.streams import Event
from pccl.errors import Closed, ResourceError, Timeout

__all__ = ["Block", "Pool", "size_class"]

_SMALLEST_BYTES = 64 << 10


@dataclass(eq=False, slots=True, frozen=True)
class Block:
    """Pinned memory: flat uint8 of `nbytes`, at least as much as was asked for."""

    memory: torch.Tensor
    nbytes: int


def size_class(nbytes: int) -> int:
    """How much is taken for so many bytes."""
    return max(_SMALLEST_BYTES, 1 << (nbytes - 1).bit_length()) if nbytes else _SMALLEST_BYTES


class Pool:
    """The pinned memory of one communicator. Any thread."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._held_bytes = 0
        self._idle: list[Block] = []  # the longest unused first
        self._parked: list[tuple[Block, Event]] = []  # given back, but still copied from or to
        self._changed = threading.Condition()
        self._closed = False

    @property
    def held_bytes(self) -> int:
        """What is held, in use or not."""
        return self._held_bytes

    def take(self, nbytes: int, pinned: Callable[[int], torch.Tensor], until: float | None = None) -> Block | None:
        """A block; `pinned` makes one if none is idle. Waits until the time `until` (time.monotonic), then raises
        Timeout; without gives None instead of waiting. ResourceError for what is more than the limit, Closed, and what
        `pinned` raises.
        """
        size = size_class(nbytes)
        if size > self.limit_bytes:
            limit = f"the limit, {self.limit_bytes} (PCCL_PINNED_BYTES)"
            raise ResourceError(f"{size} bytes of pinned memory are more than {limit}")
        with self._changed:
            while not self._closed:
                block = self._idle_block(size)
                if block is not None:
                    return block
                if self._make_room(size):
                    break
                if until is None:
                    return None
                self._wait(until, size)
            if self._closed:
                raise Closed("the communicator is closed")
            self._held_bytes += size
        try:
            return Block(pinned(size), size)
        except BaseException:
            self._let_go(size)
            raise

    def give(self, block: Block, event: Event | None = None) -> None:
        """Gives a block back, of which the copy that ends with the event is the last use."""
        with self._changed:
            if event is None:
                self._idle.append(block)
            else:
                self._parked.append((block, event))
            self._changed.notify_all()

    def close(self) -> None:
        """Wakes who waits, with Closed. Memory goes when the last block does."""
        with self._changed:
            self._closed = True
            self._idle.clear()
            self._parked.clear()
            self._changed.notify_all()

    # -- under the lock --

    def _idle_block(self, size: int) -> Block | None:
        parked, self._parked = self._parked, []
        for block, event in parked:
            if event.query():
                self._idle.append(block)
            else:
                self._parked.append((block, event))
        for number in range(len(self._idle) - 1, -1, -1):
            if self._idle[number].nbytes == size:
                return self._idle.pop(number)
        return None

    def _make_room(self, size: int) -> bool:
        """Whether so much more can be held; lets idle blocks go if that is what it takes."""
        over = self._held_bytes + size - self.limit_bytes
        if over > sum(block.nbytes for block in self._idle):
            return False
        while self._held_bytes + size > self.limit_bytes:
            self._held_bytes -= self._idle.pop(0).nbytes
        return True

    def _wait(self, until: float, size: int) -> None:
        left = until - time.monotonic()
        if left <= 0:
            raise Timeout(
                f"no {size} bytes of pinned memory came free in time: calls in flight hold {self._held_bytes}, "
                f"and the limit is {self.limit_bytes} (PCCL_PINNED_BYTES)"
            )
        if not self._parked:
            self._changed.wait(left)
            return
        event = self._parked[0][1]
        self._changed.release()
        try:
            event.synchronize()
        finally:
            self._changed.acquire()

    def _let_go(self, nbytes: int) -> None:
        with self._changed:
            self._held_bytes -= nbytes
            self._changed.notify_all()
