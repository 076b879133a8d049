"""forecast.py - when a fetch will have ended, by how fast it went in the last second. Pure."""

from __future__ import annotations

from collections import deque

__all__ = ["Forecast"]

SPAN_S = 1.0
LEAST_S = 0.1  # less says nothing of a rate


class Forecast:
    """Of one fetch."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()  # (when, bytes that were there)

    def left_s(self, now: float, done: int, total: int) -> float:
        """So many bytes of all are there now: in how many seconds the others will be; infinite while nobody knows."""
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - SPAN_S:
            self._seen.popleft()
        at, before = self._seen[0]
        if done >= total:
            return 0.0
        if now - at < LEAST_S or done <= before:
            return float("inf")
        return (total - done) * (now - at) / (done - before)
