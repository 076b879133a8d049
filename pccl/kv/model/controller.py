"""controller.py - the plan that decisions of the next seconds go by, and advice about roles for the next minutes.

Two timescales. Every `resolve_s` the throughput model is solved anew, on the lengths of the last minutes and the
bandwidth of the moment; the plan follows when the floor moves by more than `hysteresis` and the last plan is `dwell_s`
old. Over minutes: when another division of the local instances between prefill and decode would carry more, by more
than `hysteresis` and for `conversion_s` without a break, the plan's `advice` says which.

The floor. While local prefill alone carries what comes, below the ceiling, the link is left alone ("relief"). Else it
is the lowest threshold at which all that is longer, if it went there, would keep link and remote cluster below the
ceiling, but no more than the model's t: above that local prefill is the worse bottleneck. So it is 0 with bandwidth to
spare and rises as the link gets scarce. A peer that is down is acted on at once, one that is back after `dwell_s`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pccl.kv.model.decide import Load, Paths, Plan
from pccl.kv.model.recent import RecentLengths
from pccl.kv.model.throughput import Solution, ThroughputModel
from pccl.kv.numbers import count, positive, share

__all__ = ["Advice", "Controller", "Pace"]


@dataclass(frozen=True, slots=True)
class Pace:
    """How soon the controller follows. `seen_min`: requests before the model is asked at all."""

    resolve_s: float = 2.0
    dwell_s: float = 10.0
    hysteresis: float = 0.10
    window_s: float = 300.0
    conversion_s: float = 180.0
    advise_s: float = 15.0
    seen_min: int = 24

    def __post_init__(self) -> None:
        for field in ("resolve_s", "dwell_s", "window_s", "conversion_s", "advise_s"):
            positive(field, getattr(self, field))
        share("hysteresis", self.hysteresis)
        count("seen_min", self.seen_min, 1)


@dataclass(frozen=True, slots=True)
class Advice:
    """Convert local instances: so many prefill and decode instead of as now; what both carry, per second."""

    n_p: int
    n_d: int
    lambda_now_per_s: float
    lambda_then_per_s: float


class Controller:
    """`saw` every request, `tick` as often as is convenient (more often than `resolve_s` costs nothing), decide by
    `plan`. Not for several threads; never reads a clock, never blocks.
    """

    def __init__(
        self, paths: Paths, n_remote: int, n_p: int, n_d: int, decode_per_s: float, pace: Pace | None = None
    ) -> None:
        self.paths, self.pace = paths, pace or Pace()
        self.n_remote, self.n_p = count("n_remote", n_remote), count("n_p", n_p)
        self.n_d = count("n_d", n_d)
        self.decode_per_s = positive("decode_per_s", decode_per_s)
        self.recent = RecentLengths(self.pace.window_s)
        self.plan = Plan("relief", 0.0, 0.0, "too few requests seen")
        self.solution: Solution | None = None
        self.advice: Advice | None = None
        self._solved_s = self._changed_s = self._advised_s = float("-inf")
        self._better_since_s: float | None = None

    def saw(self, now_s: float, uncached_tokens: float) -> None:
        """A request came, of which so much is not cached here."""
        self.recent.add(now_s, uncached_tokens)

    def tick(self, now_s: float, load: Load) -> Plan:
        """The plan from now on."""
        if not load.peer_up:
            if self.plan.mode != "local only":
                self._take(now_s, Plan("local only", 0.0, 0.0, "the peer is down"))
        elif now_s - self._solved_s >= self.pace.resolve_s:
            self._solved_s = now_s
            wanted = self._solve(now_s, load)
            if self._differs(wanted) and now_s - self._changed_s >= self.pace.dwell_s:
                self._take(now_s, wanted)
        return self.plan

    def converted(self, n_p: int, n_d: int) -> None:
        """The advice was followed, or roles changed otherwise."""
        self.n_p, self.n_d = count("n_p", n_p), count("n_d", n_d)
        self.advice, self._better_since_s, self._solved_s = None, None, float("-inf")

    def _take(self, now_s: float, plan: Plan) -> None:
        self.plan, self._changed_s = plan, now_s

    def _differs(self, wanted: Plan) -> bool:
        now, enough = self.plan, self.pace.hysteresis
        pairs = ((now.floor_tokens, wanted.floor_tokens), (now.threshold_tokens, wanted.threshold_tokens))
        return now.mode != wanted.mode or any(abs(a - b) > enough * max(a, b) for a, b in pairs)

    def _solve(self, now_s: float, load: Load) -> Plan:
        lengths, seen, rate = self.recent.lengths(now_s)
        if lengths is None or seen < self.pace.seen_min:
            return Plan("relief", 0.0, 0.0, "too few requests seen")
        paths, local = self.paths, self.n_p + self.n_d
        model = ThroughputModel(
            paths.remote, paths.local, self.n_remote, local, self.decode_per_s, load.bandwidth_bytes_per_s, lengths
        )
        self.solution = model.solve(self.n_p)
        self._advise(now_s, model)
        threshold = self.solution.threshold_tokens
        surely = rate * (1.0 - 2.0 / math.sqrt(seen))  # what of the rate is no chance
        if surely <= paths.ceiling * model.local_rate_per_s(self.n_p):
            return Plan("relief", 0.0, threshold, "local prefill suffices")
        floor = min(model.feasible_threshold(rate, paths.ceiling), threshold)
        reason = "the link bears every length" if floor == 0 else "the lowest floor that link and cluster bear"
        return Plan("offload", floor, threshold, reason if floor < threshold else "overload: the model's t")

    def _advise(self, now_s: float, model: ThroughputModel) -> None:
        now = self.solution
        if now is None or now_s - self._advised_s < self.pace.advise_s:
            return
        self._advised_s = now_s
        best = model.solve()
        if best.lambda_max_per_s <= now.lambda_max_per_s * (1 + self.pace.hysteresis):
            self._better_since_s, self.advice = None, None
            return
        if self._better_since_s is None:
            self._better_since_s = now_s
        if now_s - self._better_since_s >= self.pace.conversion_s:
            self.advice = Advice(best.n_p, best.n_d, now.lambda_max_per_s, best.lambda_max_per_s)
