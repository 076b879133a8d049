"""plan.py - chooses how an epoch moves its bytes: order of ranks, algorithm, spans, regions, streams, detours.

Pure and deterministic: a function of the members, of what was measured between them, and of the links that are
broken, whose ends reach each other by detours (detours.py). Every candidate's time is predicted (cost.py) for
REFERENCE_BYTES; the plan carries the prediction and, in words, how the candidates compare. Where nothing is known, one
host gets the ring and many hosts get the mesh, which measures all paths.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from pccl.coordinator.cost import (
    REFERENCE_BYTES,
    Hop,
    Measurements,
    Paths,
    cautious,
    equal_shares,
    lines_limit,
    mesh_regions,
    one_round_line,
    owners_line,
    owners_seconds,
    paths_of,
    ring_hops,
    ring_rates,
    ring_seconds,
)
from pccl.coordinator.detours import Triple, detours_in, detours_of, over_detours
from pccl.coordinator.figures import Array
from pccl.coordinator.fixed import FREE, Fixed
from pccl.coordinator.places import all_near, regions_of
from pccl.coordinator.rings import best_ring
from pccl.coordinator.sizes import MESH_ALWAYS, mesh_bytes_max, one_round_bytes_max
from pccl.coordinator.spans import as_shares, as_weights, best_shares
from pccl.types import Algorithm, MemberInfo, short_id

STREAMS_FAR = 3
STREAMS_MAX = 16
#: What one connection keeps on its way within the usual limits of its buffers (4 MB with overhead), with some to spare.
STREAM_BYTES = 2_100_000
#: From so many lost packets in a million on, so many times the streams.
STREAMS_BY_LOSS = ((500, 3.0), (30, 1.6), (0, 1.0))
#: A plan that only changes streams must change a link's by so much: more streams are needed sooner than fewer.
STREAMS_MORE = 4 / 3
STREAMS_FEWER = 1 / 2
SEGMENT_BYTES = 256 << 10
SEGMENT_BYTES_SLOW = 64 << 10
#: A segment is not interrupted by what is urgent: shorter ones where they take long.
SLOW_BYTES_PER_S = 15e6
MESH_BYTES_MAX = 1 << 20
#: What a less simple plan must gain over a simpler one, and a new one over the one in use.
PREFER_GAIN = 0.05
#: What a plan may seem to lose that could gain what the figures do not show. Two levels: from what pairs carried while
#: all of them were busy nobody can tell whether they share the lines out of their sites, where fewer bytes between
#: regions gain much. A ring where lines limit the mesh: its links take turns on their lines, and when some have ended
#: lines lie idle; in a ring each line has one link, and is full from the beginning to the end.
TRIAL_LOSS = 0.05
#: What unequal spans must gain over equal ones. Measured rates of equal paths differ by almost as much, and spans made
#: from noise cost as much as they promise.
SPANS_GAIN = 0.2
#: What they may lose if lines are no better than was shown, or like the known ones.
SPANS_RISK = 0.05
CHANGE_GAIN = 0.25
CHANGE_GAIN_S = 0.005
PAIRS_MAX = 1 << 16
#: Beyond so many members every link has one stream: so many fill any line, and they are too many to be told apart.
FEW_MAX = 128
BROKEN_S = 1e9

Pair = tuple[bytes, bytes]


@dataclass(slots=True, frozen=True)
class Plan:
    """An epoch's plan. `order`: peer ids by rank; weights and regions are by rank too.

    `one_round_bytes_max`: up to so many bytes all-reduces take one round, up to `mesh_bytes_max` the mesh with equal
    spans, beyond `large_algorithm` with the spans of `weights` (all 0: equal). `pair_streams`: (a, b, count) by rank
    where it is not `streams`. `detours`: (a, b, via) for each direction of each broken pair. `predicted_s`: for
    REFERENCE_BYTES; 0 if nothing is known. `on_trial`: it may gain what the figures cannot show.
    """

    streams: int
    segment_bytes: int
    mesh_bytes_max: int
    order: tuple[bytes, ...]
    large_algorithm: int = Algorithm.AUTO
    weights: tuple[int, ...] = ()
    regions: tuple[int, ...] = ()
    pair_streams: tuple[Triple, ...] = ()
    detours: tuple[Triple, ...] = ()
    predicted_s: float = 0.0
    reason: str = ""
    one_round_bytes_max: int = 0
    on_trial: bool = False

    def algorithm_of(self, nbytes: float) -> Algorithm:
        """What all-reduces of so many bytes take, which are too many for one round."""
        if self.is_equal_mesh(nbytes):
            return Algorithm.MESH
        large = Algorithm(self.large_algorithm)
        return Algorithm.RING if large == Algorithm.AUTO else large

    def is_equal_mesh(self, nbytes: float) -> bool:
        """Whether they take the mesh with equal spans, whatever larger ones do."""
        return len(self.order) <= 2 or self.mesh_bytes_max >= nbytes

    def avoids(self, pair: Pair) -> bool:
        """Whether it does without the link between two members."""
        return any({self.order[a], self.order[b]} == set(pair) for a, b, _ in self.detours)


def plan(
    members: Sequence[MemberInfo],
    measured: Measurements | None = None,
    broken: frozenset[Pair] = frozenset(),
    fixed: Fixed = FREE,
) -> Plan:
    """The plan for members in their present order. `broken`: pairs of live members without a link, if that can be.
    `fixed`: what is not the planner's to choose.
    """
    chosen = _plan(members, measured if measured is not None else Measurements(), broken, fixed.algorithm)
    if not fixed.streams:
        return chosen
    reason = f"{chosen.reason}; the operator fixed the streams of every link"
    return replace(chosen, streams=fixed.streams, pair_streams=(), reason=reason)


def _plan(members: Sequence[MemberInfo], measured: Measurements, broken: frozenset[Pair], asked: Algorithm) -> Plan:
    n, number = len(members), {member.id: place for place, member in enumerate(members)}
    dead = sorted((number[a], number[b]) for a, b in broken if a in number and b in number)
    direct = paths_of(members, measured)
    detours = detours_of(n, dead, lambda a, b: float(direct.delay[a, b]))
    paths = over_detours(direct, detours)
    if _is_measured(paths):
        some_known = {len(measured.up), len(measured.down)} - {0, n}  # lines
        other = over_detours(paths_of(members, measured, alike=True), detours) if some_known else paths
        return _told(_by_measurement(members, measured, paths, other, asked), members, dead)
    return _told(_as_asked(_by_rule(members, measured, paths), asked), members, dead)


def _told(chosen: Plan, members: Sequence[MemberInfo], dead: Sequence[tuple[int, int]]) -> Plan:
    """The plan, its reason with the broken links."""
    pairs = [(members[a].id, members[b].id) for a, b in dead]
    around = [pair for pair in pairs if chosen.avoids(pair)]
    without = [pair for pair in pairs if not chosen.avoids(pair)]
    facts = [f"around the broken {_names(around)}"] if around else []
    facts += [f"no way around the broken {_names(without)}"] if without else []
    return replace(chosen, reason="; ".join([chosen.reason, *facts]))


def predict(
    present: Plan, members: Sequence[MemberInfo], measured: Measurements, nbytes: float = REFERENCE_BYTES
) -> float:
    """What a plan that is in use would take now for so many bytes. The members are those of the plan."""
    by_id = {member.id: member for member in members}
    paths = over_detours(paths_of([by_id[peer] for peer in present.order], measured), present.detours)
    if nbytes <= present.one_round_bytes_max:
        return one_round_line(paths).seconds(nbytes)
    algorithm = present.algorithm_of(nbytes)
    return _predict(present, algorithm, paths, nbytes) * measured.slower.get(algorithm, 1.0)


def _predict(present: Plan, algorithm: Algorithm, paths: Paths, nbytes: float) -> float:
    n = paths.n
    if present.is_equal_mesh(nbytes):
        return owners_seconds(paths, mesh_regions(n), equal_shares(n), nbytes)
    if algorithm == Algorithm.RING:
        return ring_seconds(paths, nbytes, present.segment_bytes)
    regions = present.regions if algorithm == Algorithm.TWO_LEVEL else mesh_regions(n)
    return owners_seconds(paths, regions, as_shares(present.weights or (0,) * n), nbytes)


def is_worth_it(present_s: float, ahead: Plan) -> bool:
    """Whether the plan ahead is so much better that the peers shall wait for a boundary for it."""
    gain = present_s - ahead.predicted_s
    return ahead.predicted_s > 0 and gain > CHANGE_GAIN * ahead.predicted_s and gain > CHANGE_GAIN_S


def wants_other_streams(present: Plan, ahead: Plan) -> bool:
    """Whether some link should have clearly more or fewer streams than the present plan gives it."""
    now, then = _streams_by_peers(present), _streams_by_peers(ahead)
    named = now.keys() | then.keys()
    ratios = [then.get(pair, ahead.streams) / now.get(pair, present.streams) for pair in named]
    if len(named) < len(present.order) * (len(present.order) - 1) // 2:
        ratios.append(ahead.streams / present.streams)
    return any(ratio >= STREAMS_MORE or ratio <= STREAMS_FEWER for ratio in ratios)


def _streams_by_peers(plan: Plan) -> dict[frozenset[bytes], int]:
    return {frozenset((plan.order[a], plan.order[b])): count for a, b, count in plan.pair_streams}


def is_worth_a_try(present: Plan, present_s: float, ahead: Plan) -> bool:
    """Whether a plan that promises no gain shall be tried all the same."""
    anew = ahead.on_trial and ahead.large_algorithm != present.large_algorithm
    return anew and not present.detours and 0 < ahead.predicted_s <= (1 + TRIAL_LOSS) * present_s


# -- without measurements -------------------------------------------------------------------------------------------


def _is_measured(paths: Paths) -> bool:
    return bool((paths.known & ~paths.near).any())


def _by_rule(members: Sequence[MemberInfo], measured: Measurements, paths: Paths) -> Plan:
    near = all_near(members, measured.rtt_s)
    order = _ring(paths, SEGMENT_BYTES) if paths.ways else tuple(range(paths.n))
    ranked, placed = [members[k] for k in order], paths.ordered(order)
    regions = regions_of(placed.delay, placed.near)
    simple = near and len(members) > 2 and not placed.ways.keys() & set(ring_hops(placed.n))
    many = not near and len(members) > FEW_MAX
    algorithm = Algorithm.RING if simple else Algorithm.TWO_LEVEL if many and any(regions) else Algorithm.MESH
    streams = 1 if near or many else STREAMS_FAR
    slow = cautious(placed)
    mesh = owners_line(slow, mesh_regions(slow.n), equal_shares(slow.n))
    return Plan(
        streams=streams,
        segment_bytes=SEGMENT_BYTES,
        mesh_bytes_max=MESH_ALWAYS if algorithm == Algorithm.MESH else MESH_BYTES_MAX,
        order=tuple(member.id for member in ranked),
        large_algorithm=algorithm,
        regions=regions,
        pair_streams=() if near else _pair_streams(ranked, measured, placed, streams),
        detours=detours_in(placed),
        reason="one host" if near else f"nothing is known about the paths: {_RULES[algorithm]}",
        one_round_bytes_max=one_round_bytes_max(one_round_line(slow), mesh.seconds, MESH_BYTES_MAX),
    )


_RULES = {
    Algorithm.MESH: "the mesh tries them all",
    Algorithm.TWO_LEVEL: "so many members send between hosts only once",
}


def _as_asked(chosen: Plan, asked: Algorithm) -> Plan:
    """The plan by rule with the algorithm that the operator fixed, for all-reduces of any size."""
    if asked == Algorithm.AUTO:
        return chosen
    algorithm, why = _possible(asked, chosen.regions)
    size = MESH_ALWAYS if algorithm == Algorithm.MESH else 0
    reason = f"{why}; {chosen.reason}"
    return replace(chosen, large_algorithm=algorithm, mesh_bytes_max=size, one_round_bytes_max=0, reason=reason)


def _possible(asked: Algorithm, regions: Sequence[int]) -> tuple[Algorithm, str]:
    """What comes of a fixed algorithm, and that in words. Two levels in one region are the ring, also in the engine."""
    if asked == Algorithm.TWO_LEVEL and len(set(regions)) < 2:
        return Algorithm.RING, "ring: the operator fixed two levels, but there is one region"
    return asked, f"the operator fixed the {_name(asked)}"


# -- by measurement -------------------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class _Candidate:
    algorithm: Algorithm
    order: tuple[int, ...]
    seconds: float
    shares: tuple[float, ...]
    text: str
    bar: float = 1.0
    slower: float = 1.0

    @property
    def on_trial(self) -> bool:
        """Whether it may gain what the figures cannot show."""
        return self.bar > 1

    def slowed(self, times: float) -> _Candidate:
        """The same, as it was seen to be: so many times slower than its figures say."""
        return replace(self, seconds=times * self.seconds, slower=times)

    def in_words(self) -> str:
        """Its time, and whose word that is."""
        seen = f" ({self.slower:.2g} times what its figures say, as was seen)" if self.slower != 1 else ""
        return f"{_name(self.algorithm)} {self.seconds:.3g} s{seen}"


def _by_measurement(
    members: Sequence[MemberInfo], measured: Measurements, paths: Paths, other: Paths, asked: Algorithm
) -> Plan:
    """`other`: the paths, if lines that seem to be like the known ones are."""
    segment = _segment_bytes(paths)
    regions = regions_of(paths.delay, paths.near)
    candidates = [
        c.slowed(measured.slower.get(c.algorithm, 1.0))
        for c in _candidates(paths, other, regions, segment, measured.untried)
    ]
    best, why = _best(candidates) if asked == Algorithm.AUTO else _asked(candidates, regions, asked)
    ranked = [members[k] for k in best.order]
    placed = paths.ordered(best.order)
    places = tuple(regions[k] for k in best.order)
    weights = as_weights([best.shares[k] for k in best.order])
    streams = _usual_streams(ranked, measured, placed)
    mesh_most, one_round_most = _sizes(placed, best, places, weights, segment, asked)
    return Plan(
        streams=streams,
        segment_bytes=segment,
        mesh_bytes_max=mesh_most,
        order=tuple(member.id for member in ranked),
        large_algorithm=best.algorithm,
        weights=weights,
        regions=places,
        pair_streams=_pair_streams(ranked, measured, placed, streams),
        detours=detours_in(placed),
        predicted_s=best.seconds,
        reason=why + ", ".join(c.in_words() for c in candidates),
        one_round_bytes_max=one_round_most,
        on_trial=best.on_trial,
    )


def _best(candidates: Sequence[_Candidate]) -> tuple[_Candidate, str]:
    """The fastest, if it is so much faster than the simpler ones that it is worth it."""
    best = candidates[0]
    for candidate in candidates[1:]:
        if candidate.seconds < candidate.bar * best.seconds:
            best = candidate
    return best, f"{best.text}; of "


def _asked(candidates: Sequence[_Candidate], regions: Sequence[int], asked: Algorithm) -> tuple[_Candidate, str]:
    """The one that the operator fixed. For two members there is only the mesh, which is then what a ring is."""
    algorithm, why = _possible(asked, regions)
    best = next((candidate for candidate in candidates if candidate.algorithm == algorithm), candidates[0])
    return best, f"{why}: {best.text}; of "


def _candidates(
    paths: Paths, other: Paths, regions: tuple[int, ...], segment: int, untried: frozenset[Algorithm]
) -> list[_Candidate]:
    """Simple ones first. `bar`: what a candidate's time must be, relative to a simpler one's.

    Two levels use few of the paths, each alone on its line: what those carried in their turn beside all the others
    tells little about spans. So they begin with equal ones.
    """
    n, own = paths.n, tuple(range(paths.n))
    shares, seconds = _shares(paths, other, mesh_regions(n))
    found = [_Candidate(Algorithm.MESH, own, seconds, shares, f"mesh, {_spread(shares)}")]
    if n < 3:
        return found
    if 1 < len(set(regions)) < n:
        is_new = Algorithm.TWO_LEVEL in untried
        split, seconds = _equal(paths, regions) if is_new else _shares(paths, other, regions)
        text = f"two levels, {len(set(regions))} regions, {_spread(split)}"
        found.append(_Candidate(Algorithm.TWO_LEVEL, own, seconds, split, text, 1 + TRIAL_LOSS))
    order = _ring(paths, segment)
    placed = paths.ordered(order)
    slowest = min(ring_rates(placed))
    text = f"ring, slowest hop {slowest / 1e6:.3g} MB/s"
    seconds = ring_seconds(placed, REFERENCE_BYTES, segment)
    trial = len(found) == 1 and lines_limit(paths, shares)
    bar = 1 + TRIAL_LOSS if trial else 1 - PREFER_GAIN
    found.append(_Candidate(Algorithm.RING, order, seconds, shares, text, bar))
    return found


def _equal(paths: Paths, regions: tuple[int, ...]) -> tuple[tuple[float, ...], float]:
    """Equal shares, and the time they take."""
    equal = equal_shares(paths.n)
    return equal, owners_seconds(paths, regions, equal, REFERENCE_BYTES)


def _shares(paths: Paths, other: Paths, regions: tuple[int, ...]) -> tuple[tuple[float, ...], float]:
    """The owners' shares, and the time they take: equal ones unless others are clearly better, and not much worse
    should lines of which little is known be no better than was shown, or be like the known ones.
    """
    equal, at_worst = equal_shares(paths.n), paths.at_worst()
    readings = [paths, at_worst] if other is paths else [paths, at_worst, other]

    def seconds(shares: Sequence[float]) -> list[float]:
        return [owners_seconds(reading, regions, shares, REFERENCE_BYTES) for reading in readings]

    usual_s, *others_s = seconds(equal)
    for known in (paths, at_worst):
        shares = best_shares(known, regions)
        expected_s, *risked_s = seconds(shares)
        risks = zip(risked_s, others_s, strict=True)
        if expected_s < (1 - SPANS_GAIN) * usual_s and all(risk <= (1 + SPANS_RISK) * safe for risk, safe in risks):
            return shares, expected_s
    return equal, usual_s


def _ring(paths: Paths, segment: int) -> tuple[int, ...]:
    """The best ring of links; if there is none, the best of links and detours."""
    steps = ring_steps(paths, segment)
    order = best_ring(ring_costs(paths, paths.ways), steps)
    hops = {(order[a], order[b]) for a, b in ring_hops(paths.n)}
    return best_ring(ring_costs(paths), steps) if hops & paths.ways.keys() else order


def ring_costs(paths: Paths, dead: Iterable[Hop] = ()) -> Array:
    """A hop's time in a ring; a broken one counts more than all others together."""
    nbytes = 2 * (paths.n - 1) / paths.n * REFERENCE_BYTES
    cost = ring_steps(paths, nbytes)
    for a, b in dead:
        cost[a, b] = BROKEN_S
    return cost


