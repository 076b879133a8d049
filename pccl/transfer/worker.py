"""worker.py - the thread that drives the fetches of a communicator: it schedules and verifies, so that neither the
engine's thread nor the control thread ever does.

Everything reaches it through one queue; jobs belong to it alone. It starts with the first fetch. Digests of chunks are
taken without the interpreter's lock.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence

from pccl import _native
from pccl.errors import Closed, PcclError, ResourceError
from pccl.transfer.job import Job
from pccl.transfer.manifest import Manifest
from pccl.transfer.offers import Offer, Offers, log
from pccl.transfer.target import Bytes
from pccl.types import Event, EventKind, Status

__all__ = ["Worker"]

_BATCH = 256
_STOP_S = 2.0


class _RelayOf:
    """The offer of what a job has so far, as the job sees it."""

    def __init__(self, offer: Offer, then: Callable[[], None]) -> None:
        self.offer = offer
        self._then = then

    def extend(self, first: int, end: int) -> None:
        self.offer.extend(first, end)

    def withdraw(self) -> None:
        self.offer.withdraw_soon(self._then)


class Worker:
    """The thread and its jobs; also their Port. `on_over` is called on the thread when a job is over."""

    def __init__(self, offers: Offers, on_over: Callable[[Job], None]) -> None:
        self._offers = offers
        self._on_over = on_over
        self._queue: queue.SimpleQueue[Callable[[], Job | None] | Event | None] = queue.SimpleQueue()
        self._jobs: set[Job] = set()
        self._of: dict[int, Job] = {}
        self._tokens = itertools.count(1)
        self._deadlines: dict[Job, float] = {}
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._stopped = False

    # -- any thread --

    def begin(self, job: Job) -> None:
        """Takes a job over. Raises Closed."""
        with self._lock:
            if self._stopped:
                raise Closed("the communicator is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pccl-transfer", daemon=True)
                self._thread.start()
            self._queue.put(lambda: self._add(job))

    def tell(self, step: Callable[[], Job]) -> None:
        """Runs a step on the thread; it gives the job that it was about."""
        self._queue.put(step)

    def on_event(self, event: Event) -> None:
        """A FETCH event."""
        self._queue.put(event)

    def stop(self) -> None:
        """The engine is gone: ends what is left, and the thread."""
        with self._lock:
            self._stopped = True
            thread = self._thread
        if thread is not None:
            self._queue.put(None)
            if thread is not threading.current_thread():
                thread.join(_STOP_S)

    # -- the thread --

    def _run(self) -> None:
        while True:
            touched = self._take()
            if touched is None:
                break
            now = time.monotonic()
            touched |= {job for job, at in self._deadlines.items() if at <= now}
            for job in touched & self._jobs:
                self._guarded(job, lambda job=job: self._pump(job))  # type: ignore[misc]
        for job in list(self._jobs):
            job.fail(Closed("the communicator was closed", op=job.describe()))
            self._finish(job)

    def _take(self) -> set[Job] | None:
        """Waits for something to happen, and takes what has; None at the end."""
        wake_at = min(self._deadlines.values(), default=float("inf"))
        timeout = None if wake_at == float("inf") else max(0.0, wake_at - time.monotonic())
        touched: set[Job] = set()
        try:
            item = self._queue.get(timeout=timeout)
            for _ in range(_BATCH):
                if item is None:
                    return None
                job = self._on_fetch(item) if isinstance(item, Event) else item()
                if job is not None:
                    touched.add(job)
                item = self._queue.get_nowait()
        except queue.Empty:
            return touched
        if item is None:
            return None
        self._queue.put(item)
        return touched

    def _add(self, job: Job) -> Job:
        self._jobs.add(job)
        return job

    def _on_fetch(self, event: Event) -> Job | None:
        job = self._of.pop(event.token, None)
        if job is not None:
            self._guarded(job, lambda: job.on_ended(event.token, event.status, time.monotonic()))
        return job

    def _guarded(self, job: Job, step: Callable[[], None]) -> None:
        """An error that the job did not see coming ends it, not the others."""
        try:
            step()
        except PcclError as error:
            job.fail(error)
        except Exception as error:  # noqa: BLE001 - reported as the outcome of the fetch
            log.exception("a fetch failed")
            job.fail(PcclError(f"the fetch failed: {error!r}", op=job.describe()))

    def _pump(self, job: Job) -> None:
        now = time.monotonic()
        job.pump(now)
        if job.over:
            self._finish(job)
        else:
            self._deadlines[job] = job.deadline(now)

    def _finish(self, job: Job) -> None:
        self._jobs.discard(job)
        self._deadlines.pop(job, None)
        self._on_over(job)

    # -- Port --

    def ask(
        self, job: Job, peer: bytes, key: bytes, generation: int, span: tuple[int, int], address: int, priority: int
    ) -> int:
        """See Port. An ask that the engine refuses ends like any other."""
        token = next(self._tokens)
        self._of[token] = job
        left_s = max(0.0, job.deadline_at - time.monotonic())
        deadline_ns = _native.now_ns() + int(left_s * 1e9)
        try:
            self._offers.host.engine.fetch(
                _native.FetchRequest(peer, key, generation, ((*span, address),), token, priority, deadline_ns)
            )
        except (Closed, ResourceError) as error:
            status = Status.ECLOSED if isinstance(error, Closed) else Status.ENOMEM
            self._queue.put(Event(kind=EventKind.FETCH, status=status, token=token))
        return token

    def cancel(self, token: int) -> None:
        """See Port."""
        self._offers.quietly("cancel_fetch", token)

    def relay(self, job: Job, manifest: Manifest, parts: Sequence[Bytes]) -> _RelayOf:
        """See Port."""

        def gone() -> Job:
            job.on_withdrawn()
            return job

        return _RelayOf(self._offers.relay(manifest, parts), lambda: self.tell(gone))
