"""line.py - a value that one peer shows and others follow: each new one reaches them half a round trip after it is set.

The regions of a line are numbered. The next one is offered before it has a value, so that who follows can ask for it
and wait; the newest value is also in a region of its own, for who comes new or was too slow. A record has a fixed size
and its own digest.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pccl.errors import Closed
from pccl.transfer.manifest import key_of
from pccl.transfer.offers import FENCE_S
from pccl.transfer.transfers import Transfers
from pccl.types import Status
from pccl.weights.digests import QUICK_BYTES, quick

__all__ = ["Inbox", "Outbox"]

RECORD_BYTES = 1024
_HEAD = struct.Struct("<QI")
DATA_MAX = RECORD_BYTES - _HEAD.size - QUICK_BYTES
KEPT = 8
WAIT_S = 600.0
AGAIN_S, AGAIN_MAX_S = 0.02, 0.25
#: What is written while it is read is read again, by its digest.
_NOW = 1


def _now_key(name: str) -> bytes:
    return key_of("line.now", name)


def _next_key(name: str) -> bytes:
    return key_of("line.next", name)


def _sealed(number: int, data: bytes) -> np.ndarray[Any, Any]:
    body = (_HEAD.pack(number, len(data)) + data).ljust(RECORD_BYTES - QUICK_BYTES, b"\0")
    return np.frombuffer(body + quick(body), np.uint8)


def _opened(record: bytes) -> tuple[int, bytes] | None:
    body = record[:-QUICK_BYTES]
    if quick(body) != record[-QUICK_BYTES:]:
        return None
    number, nbytes = _HEAD.unpack_from(body)
    return (number, body[_HEAD.size : _HEAD.size + nbytes]) if number and nbytes <= DATA_MAX else None


class Outbox:
    """The line of this peer by that name. Any thread."""

    def __init__(self, transfers: Transfers, name: str, data: bytes) -> None:
        self._offers = transfers.offers
        self._name = name
        self._lock = threading.Lock()
        self._number = 0
        self._open = True
        self._next: np.ndarray[Any, Any] = np.zeros(RECORD_BYTES, np.uint8)
        self._now = np.zeros(RECORD_BYTES, np.uint8)
        self._regions: dict[int, Any] = {}
        self._offer_next()
        self._region = self._offers.offer_region(_now_key(name), _NOW, self._now, None, whole=True, changes=True)
        self.post(data)

    def post(self, data: bytes) -> None:
        """The value from now on: at most DATA_MAX bytes."""
        assert len(data) <= DATA_MAX, f"a record of {len(data)} bytes"
        with self._lock:
            if not self._open:
                return
            self._number += 1
            record = _sealed(self._number, data)
            self._next[:] = record
            self._now[:] = record
            self._offers.quietly("extend", _next_key(self._name), self._number, 0, RECORD_BYTES)
            self._offer_next()
            if self._number > KEPT:
                self._offers.quietly("withdraw", _next_key(self._name), self._number - KEPT)
                self._regions.pop(self._number - KEPT, None)

    def close(self) -> None:
        """The line is no more; when this returns it can be made anew."""
        with self._lock:
            self._open = False
            self._offers.quietly("withdraw", _now_key(self._name), _NOW)
            for number in self._regions:
                self._offers.quietly("withdraw", _next_key(self._name), number)
            for region in (self._region, *self._regions.values()):
                region.gone.wait(FENCE_S)

    def _offer_next(self) -> None:
        self._next = np.zeros(RECORD_BYTES, np.uint8)
        number = self._number + 1
        key = _next_key(self._name)
        self._regions[number] = self._offers.offer_region(key, number, self._next, None, whole=False)


class Inbox:
    """Follows the line of another peer. `told(data)`, `absent()` and `lost()` are called on the thread of transfers;
    `absent`: the line is no more, or not yet; `lost`: the peer is gone. `tend(now)` must be called now and then: a line
    that is not there is looked for again.
    """

    def __init__(
        self,
        transfers: Transfers,
        peer: bytes,
        name: str,
        told: Callable[[bytes], None],
        absent: Callable[[], None],
        lost: Callable[[], None],
    ) -> None:
        self._transfers = transfers
        self._peer = peer
        self._name = name
        self._told = told
        self._absent = absent
        self._lost = lost
        self._number = 0
        self._tries = 0
        self._again_at: float | None = 0.0
        self._read: Any = None
        self._open = True

    def tend(self, now: float) -> float:
        """Looks again if it is time; gives when that will be."""
        again = self._again_at
        if self._open and again is not None and now >= again:
            self._tries = min(self._tries + 1, 16)
            self._again_at = again = None
            self._ask(_now_key(self._name), _NOW)
        return float("inf") if again is None or not self._open else again

    def close(self) -> None:
        """Nothing is told any more."""
        self._open = False
        if self._read is not None:
            self._transfers.cancel_read(self._read)

    def _ask(self, key: bytes, generation: int) -> None:
        memory = np.zeros(RECORD_BYTES, np.uint8)

        def done(status: Status) -> None:
            self._ended(status, memory.tobytes(), generation)

        try:
            self._read = self._transfers.read(
                self._peer, key, generation, 0, memory, done, priority="high", seconds=WAIT_S
            )
        except Closed:
            self._open = False

    def _ended(self, status: Status, record: bytes, generation: int) -> None:
        if not self._open or status in (Status.ECLOSED, Status.ECANCELLED):
            return
        if status == Status.EPEER:
            self._open = False
            self._lost()
            return
        found = _opened(record) if status == Status.OK else None
        if found is not None:
            number, data = found
            if number > self._number:
                self._number, self._tries = number, 0
                self._told(data)
            self._ask(_next_key(self._name), self._number + 1)
        elif status == Status.ETIMEOUT and self._number:
            self._ask(_next_key(self._name), self._number + 1)
        else:
            if status == Status.EGONE and generation != _NOW:
                self._number = 0
            elif status == Status.EGONE:
                self._absent()
            self._look_again()

    def _look_again(self) -> None:
        self._again_at = time.monotonic() + min(AGAIN_S * 2.0**self._tries, AGAIN_MAX_S)
