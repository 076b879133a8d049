"""detours.py - ways around dead links: who reaches whom through whom.

Pure and deterministic. A way goes over as few live links as can be, and of such ways over those of least delay. What is
kept of it is its first hop: from there on the next member's own entry counts, or its link. Every hop brings the target
closer, so no way runs in a circle.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from pccl.coordinator.cost import Hop, Paths

#: As far as engines relay (LIMIT_HOPS in csrc/limits.h, and the first relay).
RELAYS_MAX = 16

Triple = tuple[int, int, int]
#: Seconds from one member to another.
Delay = Callable[[int, int], float]


def detours_of(n: int, dead: Collection[Hop], delay: Delay) -> tuple[Triple, ...]:
    """(from, to, via) for both directions of every dead pair of n members, if a way of live links joins it."""
    cut: dict[int, set[int]] = defaultdict(set)
    for a, b in dead:
        cut[a].add(b)
        cut[b].add(a)
    used: Counter[int] = Counter()
    found: list[Triple] = []
    for a, b in sorted(dead):
        there = back = _relay(n, cut, delay, used, a, b)
        if there is None:
            there, back = _first_hop(n, cut, delay, a, b), _first_hop(n, cut, delay, b, a)
        if there is not None and back is not None:
            found += [(a, b, there), (b, a, back)]
            used.update({there, back})
    return tuple(found)


def _round_trip(delay: Delay, a: int, b: int) -> float:
    return delay(a, b) + delay(b, a)


def _relay(n: int, cut: dict[int, set[int]], delay: Delay, used: Counter[int], a: int, b: int) -> int | None:
    """The closest member that has a link to both; of several the one that relays least. The same seen from both."""
    fit = (k for k in range(n) if k not in (a, b) and not {a, b} & cut[k])
    return min(fit, key=lambda k: (_round_trip(delay, a, k) + _round_trip(delay, k, b), used[k], k), default=None)


def _first_hop(n: int, cut: dict[int, set[int]], delay: Delay, start: int, target: int) -> int | None:
    """Where the shortest way of several relays begins: found from its end, one ring of neighbours after the other."""
    ahead: dict[int, tuple[float, int]] = {target: (0.0, target)}
    edge = {target}
    for _ in range(RELAYS_MAX + 1):
        reached = {}
        for k in set(range(n)) - ahead.keys():
            hops = [(_round_trip(delay, k, j) + ahead[j][0], j) for j in edge if j not in cut[k]]
            if hops:
                reached[k] = min(hops)
        ahead |= reached
        edge = set(reached)
        if start in reached:
            return reached[start][1]
    return None


def over_detours(paths: Paths, detours: Collection[Triple]) -> Paths:
    """The paths with the detours in the place of dead links."""
    first = {(a, b): via for a, b, via in detours}

    def hops(a: int, b: int) -> Iterator[Hop]:
        while (a, b) in first:
            yield a, first[a, b]
            a = first[a, b]
        yield a, b

    ways = {pair: tuple(hops(*pair)) for pair in first}

    delay, rate = paths.delay.copy(), paths.rate.copy()
    for pair, way in ways.items():
        delay[pair] = sum(paths.delay[link] for link in way)
        rate[pair] = min(paths.hop_rate(*link) for link in way)
    return replace(paths, delay=delay, rate=rate, ways=ways)


def detours_in(paths: Paths) -> tuple[Triple, ...]:
    """The detours that these paths go over."""
    return tuple((a, b, way[0][1]) for (a, b), way in paths.ways.items())
