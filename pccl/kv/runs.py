"""runs.py - block ids as the fewest runs (first, count, stride): what travels instead of lists. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from pccl.errors import ProtocolError
from pccl.kv.memory import Ids

__all__ = ["Run", "blocks_of", "runs_of"]

#: first id, how many, and the step from one to the next.
Run = tuple[int, int, int]


def runs_of(blocks: Ids) -> list[Run]:
    """In their order; greedy. A run of one has stride 1."""
    ids = blocks.tolist()
    runs: list[Run] = []
    at = 0
    while at < len(ids):
        stride = ids[at + 1] - ids[at] if at + 1 < len(ids) else 1
        end = at + 1
        while end < len(ids) and ids[end] - ids[end - 1] == stride:
            end += 1
        if end == at + 2 and end < len(ids):  # two that happen to be there are no run
            end, stride = at + 1, 1
        runs.append((ids[at], end - at, stride if end - at > 1 else 1))
        at = end
    return runs


def blocks_of(runs: Iterable[Sequence[int]], most: int) -> Ids:
    """The ids again. ProtocolError: they are more than `most`, or negative."""
    parts = []
    left = most
    for first, count, stride in runs:
        last = first + (count - 1) * stride
        if not 1 <= count <= left or min(first, last) < 0 or max(first, last) >= 1 << 62:
            raise ProtocolError(f"a run of blocks that cannot be: {(first, count, stride)}, of {most}")
        left -= count
        parts.append(first + np.arange(count, dtype=np.int64) * stride)
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
