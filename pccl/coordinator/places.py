"""places.py - who is close to whom: hosts by name and address, regions by clustering round-trip times.

Pure. Two members are near if they are on one host, unless the time between them says otherwise (an emulated network).
Regions: single linkage, cut at the largest gap between the times at which clusters merge, if it is a factor of five.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pccl.coordinator.figures import Array, Figures, Path
from pccl.types import MemberInfo

NEAR_RTT_MAX_S = 5e-3
GAP_MIN = 5.0
RTT_FLOOR_S = 100e-6

Bools = NDArray[np.bool_]


def near_pairs(members: Sequence[MemberInfo], rtt_s: Array) -> Bools:
    """[a, b]: one host, no network between them. NaN is a time that is not known."""
    places = [_host(member.address) for member in members]
    known = {
        key: number for number, key in enumerate(dict.fromkeys(zip([m.host for m in members], places, strict=True)))
    }
    host = np.array([known[member.host, place] for member, place in zip(members, places, strict=True)])
    local = np.array([is_loopback(place) for place in places], dtype=np.bool_)
    near: Bools = (host[:, None] == host[None, :]) | (local[:, None] & local[None, :])
    near &= ~(np.fmin(rtt_s, rtt_s.T) > NEAR_RTT_MAX_S)
    np.fill_diagonal(near, False)
    return near


def on_one_host(members: Sequence[MemberInfo]) -> bool:
    """All are near each other, by their addresses alone."""
    places = {(member.host, _host(member.address)) for member in members}
    return len(places) <= 1 or all(is_loopback(place) for _, place in places)


def all_near(members: Sequence[MemberInfo], rtt_s: Mapping[Path, float]) -> bool:
    """Nothing but one host."""
    near = near_pairs(members, Figures.of(rtt_s).matrix([member.id for member in members]))
    return int(np.count_nonzero(near)) == near.size - len(near)


def regions_of(delay: Array, near: Bools) -> tuple[int, ...]:
    """The region of each member, numbered in the order of ranks; all 0 if there is no such gap."""
    n = len(delay)
    parents, heights = _tree(_distances(np.asarray(delay, dtype=np.float64), np.asarray(near, dtype=np.bool_)))
    if n < 3:
        return (0,) * n
    merges = np.sort(heights)
    ratios = merges[1:] / merges[:-1]
    widest = len(ratios) - 1 - int(np.argmax(ratios[::-1]))
    if ratios[widest] <= GAP_MIN:
        return (0,) * n
    cluster = np.arange(n)
    for child, parent, height in zip(*parents, heights.tolist(), strict=True):
        if height <= merges[widest]:
            cluster[child] = cluster[parent]
    numbers = {root: number for number, root in enumerate(dict.fromkeys(cluster.tolist()))}
    return tuple(numbers[root] for root in cluster.tolist())


def _distances(delay: Array, near: Bools) -> Array:
    """Round trip, worse direction; below the floor, and on one host, all is equally close."""
    apart: Array = np.maximum(2 * np.maximum(delay, delay.T), RTT_FLOOR_S)
    return np.where(near, RTT_FLOOR_S, apart)


def _tree(distance: Array) -> tuple[tuple[list[int], list[int]], Array]:
    """The tree of the shortest ways that joins all (Prim): (children, parents) in the order of joining, and lengths.

    Its lengths are those at which single linkage merges clusters.
    """
    n = len(distance)
    left = np.ones(n, dtype=np.bool_)
    closest, via = np.full(n, np.inf), np.zeros(n, dtype=np.int64)
    children, parents, lengths = [], [], []
    here = 0
    for _ in range(n - 1):
        left[here] = False
        closer = distance[here] < closest
        closest[closer], via[closer] = distance[here, closer], here
        here = int(np.argmin(np.where(left, closest, np.inf)))
        children.append(here)
        parents.append(int(via[here]))
        lengths.append(float(closest[here]))
    return (children, parents), np.array(lengths)


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
