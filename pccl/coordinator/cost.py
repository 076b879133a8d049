"""cost.py - how long an all-reduce takes: predicted seconds of the ring, the mesh and the two-level scheme.

Pure. `Paths` is what is known or assumed about the ways between n members, by rank. A time is the bytes of the busiest
path (or site) at its rate, plus the delays that nothing hides; kernels cost nothing, except where all fold everything.
The mesh is the two-level scheme in which every member is a region of its own: one formula serves both. Who sends what
follows csrc/ring.c, csrc/mesh.c, csrc/two_level.c and csrc/one_round.c; what goes over a detour counts at every link
on its way. All is done by matrices: a thousand members have a million paths.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pccl.coordinator.access import alone, likened, shown, slow_lines
from pccl.coordinator.figures import Array, Figures, Path
from pccl.coordinator.places import Bools, near_pairs
from pccl.types import Algorithm, MemberInfo

REFERENCE_BYTES = 64 << 20
NEAR_RTT_S = 50e-6
NEAR_BYTES_PER_S = 4e9
FAR_RTT_S = 50e-3
FAR_BYTES_PER_S = 125e6
#: A far path that may be much slower than is usual.
CAUTIOUS_BYTES_PER_S = 25e6
#: So close to each other two members are in one place.
CLOSE_RTT_S = 5e-3
#: What a peer folds, of the contributions of others.
FOLD_BYTES_PER_S = 4e9
#: So close to each other they are on one network, and what they send each other takes nothing of their lines.
LOCAL_RTT_MAX_S = 1e-3
#: A line of which nothing is known carries at once what so many of its fastest path do: some limit there must be.
LINE_PATHS = 4

Ranks = NDArray[np.int64]
Shares = Array | Sequence[float]
Hop = tuple[int, int]


@dataclass(slots=True, frozen=True)
class Measurements:
    """What is known about the paths, by (from, to), and about sites, by peer. What is missing is unknown.

    `up`, `down`: what a line carries; `went_up`, `went_down`: what went over it of late, so that it carries no less.
    `slower`: how many times as long as the figures say all-reduces by an algorithm took; else 1. `untried`: algorithms
    that did not make the traffic in which all this was measured.
    """

    rtt_s: Mapping[Path, float] = field(default_factory=dict)
    bytes_per_s: Mapping[Path, float] = field(default_factory=dict)
    loss_ppm: Mapping[Path, float] = field(default_factory=dict)
    up: dict[bytes, float] = field(default_factory=dict)
    down: dict[bytes, float] = field(default_factory=dict)
    went_up: dict[bytes, float] = field(default_factory=dict)
    went_down: dict[bytes, float] = field(default_factory=dict)
    slower: Mapping[Algorithm, float] = field(default_factory=dict)
    untried: frozenset[Algorithm] = frozenset()


@dataclass(slots=True, frozen=True)
class Paths:
    """All ways between n members, as matrices [from, to]. `delay`: one way, seconds; `rate`: bytes/s.

    `up`, `down`: bytes/s of a member on all its `shared` paths together; `up_shown`, `down_shown`: for sure.
    `known`: whether the rate was measured.
    `near`: both are on one host. A member's way to itself has no delay, and is neither known nor near. `ways`: the
    links that a detour goes over, for each pair without a link; its delay and rate are those of the way.
    """

    delay: Array
    rate: Array
    known: Bools
    near: Bools
    up: Array
    down: Array
    up_shown: Array
    down_shown: Array
    shared: Bools
    ways: dict[Hop, tuple[Hop, ...]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """How many members."""
        return len(self.rate)

    def hop_rate(self, a: int, b: int) -> float:
        """What one transfer alone gets from a to b."""
        return float(min(self.rate[a, b], self.up[a], self.down[b]) if self.shared[a, b] else self.rate[a, b])

    def hop_rates(self) -> Array:
        """The same for all, [from, to]."""
        alone: Array = np.minimum(self.rate, np.minimum(self.up[:, None], self.down[None, :]))
        return np.where(self.shared, alone, self.rate)

    def way(self, a: int, b: int) -> tuple[Hop, ...]:
        """The links that bytes from a to b go over."""
        return self.ways.get((a, b), ((a, b),))

    @property
    def delay_max(self) -> float:
        """The longest way between any two: every op ends with a FIN from everybody to everybody."""
        return float(self.delay.max(initial=0.0))

    def ordered(self, order: Sequence[int]) -> Paths:
        """The same members in other places: rank k is what was order[k]."""
        ranks = np.array(order, dtype=np.int64)
        if np.array_equal(ranks, np.arange(self.n)):
            return self
        pairs = np.ix_(ranks, ranks)
        matrices = (self.delay[pairs], self.rate[pairs], self.known[pairs], self.near[pairs])
        rank = {k: place for place, k in enumerate(order)}
        ways = {(rank[a], rank[b]): tuple((rank[x], rank[y]) for x, y in way) for (a, b), way in self.ways.items()}
        lines = (self.up[ranks], self.down[ranks], self.up_shown[ranks], self.down_shown[ranks])
        return Paths(*matrices, *lines, self.shared[pairs], ways)

    def at_worst(self) -> Paths:
        """The same, but no line is better than was shown."""
        return replace(self, up=np.minimum(self.up, self.up_shown), down=np.minimum(self.down, self.down_shown))


# -- what is known, and what is assumed where nothing is ------------------------------------------------------------


def paths_of(members: Sequence[MemberInfo], measured: Measurements, alike: bool = False) -> Paths:
    """Unknown: as in the other direction, else as usual on one host, else like the median of the known far paths; for
    rates of those as close as this one, since between machines of one place there is more than between places.
    `alike`: lines that seem to be like the known ones are (access.py).
    """
    ids = [member.id for member in members]
    rtts = Figures.of(measured.rtt_s).matrix(ids)
    rates = Figures.of(measured.bytes_per_s).matrix(ids)
    near = near_pairs(members, rtts)
    known = ~np.isnan(rates)
    rtt = _filled(rtts, lambda: np.where(near, NEAR_RTT_S, _usual(rtts, ~near, FAR_RTT_S)))
    close = np.maximum(rtt, rtt.T) <= CLOSE_RTT_S

    def usual_rates() -> Array:
        there, apart = (_usual(rates, ~near & part, FAR_BYTES_PER_S) for part in (close, ~close))
        return np.where(near, NEAR_BYTES_PER_S, np.where(close, there, apart))

    rate = _filled(rates, usual_rates)
    shared = ~(near | (rtt <= LOCAL_RTT_MAX_S))
    most = np.where(shared, rate, 0.0)
    fastest_up, fastest_down = most.max(axis=1), most.max(axis=0)
    slow_up, slow_down = slow_lines(rates, shared)
    up, down = _by_rank(ids, measured.up), _by_rank(ids, measured.down)
    went_up, went_down = _by_rank(ids, measured.went_up), _by_rank(ids, measured.went_down)
    if alike:
        up, down = likened(up, went_up, rates, shared), likened(down, went_down, rates.T, shared.T)
    held_back = np.fmax(alone(rates, shared, slow_up, up), alone(rates.T, shared.T, slow_down, down).T)
    return Paths(
        delay=rtt / 2,
        rate=np.where(shared, np.fmax(rate, held_back), rate),
        known=known,
        near=near,
        up=_lines(up, np.fmin(slow_up, LINE_PATHS * fastest_up)),
        down=_lines(down, np.fmin(slow_down, LINE_PATHS * fastest_down)),
        up_shown=shown(_known(up, slow_up), went_up, fastest_up),
        down_shown=shown(_known(down, slow_down), went_down, fastest_down),
        shared=shared,
    )


def _filled(figures: Array, usual: Callable[[], Array]) -> Array:
    found: Array = np.where(np.isnan(figures), figures.T, figures)
    np.fill_diagonal(found, 0.0)
    unknown = np.isnan(found)
    return np.where(unknown, usual(), found) if unknown.any() else found


def _usual(figures: Array, among: Bools, default: float) -> float:
    """The median of those that are known."""
    chosen = among & ~np.isnan(figures)
    np.fill_diagonal(chosen, False)
    known = figures[chosen]
    middle = (len(known) - 1) // 2
    return float(np.partition(known, middle)[middle]) if len(known) else default


def _by_rank(ids: Sequence[bytes], known: Mapping[bytes, float]) -> Array:
    return np.array([known.get(peer, np.nan) for peer in ids], dtype=np.float64)


def _known(measured: Array, slow: Array) -> Array:
    return np.where(np.isnan(measured), slow, measured)


def _lines(measured: Array, assumed: Array) -> Array:
    """Who shares its line with nobody has one without a limit."""
    return _known(measured, np.where(assumed > 0, assumed, np.inf))


def cautious(paths: Paths) -> Paths:
    """The same, but what is assumed to be fast is not: for what sends more only to arrive sooner."""
    assumed = ~(paths.known | paths.near)
    rate = np.where(assumed, np.minimum(paths.rate, CAUTIOUS_BYTES_PER_S), paths.rate)
    line = LINE_PATHS * CAUTIOUS_BYTES_PER_S
    return replace(paths, rate=rate, up=np.minimum(paths.up, line), down=np.minimum(paths.down, line))


# -- the ring -------------------------------------------------------------------------------------------------------


def ring_hops(n: int) -> list[tuple[int, int]]:
    """Who sends to whom: rank r to r + 1."""
    return [(rank, (rank + 1) % n) for rank in range(n)] if n > 1 else []


def ring_rates(paths: Paths) -> Array:
    """What each hop gets when all are busy: a link that several go over is shared."""
    ways = [paths.way(a, b) for a, b in ring_hops(paths.n)]
    users = Counter(link for way in ways for link in way)
    return np.array([min(paths.hop_rate(a, b) / users[a, b] for a, b in way) for way in ways])


def ring_seconds(paths: Paths, nbytes: float, segment_bytes: int) -> float:
    """The ring in the order of ranks: 2 (n - 1) spans over each hop, segments moving on as they come.

    Either a hop is busy all the time, and the last span still has to arrive; or the first segment's way through
    2 (n - 1) hops is what takes long, and the rest of its span follows it.
    """
    hops = ring_hops(paths.n)
    if not hops:
        return 0.0
    rates = ring_rates(paths)
    delays = np.array([paths.delay[a, b] for a, b in hops])
    span = nbytes / paths.n
    segment = min(span, segment_bytes)
    slowest = float(rates.min())
    busy = 2 * (paths.n - 1) * span / slowest + float(delays.max())
    steps = delays + segment / rates
    trip = 2 * float(steps.sum()) - float((steps + np.roll(steps, -1)).min())
    return max(busy, trip + (span - segment) / slowest) + paths.delay_max


# -- mesh and two-level ---------------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Line:
    """Seconds of an op of some bytes: `fixed` + `per_byte` for each."""

    per_byte: float
    fixed: float

    def seconds(self, nbytes: float) -> float:
        """Of so many bytes."""
        return self.per_byte * nbytes + self.fixed


def mesh_regions(n: int) -> tuple[int, ...]:
    """Everybody a region of its own: the two-level scheme is then the mesh."""
    return tuple(range(n))


def agents_of(regions: Sequence[int]) -> Ranks:
    """[span, member]: who collects the span's contributions in the member's region: the owner, or its agent there."""
    _, region, sizes = np.unique(np.array(regions), return_inverse=True, return_counts=True)
    by_region = np.argsort(region, kind="stable")
    starts = np.cumsum(sizes) - sizes
    place = np.empty(len(region), dtype=np.int64)
    place[by_region] = np.arange(len(region)) - np.repeat(starts, sizes)
    agent = by_region[starts[region] + place[:, None] % sizes[region]]
    return np.where(region[:, None] == region[None, :], np.arange(len(region))[:, None], agent)


@lru_cache(maxsize=2)
def routes_of(regions: tuple[int, ...]) -> Routes:
    """Kept: a plan asks for those of its mesh and of its regions several times."""
    return Routes(regions)


class Routes:
    """Who sends what to whom. `hops` [span, member]: where a member sends what it has of a span, and gets the result.

    That is its region's agent, or the owner; for an owner itself. `direct`: always the owner, which is the mesh.
    """

    def __init__(self, regions: Sequence[int]) -> None:
        agents = agents_of(regions)
        self.n = len(agents)
        self.direct = len(set(regions)) == self.n
        ranks = np.arange(self.n)
        self.hops = np.where(agents == ranks[None, :], ranks[:, None], agents)
        self._cells = (ranks[None, :] * self.n + self.hops).ravel()  # of a matrix [member, hop]

    def carried(self, shares: Shares) -> Array:
        """[from, to]: contributions one way, results the other, as parts of the whole."""
        parts = np.asarray(shares, dtype=np.float64)
        if self.direct:
            there = np.broadcast_to(parts, (self.n, self.n)).copy()
        else:
            weights = np.repeat(parts, self.n)
            there = np.bincount(self._cells, weights, self.n * self.n).reshape(self.n, self.n)
        np.fill_diagonal(there, 0.0)  # an owner keeps its own
        both: Array = there + there.T
        return both


def owners_line(paths: Paths, regions: tuple[int, ...], shares: Shares) -> Line:
    """Mesh or two-level with these shares (summing to 1): the busiest path or site, in and out, and the FIN."""
    if paths.n < 2:
        return Line(0.0, 0.0)
    routes = routes_of(regions)
    return Line(busiest(paths, routes, shares), owners_delay(paths, routes))


def owners_seconds(paths: Paths, regions: tuple[int, ...], shares: Shares, nbytes: float) -> float:
    """The same for so many bytes."""
    return owners_line(paths, regions, shares).seconds(nbytes)


def busiest(paths: Paths, routes: Routes, shares: Shares) -> float:
    """Seconds per byte of the whole: of the path or site with the most to do."""
    carried = on_links(paths, routes.carried(shares))
    return float(max(path_seconds(paths, carried).max(), site_seconds(paths, carried).max()))


def on_links(paths: Paths, carried: Array) -> Array:
    """What links carry, [from, to], when pairs have so much for each other."""
    if not paths.ways:
        return carried
    found: Array = carried.copy()
    for pair, way in paths.ways.items():
        found[pair] -= carried[pair]
        for link in way:
            found[link] += carried[pair]
    return found


def path_seconds(paths: Paths, carried: Array) -> Array:
    """Per byte of the whole, [from, to]."""
    return np.divide(carried, paths.rate, out=np.zeros_like(carried), where=carried > 0)


def site_seconds(paths: Paths, carried: Array) -> Array:
    """Per byte of the whole, up and down of each member."""
    through = np.where(paths.shared, carried, 0.0)
    return np.concatenate([through.sum(axis=1) / paths.up, through.sum(axis=0) / paths.down])


def lines_limit(paths: Paths, shares: Shares) -> bool:
    """Whether the mesh with these shares is limited by what members have on all their paths together."""
    carried = on_links(paths, routes_of(mesh_regions(paths.n)).carried(shares))
    return bool(site_seconds(paths, carried).max() >= path_seconds(paths, carried).max())


def owners_delay(paths: Paths, routes: Routes) -> float:
    """The longest way of a contribution to an owner and of its result to somebody else, and the FIN."""
    hops, d = routes.hops, paths.delay
    if routes.direct:
        there, back = d.max(axis=0), d.max(axis=1)
    else:
        member, span = np.arange(paths.n)[None, :], np.arange(paths.n)[:, None]
        there = (d[member, hops] + d[hops, span]).max(axis=1)
        back = (d[span, hops] + d[hops, member]).max(axis=1)
    return float((there + back).max()) + paths.delay_max


def one_round_line(paths: Paths) -> Line:
    """Everybody sends everything to all and folds it all: the busiest path or site, the folding, the way, and the FIN.

    Of the folding only what the mesh does not have, where each folds its span.
    """
    n = paths.n
    if n < 2:
        return Line(0.0, 0.0)
    carried = on_links(paths, 1.0 - np.eye(n))
    busy = max(path_seconds(paths, carried).max(), site_seconds(paths, carried).max())
    return Line(float(busy) + (n - 1) / FOLD_BYTES_PER_S, 2 * paths.delay_max)


def equal_shares(n: int) -> tuple[float, ...]:
    """1/n each."""
    return (1.0 / n,) * n
