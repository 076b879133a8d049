"""spans.py - how large a share of an all-reduce each owner takes, so that the busiest path is as little busy as may be.

Pure. A linear program: minimise T over shares w >= 0 that sum to 1, where every path and every site carries at most T
times its rate; a second one leaves as much in reserve as that time (and a little) allows: whatever need not be busy all
the time, so that what flows in turns there holds nobody up, and the largest share, since one owner of nearly everything
is only as good as the figures. HiGHS through scipy solves them; without scipy, or for more members
than it is good for, prices do: what is too busy gets dearer, and who needs it owns less. Most paths limit nothing, so
both begin with the busiest and add what turns out to be too busy. Equal shares win unless others are clearly better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module

import numpy as np

from pccl.coordinator.cost import Hop, Paths, Ranks, Routes, busiest, equal_shares, on_links, path_seconds, routes_of
from pccl.coordinator.figures import Array
from pccl.coordinator.places import Bools

LP_MEMBERS_MAX = 64
GAIN_MIN = 0.02
SLACK = 0.01
#: What is less busy than the busiest by less is as busy.
SPARED = 0.02
#: What a second of a row must be worth for it to be one that limits.
LIMITING = 1e-7
WEIGHT_TOTAL = 1_000_000
#: Paths that are added at a time, per member, and how often.
PATHS_AT_ONCE = 4
ROUNDS_MAX = 8
#: Of the prices: how many turns; how steeply they rise towards the busiest, at first and at last; how far and how
#: readily a share follows its price in one turn. On 80 geographies 2 % more than the program's time, 9 % at worst.
TURNS = 100
STEEP = (3.0, 500.0)
PRICE_MAX = 20.0
READINESS = 0.3


def best_shares(paths: Paths, regions: tuple[int, ...]) -> tuple[float, ...]:
    """One share per member, summing to 1."""
    equal = equal_shares(paths.n)
    if paths.n < 3:
        return equal
    routes = routes_of(regions)
    limits = _Limits(paths, routes)
    found, least = np.array(equal), busiest(paths, routes, equal)
    bar = (1 - GAIN_MIN) * least
    if not limits.sites.any():
        limits.add_busiest(found, 0.0)
    for _ in range(ROUNDS_MAX):
        shares, seconds = _solved(limits)
        real = busiest(paths, routes, shares)
        if real < least:
            found, least = shares, real
        if real <= (1 + SLACK) * seconds or not limits.add_busiest(shares, seconds):
            break
    return tuple(found.tolist()) if least < bar else equal


def as_weights(shares: Sequence[float]) -> tuple[int, ...]:
    """Integers for the engine; all 0 for equal shares."""
    if max(shares) - min(shares) < 1e-6:
        return (0,) * len(shares)
    return tuple(round(share * WEIGHT_TOTAL) for share in shares)


def as_shares(weights: Sequence[int]) -> tuple[float, ...]:
    """What the engine makes of them."""
    total = sum(weights)
    return tuple(weight / total for weight in weights) if total else equal_shares(len(weights))


def load_solver() -> None:
    """Imports the solver, which takes up to a second: early and beside the loop, lest the first plan waits for it."""
    with suppress(ImportError):
        import_module("scipy.optimize")


# -- what limits ----------------------------------------------------------------------------------------------------


class _Limits:
    """Seconds per byte of the whole, of sites and of those paths that were added: rows over the shares.

    Products by einsum: the threads of a matrix library wait for each other where the machine is busy.
    """

    def __init__(self, paths: Paths, routes: Routes) -> None:
        self.n = paths.n
        self.sites = _site_rows(paths, routes)
        self.rows, self.spans = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)  # of the paths, sparse
        self.seconds = np.zeros(0)
        self._paths = paths
        self._routes = routes
        self._added = np.eye(paths.n, dtype=np.bool_)

    def add_busiest(self, shares: Array, above: float) -> bool:
        """The paths that take the longest with these shares, and longer than that. False if there are none."""
        carried = on_links(self._paths, self._routes.carried(shares))
        seconds = np.where(self._added, 0.0, path_seconds(self._paths, carried))
        count = min(PATHS_AT_ONCE * self.n, seconds.size)
        chosen = np.argpartition(seconds, -count, axis=None)[-count:]
        a, b = np.unravel_index(np.sort(chosen[seconds.ravel()[chosen] > above]), seconds.shape)
        self._added[a, b] = True
        numbers = {
            link: len(self.seconds) + number for number, link in enumerate(zip(a.tolist(), b.tolist(), strict=True))
        }
        users = _users(self._paths, numbers)
        rows, spans = np.nonzero(_spans_between(self._routes, *users[:, :2].T))
        self.rows = np.concatenate([self.rows, users[rows, 2]])
        self.spans = np.concatenate([self.spans, spans])
        self.seconds = np.concatenate([self.seconds, 1.0 / self._paths.rate[a, b]])
        return len(a) > 0

    def busy(self, shares: Array) -> Array:
        """Of every site and every added path."""
        ways = np.bincount(self.rows, shares[self.spans], len(self.seconds)) * self.seconds
        return np.concatenate([np.einsum("ij,j->i", self.sites, shares), ways])

    def price(self, prices: Array) -> Array:
        """Of every span, when every site and every added path has its price."""
        count = len(self.sites)
        ways = np.bincount(self.spans, (prices[count:] * self.seconds)[self.rows], self.n)
        found: Array = np.einsum("i,ij->j", prices[:count], self.sites) + ways
        return found


def _users(paths: Paths, numbers: Mapping[Hop, int]) -> Ranks:
    """Rows of (from, to, number): the pairs that go over a link with a number, because it is theirs or by a detour."""
    own = [(*link, number) for link, number in numbers.items() if link not in paths.ways]
    others = [(*pair, numbers[link]) for pair, way in paths.ways.items() for link in way if link in numbers]
    return np.array(own + others, dtype=np.int64).reshape(-1, 3)


def _spans_between(routes: Routes, a: Ranks, b: Ranks) -> Bools:
    """[pair, span]: whether the first has anything of the span for the second."""
    found: Bools = ((routes.hops[:, a] == b) | (routes.hops[:, b] == a)).T
    return found


def _site_rows(paths: Paths, routes: Routes) -> Array:
    """Of every line up and down that limits at all: [line, span]."""
    n, hops = paths.n, routes.hops
    member = np.arange(n)[None, :]
    moves = hops != member  # an owner keeps its own
    there, back = paths.shared[member, hops] & moves, paths.shared[hops, member] & moves
    cells = (hops * n + np.arange(n)[:, None]).ravel()  # of a matrix [hop, span]
    up = there.T + np.bincount(cells, back.ravel(), n * n).reshape(n, n)
    down = back.T + np.bincount(cells, there.ravel(), n * n).reshape(n, n)
    for pair, way in paths.ways.items():
        spans = _spans_between(routes, *np.array([pair]).T)[0]
        for (a, b), sign in [(pair, -1), *((link, 1) for link in way)]:
            up[a] += sign * paths.shared[a, b] * spans
            down[b] += sign * paths.shared[a, b] * spans
    if np.array_equal(up, down):
        rates = np.minimum(paths.up, paths.down)
    else:
        up, rates = np.concatenate([up, down]), np.concatenate([paths.up, paths.down])
    limits = np.isfinite(rates)
    rows: Array = up[limits] / rates[limits, None]
    return rows


# -- solved ---------------------------------------------------------------------------------------------------------


def _solved(limits: _Limits) -> tuple[Array, float]:
    """Shares, and seconds per byte that cannot be beaten (by prices: that were not)."""
    found = _program(limits) if limits.n <= LP_MEMBERS_MAX else None
    return found if found is not None else _priced(limits)


def _priced(limits: _Limits) -> tuple[Array, float]:
    """Shares that follow prices; the best of all turns."""
    shares = np.full(limits.n, 1.0 / limits.n)
    best, least = shares, np.inf
    for steep in np.geomspace(*STEEP, TURNS):
        busy = limits.busy(shares)
        seconds = float(busy.max())
        if seconds < least:
            best, least = shares, seconds
        price = limits.price(np.exp(steep * (busy / seconds - 1)))
        price = np.clip(price / float(shares @ price), 1 / PRICE_MAX, PRICE_MAX)
        shares = shares / price**READINESS
        shares = shares / shares.sum()
    return best, least


def _program(limits: _Limits) -> tuple[Array, float] | None:
    """The linear programs' answer; None if there is nobody to ask."""
    rows = _dense(limits)
    scale = float(rows.max())
    busy = rows / scale
    fastest = _least(busy, np.zeros(len(busy)), np.full(len(busy), -1.0))
    if fastest is None:
        return None
    shares, limiting = fastest
    least = float(shares[-1])
    eased = _eased(busy, least, limiting)
    shares = np.maximum((shares if eased is None else eased)[:-1], 0.0)
    return shares / shares.sum(), least * scale


