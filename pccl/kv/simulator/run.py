"""run.py - one trace, one topology, one policy: what became of every request. The same seed gives the same result.

Requests are decided on as they come, knowing what waits where; queues are served in order, so the end of each is known
at once, and the only events that lie in the future are blocks that get cached. The noise of a prefill's time belongs to
the request, not to the policy: policies compare on the same luck.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pccl.kv.estimator import BandwidthEstimator
from pccl.kv.model.decide import Decision, Load
from pccl.kv.numbers import count
from pccl.kv.simulator.cluster import Link, Pool, PrefixCache, Topology
from pccl.kv.simulator.policies import Policy
from pccl.kv.simulator.trace import Trace

__all__ = ["Outcome", "simulate"]


@dataclass(frozen=True)
class Outcome:
    """Arrays by request. `ttft_s`: to the first token, with every wait. `predicted_s`: what the decision said of that.
    `sent_bytes`: over the link to here, `saved_bytes`: that the prefix cached here made needless, `pulled_bytes`: of
    prefixes over the link the other way.
    """

    trace: Trace
    topology: Topology
    policy: str
    seed: int
    remote: NDArray[np.bool_]
    ttft_s: NDArray[np.float64]
    predicted_s: NDArray[np.float64]
    threshold: NDArray[np.float64]
    uncached_tokens: NDArray[np.int64]
    sent_bytes: NDArray[np.float64]
    saved_bytes: NDArray[np.float64]
    pulled_bytes: NDArray[np.float64]
    extrapolated: NDArray[np.bool_]
    reasons: tuple[str, ...]
    end_s: float


def simulate(trace: Trace, topology: Topology, policy: Policy, seed: int = 0) -> Outcome:
    """Replays the trace. Takes a second or less for ten thousand requests; blocks for that long."""
    count("seed", seed)
    noise = np.exp(np.random.default_rng(seed).normal(0.0, 1.0, len(trace)) * topology.jitter)
    world = _World(topology, trace.block_tokens)
    rows = [
        world.serve(policy, now_s, tokens, blocks, factor)
        for now_s, tokens, blocks, factor in zip(
            trace.arrival_s.tolist(), trace.input_tokens.tolist(), trace.blocks, noise.tolist(), strict=True
        )
    ]
    remote, ttft, predicted, threshold, uncached, sent, saved, pulled, extrapolated, reasons = zip(*rows, strict=True)
    ends = trace.arrival_s + np.array(ttft)
    return Outcome(
        trace,
        topology,
        policy.name,
        seed,
        np.array(remote, np.bool_),
        np.array(ttft),
        np.array(predicted),
        np.array(threshold, np.float64),
        np.array(uncached, np.int64),
        np.array(sent, np.float64),
        np.array(saved, np.float64),
        np.array(pulled, np.float64),
        np.array(extrapolated, np.bool_),
        reasons,
        float(ends.max()),
    )


Row = tuple[bool, float, float, float, int, float, float, float, bool, str]


class _World:
    """Both clusters and the link, at the time of the request that is served."""

    def __init__(self, topology: Topology, block_tokens: int) -> None:
        self.paths = topology.paths
        self.block_tokens = block_tokens
        self.remote, self.local = Pool(topology.n_remote), Pool(topology.n_p)
        self.back, self.forth = (Link(topology.bandwidth_bytes_per_s) for _ in range(2))
        self.here, self.there = (PrefixCache(topology.cache_blocks) for _ in range(2))
        self.estimator = BandwidthEstimator(topology.bandwidth_bytes_per_s)

    def serve(self, policy: Policy, now_s: float, tokens: int, blocks: tuple[int, ...], factor: float) -> Row:
        """One request, to its end."""
        most = tokens - 1  # the last token is always computed: it makes the first one of the answer
        cached_here = min(self.here.hit_blocks(now_s, blocks) * self.block_tokens, most)
        cached_there = min(self.there.hit_blocks(now_s, blocks) * self.block_tokens, most)
        decision = policy.choose(now_s, tokens, cached_here, cached_there, self._load(now_s))
        predicted_s = decision.predicted[decision.where]
        uncached = tokens - cached_here
        if decision.where == "local":
            _, end_s = self.local.take(now_s, self.paths.local.prefill_s.at(uncached) * factor)
            self.here.add(end_s, blocks)
            sent = saved = pulled = 0.0
        else:
            end_s, sent, pulled = self._offload(decision, now_s, tokens, cached_here, cached_there, factor)
            self.here.add(end_s, blocks)
            self.there.add(end_s, blocks)
            saved = self.paths.remote.kv_bytes.at(tokens) - sent
        away = decision.where == "remote"
        return (
            away,
            end_s - now_s,
            predicted_s,
            decision.threshold,
            uncached,
            sent,
            saved,
            pulled,
            decision.extrapolated,
            decision.reason,
        )

    def _load(self, now_s: float) -> Load:
        """What the clusters and the link tell of themselves."""
        link = self.back
        link.advance(now_s)
        self.estimator.note(now_s, link.busy_s, link.sent_bytes, link.queued_bytes)
        return Load(
            self.estimator.bandwidth_bytes_per_s,
            link.queued_bytes,
            link.utilisation,
            self.remote.wait_s(now_s),
            self.local.wait_s(now_s),
            len(self.remote),
            len(self.local),
        )

    def _offload(
        self, decision: Decision, now_s: float, tokens: int, cached_here: int, cached_there: int, factor: float
    ) -> tuple[float, float, float]:
        """(end, bytes to here, bytes from here)."""
        remote, rtt_s = self.paths.remote, self.paths.rtt_s
        ready_s, pulled = now_s + rtt_s / 2, 0.0
        if decision.pull_tokens:
            pulled = remote.kv_bytes.at(decision.pull_tokens)
            ready_s = self.forth.carry(now_s, pulled) + rtt_s
        work_s = remote.prefill_s.at(tokens - cached_there - decision.pull_tokens) * factor
        begin_s, done_s = self.remote.take(ready_s, work_s)
        size = remote.kv_bytes.at(tokens - cached_here)
        last_s = size / self.paths.layers / self.back.bandwidth_bytes_per_s
        return max(done_s + last_s, self.back.carry(begin_s, size)) + rtt_s / 2, size, pulled
