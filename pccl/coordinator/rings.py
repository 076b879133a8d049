"""rings.py - the order of the ring: the Hamiltonian cycle whose slowest hop is fastest, and of these the shortest.

Pure and deterministic. Up to EXACT_MAX members the answer is exact, by dynamic programming over subsets; beyond, a
greedy start is improved at one hop after the other, the slowest first: stretches that begin or end there are turned
round or put elsewhere (2-opt and or-opt), until nothing helps or the budget is spent. Costs are directed: cost[a][b] is
a's time to send its part of everything to b; the length of a hop, by which rings with equally fast slowest hops are
compared, may be something else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pccl.coordinator.figures import Array

EXACT_MAX = 10
#: Hops that are looked at for a better way, each against all others: so many, and so many in all.
HOPS_MAX = 150
PAIRS_MAX = 40_000
#: What the greedy start takes for slow: this much more than the hop that nobody can avoid.
SLOW = 1.02
SLOW_LENGTHS = 1e3
STRETCH_MAX = 3
#: An order this close to the best is not worth new ranks for everybody.
KEEP_WITHIN = 1.02

#: Two sums of the same hops may differ by so much.
EQUAL = 1e-9

Joins = Callable[[float, float], float]
Key = tuple[float, float]
Order = NDArray[np.int64]
Costs = Array | Sequence[Sequence[float]]


def best_ring(cost: Costs, length: Costs | None = None) -> tuple[int, ...]:
    """The order; begins with 0. The members' own order if it is as good."""
    costs = np.asarray(cost, dtype=np.float64)
    lengths = costs if length is None else np.asarray(length, dtype=np.float64)
    n = len(costs)
    own = tuple(range(n))
    if n <= 2:
        return own
    found = _exact(costs, lengths) if n <= EXACT_MAX else _improved(costs, lengths, _greedy(costs, lengths))
    (worst, total), (own_worst, own_total) = ring_key(costs, found, lengths), ring_key(costs, own, lengths)
    return own if own_worst <= worst * KEEP_WITHIN and own_total <= total * KEEP_WITHIN else found


def ring_key(cost: Costs, order: Sequence[int], length: Costs | None = None) -> Key:
    """What rings are compared by: (slowest hop, length of all)."""
    here = np.array(order)
    there = np.roll(here, -1)
    lengths = cost if length is None else length
    return float(np.asarray(cost)[here, there].max()), float(np.asarray(lengths)[here, there].sum())


# -- exact ----------------------------------------------------------------------------------------------------------


def _exact(cost: Array, length: Array) -> tuple[int, ...]:
    """First the best bottleneck, then the shortest ring without a slower hop: a sum alone is not enough to go by."""
    limit = ring_key(cost, _cheapest(cost, max))[0]
    return _cheapest(np.where(cost <= limit, length, np.inf), lambda so_far, hop: so_far + hop)


def _cheapest(costs: Array, join: Joins) -> tuple[int, ...]:
    """The cycle from 0 of least cost, where `join` extends a path's cost by a hop. Subsets are bit sets of 1..n-1."""
    cost = costs.tolist()
    n = len(cost)
    best: list[dict[int, tuple[float, int]]] = [{} for _ in range(1 << (n - 1))]
    for last in range(1, n):
        best[1 << (last - 1)][last] = (cost[0][last], 0)
    for subset in range(1, 1 << (n - 1)):
        for last, (so_far, _) in best[subset].items():
            for after in range(1, n):
                bit = 1 << (after - 1)
                if subset & bit:
                    continue
                candidate = join(so_far, cost[last][after])
                known = best[subset | bit].get(after)
                if known is None or candidate < known[0]:
                    best[subset | bit][after] = (candidate, last)
    subset = (1 << (n - 1)) - 1
    last = min(range(1, n), key=lambda k: (join(best[subset][k][0], cost[k][0]), k))
    order = []
    while last:
        order.append(last)
        subset, last = subset & ~(1 << (last - 1)), best[subset][last][1]
    return (0, *reversed(order))


# -- heuristic ------------------------------------------------------------------------------------------------------


