"""recent.py - the uncached lengths of the last minutes, as a histogram that slides: what the controller solves on.

Buckets of equal width in the logarithm, each with how many it has and their sum, so that means are exact; slices of
time, of which the oldest is dropped as a whole. The clock is an argument.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from pccl.kv.model.lengths import Lengths
from pccl.kv.numbers import at_least_zero, positive

__all__ = ["RecentLengths"]

BUCKETS = 128
BUCKETS_PER_OCTAVE = 6
SLICES = 10


class RecentLengths:
    """Call `add` for every request, in the order of time. Not for several threads."""

    def __init__(self, window_s: float) -> None:
        self.window_s = positive("window_s", window_s)
        self._slices: deque[tuple[int, list[int], list[float]]] = deque()
        self._first_s: float | None = None

    def add(self, now_s: float, tokens: float) -> None:
        """A request with so many uncached tokens came."""
        at_least_zero("tokens", tokens)
        if self._first_s is None:
            self._first_s = now_s
        number = math.floor(now_s * SLICES / self.window_s)
        if not self._slices or self._slices[-1][0] < number:
            self._slices.append((number, [0] * BUCKETS, [0.0] * BUCKETS))
        bucket = min(int(BUCKETS_PER_OCTAVE * math.log2(tokens + 1.0)), BUCKETS - 1)
        _, counts, sums = self._slices[-1]
        counts[bucket] += 1
        sums[bucket] += tokens

    def lengths(self, now_s: float) -> tuple[Lengths | None, int, float]:
        """(distribution, requests, requests per second) of the window; None where nothing came."""
        oldest = math.floor(now_s * SLICES / self.window_s) - SLICES + 1
        while self._slices and self._slices[0][0] < oldest:
            self._slices.popleft()
        if self._first_s is None or not self._slices:
            return None, 0, 0.0
        counts = np.array([counts for _, counts, _ in self._slices]).sum(axis=0)
        sums = np.array([sums for _, _, sums in self._slices]).sum(axis=0)
        begin_s = max(oldest * self.window_s / SLICES, self._first_s)
        number, seen = int(counts.sum()), counts > 0
        rate = number / max(now_s - begin_s, self.window_s / 100)
        return Lengths.weighted(sums[seen] / counts[seen], counts[seen]), number, rate
