"""line_log.py - what the lines of several processes carry, and when: for a benchmark that must say where the time goes.

A thread reads the counters of each process's network namespace; they say everything, headers and acknowledgements too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path

__all__ = ["RECEIVED", "SENT", "LineLog"]

_EVERY_S = 0.05
#: Which counter.
RECEIVED, SENT = 0, 8


class LineLog:
    """`pids`: a process for each name. Loopback is left out."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self._samples: list[tuple[float, dict[str, list[int]]]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="line-log", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """No further samples."""
        self._ended.set()
        self._thread.join()

    def rows(self, columns: Mapping[str, int], begin: float, end: float, every_s: float) -> list[dict[str, float]]:
        """Mbit/s of one counter of each name, in each stretch of `every_s` seconds of the monotonic clock."""
        found = []
        at = begin
        while at < end:
            until = min(at + every_s, end)
            row = {"at_s": at - begin}
            for name, column in columns.items():
                row[name] = (self._count(name, column, until) - self._count(name, column, at)) * 8e-6 / (until - at)
            found.append(row)
            at += every_s
        return found

    def _count(self, name: str, column: int, at: float) -> float:
        """The counter at a time between two samples."""
        before = self._samples[0]
        for sample in self._samples:
            if sample[0] >= at:
                span = sample[0] - before[0]
                part = (at - before[0]) / span if span else 0.0
                first = before[1][name][column]
                return first + (sample[1][name][column] - first) * part
            before = sample
        return before[1][name][column]

    def _run(self) -> None:
        while True:
            self._samples.append((time.monotonic(), {name: _counters(pid) for name, pid in self._pids.items()}))
            if self._ended.wait(_EVERY_S):
                return


def _counters(pid: int) -> list[int]:
    lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    fields = [line.partition(":") for line in lines]
    counted = [[int(number) for number in numbers.split()] for name, _, numbers in fields if name.strip() != "lo"]
    return [sum(column) for column in zip(*counted, strict=True)]
