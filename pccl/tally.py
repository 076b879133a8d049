"""tally.py - counts what `Communicator.stats` says besides the engine's counters: how ops ended, and who waited."""

from __future__ import annotations

import threading
from typing import Any

from pccl._native import Kind
from pccl.types import Status

__all__ = ["Tally"]


class Tally:
    """Since the communicator was made. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ops = [[0] * len(Status) for _ in range(max(Kind) + 1)]  # of a kind, by outcome
        self._waits: dict[str, tuple[int, int]] = {}

    def ended(self, kind: int, status: int) -> None:
        """An op of this pccl_kind ended with this pccl_err."""
        with self._lock:
            self._ops[kind][status] += 1

    def waited(self, what: str, spent_ns: int) -> None:
        """A thread of the user's was blocked so long."""
        with self._lock:
            count, total_ns = self._waits.get(what, (0, 0))
            self._waits[what] = (count + 1, total_ns + spent_ns)

    def facts(self) -> dict[str, list[dict[str, Any]]]:
        """ "ops" by kind and outcome ("ok", "epeer", ...), "waits" by what was waited for."""
        with self._lock:
            ops, waits = [list(counts) for counts in self._ops], list(self._waits.items())
        return {
            "ops": [
                {"kind": Kind(kind).name.lower(), "outcome": Status(status).name.lower(), "count": count}
                for kind, counts in enumerate(ops)
                for status, count in enumerate(counts)
                if count
            ],
            "waits": [
                {"what": what, "count": count, "seconds": total_ns / 1e9} for what, (count, total_ns) in sorted(waits)
            ],
        }
