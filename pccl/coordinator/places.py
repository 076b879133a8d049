"""places.py - who is close to whom: hosts by name and address, regions by clustering round-trip times.

Pure. Two members are near if they are on one host, unless the time between them says otherwise (an emulated network).
Regions: single linkage, cut at the largest gap between the times at which clusters merge, if it is a factor of five.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache

from pccl.types import MemberInfo

NEAR_RTT_MAX_S = 5e-3
GAP_MIN = 5.0
RTT_FLOOR_S = 100e-6


def is_near(a: MemberInfo, b: MemberInfo, rtt_s: Mapping[tuple[bytes, bytes], float]) -> bool:
    """One host: no network between them."""
    times = [rtt_s[pair] for pair in ((a.id, b.id), (b.id, a.id)) if pair in rtt_s]
    if times and min(times) > NEAR_RTT_MAX_S:
        return False
    there, here = _host(a.address), _host(b.address)
    return (a.host == b.host and here == there) or (is_loopback(here) and is_loopback(there))


def all_near(members: Sequence[MemberInfo], rtt_s: Mapping[tuple[bytes, bytes], float]) -> bool:
    """Nothing but one host."""
    return all(is_near(a, b, rtt_s) for k, a in enumerate(members) for b in members[:k])


def regions_of(delay: Sequence[Sequence[float]], near: Sequence[Sequence[bool]]) -> tuple[int, ...]:
    """The region of each member, numbered in the order of ranks; all 0 if there is no such gap."""
    n = len(delay)
    merges = sorted((_distance(delay, near, a, b), a, b) for b in range(n) for a in range(b))
    cluster = list(range(n))
    heights: list[float] = []
    for height, a, b in merges:
        if _merge(cluster, a, b):
            heights.append(height)
    gaps = [(upper / lower, lower) for lower, upper in itertools.pairwise(heights)]
    ratio, limit = max(gaps, default=(0.0, 0.0))
    if ratio <= GAP_MIN:
        return (0,) * n
    cluster = list(range(n))
    for height, a, b in merges:
        if height <= limit:
            _merge(cluster, a, b)
    numbers = {root: number for number, root in enumerate(dict.fromkeys(cluster))}
    return tuple(numbers[root] for root in cluster)


def _distance(delay: Sequence[Sequence[float]], near: Sequence[Sequence[bool]], a: int, b: int) -> float:
    """Round trip, worse direction; below the floor all is equally close."""
    return RTT_FLOOR_S if near[a][b] else max(RTT_FLOOR_S, 2 * max(delay[a][b], delay[b][a]))


def _merge(cluster: list[int], a: int, b: int) -> bool:
    """Joins two clusters; False if they are one."""
    old, new = sorted((cluster[a], cluster[b]), reverse=True)
    if old == new:
        return False
    for k, root in enumerate(cluster):
        if root == old:
            cluster[k] = new
    return True


@lru_cache(maxsize=4096)
def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


@lru_cache(maxsize=4096)
def is_loopback(host: str) -> bool:
    """Whether nobody on another host is reached by it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
