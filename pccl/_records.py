"""_records.py - the engine's records, which the extension shows as C structs, as values of Python (pccl/types.py)."""

from __future__ import annotations

from typing import Any

from pccl.types import Event, LinkStats, OpName, OpState


def event_of(raw: Any, peer: bytes) -> Event:
    """A pccl_event, with the peer in it."""
    return Event(
        raw.kind,
        raw.status,
        raw.token,
        raw.epoch,
        raw.retries,
        peer,
        raw.cause,
        raw.sys_errno,
        raw.desc,
        raw.shape,
        raw.member_count,
        raw.span_offset,
        raw.span_count,
        raw.sent_bytes,
        raw.received_bytes,
        raw.duration_ns,
    )


def op_state_of(raw: Any) -> OpState:
    """A pccl_op_state."""
    return OpState(OpName(raw.name.boundary, raw.name.lane, raw.name.seq), raw.token, bool(raw.finished))


def link_of(raw: Any, peer: bytes) -> LinkStats:
    """A pccl_link_stats, with the peer in it."""
    return LinkStats(
        peer,
        raw.streams,
        raw.rtt_us,
        raw.bytes_per_s,
        raw.loss_ppm,
        raw.sent_bytes,
        raw.received_bytes,
        raw.unacked_frames,
    )
