"""line.py - what the outer optimizer asks of a communicator, and how its steps wait.

A round is a generator that yields whatever it waits for, and is sent what came of it. So the same code runs on a
Communicator or a LocalComm, where `drive` blocks, and in the simulator, where a coroutine of the virtual clock drives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any, Protocol, TypeVar

from pccl.errors import PcclError

__all__ = ["Call", "Comm", "Steps", "Waits", "drive"]

T = TypeVar("T")


class Waits(Protocol):
    """Something that ends: with a value, or with an error that `wait` raises."""

    def wait(self) -> Any: ...


#: A part of a round: yields what it waits for.
Steps = Generator[Waits, Any, T]


class Comm(Protocol):
    """The part of pccl.Communicator that pccl.optim uses; LocalComm's members and the simulator's have it too."""

    @property
    def peer_id(self) -> bytes: ...
    @property
    def peers(self) -> tuple[bytes, ...]: ...
    @property
    def epoch(self) -> int: ...
    @property
    def entered(self) -> int: ...
    @property
    def all_reduce(self) -> Callable[..., Any]: ...
    @property
    def all_gather(self) -> Callable[..., Any]: ...
    @property
    def send(self) -> Callable[..., Any]: ...
    @property
    def recv(self) -> Callable[..., Any]: ...
    @property
    def advance(self) -> Callable[..., Any]: ...
    @property
    def sync_state(self) -> Callable[..., Any]: ...


class Call:
    """A blocking call that is made when it is waited for."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call

    def wait(self) -> Any:
        """Makes the call."""
        return self._call()


def drive(steps: Steps[T]) -> tuple[T, float]:
    """Runs the steps to their end. Returns what they return, and the seconds that this thread spent waiting."""
    waited = 0.0
    try:
        pending = next(steps)
        while True:
            begun = time.monotonic()
            try:
                value = pending.wait()
            except PcclError as error:
                waited += time.monotonic() - begun
                pending = steps.throw(error)
            else:
                waited += time.monotonic() - begun
                pending = steps.send(value)
    except StopIteration as end:
        return end.value, waited
