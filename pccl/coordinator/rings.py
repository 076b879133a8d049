"""rings.py - the order of the ring: the Hamiltonian cycle whose slowest hop is fastest, and of these the shortest.

Pure and deterministic. Up to EXACT_MAX members the answer is exact, by dynamic programming over subsets; beyond, a
greedy start is improved by moving stretches of the ring (2-opt and or-opt) until nothing helps or the budget is spent.
Costs are directed: cost[a][b] is a's time to send to b.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

EXACT_MAX = 10
BUDGET = 2_000_000
#: An order this close to the best is not worth new ranks for everybody.
KEEP_WITHIN = 1.02

Costs = Sequence[Sequence[float]]
Joins = Callable[[float, float], float]


def best_ring(cost: Costs) -> tuple[int, ...]:
    """The order; begins with 0. The members' own order if it is as good."""
    n = len(cost)
    own = tuple(range(n))
    if n <= 2:
        return own
    found = _exact(cost) if n <= EXACT_MAX else _improved(cost, _greedy(cost))
    (worst, total), (own_worst, own_total) = ring_key(cost, found), ring_key(cost, own)
    return own if own_worst <= worst * KEEP_WITHIN and own_total <= total * KEEP_WITHIN else found


def ring_key(cost: Costs, order: Sequence[int]) -> tuple[float, float]:
    """What rings are compared by: (slowest hop, sum of all)."""
    hops = [cost[a][b] for a, b in zip(order, [*order[1:], order[0]], strict=True)]
    return max(hops), sum(hops)


# -- exact ----------------------------------------------------------------------------------------------------------


def _exact(cost: Costs) -> tuple[int, ...]:
    """First the best bottleneck, then the shortest ring without a slower hop: a sum alone is not enough to go by."""
    limit = ring_key(cost, _cheapest(cost, max))[0]
    endless = float("inf")
    allowed = [[value if value <= limit else endless for value in row] for row in cost]
    return _cheapest(allowed, lambda so_far, hop: so_far + hop)


def _cheapest(cost: Costs, join: Joins) -> tuple[int, ...]:
    """The cycle from 0 of least cost, where `join` extends a path's cost by a hop. Subsets are bit sets of 1..n-1."""
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


def _greedy(cost: Costs) -> tuple[int, ...]:
    """Always on to the nearest that is left."""
    left = set(range(1, len(cost)))
    order = [0]
    while left:
        here = order[-1]
        order.append(min(left, key=lambda k: (cost[here][k], k)))
        left.remove(order[-1])
    return tuple(order)


def _improved(cost: Costs, order: tuple[int, ...]) -> tuple[int, ...]:
    """Takes every move that helps, until none does."""
    key, moves = ring_key(cost, order), BUDGET // len(cost)
    helped = True
    while helped and moves > 0:
        helped = False
        for candidate in _neighbours(order):
            moves -= 1
            new = ring_key(cost, candidate)
            if new < key:
                order, key, helped = candidate, new, True
                break
            if moves <= 0:
                break
    return order


def _neighbours(order: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Every ring that differs by one stretch turned round, or by one of up to three members put elsewhere."""
    n = len(order)
    for i in range(1, n - 1):
        for j in range(i + 1, n):
            yield order[:i] + order[i : j + 1][::-1] + order[j + 1 :]
    for length in (1, 2, 3):
        for i in range(1, n - length + 1):
            stretch, rest = order[i : i + length], order[:i] + order[i + length :]
            for j in range(1, len(rest) + 1):
                if j != i:
                    yield rest[:j] + stretch + rest[j:]
