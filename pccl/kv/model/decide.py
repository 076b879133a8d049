"""decide.py - where one request is prefilled: here, or in the remote cluster, whose KV cache then crosses the link.

Pure, and quick enough for every request. Both times to the first token are predicted from the profiles, what waits in
either queue and on the link; the rest is rules, in this order:

1. without a peer, or where the plan says so: here. A deadline that only one of both keeps decides next.
2. a plan that finds local prefill sufficient ("relief") lends the link only to requests that would break the SLO here.
3. an uncached part that is not above the floor stays here. The floor is the plan's: it moves with bandwidth and load.
   While the link is busier than the ceiling, bandwidth is scarce, and the floor is the model's threshold t.
4. whoever is sooner, once each has paid for the delay that it causes: who joins a queue keeps those waiting who come
   before the queue is gone. Nobody is sent far for the sake of others when that takes LATER_MAX times as long, and
   the link is not used for a gain below `gain_min_s`.

What counts as cached remotely: with bandwidth to spare the longer of both prefixes, the local one pulled over the link
the other way where that is sooner than to compute it; with scarce bandwidth each cluster's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from pccl.errors import ArgumentError
from pccl.kv.model.profile import Profile
from pccl.kv.numbers import ahead, at_least_zero, count, positive, share

__all__ = ["Decision", "Load", "Paths", "Plan", "Predicted", "Where", "decide", "predict"]

INFINITE = float("inf")
#: Requests per second and instance that join a queue, over the part of time in which it is free: rate / (1 - load).
PRESSURE_PER_S = 0.6
#: No request is made more than so much later for the sake of others.
LATER_MAX = 1.75

Where = Literal["local", "remote"]
Mode = Literal["offload", "relief", "local only"]


@dataclass(frozen=True, slots=True)
class Paths:
    """What does not change from request to request. `layers`: how many pieces the KV cache streams in; the last is
    sent when the prefill is done. `ceiling`: the part of the link above which bandwidth is scarce. `gain_min_s`: what
    the remote way has to be sooner by. `slo_s`: wanted seconds to the first token.
    """

    remote: Profile
    local: Profile
    layers: int = 32
    rtt_s: float = 0.03
    ceiling: float = 0.85
    slo_s: float = 5.0
    gain_min_s: float = 0.4

    def __post_init__(self) -> None:
        count("layers", self.layers, 1)
        at_least_zero("gain_min_s", self.gain_min_s)
        at_least_zero("rtt_s", self.rtt_s)
        share("ceiling", self.ceiling)
        positive("slo_s", self.slo_s)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the controller has decided for the next seconds. `mode`: "offload" by the floor, "relief" (only what would
    break the SLO here), or "local only". `threshold_tokens`: the model's t, at which both clusters fill up together.
    """

    mode: Mode
    floor_tokens: float
    threshold_tokens: float
    reason: str

    def __post_init__(self) -> None:
        at_least_zero("floor_tokens", self.floor_tokens)
        at_least_zero("threshold_tokens", self.threshold_tokens)


@dataclass(frozen=True, slots=True)
class Load:
    """What is so now. `remote_wait_s`, `local_wait_s`: until one of the `remote_instances`, `local_instances` is free.
    `queued_bytes`: before us on the link to here; `utilisation`: the used part of that link. `peer_up`: whether the
    remote cluster can be reached.
    """

    bandwidth_bytes_per_s: float
    queued_bytes: float = 0.0
    utilisation: float = 0.0
    remote_wait_s: float = 0.0
    local_wait_s: float = 0.0
    remote_instances: int = 1
    local_instances: int = 1
    peer_up: bool = True

    def __post_init__(self) -> None:
        least = min(self.remote_wait_s, self.local_wait_s, self.queued_bytes, self.utilisation)
        summed = self.remote_wait_s + self.local_wait_s + self.queued_bytes + self.utilisation
        fine = least >= 0.0 and summed < INFINITE and 0.0 < self.bandwidth_bytes_per_s < INFINITE
        if fine and self.remote_instances > 0 and self.local_instances > 0:
            return  # quick, for every request; what follows says what is wrong
        positive("bandwidth_bytes_per_s", self.bandwidth_bytes_per_s)
        for name in ("queued_bytes", "utilisation", "remote_wait_s", "local_wait_s"):
            at_least_zero(name, getattr(self, name))
        count("remote_instances", self.remote_instances, 1)
        count("local_instances", self.local_instances, 1)


class Predicted(NamedTuple):
    """Seconds to the first token of both ways, and of them those in which an instance works; `pull_tokens`: of the
    prefix cached here, that are worth pulling.
    """

    local_s: float
    remote_s: float
    local_work_s: float
    remote_work_s: float
    pull_tokens: int


@dataclass(frozen=True, slots=True)
class Decision:
    """`where` to prefill, and why. `threshold`: the uncached tokens that had to be exceeded. `predicted`: seconds to
    the first token of both ways. `extrapolated`: a length was beyond what was measured. `pull_tokens`: of the prefix
    that the remote cluster first fetches from here.
    """

    where: Where
    threshold: float
    predicted: dict[Where, float]
    reason: str
    extrapolated: bool
    pull_tokens: int = 0


