"""estimator.py - how fast a link is: for a pool that orders its asks and chooses codecs, and for whoever decides about
requests.

Fed with counters, asked at any time; the clock is an argument. What counts is goodput while something
waited to be sent: a link that carries little because little is asked of it is not slow. Bytes and backlogged time are
added up until SAMPLE_S of backlog make a sample; samples give a mean that fades (over MEAN_S of backlog), its spread,
and the peak of the last PEAK_S. An idle link keeps its last estimate, with an uncertainty that grows. A pool sees its
links from the receiving side: Watch makes counters of what it asks for and what comes. It is busy from a round trip
after it has asked, for nothing can come before, until nothing is asked for any more.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from pccl.errors import ArgumentError
from pccl.kv.numbers import at_least_zero, positive

__all__ = ["BandwidthEstimator", "Estimate", "Watch"]

SAMPLE_S = 0.05
MEAN_S = 3.0
PEAK_S = 10.0
#: Over so long an idle link becomes unknown again (to 63 %).
FORGET_S = 120.0
#: How far a bandwidth that was only told, and never seen, may be off.
TOLD_UNCERTAINTY = 0.5
#: Busy time of which a Watch makes one note: several asks of a link of 1 Gbit/s end in it.
NOTE_S = 0.1
#: The round trip without queues is the least of so long.
RTT_S = 600.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is known of a link. `bandwidth_bytes_per_s`: the mean; `peak_bytes_per_s`: that, or the best of the last
    seconds; `cautious_bytes_per_s`: the mean less its `uncertainty` (0 to 1). `drain_s`: until the queue is gone.
    `retransmission_ratio`: of the bytes; `rtt_inflation`: the round trip beside the least one, 1 without a queue.
    """

    bandwidth_bytes_per_s: float
    peak_bytes_per_s: float
    cautious_bytes_per_s: float
    uncertainty: float
    queued_bytes: float
    drain_s: float
    retransmission_ratio: float
    rtt_inflation: float


