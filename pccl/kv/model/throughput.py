"""throughput.py - the request rate that a remote prefill cluster, a link and a local cluster carry together.

The model of "Prefill-as-a-Service" (arXiv 2604.15039, equations 3 to 8). Uncached lengths L, threshold t:
p = P(L > t), l_long = E[L | L > t], l_short = E[L | L <= t], and

    Theta_remote = min(n_remote / T_remote(l_long), B / S_kv(l_long))       prefill there, and the way back
    Theta_local  = n_p / T_local(l_short)                                   prefill here
    Theta_decode = n_d * decode_per_s                                       decode, always here
    Lambda       = min(Theta_remote / p, Theta_local / (1 - p), Theta_decode)

`solve` tries every t that makes a difference with every division of the local instances: a grid, all at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pccl.errors import ArgumentError
from pccl.kv.model.lengths import Cuts, Lengths
from pccl.kv.model.profile import Floats, Profile
from pccl.kv.numbers import at_least_zero, count, positive

__all__ = ["Solution", "ThroughputModel"]

BOTTLENECKS = ("remote prefill", "link", "local prefill", "decode")
#: So close to the best rate two solutions are equal, and the one with more room in its prefill is taken.
EQUAL = 1e-9


@dataclass(frozen=True, slots=True)
class Solution:
    """What a threshold and a division give. `threshold_tokens`: longer prompts go to the remote cluster; `p`: their
    share. Rates are requests per second: `lambda_max_per_s` of all, `theta_*_per_s` of each part alone, the remote
    one with its link. `egress_bytes_per_s`: on the link at that rate. `extrapolated`: by lengths beyond a profile.
    """

    threshold_tokens: float
    n_remote: int
    n_p: int
    n_d: int
    lambda_max_per_s: float
    bottleneck: str
    p: float
    theta_remote_per_s: float
    theta_local_per_s: float
    theta_decode_per_s: float
    egress_bytes_per_s: float
    extrapolated: bool


@dataclass(frozen=True)
class _Sides:
    """By cut: rates that remote prefill, link and one local instance allow for all requests, and of the parts."""

    cuts: Cuts
    remote: Floats
    link: Floats
    local: Floats
    kv_bytes: Floats


@dataclass(frozen=True)
class ThroughputModel:
    """`n_remote` instances of `remote` prefill only; `n_local` of `local` are prefill or decode. An instance that
    decodes finishes `decode_per_s` requests per second (BS_max / (T_decode * L_out)). The link brings
    `bandwidth_bytes_per_s` here. ArgumentError names the field that is wrong. Nothing here blocks.
    """

    remote: Profile
    local: Profile
    n_remote: int
    n_local: int
    decode_per_s: float
    bandwidth_bytes_per_s: float
    lengths: Lengths

    def __post_init__(self) -> None:
        count("n_remote", self.n_remote)
        count("n_local", self.n_local, 1)
        positive("decode_per_s", self.decode_per_s)
        at_least_zero("bandwidth_bytes_per_s", self.bandwidth_bytes_per_s)

    def solve(self, n_p: int | None = None) -> Solution:
        """The threshold and the division that carry the most; with `n_p` the division is given (between 0 and
        n_local, without the ends if they carry nothing).
        """
        sides = self._sides
        divisions = np.arange(0, self.n_local + 1) if n_p is None else np.array([self._division(n_p)])
        prefill = np.minimum(np.minimum(sides.remote, sides.link)[None, :], divisions[:, None] * sides.local[None, :])
        decode = (self.n_local - divisions) * self.decode_per_s
        rates = np.minimum(prefill, decode[:, None])
        best = rates.max()
        room = np.where(rates >= best * (1 - EQUAL), prefill, -1.0)
        row, column = np.unravel_index(int(np.argmax(room)), room.shape)
        return self._solution(sides, int(column), int(divisions[row]))

    def at(self, threshold_tokens: float, n_p: int) -> Solution:
        """What a given threshold and division give."""
        at_least_zero("threshold_tokens", threshold_tokens)
        return self._solution(self._cut(self.lengths.cut(threshold_tokens)), 0, self._division(n_p))

    def homogeneous(self) -> Solution:
        """Without the remote cluster: local instances alone, divided as is best."""
        everything = self._cut(self.lengths.cut(float(self.lengths.tokens[-1])))
        found = [self._solution(everything, 0, n_p) for n_p in range(self.n_local + 1)]
        return max(found, key=lambda solution: solution.lambda_max_per_s)

    def naive(self) -> Solution:
        """Every prompt is prefilled remotely, every local instance decodes."""
        return self._solution(self._cut(self.lengths.cut(0.0)), 0, 0)

    def feasible_threshold(self, rate_per_s: float, ceiling: float) -> float:
        """The lowest threshold at which requests that come at `rate_per_s` use at most `ceiling` of the remote
        cluster and of the link; the longest length if there is none.
        """
        sides = self._sides
        enough = np.minimum(sides.remote, sides.link) * ceiling >= rate_per_s
        return float(sides.cuts.t[int(np.argmax(enough))]) if enough.any() else float(sides.cuts.t[-1])

    def local_rate_per_s(self, n_p: int) -> float:
        """What `n_p` local instances prefill without any help."""
        return n_p / self.local.prefill_s.at(self.lengths.mean)

    def _division(self, n_p: int) -> int:
        count("n_p", n_p)
        if n_p > self.n_local:
            raise ArgumentError(f"n_p must be at most n_local ({self.n_local}), not {n_p}")
        return n_p

    @cached_property
    def _sides(self) -> _Sides:
        return self._cut(self.lengths.cuts)

    def _cut(self, cuts: Cuts) -> _Sides:
        with np.errstate(divide="ignore", invalid="ignore"):
            remote_s, kv_bytes = self.remote.prefill_s.many(cuts.long), self.remote.kv_bytes.many(cuts.long)
            local_s = self.local.prefill_s.many(cuts.short)
            anything = cuts.p > 0
            remote = np.where(anything, self.n_remote / (cuts.p * remote_s), np.inf)
            link = np.where(anything, self.bandwidth_bytes_per_s / (cuts.p * kv_bytes), np.inf)
            local = np.where(cuts.p < 1, 1.0 / ((1.0 - cuts.p) * local_s), np.inf)
        return _Sides(cuts, remote, link, np.minimum(local, 1e18), kv_bytes)

    def _solution(self, sides: _Sides, k: int, n_p: int) -> Solution:
        n_d = self.n_local - n_p
        limits = (
            float(sides.remote[k]),
            float(sides.link[k]),
            float(n_p * sides.local[k]) if sides.cuts.p[k] < 1 else np.inf,
            n_d * self.decode_per_s,
        )
        rate = min(limits)
        p, long = float(sides.cuts.p[k]), float(sides.cuts.long[k])
        return Solution(
            threshold_tokens=float(sides.cuts.t[k]),
            n_remote=self.n_remote,
            n_p=n_p,
            n_d=n_d,
            lambda_max_per_s=rate,
            bottleneck=BOTTLENECKS[limits.index(rate)],
            p=p,
            theta_remote_per_s=min(limits[0], limits[1]) * p if p > 0 else 0.0,
            theta_local_per_s=limits[2] * (1.0 - p) if p < 1 else 0.0,
            theta_decode_per_s=limits[3],
            egress_bytes_per_s=rate * p * float(sides.kv_bytes[k]) if p > 0 else 0.0,
            extrapolated=self.remote.extrapolated(long) or self.local.extrapolated(float(sides.cuts.short[k])),
        )
