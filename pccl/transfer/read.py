"""read.py - one ask of one region of another peer, also of bytes that are not there yet: what others build on.

No name, no manifest, no verification: whoever reads knows the key and the size, and judges what came. Like job.py: no
thread, no clock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pccl import _native
from pccl.errors import PcclError
from pccl.transfer.target import Bytes
from pccl.transfer.task import Asks
from pccl.types import Status

__all__ = ["Read"]


class Read:
    """A read under way. `done` is called once, on the thread of transfers, with a Status: OK: `memory` holds the bytes;
    EGONE: there is no such region; ETIMEOUT, EPEER, ENOMEM, ECANCELLED, ECLOSED. After it nothing is written to
    `memory` any more.
    """

    def __init__(
        self,
        port: Asks,
        peer: bytes,
        key: bytes,
        generation: int,
        offset: int,
        memory: Bytes,
        done: Callable[[Status], None],
        *,
        priority: int,
        deadline_at: float,
    ) -> None:
        self.deadline_at = deadline_at
        self.over = False
        self.error: PcclError | None = None
        self.peer = peer
        self.memory = memory
        self.done = done
        self.status: Status | None = None
        self._port = port
        self._what = (key, generation, offset)
        self._priority = priority
        self._token: int | None = None
        self._hold: Any = None

    def pump(self, now: float) -> None:
        """See Task."""
        if self._token is None and self.status is None:
            key, generation, offset = self._what
            address, self._hold = _native.pin(self.memory)
            span = (offset, self.memory.size)
            self._token = self._port.ask(self, self.peer, key, generation, span, address, self._priority)
        self.over = self.status is not None

    def deadline(self, now: float) -> float:
        """See Task. The engine keeps it."""
        return float("inf")

    def on_ended(self, token: int, status: int, now: float) -> None:
        """See Task."""
        self.status = Status(status)

    def cancel(self) -> None:
        """See Task."""
        self._end(Status.ECANCELLED)

    def fail(self, error: PcclError) -> None:
        """See Task."""
        self._end(Status.ECLOSED)

    def on_over(self) -> None:
        """See Task."""
        self.done(Status.ECLOSED if self.status is None else self.status)

    def describe(self) -> str:
        """See Task."""
        return f"read of region {self._what[0].hex()[:8]} generation {self._what[1]}"

    def _end(self, status: Status) -> None:
        if self._token is None:
            self.status = status
        elif self.status is None:
            self._port.cancel(self._token)