class BandwidthEstimator:
    """`told_bytes_per_s`: what to believe until something is seen; None: nothing, and the bandwidth is 0 until then.
    Not for several threads.
    """

    def __init__(self, told_bytes_per_s: float | None) -> None:
        told = told_bytes_per_s
        self.bandwidth_bytes_per_s = 0.0 if told is None else positive("told_bytes_per_s", told)
        self.queued_bytes = 0.0
        self._spread = 1.0 if told is None else TOLD_UNCERTAINTY
        self._seen_s = 0.0
        self._last = (0.0, 0.0, 0.0)  # backlogged_s, sent_bytes, resent_bytes at the end of the last sample
        self._peaks: deque[tuple[float, float]] = deque()  # falling
        self._troughs: deque[tuple[float, float]] = deque()  # rising, of round trips
        self._rtt_s = 0.0
        self._resent = 0.0
        self._fresh_s: float | None = None  # when the last sample was made

    def note(
        self,
        now_s: float,
        backlogged_s: float,
        sent_bytes: float,
        queued_bytes: float,
        resent_bytes: float = 0.0,
        rtt_s: float | None = None,
    ) -> None:
        """Counters of the sender, from its beginning on: time during which something waited, bytes that were
        acknowledged in that time, bytes sent again. Of now: bytes that wait, the round trip. ArgumentError names a
        value that is no number or a counter that went back.
        """
        counters = (backlogged_s, sent_bytes, resent_bytes)
        if not all(now >= before for now, before in zip(counters, self._last, strict=True)):
            names = ("backlogged_s", "sent_bytes", "resent_bytes")
            wrong = [n for n, now, before in zip(names, counters, self._last, strict=True) if not now >= before]
            raise ArgumentError(f"{wrong[0]} must be a number that does not fall")
        self.queued_bytes = at_least_zero("queued_bytes", queued_bytes)
        if rtt_s is not None:
            self._note_rtt(now_s, positive("rtt_s", rtt_s))
        if self._fresh_s is None:
            self._fresh_s = now_s
        passed_s, sent, resent = (now - before for now, before in zip(counters, self._last, strict=True))
        if passed_s >= SAMPLE_S:
            self._last = counters
            self._sample(now_s, passed_s, sent / passed_s)
            self._resent += (1.0 - math.exp(-passed_s / MEAN_S)) * (resent / max(sent, resent, 1.0) - self._resent)

    def estimate(self, now_s: float) -> Estimate:
        """All that is known."""
        while self._peaks and self._peaks[0][0] < now_s - PEAK_S:
            self._peaks.popleft()
        mean, uncertainty = self.bandwidth_bytes_per_s, self.uncertainty(now_s)
        drain_s = self.queued_bytes / mean if mean else math.inf if self.queued_bytes else 0.0
        return Estimate(
            mean,
            max(self._peaks[0][1], mean) if self._peaks else mean,
            mean * (1.0 - uncertainty),
            uncertainty,
            self.queued_bytes,
            drain_s,
            self._resent,
            self._rtt_s / self._troughs[0][1] if self._troughs else 1.0,
        )

    @property
    def least_rtt_s(self) -> float:
        """The round trip without queues; infinity: not known."""
        return self._troughs[0][1] if self._troughs else math.inf

    def uncertainty(self, now_s: float) -> float:
        """Part of the mean that it may be off: the spread of the samples, more with every second without one."""
        idle_s = 0.0 if self._fresh_s is None else max(0.0, now_s - self._fresh_s)
        return 1.0 - (1.0 - min(self._spread, 1.0)) * math.exp(-idle_s / FORGET_S)

    def _sample(self, now_s: float, passed_s: float, rate: float) -> None:
        if rate <= 0.0:  # nothing came through at all: a fault, which others see to; it is no bandwidth
            return
        self._seen_s += passed_s
        # Of the first it is 1, whatever was told.
        weight = math.expm1(-passed_s / MEAN_S) / math.expm1(-self._seen_s / MEAN_S)
        if not self.bandwidth_bytes_per_s:
            self._spread = TOLD_UNCERTAINTY
        off = abs(rate - self.bandwidth_bytes_per_s) / max(rate, self.bandwidth_bytes_per_s)
        self.bandwidth_bytes_per_s += weight * (rate - self.bandwidth_bytes_per_s)
        self._spread += (1.0 - math.exp(-passed_s / MEAN_S)) * (off - self._spread)
        self._fresh_s = now_s
        while self._peaks and self._peaks[-1][1] <= rate:
            self._peaks.pop()
        self._peaks.append((now_s, rate))

    def _note_rtt(self, now_s: float, rtt_s: float) -> None:
        self._rtt_s = rtt_s
        while self._troughs and self._troughs[-1][1] >= rtt_s:
            self._troughs.pop()
        self._troughs.append((now_s, rtt_s))
        while self._troughs[0][0] < now_s - RTT_S:
            self._troughs.popleft()


class Watch:
    """A link seen by who asks for things, and the `estimator` that is fed with that. Not for several threads."""

    def __init__(self) -> None:
        self.estimator = BandwidthEstimator(None)
        self._since: float | None = None  # busy since (or from) then, or since the last look
        self._busy_s = 0.0
        self._bytes = 0
        self._noted_s = 0.0

    def busy(self, asked_bytes: int, rtt_s: float, now_s: float) -> None:
        """So much is asked for that could come now, but for the first round trip. `rtt_s`: 0 if it is not known."""
        self._pass(now_s)
        if not asked_bytes:
            self._since = None
        elif self._since is None:
            self._since = now_s + min(rtt_s, self.estimator.least_rtt_s)
        if self._busy_s >= self._noted_s + NOTE_S:
            self._noted_s = self._busy_s
            self.estimator.note(now_s, self._busy_s, self._bytes, asked_bytes, rtt_s=rtt_s or None)
        else:
            self.estimator.queued_bytes = float(asked_bytes)

    def landed(self, nbytes: int, now_s: float) -> None:
        """So much has come."""
        self._pass(now_s)
        self._bytes += nbytes

    def peak_bytes_per_s(self, now_s: float) -> float:
        """The best of the last seconds, or the mean of what was seen before; 0: nothing yet."""
        return self.estimator.estimate(now_s).peak_bytes_per_s

    def _pass(self, now_s: float) -> None:
        if self._since is not None and now_s > self._since:
            self._busy_s += now_s - self._since
            self._since = now_s
