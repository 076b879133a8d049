"""plan.py - chooses how an epoch moves its bytes: streams per link, segment size, mesh or ring, order of ranks.

Pure. Now: order of arrival and a handful of rules. `Measured` is where matrices of round-trip times and bandwidths
will come in; the rules then give way to a cost model behind the same function.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from pccl.types import MemberInfo

STREAMS_FAR = 4
SEGMENT_BYTES = 256 << 10
MESH_BYTES_MAX = 1 << 20
MESH_ALWAYS = 1 << 62


@dataclass(slots=True, frozen=True)
class Plan:
    """An epoch's plan. `order`: peer ids by rank."""

    streams: int
    segment_bytes: int
    mesh_bytes_max: int
    order: tuple[bytes, ...]


@dataclass(slots=True, frozen=True)
class Measured:
    """What is known about the paths, by (from, to). Missing pairs are unknown."""

    rtt_s: dict[tuple[bytes, bytes], float]
    bytes_per_s: dict[tuple[bytes, bytes], float]


def plan(members: Sequence[MemberInfo], measured: Measured | None = None) -> Plan:
    """The plan for members in their order of arrival. `measured` is not used yet."""
    del measured
    return Plan(
        streams=1 if _all_near(members) else STREAMS_FAR,
        segment_bytes=SEGMENT_BYTES,
        mesh_bytes_max=MESH_ALWAYS if len(members) <= 2 else MESH_BYTES_MAX,
        order=tuple(member.id for member in members),
    )


def _all_near(members: Sequence[MemberInfo]) -> bool:
    """One host, or nothing but loopback: one stream per link is as good as four."""
    return len({member.host for member in members}) <= 1 or all(_is_loopback(member.address) for member in members)


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
