"""way.py - the measurements of one direction of the path together, and what follows from them at once. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pccl.coordinator.cost import Measurements as Paths
from pccl.coordinator.plan import streams_between
from pccl.doctor.facts import Flow, Measurements, Place, Role

__all__ = ["Way", "label", "other", "side_of", "way"]

#: A lone stream below this share of what the path carries is held back.
ALONE_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Way:
    """One direction. `rtt_s` is the least that was seen."""

    source: str
    target: str
    sender: Place
    receiver: Place
    one: Flow
    many: Flow
    rtt_s: float

    @property
    def name(self) -> str:
        return f"{self.source} -> {self.target}"

    @property
    def best_bytes_per_s(self) -> float:
        """What the path has been seen to carry."""
        return max(self.one.bytes_per_s, self.many.bytes_per_s)

    @property
    def silent(self) -> bool:
        """Nothing of either flow arrived."""
        return not (self.one.received.total_bytes or self.many.received.total_bytes)

    @property
    def held_back(self) -> bool:
        """One stream alone carries much less than several."""
        return self.one.bytes_per_s < ALONE_SHARE * self.best_bytes_per_s

    @property
    def streams_needed(self) -> int:
        """So many streams as fast as the lone one carry what the path has been seen to carry."""
        alone = self.one.bytes_per_s
        return min(self.many.streams, math.ceil(self.best_bytes_per_s / alone)) if alone > 0 else self.many.streams

    @property
    def streams_planned(self) -> int:
        """So many pccl's planner would take, if it had measured that."""
        a, b = b"a", b"b"
        return streams_between(a, b, self.rtt_s, False, Paths(bytes_per_s={(a, b): self.best_bytes_per_s}))

    @property
    def resent_share(self) -> float:
        """Of the lone stream's segments: several streams overfill a path, so that theirs say less about it."""
        return self.one.sent.resent / self.one.sent.segments if self.one.sent.segments else 0.0


def way(measured: Measurements, source: Role) -> Way:
    """From a side to the other."""
    target = other(source)
    one, many = (measured.up, measured.up_many) if source == "client" else (measured.down, measured.down_many)
    return Way(
        source=label(measured, source),
        target=label(measured, target),
        sender=side_of(measured, source),
        receiver=side_of(measured, target),
        one=one,
        many=many,
        rtt_s=min(measured.rtts_us) / 1e6,
    )


def side_of(measured: Measurements, role: Role) -> Place:
    return measured.client if role == "client" else measured.listener


def other(role: Role) -> Role:
    return "listener" if role == "client" else "client"


def label(measured: Measurements, role: Role) -> str:
    """How a side is called: by its host's name, with its role where both have the same."""
    name, same = side_of(measured, role).host.name, measured.client.host.name == measured.listener.host.name
    return f"{name} ({role})" if same else name