def ring_steps(paths: Paths, nbytes: float) -> Array:
    """[from, to]: how long so many bytes take over a hop; a segment's way through a ring is as long as its steps."""
    rates = paths.hop_rates()
    np.fill_diagonal(rates, np.inf)
    steps: Array = nbytes / rates + paths.delay
    return steps


def _sizes(
    paths: Paths,
    best: _Candidate,
    regions: tuple[int, ...],
    weights: Sequence[int],
    segment: int,
    asked: Algorithm = Algorithm.AUTO,
) -> tuple[int, int]:
    """Of a plan whose large ops go by the candidate: mesh_bytes_max and one_round_bytes_max."""
    n, algorithm = paths.n, best.algorithm
    mesh = owners_line(paths, mesh_regions(n), equal_shares(n))
    owners = owners_line(paths, regions if algorithm == Algorithm.TWO_LEVEL else mesh_regions(n), as_shares(weights))

    def large_s(nbytes: float) -> float:
        return ring_seconds(paths, nbytes, segment) if algorithm == Algorithm.RING else owners.seconds(nbytes)

    def other_s(nbytes: float) -> float:
        return mesh.seconds(nbytes) if nbytes <= most else large_s(nbytes)

    if n <= 2 or (algorithm == Algorithm.MESH and not any(weights)):
        most = MESH_ALWAYS
    elif asked not in (Algorithm.AUTO, Algorithm.MESH):
        most = 0
    else:
        most = mesh_bytes_max(mesh, large_s, best.bar)
    return most, one_round_bytes_max(one_round_line(paths), other_s) if asked == Algorithm.AUTO else 0


