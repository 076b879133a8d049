"""task.py - what the thread of transfers drives: a fetch (job.py) or a push (push.py), and what both ask by."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

from pccl.errors import PcclError
from pccl.types import PartDigests

__all__ = ["Asks", "Driven", "Runs", "ScatterAsks", "Task"]

#: uint64 of [runs, 3]: offset in the region, bytes, address of the target.
Runs = np.ndarray[Any, np.dtype[np.uint64]]


class Task(Protocol):
    """Told the time and how its asks ended. It is over only when nothing touches its memory any more."""

    deadline_at: float
    over: bool
    error: PcclError | None

    def pump(self, now: float) -> None:
        """Does whatever can be done; called after everything else."""

    def deadline(self, now: float) -> float:
        """When `pump` is due if nothing happens before."""

    def on_ended(self, token: int, status: int, now: float) -> None:
        """An ask has ended: nothing is written to its memory any more."""

    def cancel(self) -> None:
        """Ends it with Cancelled, unless it is ending already."""

    def fail(self, error: PcclError) -> None:
        """Ends it with an error, unless it is ending already."""

    def describe(self) -> str:
        """In words."""


@runtime_checkable
class Driven(Task, Protocol):
    """One that is not of this package: it says itself what its end means."""

    def on_over(self) -> None:
        """Called once, when it is over and driven no more."""


class Asks(Protocol):
    """How a task reaches other peers. Nothing blocks."""

    def ask(
        self, task: Task, peer: bytes, key: bytes, generation: int, span: tuple[int, int], address: int, priority: int
    ) -> int:
        """Asks a peer for (offset, bytes) of a region; gives a token. `on_ended` follows exactly once."""

    def cancel(self, token: int) -> None:
        """Ends an ask soon; `on_ended` still follows."""


class ScatterAsks(Asks, Protocol):
    """One that can ask for many runs at once."""

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
        """As `ask`, for up to 4096 rows of (offset, bytes, address); `digests`: of what comes, which are there when
        `on_ended` says OK.
        """