def predict(
    total_tokens: int, cached_local: int, cached_remote: int, load: Load, paths: Paths, pull: bool = True
) -> Predicted:
    """Both ways of one request. Without `pull` no prefix is pulled. The remote way: the request goes there, waits, is
    prefilled while its KV cache streams here behind what is queued on the link; the last layer follows the prefill.
    Only what is not cached here is sent.
    """
    local_work_s = paths.local.prefill_s.at(total_tokens - cached_local)
    rate = load.bandwidth_bytes_per_s
    sent_s = paths.remote.kv_bytes.at(total_tokens - cached_local) / rate
    wait_s, work_s = load.remote_wait_s, paths.remote.prefill_s.at(total_tokens - cached_remote)
    pulled = 0
    if pull and cached_local > cached_remote:
        fetch_s = paths.rtt_s + paths.remote.kv_bytes.at(cached_local - cached_remote) / rate
        rest_s = paths.remote.prefill_s.at(total_tokens - cached_local)
        if max(wait_s, fetch_s) + rest_s < wait_s + work_s:
            wait_s, work_s, pulled = max(wait_s, fetch_s), rest_s, cached_local - cached_remote
    streamed_s = max(wait_s, load.queued_bytes / rate) + sent_s
    remote_s = paths.rtt_s + max(wait_s + work_s + sent_s / paths.layers, streamed_s)
    return Predicted(load.local_wait_s + local_work_s, remote_s, local_work_s, work_s, pulled)


def decide(
    total_tokens: int,
    cached_local: int,
    cached_remote: int,
    load: Load,
    paths: Paths,
    plan: Plan,
    *,
    now_s: float = 0.0,
    deadline_s: float | None = None,
) -> Decision:
    """Where a prompt of `total_tokens`, of which the clusters have the first `cached_*`, is prefilled. `deadline_s`: of
    the first token, on the clock of `now_s`. ArgumentError names the field that is wrong. Does not block.
    """
    if not (0 <= cached_local <= total_tokens and 0 <= cached_remote <= total_tokens):
        _refuse(total_tokens, cached_local, cached_remote)
    left_s = None if deadline_s is None else ahead("deadline_s", deadline_s, now_s) - now_s
    scarce = load.utilisation >= paths.ceiling
    uncached = total_tokens - cached_local
    found = predict(total_tokens, cached_local, cached_remote, load, paths, not scarce)
    threshold = plan.threshold_tokens if scarce and plan.threshold_tokens > plan.floor_tokens else plan.floor_tokens
    where: Where
    if not load.peer_up:
        where, reason = "local", "the peer is down"
    elif plan.mode == "local only":
        where, reason = "local", plan.reason
    elif left_s is not None and (found.local_s <= left_s) != (found.remote_s <= left_s):
        where, reason = ("local" if found.local_s <= left_s else "remote"), "only so the deadline is kept"
    elif plan.mode == "relief" and found.local_s <= paths.slo_s:
        where, reason = "local", "local prefill suffices and keeps the SLO"
    elif uncached <= threshold:
        where, reason = "local", "not above t, bandwidth is scarce" if scarce else "not above the floor"
    else:
        where, reason = _sooner(found, load, paths)
    pull = found.pull_tokens
    computed = max(uncached, total_tokens - cached_remote - pull)
    extrapolated = uncached > paths.local.longest or computed > paths.remote.longest
    predicted: dict[Where, float] = {"local": found.local_s, "remote": found.remote_s}
    return Decision(where, threshold, predicted, reason, extrapolated, pull if where == "remote" else 0)


def _sooner(found: Predicted, load: Load, paths: Paths) -> tuple[Where, str]:
    """The last rule."""
    local_delay_s = _delay_s(load.local_wait_s, found.local_work_s, load.local_instances)
    remote_delay_s = _delay_s(load.remote_wait_s, found.remote_work_s, load.remote_instances)
    bearable = found.remote_s <= LATER_MAX * found.local_s
    if bearable and found.remote_s + remote_delay_s + paths.gain_min_s < found.local_s + local_delay_s:
        return "remote", "sooner" if found.remote_s < found.local_s else "others are sooner, the local queue is long"
    return "local", "sooner" if found.local_s <= found.remote_s else "the remote way gains too little"


def _delay_s(wait_s: float, work_s: float, instances: int) -> float:
    """What the next requests of a queue lose, together, by `work_s` more before them: a queue that is free again after
    w seconds costs those who come until then about PRESSURE_PER_S * instances * w * w / 2; this is the difference.
    """
    return PRESSURE_PER_S * work_s * (wait_s + work_s / (2 * instances))


def _refuse(total_tokens: int, cached_local: int, cached_remote: int) -> None:
    count("total_tokens", total_tokens)
    for field, value in (("cached_local", cached_local), ("cached_remote", cached_remote)):
        if count(field, value) > total_tokens:
            raise ArgumentError(f"{field} must be at most total_tokens ({total_tokens}), not {value}")
