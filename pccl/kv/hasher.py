"""hasher.py - the thread that takes digests of pieces, so that neither the thread of transfers nor the engine does.

Work is done in order, without the interpreter's lock; results are told by a callback on this thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pccl.kv.memory import Array, Numbers, digests
from pccl.transfer.offers import log

__all__ = ["Hasher", "Job"]

_STOP_S = 5.0


@dataclass(slots=True, frozen=True)
class Job:
    """Pieces of one buffer; `done(digests)` is called on the hasher's thread."""

    view: Array
    offsets: Numbers
    nbytes: int
    seeds: Numbers
    done: Callable[[Numbers], None]


class Hasher:
    """Starts with the first job. Any thread. Also for what must be done before pieces can be digested."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def put(self, job: Job) -> None:
        """To be digested."""
        self.do(lambda: _digest(job))

    def do(self, step: Callable[[], None]) -> None:
        """To be done, in its turn."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        self._queue.put(step)

    def stop(self) -> None:
        """Finishes what there is, and ends."""
        with self._lock:
            thread = self._thread
        self._queue.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join(_STOP_S)

    def _run(self) -> None:
        while (step := self._queue.get()) is not None:
            step()


def _digest(job: Job) -> None:
    try:
        found = digests(job.view, job.offsets, job.nbytes, job.seeds)
    except MemoryError:
        log.exception("digests of KV blocks could not be taken: they count as wrong")
        found = np.zeros(job.offsets.size, np.uint64)
    job.done(found)
