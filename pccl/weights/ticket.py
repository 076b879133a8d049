"""ticket.py - how far one published version has come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from pccl.errors import ArgumentError, PcclError, Timeout

__all__ = ["PublishStats", "Stage", "Ticket"]

Stage = Literal["encoded", "durable", "relays", "all"]
_STAGES = ("encoded", "durable", "relays", "all")


@dataclass(slots=True)
class PublishStats:
    """Of one version. `changed`: elements; `codecs`: blocks by codec; `bytes`: of the payload, `dense_bytes`: of what
    was published. `encode_s`: until all blocks were encoded; `durable_s`: until the log had it; both from the call's
    turn on.
    """

    changed: int = 0
    bytes: int = 0
    dense_bytes: int = 0
    codecs: dict[str, int] = field(default_factory=dict)
    encode_s: float = 0.0
    durable_s: float = 0.0

    @property
    def bits_per_changed(self) -> float:
        """Of the payload, all of it."""
        return 8 * self.bytes / self.changed if self.changed else 0.0


class Ticket:
    """A version on its way. Any thread."""

    def __init__(self, condition: threading.Condition, reached: Callable[[Ticket, str], bool]) -> None:
        self._condition = condition
        self._reached = reached
        self.stage = -1
        self.error: PcclError | None = None
        self.version: int | None = None
        self.stats = PublishStats()

    def wait(self, stage: Stage = "durable", timeout: float | None = None) -> PublishStats:
        """Blocks until the version is "encoded" (its tensors may be written to again), "durable" (in the log), at all
        "relays" that are there, or committed by "all" receivers that are there, also those behind relays.

        Raises what went wrong: LogError, SchemaError; or Timeout after so many seconds: it goes on.
        """
        if stage not in _STAGES:
            raise ArgumentError(f"stage must be one of {', '.join(_STAGES)}, not {stage!r}")
        until = None if timeout is None else time.monotonic() + timeout
        with self._condition:
            while self.error is None and not self._reached(self, stage):
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    raise Timeout(f"version {self.version} is not {stage!r} within {timeout:g} s")
                self._condition.wait(left)
        if self.error is not None:
            raise self.error
        return self.stats

    def done(self, stage: Stage = "durable") -> bool:
        """Whether it has come so far. Never blocks."""
        return self.error is None and self._reached(self, stage)
