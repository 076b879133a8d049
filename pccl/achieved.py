"""achieved.py - what large all-reduces take at this peer, for the coordinator, which had expected something of them.

Pure. Only ops that ran as the plan says count: all-reduces without a codec, by the plan's algorithm, not started again.
Ops that are in flight together share the network, so they count as one stretch of time with the bytes of all of them;
it ends when an op begins after all others have ended.
"""

from __future__ import annotations

from dataclasses import dataclass

from pccl.messages import Achieved
from pccl.types import Algorithm, EpochConfig, Event, OpDesc

#: Smaller ops say more about delays and about this machine than about what the planner weighs.
LARGE_BYTES = 4 << 20
#: A stretch that does not end is cut, so that it is told of.
STRETCH_MAX_S = 20.0


@dataclass(slots=True)
class _Stretch:
    """Seconds on the clock of the caller."""

    begin: float
    end: float
    nbytes: int


@dataclass(slots=True)
class _Sums:
    """Over stretches that have ended and were not told yet."""

    stretches: int = 0
    nbytes: int = 0
    busy_s: float = 0.0


class Stopwatch:
    """Times the large all-reduces of the newest epoch. Not thread-safe."""

    def __init__(self) -> None:
        self._config: EpochConfig | None = None
        self._open: _Stretch | None = None
        self._ended = _Sums()
        self._counted_until = float("-inf")

    def configure(self, config: EpochConfig) -> None:
        """An epoch is installed: what ran by an older plan says nothing about its."""
        self._config, self._open, self._ended = config, None, _Sums()

    def could_count(self, event: Event) -> bool:
        """Whether it is worth while to read the op's description: whoever reduces n bytes sends about n or more."""
        known = self._config is not None and event.epoch == self._config.epoch
        return known and not event.status and not event.retries and 2 * event.sent_bytes >= LARGE_BYTES

    def ended(self, now: float, event: Event, desc: OpDesc) -> None:
        """An op has ended just now."""
        if not self._is_as_planned(desc):
            return
        begin = max(now - event.duration_ns / 1e9, self._counted_until)
        if self._open is not None and begin >= self._open.end:
            self._close()
        before = self._open or _Stretch(begin, now, 0)
        self._open = _Stretch(min(begin, before.begin), max(now, before.end), before.nbytes + desc.nbytes)
        if self._open.end - self._open.begin >= STRETCH_MAX_S:
            self._close()

    def take(self) -> Achieved | None:
        """The stretches that have ended since they were last asked for; None if there are none."""
        ended, self._ended = self._ended, _Sums()
        if self._config is None or not ended.stretches:
            return None
        return Achieved(self._config.epoch, ended.stretches, ended.nbytes, round(ended.busy_s * 1e6))

    def _close(self) -> None:
        stretch, sums = self._open, self._ended
        assert stretch is not None
        sums.stretches += 1
        sums.nbytes += stretch.nbytes
        sums.busy_s += stretch.end - stretch.begin
        self._open, self._counted_until = None, stretch.end

    def _is_as_planned(self, desc: OpDesc) -> bool:
        config = self._config
        assert config is not None
        planned = config.large_algorithm or Algorithm.RING
        if desc.nbytes <= config.one_round_bytes_max:
            planned = Algorithm.ONE_ROUND
        elif desc.nbytes <= config.mesh_bytes_max:
            planned = Algorithm.MESH
        is_plain = desc.is_all_reduce and not desc.codec
        return is_plain and desc.nbytes >= LARGE_BYTES and desc.algorithm == planned