def _segment_bytes(paths: Paths) -> int:
    slowest = float((paths.rate + np.diag(np.full(paths.n, np.inf))).min())
    return SEGMENT_BYTES_SLOW if slowest < SLOW_BYTES_PER_S else SEGMENT_BYTES


# -- streams --------------------------------------------------------------------------------------------------------


def streams_between(a: bytes, b: bytes, rtt_s: float, near: bool, measured: Measurements) -> int:
    """As many as the path's bandwidth-delay product fills.

    More where packets are lost: what follows a lost one is kept for a round trip longer, until it was sent again. Not
    in proportion to the loss: a queue that too many streams overfill loses too, and would get more of them.
    """
    if near:
        return 1
    rates = [measured.bytes_per_s[pair] for pair in ((a, b), (b, a)) if pair in measured.bytes_per_s]
    if not rates:
        return STREAMS_FAR
    losses = [measured.loss_ppm[pair] for pair in ((a, b), (b, a)) if pair in measured.loss_ppm]
    factor = next(factor for ppm, factor in STREAMS_BY_LOSS if max(losses, default=0) >= ppm)
    # two, so that one lost packet does not stop the link
    fewest = STREAMS_FAR if not losses else 1 if factor == 1 else 2
    return min(STREAMS_MAX, max(fewest, ceil(max(rates) * rtt_s * factor / STREAM_BYTES)))


