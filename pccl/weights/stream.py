"""stream.py - a payload on its way: slots, sent as they are made, asked for before they exist.

A stream is a region of as many slots as a payload can need (layout.py); memory is used only as far as it is filled. A
slot says its number, which bytes of the payload it has and where in them a record begins, and has a digest: so what has
come with a gap before it can be decoded meanwhile. `StreamIn` asks for slots ahead of what has
come, at most WINDOW and about as many as there will be, of one source. When that is lost, or has sent damaged slots
again and again, the rest is asked of neighbours that hold all of it, side by side; else of the next source; else, each
slot, of all neighbours that may come to have it.
"""

from __future__ import annotations

import mmap
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import xxhash

from pccl.errors import Closed
from pccl.transfer.manifest import key_of
from pccl.transfer.offers import FENCE_S
from pccl.transfer.transfers import Transfers
from pccl.types import Status
from pccl.weights.layout import (
    END,
    END_ROOM,
    HEAD_BYTES,
    SPECIAL,
    payload_bytes_max,
    place,
    region_bytes,
    room,
    slots_for,
    start_of,
    tail_of,
    used_of,
)

__all__ = ["Helpers", "Incoming", "StreamIn", "StreamOut"]

_HEAD = struct.Struct("<4sIIIQ")
WINDOW = 128  # of the body; the others are few
#: So many are asked for at least, however short the payload is thought to be, and half as many as have come.
AHEAD = 16
WAIT_S = 600.0
#: So many damaged slots, and a source is not asked any more.
STRIKES = 3
_MAGIC = b"SLOT"
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)

#: Neighbours at this moment: (who hold all of the stream, who follow it and may have some).
Helpers = Callable[[], tuple[Sequence[bytes], Sequence[bytes]]]


def nobody() -> tuple[Sequence[bytes], Sequence[bytes]]:
    """Helpers of a stream that has none."""
    return (), ()


