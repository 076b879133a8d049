"""epochs.py - what an Epoch message means to one member: what its user sees, and what its engine is told. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pccl import messages as m
from pccl.types import (
    STREAMS_LIMIT,
    Algorithm,
    EpochConfig,
    EpochView,
    MemberConfig,
    MemberInfo,
    OpName,
    PlanInfo,
    dials,
)

__all__ = ["acquaintances_of", "configuration", "flaw_of", "vias_of", "view_of"]


def flaw_of(own: bytes, event: m.Epoch, boundary: int | None) -> str:
    """Why this cannot be an epoch of a member that has come to a boundary (None: it joins); "" if it can."""
    if len({member.peer for member in event.members}) != len(event.members):
        return "it names a member twice"
    since = next(member.since for member in event.members if member.peer == own)
    if boundary is not None and since > boundary:
        return f"it has this peer from boundary {since} on, which is at boundary {boundary}"
    return ""


def view_of(event: m.Epoch) -> EpochView:
    """What users see."""
    members = tuple(MemberInfo(p.peer, p.since, p.address, p.host) for p in event.members)
    return EpochView(event.epoch, event.from_boundary, members, len(members) < event.min_peers, _plan_of(event.plan))


def _plan_of(plan: m.Plan) -> PlanInfo:
    algorithm = Algorithm(plan.large_algorithm or Algorithm.RING)
    return PlanInfo(
        algorithm=algorithm,
        mesh_bytes_max=plan.mesh_bytes_max,
        streams=plan.streams,
        predicted_s=plan.predicted_s,
        reason=plan.reason,
        one_round_bytes_max=plan.one_round_bytes_max,
    )


def configuration(own: bytes, event: m.Epoch) -> tuple[EpochConfig, dict[OpName, str]]:
    """What the engine of one member gets, and the texts of its verdicts."""
    streams, vias, dialled = _streams_of(own, event), vias_of(own, event), _dialled_by(own, event)
    members = [
        MemberConfig(
            id=p.peer,
            since=p.since,
            dial=p.peer in dialled,
            address="" if p.peer == own else p.address,
            weight=p.weight,
            region=p.region,
            streams=streams.get(rank, 0),
            via=vias.get(rank),
        )
        for rank, p in enumerate(event.members)
    ]
    names = [OpName(v.op.boundary, v.op.lane, v.op.seq) for v in event.verdicts]
    config = EpochConfig(
        epoch=event.epoch,
        from_boundary=event.from_boundary,
        change=event.change,
        members=members,
        verdicts=[(name, verdict.status) for name, verdict in zip(names, event.verdicts, strict=True)],
        streams=event.plan.streams,
        segment_bytes=event.plan.segment_bytes,
        mesh_bytes_max=event.plan.mesh_bytes_max,
        large_algorithm=event.plan.large_algorithm,
        one_round_bytes_max=event.plan.one_round_bytes_max,
    )
    texts = {name: verdict.text for name, verdict in zip(names, event.verdicts, strict=True) if verdict.text}
    return config, texts


def _streams_of(own: bytes, event: m.Epoch) -> dict[int, int]:
    """How many streams the links to the others have, by rank, where it is not the plan's number."""
    mine = next(rank for rank, member in enumerate(event.members) if member.peer == own)
    ends = ((a if b == mine else b, count) for a, b, count in event.streams if mine in (a, b))
    return {other: count for other, count in ends if 1 <= count <= STREAMS_LIMIT}


def _dialled_by(own: bytes, event: m.Epoch) -> set[bytes]:
    """Whom this peer dials."""
    mine, me = next((rank, member) for rank, member in enumerate(event.members) if member.peer == own)
    turned = {a if b == mine else b for a, b in event.turned if mine in (a, b)}
    return {
        other.peer
        for rank, other in enumerate(event.members)
        if other.peer != own and dials(own, other.peer, me.inbound, other.inbound, rank in turned)
    }


def vias_of(own: bytes, event: m.Epoch) -> dict[int, int]:
    """By the ranks of those to whom this peer has no link: the rank of the member through which it reaches them."""
    mine = next(rank for rank, member in enumerate(event.members) if member.peer == own)
    count = len(event.members)
    vias = {to: via for start, to, via in event.detours if start == mine and max(to, via) < count}
    return {to: via for to, via in vias.items() if mine not in (to, via) and via not in vias}


def acquaintances_of(own: bytes, inbound: bool, peers: Sequence[m.Member]) -> list[MemberConfig]:
    """Peers, itself apart, that this one is to have links to beside those of an epoch; `inbound`: it can be dialled."""
    others = [p for p in peers if p.peer != own]
    return [MemberConfig(p.peer, p.since, dials(own, p.peer, inbound, p.inbound), p.address) for p in others]