def _greedy(cost: Array, length: Array) -> Order:
    """Always on to the nearest that is left, by slow hops only where nothing else is left."""
    apart = cost + np.diag(np.full(len(cost), np.inf))
    limit = SLOW * max(apart.min(axis=0).max(), apart.min(axis=1).max())
    ways = np.where(cost <= limit, length, SLOW_LENGTHS * (length.max() + cost))
    order = [0]
    ways[:, 0] = np.inf
    while len(order) < len(cost):
        order.append(int(np.argmin(ways[order[-1]])))
        ways[:, order[-1]] = np.inf
    return np.array(order)


def _improved(cost: Array, length: Array, order: Order) -> tuple[int, ...]:
    """Passes over all members, those with the slowest hops first, until a pass helps nowhere."""
    left, helped = min(HOPS_MAX, PAIRS_MAX // len(order)), True
    while helped and left > 0:
        helped = False
        hops = cost[order, np.roll(order, -1)]
        for member in order[np.argsort(-hops, kind="stable")][:left].tolist():
            left -= 1
            better = _better_at(cost, length, np.roll(order, -1 - int(np.flatnonzero(order == member)[0])))
            if better is not None:
                order, helped = better, True
    return tuple(np.roll(order, -int(np.flatnonzero(order == 0)[0])).tolist())


def _better_at(cost: Array, length: Array, ring: Order) -> Order | None:
    """The best ring without the hop from the last to the first of this one; None if that is no better."""
    key, better = _best_move(cost, length, ring)
    mirrored_key, mirrored = _best_move(cost.T, length.T, ring[::-1])
    if mirrored_key < key:
        key, better = mirrored_key, mirrored[::-1]
    worst, total = ring_key(cost, ring.tolist(), length)
    faster = key[0] < worst * (1 - EQUAL)
    return better if faster or (key[0] <= worst and key[1] < total * (1 - EQUAL)) else None


def _best_move(cost: Array, length: Array, ring: Order) -> tuple[Key, Order]:
    """A stretch from the first on is turned round where it is, or put elsewhere, either way round."""
    worst, total = _turned(cost, ring, np.maximum), _turned(length, ring, np.add)
    at = _least(worst, total)
    best = (float(worst[at]), float(total[at])), np.concatenate([ring[: at + 2][::-1], ring[at + 2 :]])
    for size in range(1, STRETCH_MAX + 1):
        for way in (1, -1)[: 1 if size == 1 else 2]:
            worst, total = _moved(cost, ring, size, way, np.maximum), _moved(length, ring, size, way, np.add)
            at = _least(worst, total)
            key, gap = (float(worst[at]), float(total[at])), size + at + 1
            if key < best[0]:
                best = key, np.concatenate([ring[size:gap], ring[:size][::way], ring[gap:]])
    return best


def _least(worst: Array, total: Array) -> int:
    return int(np.argmin(np.where(worst <= worst.min(), total, np.inf)))


def _turned(table: Array, ring: Order, fold: np.ufunc) -> Array:
    """The longest or the sum of all hops, if the first two, three, ... n - 1 members are turned round."""
    inside = fold.accumulate(table[ring[1:], ring[:-1]])[:-1]
    behind = fold.accumulate(table[ring[:-1], ring[1:]][::-1])[::-1]
    joints = fold(table[ring[-1], ring[1:-1]], table[ring[0], ring[2:]])
    found: Array = fold(fold(inside, np.append(behind[2:], 0.0)), joints)
    return found


def _moved(table: Array, ring: Order, size: int, way: int, fold: np.ufunc) -> Array:
    """The same, if the first `size` members, turned round or not, are put behind the next, the one after it, ..."""
    hops = table[ring[size:-1], ring[size + 1 :]]
    before = np.append(0.0, fold.accumulate(hops)[:-1])
    behind = np.append(fold.accumulate(hops[::-1])[::-1][1:], 0.0)
    stretch = ring[:size][::way]
    inside = fold.reduce(table[stretch[:-1], stretch[1:]], initial=0.0)
    joints = fold(table[ring[size:-1], stretch[0]], table[stretch[-1], ring[size + 1 :]])
    found: Array = fold(fold(before, behind), fold(joints, fold(inside, table[ring[-1], ring[size]])))
    return found
