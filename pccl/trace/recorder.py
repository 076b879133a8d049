"""recorder.py - writes a peer's trace: `put` never blocks, a thread of its own writes, and the files stay bounded.

What finds the queue full, or cannot be written, is counted and dropped. A peer has two files at most: when the present
one is half of what is allowed it becomes the older one, in place of that, so that the newest half is always there.
Nothing is buffered but in the queue: of a process that is killed the last EVERY_S may be missing, and a forked child
writes nothing twice.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import deque
from pathlib import Path

import msgspec

from pccl.errors import ArgumentError
from pccl.trace.records import VERSION, Begin, Dropped, Epoch, Record

__all__ = ["BYTES_MAX", "QUEUE_MAX", "Recorder"]

BYTES_MAX = 128 << 20  # of both files
QUEUE_MAX = 1 << 16
EVERY_S = 0.1
_AT_ONCE = 64
_END_S = 2.0

log = logging.getLogger("pccl.trace")


class Recorder:
    """One peer's trace. Life: start, close; `put` before and after is harmless."""

    def __init__(
        self,
        directory: str,
        run: str,
        group: int,
        peer: bytes,
        *,
        bytes_max: int = BYTES_MAX,
        queue_max: int = QUEUE_MAX,
    ) -> None:
        self._directory = Path(directory)
        self._run, self._group, self._peer = run, group, peer.hex()
        self.path = self._directory / f"{self._peer}.jsonl"
        self._older = self._directory / f"{self._peer}.older.jsonl"
        self._bytes_max = bytes_max
        self._queue_max = queue_max
        self._queue: deque[Record] = deque()
        self._drop_lock = threading.Lock()
        self._dropped = self._dropped_told = 0
        self._encoder = msgspec.json.Encoder()
        self._epoch: Epoch | None = None
        self._file = -1
        self._nbytes = self._part = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def dropped(self) -> int:
        """How many records have found no room."""
        return self._dropped

    def start(self) -> None:
        """Opens the file and starts the thread. ArgumentError: the directory cannot be made or written."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._open()
        except OSError as error:
            raise ArgumentError(f"trace: cannot write in {str(self._directory)!r}: {error.strerror}") from None
        self._thread = threading.Thread(target=self._write_on, name="pccl-trace", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Takes a record. Never blocks; any thread."""
        if len(self._queue) < self._queue_max:
            self._queue.append(record)
        else:
            with self._drop_lock:
                self._dropped += 1

    def close(self) -> None:
        """Writes what is there, and ends; blocks for two seconds at most. Idempotent."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_END_S)

    # -- the thread --

    def _write_on(self) -> None:
        try:
            while not self._stop.wait(EVERY_S):
                self._drain()
            self._drain()
        except OSError as error:
            log.warning("the trace %s ends here: %s", self.path, error)
        finally:
            self._queue_max = 0  # from now on all is dropped
            if self._file >= 0:
                os.close(self._file)

    def _drain(self) -> None:
        """What has come until now."""
        left = len(self._queue)
        while left > 0:
            records = [self._queue.popleft() for _ in range(min(left, _AT_ONCE))]
            left -= len(records)
            self._write(records)
        if self._dropped != self._dropped_told:
            self._dropped_told = self._dropped
            self._write([Dropped(time.monotonic_ns(), self._dropped_told)])

    def _write(self, records: list[Record]) -> None:
        self._epoch = next((r for r in reversed(records) if isinstance(r, Epoch)), self._epoch)
        data = self._encoder.encode_lines(records)
        if self._nbytes + len(data) > self._bytes_max // 2:
            os.close(self._file)
            os.replace(self.path, self._older)
            self._part += 1
            self._open()
        self._append(data)

    def _open(self) -> None:
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._nbytes = 0
        first: list[Record] = [
            Begin(
                time.monotonic_ns(),
                time.time_ns(),
                self._run,
                self._group,
                self._peer,
                socket.gethostname(),
                os.getpid(),
                self._part,
                VERSION,
            )
        ]
        if self._epoch is not None:
            first.append(self._epoch)
        self._append(self._encoder.encode_lines(first))

    def _append(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._file, rest) :]
        self._nbytes += len(data)
