"""stream.py - a payload on its way: slots of one size, sent as they are made, asked for before they exist.

A stream is a region of as many slots as a payload can need; memory is used only as far as it is filled. A slot says its
number, how much of it is used, whether it is the last, and has a digest. `StreamIn` asks for WINDOW slots ahead of what
has come, of one source; a slot that came damaged, and all slots of a source that is lost, are asked of the next.
"""

from __future__ import annotations

import mmap
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xxhash

from pccl.errors import Closed
from pccl.transfer.manifest import key_of
from pccl.transfer.offers import FENCE_S
from pccl.transfer.transfers import Transfers
from pccl.types import Status

__all__ = ["StreamIn", "StreamOut", "slots_for"]

SLOT_BYTES = 1 << 18
_HEAD = struct.Struct("<QIII4x")
HEAD_BYTES = _HEAD.size + 8
BODY_BYTES = SLOT_BYTES - HEAD_BYTES
WINDOW = 64
WAIT_S = 600.0
#: So many damaged slots, and a source is not asked any more.
STRIKES = 3
_MAGIC = int.from_bytes(b"PCCLSLOT", "little")
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)


def slots_for(payload_bytes: int) -> int:
    """How many slots a payload of so many bytes needs."""
    return max(1, -(-payload_bytes // BODY_BYTES))


def lazy_memory(nbytes: int) -> np.ndarray[Any, Any]:
    """Memory that costs nothing before it is written to."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
    return np.frombuffer(mmap.mmap(-1, nbytes, flags=flags), np.uint8)


def _digest(slot: memoryview) -> bytes:
    state = xxhash.xxh3_64(slot[: _HEAD.size])
    state.update(slot[HEAD_BYTES:])
    return bytes(state.digest())


def _opened(slot: memoryview, index: int) -> tuple[int, bool] | None:
    """(bytes used, whether it is the last) of a slot that is what it should be."""
    magic, number, used, last = _HEAD.unpack(slot[: _HEAD.size])
    right = magic == _MAGIC and number == index and used <= BODY_BYTES and last in (0, 1)
    if not right or bytes(slot[_HEAD.size : HEAD_BYTES]) != _digest(slot) or (used < BODY_BYTES and not last):
        return None
    return used, bool(last)


class StreamOut:
    """A stream that this peer offers. `write` and `finish`, or `put`: one thread at a time."""

    def __init__(self, transfers: Transfers, name: str, generation: int, slots: int) -> None:
        self._offers = transfers.offers
        self._key = key_of("weights", name)
        self._generation = generation
        self._memory = lazy_memory(slots * SLOT_BYTES)
        self._slots = slots
        self._index = self._used = 0
        self.sent_bytes = 0
        self._region = self._offers.offer_region(self._key, generation, self._memory, None, whole=False)

    def write(self, data: bytes) -> None:
        """More of the payload; whole slots go at once."""
        at = 0
        while at < len(data):
            take = min(len(data) - at, BODY_BYTES - self._used)
            start = self._index * SLOT_BYTES + HEAD_BYTES + self._used
            self._memory[start : start + take] = np.frombuffer(data, np.uint8, take, at)
            self._used += take
            at += take
            if self._used == BODY_BYTES:
                self._seal(False)

    def finish(self) -> None:
        """That was all: the last slot goes."""
        self._seal(True)

    def put(self, index: int, slot: np.ndarray[Any, Any]) -> None:
        """A slot as it came from another source, verified."""
        self._memory[index * SLOT_BYTES : (index + 1) * SLOT_BYTES] = slot
        self._extend(index)

    def close(self) -> None:
        """It is offered no more; when this returns it can be offered anew."""
        self._offers.quietly("withdraw", self._key, self._generation)
        self._region.gone.wait(FENCE_S)

    def _seal(self, last: bool) -> None:
        start = self._index * SLOT_BYTES
        slot = self._memory[start : start + SLOT_BYTES].data.cast("B")
        slot[: _HEAD.size] = _HEAD.pack(_MAGIC, self._index, self._used, last)
        slot[_HEAD.size : HEAD_BYTES] = _digest(slot)
        self._extend(self._index)
        self._index, self._used = self._index + 1, 0

    def _extend(self, index: int) -> None:
        self.sent_bytes += SLOT_BYTES
        self._offers.quietly("extend", self._key, self._generation, index * SLOT_BYTES, SLOT_BYTES)


class StreamIn:
    """A stream that is fetched. Callbacks come on the thread of transfers: `on_slot(stream, index, slot)` with each
    verified slot, whole; `on_grown` when more of the payload is there from its beginning on (`contiguous`, `complete`);
    `on_failed` once, when no source is left.
    """

    def __init__(
        self,
        transfers: Transfers,
        name: str,
        generation: int,
        slots: int,
        sources: Sequence[bytes],
        *,
        on_grown: Callable[[StreamIn], None],
        on_failed: Callable[[StreamIn, str], None],
        on_slot: Callable[[StreamIn, int, np.ndarray[Any, Any]], None],
    ) -> None:
        self._transfers = transfers
        self._key = key_of("weights", name)
        self._generation = generation
        self._slots = slots
        self._sources = list(sources)
        self._on_grown, self._on_failed, self._on_slot = on_grown, on_failed, on_slot
        self._lock = threading.RLock()
        self._reads: dict[int, Any] = {}
        self._strikes: dict[bytes, int] = {}
        self._done: set[int] = set()
        self._next = 0
        self._front = 0
        self._ended = False
        self.name = name
        self.memory = lazy_memory(slots * BODY_BYTES)
        self.contiguous = 0
        self.total: int | None = None
        self.received_bytes = 0
        self.damaged = 0
        self._total_slots: int | None = None
        with self._lock:
            self._ask_more()

    @property
    def complete(self) -> bool:
        """All of it is there."""
        return self.total is not None and self.contiguous == self.total

    @property
    def begun(self) -> bool:
        """Something of it has come."""
        return bool(self._done)

    def cancel(self) -> None:
        """No callback comes any more, but for one that is under way."""
        with self._lock:
            self._ended = True
            self._cancel_reads()

    def _ask_more(self) -> None:
        end = self._slots if self._total_slots is None else self._total_slots
        while len(self._reads) < WINDOW and self._next < end and self._sources:
            index = self._next
            self._next += 1
            if index not in self._done and index not in self._reads:
                self._ask(index)

    def _ask(self, index: int) -> None:
        memory = np.empty(SLOT_BYTES, np.uint8)
        source = self._sources[0]

        def done(status: Status) -> None:
            self._on_read(index, source, memory, status)

        try:
            self._reads[index] = self._transfers.read(
                source, self._key, self._generation, index * SLOT_BYTES, memory, done, priority="normal", seconds=WAIT_S
            )
        except Closed:
            self._ended = True

    def _on_read(self, index: int, source: bytes, memory: np.ndarray[Any, Any], status: Status) -> None:
        failed = grown = False
        with self._lock:
            self._reads.pop(index, None)
            if self._ended or index in self._done or status == Status.ECLOSED:
                return
            opened = _opened(memory.data, index) if status == Status.OK else None
            if opened is not None:
                grown = self._place(index, memory, *opened)
            elif status == Status.ETIMEOUT:
                self._next = min(self._next, index)
            elif status != Status.ECANCELLED:
                failed = self._give_up(source, index, status)
            else:
                self._next = min(self._next, index)
            if not failed:
                self._ask_more()
        if opened is not None:
            self._on_slot(self, index, memory)
        if grown:
            self._on_grown(self)
        if failed:
            self._on_failed(self, "damaged" if status == Status.OK else Status(status).name)

    def _place(self, index: int, memory: np.ndarray[Any, Any], used: int, last: bool) -> bool:
        self.received_bytes += SLOT_BYTES
        self._done.add(index)
        start = index * BODY_BYTES
        self.memory[start : start + used] = memory[HEAD_BYTES : HEAD_BYTES + used]
        if last:
            self.total, self._total_slots = start + used, index + 1
            self._cancel_reads(index + 1)
        front = self._front
        while self._front in self._done:
            self._front += 1
        full = self._front * BODY_BYTES
        self.contiguous = full if self.total is None else min(full, self.total)
        return self._front > front

    def _give_up(self, source: bytes, index: int, status: Status) -> bool:
        """Goes on with the next source; True if there is none."""
        self._next = min(self._next, index)
        if status == Status.OK:
            self.damaged += 1
            self._strikes[source] = self._strikes.get(source, 0) + 1
            if self._strikes[source] < STRIKES:
                return False
        if self._sources and self._sources[0] == source:
            del self._sources[0]
            self._cancel_reads()
            self._ended = not self._sources
            return self._ended
        return False

    def _cancel_reads(self, first: int = 0) -> None:
        for index, read in list(self._reads.items()):
            if index >= first:
                self._transfers.cancel_read(read)
