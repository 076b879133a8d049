"""cost.py - how long an all-reduce takes: predicted seconds of the ring, the mesh and the two-level scheme.

Pure. `Paths` is what is known or assumed about the ways between n members, by rank. A time is the bytes of the busiest
path (or site) at its rate, plus the delays that nothing hides; kernels cost nothing, except where all fold everything.
What goes over a detour counts at every link on its way. The mesh is the two-level scheme in which every member is a
region of its own: one formula serves both. Who sends what follows csrc/ring.c, csrc/mesh.c, csrc/two_level.c and
csrc/one_round.c.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median_low

from pccl.coordinator.places import is_near
from pccl.types import MemberInfo

REFERENCE_BYTES = 64 << 20
NEAR_RTT_S = 50e-6
NEAR_BYTES_PER_S = 4e9
FAR_RTT_S = 50e-3
FAR_BYTES_PER_S = 125e6
CLOSE_RTT_S = 5e-3
#: What a peer folds, of the contributions of others.
FOLD_BYTES_PER_S = 4e9

Matrix = tuple[tuple[float, ...], ...]
Hop = tuple[int, int]
#: Of a span, how many copies go from one rank to another: (from, to, span).
Load = tuple[int, int, int]


@dataclass(slots=True, frozen=True)
class Measurements:
    """What is known about the paths, by (from, to), and about sites, by peer. What is missing is unknown."""

    rtt_s: dict[tuple[bytes, bytes], float] = field(default_factory=dict)
    bytes_per_s: dict[tuple[bytes, bytes], float] = field(default_factory=dict)
    loss_ppm: dict[tuple[bytes, bytes], int] = field(default_factory=dict)
    up: dict[bytes, float] = field(default_factory=dict)
    down: dict[bytes, float] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class Paths:
    """All ways between n members. `delay`: one way, seconds; `rate`: bytes/s; `up`, `down`: of a member in all.

    `known`: whether the rate was measured. `near`: both are on one host. `ways`: the links that a detour goes over, for
    each pair without a link; its delay and rate are those of the way.
    """

    delay: Matrix
    rate: Matrix
    known: tuple[tuple[bool, ...], ...]
    near: tuple[tuple[bool, ...], ...]
    up: tuple[float, ...]
    down: tuple[float, ...]
    ways: dict[Hop, tuple[Hop, ...]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """How many members."""
        return len(self.rate)

    def hop_rate(self, a: int, b: int) -> float:
        """What one transfer alone gets from a to b."""
        return min(self.rate[a][b], self.up[a], self.down[b])

    def way(self, a: int, b: int) -> tuple[Hop, ...]:
        """The links that bytes from a to b go over."""
        return self.ways.get((a, b), ((a, b),))

    @property
    def delay_max(self) -> float:
        """The longest way between any two: every op ends with a FIN from everybody to everybody."""
        return max((self.delay[a][b] for a in range(self.n) for b in range(self.n) if a != b), default=0.0)

    def ordered(self, order: Sequence[int]) -> Paths:
        """The same members in other places: rank k is what was order[k]."""
        rank = {k: place for place, k in enumerate(order)}
        return Paths(
            delay=tuple(tuple(self.delay[a][b] for b in order) for a in order),
            rate=tuple(tuple(self.rate[a][b] for b in order) for a in order),
            known=tuple(tuple(self.known[a][b] for b in order) for a in order),
            near=tuple(tuple(self.near[a][b] for b in order) for a in order),
            up=tuple(self.up[a] for a in order),
            down=tuple(self.down[a] for a in order),
            ways={(rank[a], rank[b]): tuple((rank[x], rank[y]) for x, y in way) for (a, b), way in self.ways.items()},
        )


# -- what is known, and what is assumed where nothing is ------------------------------------------------------------


def paths_of(members: Sequence[MemberInfo], measured: Measurements) -> Paths:
    """Unknown: as in the other direction, else as usual on one host, else like the median of the known far paths; for
    rates of those as close as this one, since between machines of one place there is more than between places.
    """
    ids = [member.id for member in members]
    n = range(len(ids))
    near = tuple(tuple(a != b and is_near(members[a], members[b], measured.rtt_s) for b in n) for a in n)
    far = [(a, b) for a in n for b in n if a != b and not near[a][b]]
    usual_rtt = _usual(ids, measured.rtt_s, far, FAR_RTT_S)
    rtt = _filled(ids, measured.rtt_s, lambda a, b: NEAR_RTT_S if near[a][b] else usual_rtt)
    usual = {
        close: _usual(ids, measured.bytes_per_s, [(a, b) for a, b in far if _is_close(rtt, a, b) == close])
        for close in (False, True)
    }
    rate = _filled(
        ids, measured.bytes_per_s, lambda a, b: NEAR_BYTES_PER_S if near[a][b] else usual[_is_close(rtt, a, b)]
    )
    return Paths(
        delay=tuple(tuple(value / 2 for value in row) for row in rtt),
        rate=rate,
        known=tuple(tuple((ids[a], ids[b]) in measured.bytes_per_s for b in n) for a in n),
        near=near,
        up=tuple(measured.up.get(peer, float("inf")) for peer in ids),
        down=tuple(measured.down.get(peer, float("inf")) for peer in ids),
    )


def _is_close(rtt: Matrix, a: int, b: int) -> bool:
    """One place, if not one host: a local network lies between them."""
    return max(rtt[a][b], rtt[b][a]) <= CLOSE_RTT_S


def _usual(
    ids: Sequence[bytes],
    known: dict[tuple[bytes, bytes], float],
    pairs: Sequence[tuple[int, int]],
    default: float = FAR_BYTES_PER_S,
) -> float:
    found = (known.get((ids[a], ids[b])) for a, b in pairs)
    return median_low([value for value in found if value is not None] or [default])


def _filled(
    ids: Sequence[bytes], known: dict[tuple[bytes, bytes], float], fallback: Callable[[int, int], float]
) -> Matrix:
    def value(a: int, b: int) -> float:
        if a == b:
            return 0.0
        there, back = known.get((ids[a], ids[b])), known.get((ids[b], ids[a]))
        return there if there is not None else back if back is not None else fallback(a, b)

    return tuple(tuple(value(a, b) for b in range(len(ids))) for a in range(len(ids)))


# -- the ring -------------------------------------------------------------------------------------------------------


def ring_hops(n: int) -> list[tuple[int, int]]:
    """Who sends to whom: rank r to r + 1."""
    return [(rank, (rank + 1) % n) for rank in range(n)] if n > 1 else []


def ring_rates(paths: Paths) -> list[float]:
    """What each hop gets when all are busy: a link that several go over is shared."""
    ways = [paths.way(a, b) for a, b in ring_hops(paths.n)]
    users = Counter(link for way in ways for link in way)
    return [min(paths.hop_rate(a, b) / users[a, b] for a, b in way) for way in ways]


def ring_seconds(paths: Paths, nbytes: float, segment_bytes: int) -> float:
    """The ring in the order of ranks: 2 (n - 1) spans over each hop, segments moving on as they come.

    Either a hop is busy all the time, and the last span still has to arrive; or the first segment's way through
    2 (n - 1) hops is what takes long, and the rest of its span follows it.
    """
    hops = ring_hops(paths.n)
    if not hops:
        return 0.0
    span = nbytes / paths.n
    segment = min(span, segment_bytes)
    rates = ring_rates(paths)
    slowest = min(rates)
    busy = 2 * (paths.n - 1) * span / slowest + max(paths.delay[a][b] for a, b in hops)
    steps = [paths.delay[a][b] + segment / rate for (a, b), rate in zip(hops, rates, strict=True)]
    trip = 2 * sum(steps) - min(a + b for a, b in zip(steps, steps[1:] + steps[:1], strict=True))
    return max(busy, trip + (span - segment) / slowest) + paths.delay_max


# -- mesh and two-level ---------------------------------------------------------------------------------------------


def mesh_regions(n: int) -> tuple[int, ...]:
    """Everybody a region of its own: the two-level scheme is then the mesh."""
    return tuple(range(n))


def agents_of(regions: Sequence[int]) -> list[list[int]]:
    """[span][member]: who collects the span's contributions in the member's region: the owner, or its agent there."""
    members: dict[int, list[int]] = {}
    place = []
    for rank, region in enumerate(regions):
        place.append(len(members.setdefault(region, [])))
        members[region].append(rank)

    def agent(span: int, member: int) -> int:
        there = members[regions[member]]
        return span if regions[span] == regions[member] else there[place[span] % len(there)]

    return [[agent(span, member) for member in range(len(regions))] for span in range(len(regions))]


def loads_of(regions: Sequence[int]) -> list[Load]:
    """Every transfer of a whole span: contributions to the agents, partial sums to the owners, and results back."""
    loads = []
    for span, agents in enumerate(agents_of(regions)):
        for member, agent in enumerate(agents):
            other = agent if agent != member else span
            if member != span:
                loads += [(member, other, span), (other, member, span)]
    return loads


def owners_seconds(paths: Paths, regions: Sequence[int], weights: Sequence[float], nbytes: float) -> float:
    """Mesh or two-level with these shares (summing to 1): the busiest path or site, in and out, and the FIN."""
    if paths.n < 2:
        return 0.0
    return nbytes * busiest(paths, routed(paths, loads_of(regions)), weights) + owners_delay(paths, regions)


def routed(paths: Paths, loads: Sequence[Load]) -> list[Load]:
    """The loads of links: a transfer over a detour is one on each of them."""
    return [(x, y, span) for a, b, span in loads for x, y in paths.way(a, b)]


def busiest(paths: Paths, loads: Sequence[Load], weights: Sequence[float]) -> float:
    """Seconds per byte of the whole: of the path or site with the most to do."""
    n = paths.n
    by_pair = [[0.0] * n for _ in range(n)]
    for a, b, span in loads:
        by_pair[a][b] += weights[span]
    seconds = [by_pair[a][b] / paths.rate[a][b] for a in range(n) for b in range(n) if by_pair[a][b]]
    out = [sum(row) / up for row, up in zip(by_pair, paths.up, strict=True)]
    into = [sum(row[b] for row in by_pair) / paths.down[b] for b in range(n)]
    return max(*seconds, *out, *into, 0.0)


def owners_delay(paths: Paths, regions: Sequence[int]) -> float:
    """The longest way of a contribution to an owner and of its result to somebody else, and the FIN."""

    def way(member: int, span: int, agent: int) -> tuple[float, float]:
        d = paths.delay
        return d[member][agent] + d[agent][span], d[span][agent] + d[agent][member]

    longest = 0.0
    for span, agents in enumerate(agents_of(regions)):
        ways = [way(member, span, agent) for member, agent in enumerate(agents)]
        longest = max(longest, max(there for there, _ in ways) + max(back for _, back in ways))
    return longest + paths.delay_max


def one_round_seconds(paths: Paths, nbytes: float) -> float:
    """Everybody sends everything to all and folds it all: the busiest path or site, the folding, the way, and the FIN.

    Of the folding only what the mesh does not have, where each folds its span.
    """
    n = paths.n
    if n < 2:
        return 0.0
    carried = Counter(link for a in range(n) for b in range(n) if a != b for link in paths.way(a, b))
    slowest = min(paths.rate[a][b] / times for (a, b), times in carried.items())
    site = min(*paths.up, *paths.down)
    return max(nbytes / slowest, (n - 1) * nbytes / site) + (n - 1) * nbytes / FOLD_BYTES_PER_S + 2 * paths.delay_max


def equal_shares(n: int) -> tuple[float, ...]:
    """1/n each."""
    return (1.0 / n,) * n
