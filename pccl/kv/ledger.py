"""ledger.py - who holds which blocks. Any thread.

A block has two owners while it is part of a transfer: the request, until its outcome stands, and the writer (the asks
of a receive, the regions of a send), until the engine has let go. It is free when both have. The blocks of a receive
are held alone; those of a send may be sent to several at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from pccl.errors import ArgumentError
from pccl.kv.memory import Ids

__all__ = ["REQUEST", "WRITER", "Ledger"]

REQUEST, WRITER = "request", "writer"


class Ledger:
    """Of one pool. `counts`: blocks of each group; `names`: of the groups."""

    def __init__(self, counts: Sequence[int], names: Sequence[str]) -> None:
        self._lock = threading.Lock()
        self._names = names
        self._written: list[np.ndarray[Any, Any]] = [np.zeros(count, bool) for count in counts]
        self._read: list[np.ndarray[Any, Any]] = [np.zeros(count, np.int32) for count in counts]
        self._held: dict[bytes, tuple[list[Ids], bool, set[str]]] = {}

    def take(self, transfer: bytes, blocks: Sequence[Ids], alone: bool) -> None:
        """Both owners take the blocks of each group. ArgumentError names one that is in use; then nothing is taken."""
        with self._lock:
            for group, ids in enumerate(blocks):
                used = self._written[group][ids]
                if alone:
                    used = used | (self._read[group][ids] > 0)
                if used.any():
                    at = int(np.flatnonzero(used)[0])
                    raise ArgumentError(
                        f"blocks[{at}] of {self._names[group]!r} is {ids[at]}, which is part of another transfer"
                    )
            for group, ids in enumerate(blocks):
                self._add(group, ids, alone, 1)
            self._held[transfer] = (list(blocks), alone, {REQUEST, WRITER})

    def let_go(self, transfer: bytes, owner: str) -> bool:
        """One of the owners; whether the blocks are free now. Idempotent."""
        with self._lock:
            held = self._held.get(transfer)
            if held is None:
                return True
            blocks, alone, owners = held
            owners.discard(owner)
            if owners:
                return False
            del self._held[transfer]
            for group, ids in enumerate(blocks):
                self._add(group, ids, alone, -1)
            return True

    def busy(self, group: int) -> Ids:
        """Blocks of a group that are not free."""
        with self._lock:
            return np.flatnonzero(self._written[group] | (self._read[group] > 0)).astype(np.int64, copy=False)

    @property
    def transfers(self) -> int:
        """That hold blocks."""
        return len(self._held)

    def _add(self, group: int, ids: Ids, alone: bool, count: int) -> None:
        if alone:
            self._written[group][ids] = count > 0
        else:
            self._read[group][ids] += count  # ids of one transfer are each there once
