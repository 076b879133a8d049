"""worker.py - the thread that drives the fetches and pushes of a communicator: it schedules and verifies, so that
neither the engine's thread nor the control thread ever does.

Everything reaches it through one queue; tasks belong to it alone. It starts with the first. Digests of chunks are
taken without the interpreter's lock.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from pccl import _native
from pccl.errors import Closed, PcclError, ResourceError
from pccl.transfer.job import Job
from pccl.transfer.manifest import Manifest
from pccl.transfer.named import Links, Named
from pccl.transfer.offers import Offer, Offers, log
from pccl.transfer.schedule import Path
from pccl.transfer.target import Bytes
from pccl.transfer.task import Runs, Task
from pccl.types import Event, EventKind, PartDigests, Status

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
    """The thread and its tasks; also their Port. `on_over` is called on the thread when a task is over."""

    def __init__(self, offers: Offers, links: Links, on_over: Callable[[Task], None]) -> None:
        self._offers = offers
        self._named = Named(links, self._end_ask)
        self._on_over = on_over
        self._queue: queue.SimpleQueue[Callable[[], Task | None] | Event | None] = queue.SimpleQueue()
        self.paths: dict[bytes, Path] = {}
        self._tasks: set[Task] = set()
        self._of: dict[int, Task] = {}
        self._tokens = itertools.count(1)
        self._deadlines: dict[Task, float] = {}
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._stopped = False
        self._error: PcclError | None = None  # that of the communicator

    # -- any thread --

    def begin(self, task: Task) -> None:
        """Takes a task over. Raises Closed."""
        with self._lock:
            if self._stopped:
                raise Closed("the communicator is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pccl-transfer", daemon=True)
                self._thread.start()
            self._queue.put(lambda: self._add(task))

    def tell(self, step: Callable[[], Task]) -> None:
        """Runs a step on the thread; it gives the task that it was about."""
        self._queue.put(step)

    def on_event(self, event: Event) -> None:
        """A FETCH event."""
        self._queue.put(event)

    def look(self) -> None:
        """Links may have come or gone."""
        if self._thread is not None:
            self._queue.put(self._named.look)

    def give_up(self, error: PcclError) -> None:
        """Ends all tasks with an error, also those to come."""

        def step() -> None:
            self._error = error
            for task in self._tasks:
                self._fail(task, error)
                self._deadlines[task] = 0.0

        self._queue.put(step)

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
            self._named.tick(now)
            touched |= {task for task, at in self._deadlines.items() if at <= now}
            for task in touched & self._tasks:
                self._guarded(task, lambda task=task: self._pump(task))  # type: ignore[misc]
        for task in list(self._tasks):
            task.fail(Closed("the communicator was closed", op=task.describe()))
            self._finish(task)

    def _take(self) -> set[Task] | None:
        """Waits for something to happen, and takes what has; None at the end."""
        wake_at = min(self._named.deadline(), *self._deadlines.values(), float("inf"))
        timeout = None if wake_at == float("inf") else max(0.0, wake_at - time.monotonic())
        touched: set[Task] = set()
        for number in range(_BATCH):
            try:
                item = self._queue.get_nowait() if number else self._queue.get(timeout=timeout)
            except queue.Empty:
                break
            if item is None:
                return None
            task = self._on_fetch(item) if isinstance(item, Event) else item()
            if task is not None:
                touched.add(task)
        return touched

    def _add(self, task: Task) -> Task:
        self._tasks.add(task)
        if self._error is not None:
            self._fail(task, self._error)
        return task

    def _fail(self, task: Task, error: PcclError) -> None:
        task.fail(type(error)(error.message, peer=error.peer, epoch=error.epoch, op=task.describe()))

    def _on_fetch(self, event: Event) -> Task | None:
        task = self._of.pop(event.token, None)
        if task is not None:
            self._guarded(task, lambda: task.on_ended(event.token, event.status, time.monotonic()))
        return task

    def _guarded(self, task: Task, step: Callable[[], None]) -> None:
        """An error that the task did not see coming ends it, not the others."""
        try:
            step()
        except PcclError as error:
            task.fail(error)
        except Exception as error:  # noqa: BLE001 - reported as the outcome of the fetch
            log.exception("a transfer failed")
            task.fail(PcclError(f"the transfer failed: {error!r}", op=task.describe()))

    def _pump(self, task: Task) -> None:
        now = time.monotonic()
        task.pump(now)
        if task.over:
            self._finish(task)
        else:
            self._deadlines[task] = task.deadline(now)

    def _finish(self, task: Task) -> None:
        self._tasks.discard(task)
        self._deadlines.pop(task, None)
        self._named.over(task, time.monotonic())
        self._on_over(task)

    # -- Port --

    def ask(
        self, task: Task, peer: bytes, key: bytes, generation: int, span: tuple[int, int], address: int, priority: int
    ) -> int:
        """See Port. An ask that the engine refuses ends like any other."""
        return self._ask(task, peer, key, generation, ((*span, address),), priority)

    def ask_runs(
        self,
        task: Task,
        peer: bytes,
        key: bytes,
        generation: int,
        runs: Runs,
        priority: int,
        digests: PartDigests | None,
    ) -> int:
        """See Port."""
        return self._ask(task, peer, key, generation, runs, priority, digests)

    def _ask(
        self,
        task: Task,
        peer: bytes,
        key: bytes,
        generation: int,
        runs: Any,
        priority: int,
        digests: PartDigests | None = None,
    ) -> int:
        token = next(self._tokens)
        self._of[token] = task

        def go() -> None:
            left_s = max(0.0, task.deadline_at - time.monotonic())
            deadline_ns = _native.now_ns() + int(left_s * 1e9)
            try:
                self._offers.host.engine.fetch(
                    _native.FetchRequest(peer, key, generation, runs, token, priority, deadline_ns, digests)
                )
            except (Closed, ResourceError) as error:
                self._end_ask(token, Status.ECLOSED if isinstance(error, Closed) else Status.ENOMEM)

        self._named.ask(task, peer, token, go)
        return token

    def cancel(self, token: int) -> None:
        """See Port."""
        if not self._named.cancel(token):
            self._offers.quietly("cancel_fetch", token)

    def _end_ask(self, token: int, status: Status) -> None:
        """One that the engine has not taken."""
        self._queue.put(Event(kind=EventKind.FETCH, status=status, token=token))

    def relay(self, job: Job, manifest: Manifest, parts: Sequence[Bytes]) -> _RelayOf:
        """See Port."""

        def gone() -> Job:
            job.on_withdrawn()
            return job

        return _RelayOf(self._offers.relay(manifest, parts), lambda: self.tell(gone))
