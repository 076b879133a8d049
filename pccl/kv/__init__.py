"""KV caches across datacenters: where prompts are prefilled, and how their blocks get to the decoder, in time.

    plan = controller.tick(now_s, load)                        # where: docs/kv_routing.md; pure, no clock, no thread
    decision = decide(total, cached_local, cached_remote, load, paths, plan)

    pool = pccl.kv.register(comm, layout, buffers)             # how: docs/kv.md, docs/kv_layout.md; on both sides
    receive = pool.prep_recv("request", blocks, deadline=5.0)  # where they are wanted; receive.ticket goes over there
    send = pool.open_send(ticket, blocks)                      # where they are
    send.layer_ready("L0"); ...; send.finish()
    receive.wait()
"""

from pccl.kv.ends import (
    End,
    EndError,
    State,
    TicketUsed,
    TransferAborted,
    TransferExpired,
    TransferFailed,
    TransferUnknown,
)
from pccl.kv.errors import LayoutMismatch
from pccl.kv.estimator import BandwidthEstimator, Estimate
from pccl.kv.handles import Offered, Receive, Received, Send, Sent
from pccl.kv.layout import Group, Layout
from pccl.kv.model.controller import Advice, Controller, Pace
from pccl.kv.model.decide import Decision, Load, Paths, Plan, decide
from pccl.kv.model.lengths import Lengths
from pccl.kv.model.profile import Curve, Profile
from pccl.kv.model.throughput import Solution, ThroughputModel
from pccl.kv.pool import Pool, register
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
    "End",
    "EndError",
    "Estimate",
    "Event",
    "Group",
    "Hit",
    "Instance",
    "Journal",
    "KeyContext",
    "Kind",
    "Layout",
    "LayoutMismatch",
    "Lengths",
    "Load",
    "Move",
    "Node",
    "Offered",
    "Pace",
    "Paths",
    "Plan",
    "Pool",
    "PrefixIndex",
    "Profile",
    "Queued",
    "Receive",
    "Received",
    "Replay",
    "Route",
    "Router",
    "Send",
    "Sent",
    "Snapshot",
    "Solution",
    "State",
    "ThroughputModel",
    "TicketUsed",
    "TransferAborted",
    "TransferExpired",
    "TransferFailed",
    "TransferUnknown",
    "TwoRings",
    "decide",
    "register",
]