def _streams(members: Sequence[MemberInfo], measured: Measurements, paths: Paths) -> list[Triple]:
    if paths.n > FEW_MAX:
        return []
    return [
        (a, b, streams_between(members[a].id, members[b].id, 2 * paths.delay[a][b], paths.near[a][b], measured))
        for a in range(paths.n)
        for b in range(a + 1, paths.n)
    ]


def _usual_streams(members: Sequence[MemberInfo], measured: Measurements, paths: Paths) -> int:
    counts = Counter(count for _, _, count in _streams(members, measured, paths))
    return max(counts, key=lambda count: (counts[count], count), default=1)


def _pair_streams(
    members: Sequence[MemberInfo], measured: Measurements, paths: Paths, usual: int
) -> tuple[Triple, ...]:
    others = tuple(entry for entry in _streams(members, measured, paths) if entry[2] != usual)
    return others if len(others) <= PAIRS_MAX else ()


# -- words ----------------------------------------------------------------------------------------------------------


def _name(algorithm: Algorithm) -> str:
    return algorithm.name.lower().replace("_", "-")


def _spread(shares: Sequence[float]) -> str:
    low, high = min(shares), max(shares)
    return "equal spans" if high - low < 1e-6 else f"spans of {100 * low:.0f} to {100 * high:.0f} %"


def _names(pairs: Sequence[Pair]) -> str:
    named = ", ".join(f"{short_id(a)}-{short_id(b)}" for a, b in pairs[:4])
    return f"link{'s' * (len(pairs) > 1)} {named}" + (f" and {len(pairs) - 4} more" if len(pairs) > 4 else "")
