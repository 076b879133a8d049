"""task.py - what the thread of transfers drives: a fetch (job.py) or a push (push.py), and what both ask by."""

from __future__ import annotations

from typing import Protocol

from pccl.errors import PcclError

__all__ = ["Asks", "Task"]


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


class Asks(Protocol):
    """How a task reaches other peers. Nothing blocks."""

    def ask(
        self, task: Task, peer: bytes, key: bytes, generation: int, span: tuple[int, int], address: int, priority: int
    ) -> int:
        """Asks a peer for (offset, bytes) of a region; gives a token. `on_ended` follows exactly once."""

    def cancel(self, token: int) -> None:
        """Ends an ask soon; `on_ended` still follows."""
