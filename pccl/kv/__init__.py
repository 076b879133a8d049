"""KV caches across datacenters: where prompts are prefilled, and how their KV cache gets to the decoder.

controller = Controller(paths, n_remote=4, n_p=3, n_d=5, decode_per_s=0.78)
plan = controller.tick(now_s, load)
decision = decide(total, cached_local, cached_remote, load, paths, plan)
decision.where, decision.predicted, decision.reason

docs/kv_routing.md says what decides what. Nothing here has threads or reads a clock.
"""

from __future__ import annotations

from pccl.kv.estimator import BandwidthEstimator, Estimate
from pccl.kv.model.controller import Advice, Controller, Pace
from pccl.kv.model.decide import Decision, Load, Paths, Plan, decide
from pccl.kv.model.lengths import Lengths
from pccl.kv.model.profile import Curve, Profile
from pccl.kv.model.throughput import Solution, ThroughputModel
from pccl.kv.prefix.context import KeyContext
from pccl.kv.prefix.events import Batch, Digest, Event, Journal, Kind, Snapshot
from pccl.kv.prefix.index import Hit, Instance, PrefixIndex, Replay
from pccl.kv.ring import TwoRings
from pccl.kv.router import Move, Node, Queued, Route, Router

__all__ = [
    "Advice",
    "BandwidthEstimator",
    "Batch",
    "Controller",
    "Curve",
    "Decision",
    "Digest",
    "Estimate",
    "Event",
    "Hit",
    "Instance",
    "Journal",
    "KeyContext",
    "Kind",
    "Lengths",
    "Load",
    "Move",
    "Node",
    "Pace",
    "Paths",
    "Plan",
    "PrefixIndex",
    "Profile",
    "Queued",
    "Replay",
    "Route",
    "Router",
    "Snapshot",
    "Solution",
    "ThroughputModel",
    "TwoRings",
    "decide",
]