def lazy_memory(nbytes: int) -> np.ndarray[Any, Any]:
    """Memory that costs nothing before it is written to."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
    return np.frombuffer(mmap.mmap(-1, nbytes, flags=flags), np.uint8)


def _digest(slot: memoryview) -> bytes:
    state = xxhash.xxh3_64(slot[: _HEAD.size])
    state.update(slot[HEAD_BYTES:])
    return bytes(state.digest())


@dataclass(frozen=True, slots=True)
class _Held:
    """Bytes `start` to `end` of a payload; in them the first record begins at `record`, or none does: `end`."""

    start: int
    end: int
    record: int


def _opened(slot: memoryview, index: int, most: int) -> _Held | None:
    """What a slot has of a payload of at most so many bytes; None: it is damaged."""
    magic, number, used, record, start = _HEAD.unpack(slot[: _HEAD.size])
    right = magic == _MAGIC and number == index and record <= used <= room(index) and start + used <= most
    right = right and (used > 0 or index == END)
    if index >= SPECIAL:
        right = right and start == start_of(index) and used == room(index)
    if not right or bytes(slot[_HEAD.size : HEAD_BYTES]) != _digest(slot):
        return None
    return _Held(start, start + used, start + record)


class StreamOut:
    """A stream that this peer offers. `write`, `conclude` and `finish`, or `put`: one thread at a time."""

    def __init__(self, transfers: Transfers, name: str, generation: int, slots: int) -> None:
        self._offers = transfers.offers
        self._key = key_of("weights", name)
        self._generation = generation
        self._memory = lazy_memory(region_bytes(slots + 1))  # one more: the tail is gathered in a slot of the body
        self._index, self._used = SPECIAL, 0
        self._end = b""  # the last END_ROOM bytes of what was written
        self._written = 0
        self._begun: deque[int] = deque()  # where in the payload writes began, of which no slot has said so
        self._put: set[int] = set()
        self.sent_bytes = 0
        self._region = self._offers.offer_region(self._key, generation, self._memory, None, whole=False)

    def write(self, data: bytes | memoryview) -> None:
        """More of the payload, whole records from its first byte on; slots that are full go at once."""
        self._begun.append(self._written)
        self._written += len(data)
        ready = len(self._end) + len(data) - END_ROOM
        if ready <= 0:
            self._end += bytes(data)
            return
        early = min(ready, len(self._end))
        self._fill(self._end[:early])
        self._fill(memoryview(data)[: ready - early])
        self._end = self._end[early:] + bytes(data[ready - early :])

    def conclude(self) -> None:
        """That was all: it goes, but for the end."""
        start, rest = start_of(self._index), self._body(self._index, self._used)
        for index, nbytes in tail_of(self._used):
            self._body(index, nbytes)[:] = rest[:nbytes]
            self._seal(index, start, nbytes)
            start, rest = start + nbytes, rest[nbytes:]
        self._used = 0
        self._concluded = start

    def finish(self) -> None:
        """After `conclude`: the end goes, and with that it is there."""
        self._body(END, len(self._end))[:] = np.frombuffer(self._end, np.uint8)
        self._seal(END, self._concluded, len(self._end))

    def put(self, index: int, slot: np.ndarray[Any, Any]) -> None:
        """A slot as it came from another source, verified; each once, for from now on others read it."""
        assert index not in self._put, f"slot {index} is being served already"
        self._put.add(index)
        at, nbytes = place(index)
        self._memory[at : at + nbytes] = slot
        self._extend(index)

    def close(self) -> None:
        """It is offered no more; when this returns it can be offered anew."""
        self._offers.quietly("withdraw", self._key, self._generation)
        self._region.gone.wait(FENCE_S)

    def _body(self, index: int, nbytes: int, skip: int = 0) -> np.ndarray[Any, Any]:
        at = place(index)[0] + HEAD_BYTES + skip
        return self._memory[at : at + nbytes]

    def _fill(self, data: Any) -> None:
        at = 0
        while at < len(data):
            take = min(len(data) - at, room(self._index) - self._used)
            self._body(self._index, take, self._used)[:] = np.frombuffer(data, np.uint8, take, at)
            self._used += take
            at += take
            if self._used == room(self._index):
                self._seal(self._index, start_of(self._index), self._used)
                self._index, self._used = self._index + 1, 0

    def _seal(self, index: int, start: int, used: int) -> None:
        at, nbytes = place(index)
        slot = self._memory[at : at + nbytes].data.cast("B")
        while self._begun and self._begun[0] < start:
            self._begun.popleft()
        record = min(used, self._begun[0] - start) if self._begun else used
        slot[: _HEAD.size] = _HEAD.pack(_MAGIC, index, used, record, start)
        slot[_HEAD.size : HEAD_BYTES] = _digest(slot)
        self._extend(index)

    def _extend(self, index: int) -> None:
        at, nbytes = place(index)
        self.sent_bytes += nbytes
        self._offers.quietly("extend", self._key, self._generation, at, nbytes)


class Incoming(Protocol):
    """A payload that is being fetched: a StreamIn, or the PartsIn of a filtered receiver."""

    name: str
    memory: np.ndarray[Any, Any]
    contiguous: int
    total: int | None
    received_bytes: int

    @property
    def islands(self) -> Sequence[tuple[int, int]]:
        """See StreamIn."""

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
    verified slot, whole; `on_grown` when more of the payload is there (`contiguous`, `islands`, `complete`);
    `on_failed` once, when nobody is left to be asked. `sources`: the best first; `helpers`: see Helpers, asked when a
    source is lost, or there is none. `expected`: bytes that the payload may well have: slots behind those are asked for
    bit by bit only, since what is asked in vain must be taken back. None: it fills all slots.
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
        expected: int | None = None,
    ) -> None:
        self._transfers = transfers
        self._key = key_of("weights", name)
        self._generation = generation
        self._slots = max(slots, SPECIAL)  # no region has fewer, whatever its source says
        self._likely = self._slots if expected is None else slots_for(expected + expected // 4) + 1
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
        self._ahead: dict[int, _Held] = {}  # by first byte: slots that something before lacks
        self._ended = False
        self.name = name
        self.memory = lazy_memory(payload_bytes_max(self._slots))
        self.contiguous = 0
        self.total: int | None = None
        self.received_bytes = 0
        self.damaged = 0
        self._used: frozenset[int] = frozenset(range(SPECIAL))  # slots before the body's that are wanted
        self._body_end = 0  # of what has come of the body
        self._reached = SPECIAL  # the slot behind that
        self._special: list[_Held] = []  # bytes that have come in other slots
        with self._lock:
            self._choose()
            self._ask_more()

    @property
    def complete(self) -> bool:
        """All of it is there."""
        return self.total is not None and self.contiguous >= self.total

    @property
    def islands(self) -> Sequence[tuple[int, int]]:
        """(where a record begins, end) of bytes that have come with a gap before them."""
        with self._lock:
            ahead = [self._ahead[start] for start in sorted(self._ahead)]
        found: list[tuple[int, int]] = []
        for held in ahead:
            record, end = found[-1] if found else (0, 0)
            if end == held.start:
                found[-1] = held.record if record == end else record, held.end
            else:
                found.append((held.record, held.end))
        return found

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
        """No callback comes any more, but for one that is under way. To be called of a complete one, too, when there is
        time: slots that it does not have are still asked for.
        """
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
        soon = self._reached + (self._reached - SPECIAL) // 2 + AHEAD
        most = min(self._slots, max(self._likely, soon))
        while len(self._reads) < WINDOW + SPECIAL and self._next < most and self._asking:
            index = self._next
            self._next += 1
            if index not in self._done and index not in self._reads and self._is_wanted(index):
                one = [self._asking[index % len(self._asking)]]
                for peer in one if self._every_since is None else self._asking:
                    self._ask(index, peer)

    def _is_wanted(self, index: int) -> bool:
        return index in self._used if index < SPECIAL else index < self._slots

    def _ask(self, index: int, peer: bytes) -> None:
        at, nbytes = place(index)
        memory = np.empty(nbytes, np.uint8)

        def done(status: Status) -> None:
            self._on_read(index, peer, memory, status)

        try:
            read = self._transfers.read(
                peer, self._key, self._generation, at, memory, done, priority="normal", seconds=WAIT_S
            )
            self._reads.setdefault(index, {})[peer] = read
        except Closed:
            self._ended = True

    def _on_read(self, index: int, peer: bytes, memory: np.ndarray[Any, Any], status: Status) -> None:
        failed = False
        opened = None
        with self._lock:
            self._forget(index, peer)
            if self._ended or self.complete or status == Status.ECLOSED:
                return
            if index not in self._done:
                opened = _opened(memory.data, index, len(self.memory)) if status == Status.OK else None
                if opened is not None and not self._is_free(index, opened):
                    opened = None
                if opened is not None:
                    self._place(index, memory, opened)
                else:
                    self._next = min(self._next, index)
                    failed = status not in (Status.ETIMEOUT, Status.ECANCELLED) and self._give_up(peer, status)
            if not failed:
                self._ask_more()
        if opened is not None:
            self._on_slot(self, index, memory)
            self._on_grown(self)
        if failed:
            self._on_failed(self, "damaged" if status == Status.OK else Status(status).name)

    def _forget(self, index: int, peer: bytes) -> None:
        reads = self._reads.get(index, {})
        reads.pop(peer, None)
        if not reads:
            self._reads.pop(index, None)

    def _is_free(self, index: int, held: _Held) -> bool:
        """Nothing of it has come in another slot: what has been looked at is never written to again."""
        apart = all(held.end <= one.start or one.end <= held.start for one in self._special)
        return apart and (index >= SPECIAL or held.start >= self._body_end)

    def _place(self, index: int, memory: np.ndarray[Any, Any], held: _Held) -> None:
        self.received_bytes += len(memory)
        self._done.add(index)
        if index < SPECIAL:
            self._special.append(held)
        else:
            self._body_end, self._reached = max(self._body_end, held.end), max(self._reached, index + 1)
        self.memory[held.start : held.end] = memory[HEAD_BYTES : HEAD_BYTES + held.end - held.start]
        self._ahead[held.start] = held
        if index == END:
            self.total, self._slots, self._used = held.end, min(self._slots, slots_for(held.end)), used_of(held.end)
        self._cancel_reads(lambda other, peer: other == index)
        while (next_ := self._ahead.pop(self.contiguous, None)) is not None:
            self.contiguous = next_.end

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
