"""Work and Result: one op in flight, and what came of it.

A Work is resolved exactly once, by the control thread (or by the thread that closes the communicator). Any number of
threads may wait for it and any number of coroutines, on any loops, may await it. Waiting happens on a lock in Python,
so Ctrl-C interrupts it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from pccl.errors import PcclError, Timeout

__all__ = ["Pending", "Result", "Work", "together"]

T = TypeVar("T")


@dataclass(slots=True, frozen=True)
class Result:
    """What an op gave, and who took part.

    `tensor`: the result (None for send and barrier); see the op for its shape. `peers`: the ids of the participants in
    the order of their ranks in `epoch`, the epoch in which the op ended; `world_size` is their number. `retries`: how
    often the op was started again after a loss. `bytes_sent`, `bytes_received`: payload of this peer, retries included.
    `duration_s`: from the call to the end, waiting for others included. `offset`: reduce_scatter only, the first
    element of `tensor` within the flattened input. `parts`: all_reduce of a list only, the results of the ops that
    carried it, each with its tensors; who took part, and the epoch, are those of the newest epoch among them.
    """

    tensor: Any
    world_size: int
    peers: tuple[bytes, ...]
    epoch: int
    retries: int
    bytes_sent: int
    bytes_received: int
    duration_s: float
    offset: int = 0
    parts: tuple[Result, ...] = ()


def together(results: Sequence[Result], tensor: Any) -> Result:
    """That of a call which several ops carried: of the newest epoch among theirs."""
    return replace(
        max(results, key=lambda result: result.epoch),
        tensor=tensor,
        retries=max(result.retries for result in results),
        bytes_sent=sum(result.bytes_sent for result in results),
        bytes_received=sum(result.bytes_received for result in results),
        duration_s=max(result.duration_s for result in results),
        parts=tuple(results),
    )


class Owner(Protocol):
    """What a Work needs of the communicator that it came from."""

    def check_pid(self) -> None:
        """Raises ForkError in a forked child."""

    def describe_token(self, token: int) -> str:
        """The op in words."""

    def cancel_token(self, token: int) -> bool:
        """Asks the coordinator to settle the op; False if it has ended."""


class OpOwner(Owner, Protocol):
    """What the Work of an op needs besides."""

    def waited(self, token: int, begin_ns: int) -> None:
        """The calling thread was blocked by the op since this time (time.monotonic_ns)."""


class Pending(Generic[T]):
    """Something in flight that ends once, with a value or an error."""

    __slots__ = ("__weakref__", "_callbacks", "_done", "_error", "_gate", "_owner", "_result", "_token")

    def __init__(self, owner: Owner, token: int) -> None:
        self._owner = owner
        self._token = token
        self._done = False
        self._result: T | None = None
        self._error: PcclError | None = None
        self._callbacks: list[Callable[[], None]] = []
        self._gate = threading.Lock()
        self._gate.acquire()

    def __repr__(self) -> str:
        state = "in flight" if not self._done else "failed" if self._error is not None else "done"
        return f"<pccl.{type(self).__name__} {self._token} {state}>"

    def done(self) -> bool:
        """Whether the op has ended, well or not. Never blocks."""
        return self._done

    def wait(self, timeout: float | None = None) -> T:
        """Blocks until the op has ended; Ctrl-C interrupts.

        Returns the result or raises the op's error. With `timeout` (seconds) raises Timeout when the op has not ended
        by then: the op itself goes on, its tensors stay borrowed, and wait may be called again. Without, the op's own
        deadline bounds the wait.
        """
        self._ended(timeout)
        return self._outcome()

    def __await__(self) -> Generator[Any, None, T]:
        """Waits for the op from a coroutine on any asyncio loop. Cancelling the coroutine does not cancel the op."""
        if not self._done:
            self._owner.check_pid()
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            self._when_done(lambda: _wake(loop, future))
            yield from future.__await__()
        return self._outcome()

    def _ended(self, timeout: float | None) -> None:
        """Waits for the end, whichever it is."""
        if not self._done:
            self._owner.check_pid()
            if not self._gate.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
                raise Timeout(f"not ended within {timeout:g} s; it goes on", op=self._owner.describe_token(self._token))
            self._gate.release()

    def _outcome(self) -> T:
        if self._error is not None:
            raise self._error.with_traceback(None)
        assert self._result is not None
        return self._result

    def _when_done(self, callback: Callable[[], None]) -> None:
        """Calls back once, from whichever thread resolves the op, or at once if it has ended."""
        self._callbacks.append(callback)
        if self._done:
            self._run_callbacks()

    def _resolve(self, result: T | None, error: PcclError | None) -> None:
        """Ends the op. Once only: the caller has taken it from the registry."""
        self._result = result
        self._error = error
        self._done = True
        self._gate.release()
        self._run_callbacks()

    def _run_callbacks(self) -> None:
        """Both sides of the race take callbacks off the list, one at a time, so each runs once."""
        while self._callbacks:
            try:
                callback = self._callbacks.pop()
            except IndexError:
                return
            callback()


class Work(Pending[Result]):
    """An op in flight. The tensors it was called with belong to the engine until it is done."""

    __slots__ = ()
    _owner: OpOwner

    def __init__(self, owner: OpOwner, token: int) -> None:
        super().__init__(owner, token)

    def _ended(self, timeout: float | None) -> None:
        if self._done:
            return
        begin_ns = time.monotonic_ns()
        try:
            super()._ended(timeout)
        finally:
            self._owner.waited(self._token, begin_ns)

    def cancel(self) -> bool:
        """Asks the coordinator to end the op on every peer. Does not block.

        Returns False if it has ended already. Otherwise the op soon ends with Cancelled on all peers, or well if all of
        them had finished it: wait() tells which.
        """
        self._owner.check_pid()
        return not self._done and self._owner.cancel_token(self._token)


def _wake(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits there any more
        loop.call_soon_threadsafe(_set, future)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
