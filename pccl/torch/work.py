"""work.py - what an asynchronous call of torch.distributed gives: one Work over the ops of pccl that carry the call.

What is left to do after the ops (`finish`: copies to where the results belong, a fold) is done once, by whoever looks
first: a thread that waits, or asks, or the one that completes a future. Futures are completed on threads of their own,
as many as needed, since callbacks may compute and may wait for other ops.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pccl.device.pipeline import StagedWork
from pccl.errors import PcclError
from pccl.work import Pending

__all__ = ["Work", "failure"]

#: Of callbacks that wait for each other's ops.
_THREADS_MAX = 64
_threads = ThreadPoolExecutor(_THREADS_MAX, "pccl-futures")


def failure(error: PcclError) -> Exception:
    """What torch.distributed raises when an op failed; the cause is pccl's own error."""
    raised = dist.DistBackendError(f"{type(error).__name__}: {error}")
    raised.__cause__ = error
    return raised


_Base: Any = dist.Work


class Work(_Base):  # type: ignore[misc]
    """One call in flight. `tensors`: what its future gives. `source`: of a receive, from whom. `limit_s`: bounds a wait
    that names no time, for ops without a deadline. Errors of the ops are raised as DistBackendError.

    Of tensors on devices `wait` returns when the last copy is on its stream, for which the current stream then waits
    (pccl/device/pipeline.py); other streams need a `wait` of their own.
    """

    def __init__(
        self,
        ops: Sequence[Pending[Any]],
        tensors: list[torch.Tensor],
        finish: Callable[[], None] | None = None,
        source: int = -1,
        limit_s: float | None = None,
    ) -> None:
        super().__init__()
        self._ops = ops
        self._tensors = tensors
        self._finish = finish
        self.source = source
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._left = len(ops)
        self._future: Any = None

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Blocks until the call has ended; Ctrl-C interrupts. Raises its error; with a timeout, also if it goes on."""
        asked = 0.0 if timeout is None else timeout.total_seconds()
        seconds = asked if asked > 0 else self._limit_s
        end = None if seconds is None else time.monotonic() + seconds
        try:
            for op in self._ops:
                op.wait(None if end is None else max(0.0, end - time.monotonic()))
        except PcclError as error:
            raise failure(error) from error
        self.land()
        return True

    def is_completed(self) -> bool:
        """Whether the call has ended, well or not. Never waits for others."""
        if not all(op.done() for op in self._ops):
            return False
        if self.exception() is None:
            self.land()
        return True

    def is_success(self) -> bool:
        """Whether it has ended well."""
        return self.is_completed() and self.exception() is None

    def exception(self) -> Any:
        """The error with which it ended; None as long as it runs, and if it ended well."""
        for op in self._ops:
            if op.done():
                try:
                    op.wait()
                except PcclError as error:
                    return failure(error)
        return None

    def result(self) -> list[torch.Tensor]:
        """The tensors that were written."""
        return self._tensors

    def synchronize(self) -> None:
        """As `wait`."""
        self.wait()

    def source_rank(self) -> int:
        """Of a receive: from whom."""
        return self.source

    _source_rank = source_rank

    def get_future(self) -> Any:
        """A torch Future that gives the tensors, or raises the error."""
        with self._lock:
            if self._future is not None:
                return self._future
            self._future = torch.futures.Future(devices=self._devices())
        for op in self._ops:
            op._when_done(self._one_ended)
        if not self._ops:
            self._complete()
        return self._future

    def _one_ended(self) -> None:
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if not last:
            return
        try:
            _threads.submit(self._complete)
        except RuntimeError:  # the interpreter ends, and has no threads any more
            self._complete()

    def _complete(self) -> None:
        with self._aside():
            try:
                self.wait()
            except Exception as error:  # noqa: BLE001 - whoever waits for the future gets it
                self._future.set_exception(error)
            else:
                self._future.set_result(self._tensors)

    def _devices(self) -> list[int | str | torch.device]:
        """Those of which the future records events: a future knows no other kind."""
        return list({tensor.device for tensor in self._tensors if tensor.is_cuda})

    def _aside(self) -> AbstractContextManager[Any]:
        """In it the stream that brings the results is current: the future's event is recorded there, and no stream of
        the program's waits.
        """
        staged = next((op for op in self._ops if isinstance(op, StagedWork)), None)
        return nullcontext() if staged is None else staged.device.aside()

    def land(self) -> None:
        """Does what is left to do, once; for when the ops have ended well."""
        with self._lock:
            if self._finish is not None:
                self._finish()
                self._finish = None
