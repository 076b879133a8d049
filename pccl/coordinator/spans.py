"""spans.py - how large a share of an all-reduce each owner takes, so that the busiest path is as little busy as may be.

Pure. A linear program: minimise T over shares w >= 0 that sum to 1, where every path and every site carries at most T
times its rate; a second one makes the largest share as small as that time (and a little) allows, since one owner of
nearly everything is only as good as the figures. HiGHS through scipy solves them; without scipy, or for more members
than it is good for, shares follow what each member can send and receive. Equal shares win unless others are clearly
better.
"""

from __future__ import annotations

from collections.abc import Sequence

from pccl.coordinator.cost import Load, Paths, busiest, equal_shares, loads_of, routed

LP_MEMBERS_MAX = 64
GAIN_MIN = 0.02
SLACK = 0.01
WEIGHT_TOTAL = 1_000_000


def best_shares(paths: Paths, regions: Sequence[int]) -> tuple[float, ...]:
    """One share per member, summing to 1."""
    equal = equal_shares(paths.n)
    if paths.n < 3:
        return equal
    loads = routed(paths, loads_of(regions))
    found = _solved(paths, loads) if paths.n <= LP_MEMBERS_MAX else None
    if found is None:
        found = proportional_shares(paths)
    return found if busiest(paths, loads, found) < (1 - GAIN_MIN) * busiest(paths, loads, equal) else equal


def as_weights(shares: Sequence[float]) -> tuple[int, ...]:
    """Integers for the engine; all 0 for equal shares."""
    if max(shares) - min(shares) < 1e-6:
        return (0,) * len(shares)
    return tuple(round(share * WEIGHT_TOTAL) for share in shares)


def as_shares(weights: Sequence[int]) -> tuple[float, ...]:
    """What the engine makes of them."""
    total = sum(weights)
    return tuple(weight / total for weight in weights) if total else equal_shares(len(weights))


def proportional_shares(paths: Paths) -> tuple[float, ...]:
    """By what each can send and receive at its slowest path: no optimum, but in the right direction."""
    n = range(paths.n)
    ability = [min(min(paths.hop_rate(a, b), paths.hop_rate(b, a)) for b in n if b != a) for a in n]
    return tuple(value / sum(ability) for value in ability)


def _solved(paths: Paths, loads: Sequence[Load]) -> tuple[float, ...] | None:
    """The programs' answer; None if there is nobody to ask."""
    rows = _rows(paths, loads)
    scale = max(max(row.values()) for row in rows)
    busy = [{span: seconds / scale for span, seconds in row.items()} for row in rows]
    fastest = _least(paths.n, busy, [0.0] * len(busy), [-1.0] * len(busy))
    if fastest is None:
        return None
    limit = (1 + SLACK) * fastest[-1]
    shares = [{span: 1.0} for span in range(paths.n)]
    bounds = [limit] * len(busy) + [0.0] * paths.n
    evened = _least(paths.n, [*busy, *shares], bounds, [0.0] * len(busy) + [-1.0] * paths.n)
    found = [max(0.0, share) for share in (evened or fastest)[:-1]]
    return tuple(share / sum(found) for share in found)


def _least(
    n: int, rows: Sequence[dict[int, float]], bounds: Sequence[float], top: Sequence[float]
) -> tuple[float, ...] | None:
    """Shares, and the least t, such that every row (over the shares) + top * t stays within its bound."""
    try:  # late: it takes a second, and one host does without
        from scipy.optimize import linprog
        from scipy.sparse import coo_matrix
    except ImportError:
        return None
    entries = [(k, span, value) for k, row in enumerate(rows) for span, value in row.items()]
    entries += [(k, n, factor) for k, factor in enumerate(top) if factor]
    at, columns, values = zip(*entries, strict=True)
    answer = linprog(
        c=[0.0] * n + [1.0],
        A_ub=coo_matrix((values, (at, columns)), shape=(len(rows), n + 1)).tocsr(),
        b_ub=bounds,
        A_eq=[[1.0] * n + [0.0]],
        b_eq=[1.0],
        bounds=(0, None),
        method="highs",
    )
    return tuple(map(float, answer.x)) if answer.success else None


def _rows(paths: Paths, loads: Sequence[Load]) -> list[dict[int, float]]:
    """Per path and per site with a limit: span -> seconds per byte."""
    rows: dict[tuple[str, int, int], dict[int, float]] = {}
    for a, b, span in loads:
        limits = ((("path", a, b), paths.rate[a][b]), (("up", a, 0), paths.up[a]), (("down", b, 0), paths.down[b]))
        for key, rate in limits:
            if rate < float("inf"):
                row = rows.setdefault(key, {})
                row[span] = row.get(span, 0.0) + 1.0 / rate
    return list(rows.values())
