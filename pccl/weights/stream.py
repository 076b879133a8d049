"""stream.py - a payload on its way: slots of one size, sent as they are made, asked for before they exist.

A stream is a region of as many slots as a payload can need; memory is used only as far as it is filled. A slot says its
number, how much of it is used, whether it is the last, and has a digest. `StreamIn` asks for WINDOW slots ahead of what
has come, of one source. When that is lost, or has sent damaged slots again and again, the rest is asked of neighbours
that hold all of it, side by side; else of the next source; else, each slot, of all neighbours that may come to have it.
"""

from __future__ import annotations

import mmap
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import xxhash

from pccl.errors import Closed
from pccl.transfer.manifest import key_of
from pccl.transfer.offers import FENCE_S
from pccl.transfer.transfers import Transfers
from pccl.types import Status

__all__ = ["Helpers", "Incoming", "StreamIn", "StreamOut", "slots_for"]

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

#: Neighbours at this moment: (who hold all of the stream, who follow it and may have some).
Helpers = Callable[[], tuple[Sequence[bytes], Sequence[bytes]]]


def nobody() -> tuple[Sequence[bytes], Sequence[bytes]]:
    """Helpers of a stream that has none."""
    return (), ()


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
        self._put: set[int] = set()
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
        """A slot as it came from another source, verified; each once, for from now on others read it."""
        assert index not in self._put, f"slot {index} is being served already"
        self._put.add(index)
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


class Incoming(Protocol):
    """A payload that is being fetched: a StreamIn, or the PartsIn of a filtered receiver."""

    name: str
    memory: np.ndarray[Any, Any]
    contiguous: int
    total: int | None
    received_bytes: int

    @property
    def complete(self) -> bool:
        """All that was asked for is there."""

    @property
    def stranded_s(self) -> float:
        """See StreamIn."""

    def cancel(self) -> None:
        """See StreamIn."""

    def reconsider(self, source: bytes | None = None) -> None:
        """See StreamIn."""