def _eased(busy: Array, least: float, limiting: Bools) -> Array | None:
    """Shares that take as long (and a little), and leave the most to spare elsewhere. Of rows that limit together the
    program names only some, so those that turn out to do so are named in turn.
    """
    everything = np.concatenate([busy, least * np.eye(busy.shape[1])])
    limiting = np.concatenate([limiting, np.zeros(busy.shape[1], dtype=np.bool_)])
    bounds = np.full(len(busy), (1 + SLACK) * least)
    found = None
    while not limiting.all():
        spared = everything[~limiting]
        tops = np.repeat([0.0, -1.0], [len(busy), len(spared)])
        answer = _least(np.concatenate([busy, spared]), np.concatenate([bounds, np.zeros(len(spared))]), tops)
        if answer is None:
            return found
        found, limits = answer
        if found[-1] < (1 - SPARED) * least:
            return found
        limiting[np.flatnonzero(~limiting)] = limits[len(busy) :]
        if not limits[len(busy) :].any():
            return found
    return found


def _dense(limits: _Limits) -> Array:
    ways = np.zeros((len(limits.seconds), limits.n))
    np.add.at(ways, (limits.rows, limits.spans), limits.seconds[limits.rows])
    return np.concatenate([limits.sites, ways])


def _least(rows: Array, bounds: Array, top: Array) -> tuple[Array, Bools] | None:
    """Shares and the least t such that every row (over the shares) + top * t keeps within its bound; which limit t."""
    try:  # late: it takes a second, and one host does without
        from scipy.optimize import linprog
    except ImportError:
        return None
    n = rows.shape[1]
    answer = linprog(
        c=[0.0] * n + [1.0],
        A_ub=np.column_stack([rows, top]),
        b_ub=bounds,
        A_eq=[[1.0] * n + [0.0]],
        b_eq=[1.0],
        bounds=(0, None),
        method="highs",
    )
    return (np.array(answer.x, dtype=np.float64), answer.ineqlin.marginals < -LIMITING) if answer.success else None