class StreamIn:
    """A stream that is fetched. Callbacks come on the thread of transfers: `on_slot(stream, index, slot)` with each
    verified slot, whole; `on_grown` when more of the payload is there from its beginning on (`contiguous`, `complete`);
    `on_failed` once, when nobody is left to be asked. `sources`: the best first; `helpers`: see Helpers, asked when a
    source is lost, or there is none.
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
        helpers: Helpers = nobody,
    ) -> None:
        self._transfers = transfers
        self._key = key_of("weights", name)
        self._generation = generation
        self._slots = slots
        self._sources = list(sources)
        self._helpers = helpers
        self._asking: list[bytes] = []
        self._every_since: float | None = None  # each slot is asked of all of them, not of one
        self._out: set[bytes] = set()  # who will not be asked again
        self._on_grown, self._on_failed, self._on_slot = on_grown, on_failed, on_slot
        self._lock = threading.RLock()
        self._reads: dict[int, dict[bytes, Any]] = {}
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
            self._choose()
            self._ask_more()

    @property
    def complete(self) -> bool:
        """All of it is there."""
        return self.total is not None and self.contiguous == self.total

    @property
    def begun(self) -> bool:
        """Something of it has come."""
        return bool(self._done)

    @property
    def stranded_s(self) -> float:
        """How long it has been asking neighbours that may have nothing more; 0: it is not."""
        since = self._every_since
        return 0.0 if since is None else time.monotonic() - since

    def cancel(self) -> None:
        """No callback comes any more, but for one that is under way."""
        with self._lock:
            self._ended = True
            self._cancel_reads(lambda index, peer: True)

    def reconsider(self, source: bytes | None = None) -> None:
        """A source is there (again), or a neighbour holds more than before."""
        with self._lock:
            if source is not None:
                self._out.discard(source)
                self._sources += [source] if source not in self._sources else []
            if self._every_since is not None and not self._ended:
                self._choose()
                self._ask_more()

    def _choose(self) -> None:
        """Whom to ask from now on; see the header."""
        held, partly = ([peer for peer in peers if peer not in self._out] for peers in self._helpers())
        left = [peer for peer in self._sources if peer not in self._out]
        if held and (self._out or not left):
            self._asking = held
        else:
            self._asking = left[:1] or partly
        self._every_since = None if held or left else self._every_since or time.monotonic()
        self._cancel_reads(lambda index, peer: peer not in self._asking)

    def _ask_more(self) -> None:
        end = self._slots if self._total_slots is None else self._total_slots
        while len(self._reads) < WINDOW and self._next < end and self._asking:
            index = self._next
            self._next += 1
            if index not in self._done and index not in self._reads:
                one = [self._asking[index % len(self._asking)]]
                for peer in one if self._every_since is None else self._asking:
                    self._ask(index, peer)

    def _ask(self, index: int, peer: bytes) -> None:
        memory = np.empty(SLOT_BYTES, np.uint8)

        def done(status: Status) -> None:
            self._on_read(index, peer, memory, status)

        try:
            read = self._transfers.read(
                peer, self._key, self._generation, index * SLOT_BYTES, memory, done, priority="normal", seconds=WAIT_S
            )
            self._reads.setdefault(index, {})[peer] = read
        except Closed:
            self._ended = True

    def _on_read(self, index: int, peer: bytes, memory: np.ndarray[Any, Any], status: Status) -> None:
        failed = grown = False
        opened = None
        with self._lock:
            self._forget(index, peer)
            if self._ended or status == Status.ECLOSED:
                return
            if index not in self._done:
                opened = _opened(memory.data, index) if status == Status.OK else None
                if opened is not None:
                    grown = self._place(index, memory, *opened)
                else:
                    self._next = min(self._next, index)
                    failed = status not in (Status.ETIMEOUT, Status.ECANCELLED) and self._give_up(peer, status)
            if not failed:
                self._ask_more()
        if opened is not None:
            self._on_slot(self, index, memory)
        if grown:
            self._on_grown(self)
        if failed:
            self._on_failed(self, "damaged" if status == Status.OK else Status(status).name)

    def _forget(self, index: int, peer: bytes) -> None:
        reads = self._reads.get(index, {})
        reads.pop(peer, None)
        if not reads:
            self._reads.pop(index, None)

    def _place(self, index: int, memory: np.ndarray[Any, Any], used: int, last: bool) -> bool:
        self.received_bytes += SLOT_BYTES
        self._done.add(index)
        start = index * BODY_BYTES
        self.memory[start : start + used] = memory[HEAD_BYTES : HEAD_BYTES + used]
        if last:
            self.total, self._total_slots = start + used, index + 1
        self._cancel_reads(lambda other, peer: other == index or (last and other > index))
        front = self._front
        while self._front in self._done:
            self._front += 1
        full = self._front * BODY_BYTES
        self.contiguous = full if self.total is None else min(full, self.total)
        return self._front > front

    def _give_up(self, peer: bytes, status: Status) -> bool:
        """Goes on with others; True if there are none, or a source has withdrawn the stream of which something is here
        already: what it makes of that version in the end is another payload.
        """
        if status == Status.OK:
            self.damaged += 1
            self._strikes[peer] = self._strikes.get(peer, 0) + 1
            if self._strikes[peer] < STRIKES:
                return False
        self._out.add(peer)
        if status == Status.EGONE and peer in self._sources and self._done:
            self._ended = True
            self._cancel_reads(lambda index, other: True)
        elif peer in self._asking:
            self._asking = [one for one in self._asking if one != peer]
            if not self._asking:
                self._choose()
            self._ended = not self._asking
        return self._ended

    def _cancel_reads(self, which: Callable[[int, bytes], bool]) -> None:
        for index, reads in list(self._reads.items()):
            for peer, read in list(reads.items()):
                if which(index, peer):
                    self._transfers.cancel_read(read)
