"""The planner: rings against brute force, spans never worse than equal ones, regions, ways around dead links."""

from __future__ import annotations

import builtins
import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pccl.coordinator import spans
from pccl.coordinator.cost import (
    REFERENCE_BYTES,
    Measurements,
    Paths,
    busiest,
    equal_shares,
    mesh_regions,
    paths_of,
    routes_of,
)
from pccl.coordinator.detours import detours_of
from pccl.coordinator.places import all_near, on_one_host, regions_of
from pccl.coordinator.plan import (
    FEW_MAX,
    MESH_BYTES_MAX,
    STREAMS_FAR,
    STREAMS_MAX,
    Plan,
    is_worth_a_try,
    is_worth_it,
    plan,
    predict,
    streams_between,
    wants_other_streams,
)
from pccl.coordinator.rings import EXACT_MAX, best_ring, ring_key
from pccl.coordinator.sizes import MESH_ALWAYS, ONE_ROUND_BYTES_MAX
from pccl.coordinator.spans import as_shares, as_weights, best_shares
from pccl.types import Algorithm, MemberInfo

MB = 1e6
Figures = dict[tuple[bytes, bytes], float]


def peer(number: int) -> bytes:
    return bytes([number + 1]) * 16


def far(n: int) -> list[MemberInfo]:
    return [MemberInfo(peer(k), 0, f"10.0.0.{k}:1", f"host{k}") for k in range(n)]


def between(n: int, value: Any) -> Figures:
    """value(a, b) for all pairs."""
    return {(peer(a), peer(b)): value(a, b) for a in range(n) for b in range(n) if a != b}


def same(n: int, rate: float, rtt: float = 0.08) -> Measurements:
    return Measurements(rtt_s=between(n, lambda a, b: rtt), bytes_per_s=between(n, lambda a, b: rate))


rates = st.floats(1e5, 1e9)
matrices = st.integers(3, 6).flatmap(
    lambda n: st.lists(st.lists(rates, min_size=n, max_size=n), min_size=n, max_size=n)
)


def measured_of(matrix: list[list[float]]) -> Measurements:
    n = len(matrix)
    return Measurements(between(n, lambda a, b: 1e6 / matrix[b][a]), between(n, lambda a, b: matrix[a][b]))


def paths(matrix: list[list[float]]) -> Paths:
    return paths_of(far(len(matrix)), measured_of(matrix))


# -- rings --------------------------------------------------------------------------------------------------------

costs = st.integers(1, 7).flatmap(
    lambda n: st.lists(st.lists(st.integers(1, 50).map(float), min_size=n, max_size=n), min_size=n, max_size=n)
)


@given(costs)
def test_the_exact_ring_is_that_of_brute_force(cost: list[list[float]]) -> None:
    n = len(cost)
    found = best_ring(cost)
    assert sorted(found) == list(range(n)) and found[0] == 0 and found == best_ring(cost)
    if n > 2:
        least = min(ring_key(cost, (0, *rest)) for rest in itertools.permutations(range(1, n)))
        worst, total = ring_key(cost, found)
        assert worst <= least[0] * 1.02 and (worst > least[0] or total <= least[1] * 1.02)


def test_many_members_get_a_good_ring() -> None:
    """A ring hidden in a random order: every other hop is ten times as slow."""
    n = EXACT_MAX + 6
    hidden = [(7 * k) % n for k in range(n)] if n % 7 else list(range(n))
    assert sorted(hidden) == list(range(n))
    after = dict(itertools.pairwise([*hidden, hidden[0]]))
    cost = [[1.0 if after[a] == b else 10.0 for b in range(n)] for a in range(n)]
    assert ring_key(cost, best_ring(cost)) == (1.0, float(n))


def test_ranks_stay_when_nothing_is_gained() -> None:
    assert best_ring([[1.0] * 6 for _ in range(6)]) == tuple(range(6))


# -- spans --------------------------------------------------------------------------------------------------------


@given(matrices, st.booleans())
@settings(max_examples=60)
def test_spans_are_never_worse_than_equal_ones(matrix: list[list[float]], two_level: bool) -> None:
    known, n = paths(matrix), len(matrix)
    regions = tuple(k // 2 for k in range(n)) if two_level else mesh_regions(n)
    shares = best_shares(known, regions)
    assert sum(shares) == pytest.approx(1.0) and min(shares) >= 0 and shares == best_shares(known, regions)
    routes = routes_of(regions)
    assert busiest(known, routes, shares) <= busiest(known, routes, equal_shares(n)) * (1 + 1e-9)
    kept = as_shares(as_weights(shares))
    assert max(abs(a - b) for a, b in zip(kept, shares, strict=True)) < 1e-4


def test_spans_around_a_slow_pair_by_hand() -> None:
    """0-1 has a tenth of the others' rate: (w0 + w1) / 1 = (w2 + w3) / 10, so that w0 + w1 = 1/11."""
    known = paths([[0 if a == b else 1 * MB if a + b == 1 else 10 * MB for b in range(4)] for a in range(4)])
    shares = best_shares(known, mesh_regions(4))
    assert shares[2] + shares[3] == pytest.approx(10 / 11, rel=0.011), "of the time, one in a hundred is there to spare"
    assert shares[2] == pytest.approx(shares[3], abs=0.02), "nobody owns more than the time asks for"


def test_what_need_not_be_busy_all_the_time_is_not() -> None:
    """Site 3 limits: all owners but itself are as good for it. The slow path 0-1 could be busy for as long, or less."""
    n, fast = 4, 62.5 * MB
    known = paths([[0 if a == b else fast / 10 if a + b == 1 else fast for b in range(n)] for a in range(n)])
    known.up[:] = known.down[:] = [fast, fast, fast, fast / 4]
    shares = best_shares(known, mesh_regions(n))
    assert busiest(known, routes_of(mesh_regions(n)), shares) == pytest.approx(4 / fast, rel=0.011)
    assert shares[0] + shares[1] < 0.3 < 0.4 < shares[2] < 0.75 and shares[3] < 0.01


def test_a_site_with_half_the_uplink_owns_less() -> None:
    known = same(4, 35 * MB, 0.01)
    known.up.update({peer(k): 50 * MB for k in range(4)} | {peer(0): 35 * MB})
    shares = best_shares(paths_of(far(4), known), mesh_regions(4))
    assert shares[0] < 0.15 < shares[1] and shares[1] == pytest.approx(shares[3], abs=0.02)


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    known = paths([[0 if a == b else 1 * MB if 0 in (a, b) else 10 * MB for b in range(4)] for a in range(4)])
    shares = best_shares(known, mesh_regions(4))
    assert sum(shares) == pytest.approx(1)
    seconds = busiest(known, routes_of(mesh_regions(4)), shares)
    assert seconds < 1.1 * (1 / 3) / (1 * MB), "0 owns nothing, the others a third each"


@given(matrices, st.booleans())
@settings(max_examples=40)
def test_prices_find_about_what_the_program_finds(matrix: list[list[float]], two_level: bool) -> None:
    known, n = paths(matrix), len(matrix)
    regions = tuple(k // 2 for k in range(n)) if two_level else mesh_regions(n)
    exact = busiest(known, routes_of(regions), best_shares(known, regions))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spans, "LP_MEMBERS_MAX", 2)
        priced = busiest(known, routes_of(regions), best_shares(known, regions))
    equal = busiest(known, routes_of(regions), equal_shares(n))
    assert priced <= min(equal * (1 + 1e-9), exact * 1.25)


# -- regions ------------------------------------------------------------------------------------------------------


def test_regions_are_cut_at_the_largest_gap() -> None:
    place = (0, 1, 0, 2, 1)
    delay = [[0.0 if a == b else 0.001 if place[a] == place[b] else 0.04 for b in range(5)] for a in range(5)]
    apart = [[False] * 5 for _ in range(5)]
    assert regions_of(delay, apart) == (0, 1, 0, 2, 1)
    flat = [[0.0 if a == b else 0.04 for b in range(5)] for a in range(5)]
    assert regions_of(flat, apart) == (0,) * 5, "no gap, no regions"
    mild = [[0.0 if a == b else 0.01 if place[a] == place[b] else 0.04 for b in range(5)] for a in range(5)]
    assert regions_of(mild, apart) == (0,) * 5, "a factor of four is not far"
    near = [[a != b and place[a] == place[b] for b in range(5)] for a in range(5)]
    assert regions_of(flat, near) == (0, 1, 0, 2, 1), "one host, one region"
    assert regions_of([[0.0]], [[False]]) == (0,)


# -- plans --------------------------------------------------------------------------------------------------------


def test_without_measurements() -> None:
    near = [MemberInfo(peer(n), 0, f"127.0.0.{n}:1", f"h{n}") for n in range(1, 4)]
    one_host = [MemberInfo(peer(n), 0, f"10.0.0.1:{n}", "h") for n in range(1, 4)]
    apart = far(3)
    assert [plan(members).streams for members in (near, apart, one_host)] == [1, STREAMS_FAR, 1]
    assert [plan(members).large_algorithm for members in (near, apart, one_host)] == [
        Algorithm.RING,
        Algorithm.MESH,
        Algorithm.RING,
    ]
    assert plan(apart).order == tuple(member.id for member in apart) and plan(apart).mesh_bytes_max == MESH_ALWAYS
    assert plan(near).mesh_bytes_max == MESH_BYTES_MAX and plan(near[:2]).mesh_bytes_max == MESH_ALWAYS
    assert plan(apart[:1]).order == (apart[0].id,) and plan(apart).segment_bytes % 64 == 0
    assert plan(apart).predicted_s == 0.0 and "nothing is known" in plan(apart).reason
    mixed = [*one_host, MemberInfo(peer(9), 0, "10.0.0.9:1", "other")]
    assert plan(mixed).pair_streams == ((0, 1, 1), (0, 2, 1), (1, 2, 1)) and plan(mixed).regions == (0, 0, 0, 1)


def test_an_emulated_network_on_one_host_is_none() -> None:
    one_host = [MemberInfo(peer(n), 0, f"127.0.0.1:{n}", "h") for n in range(3)]
    assert plan(one_host, same(3, 60 * MB, 0.08)).predicted_s > 0
    assert plan(one_host, same(3, 900 * MB, 0.0005)).predicted_s == 0.0


def test_equal_paths_get_the_mesh() -> None:
    chosen = plan(far(4), same(4, 62.5 * MB))
    assert chosen.large_algorithm == Algorithm.MESH and not any(chosen.weights)
    assert chosen.mesh_bytes_max == MESH_ALWAYS and chosen.order == tuple(peer(k) for k in range(4))
    expected = REFERENCE_BYTES / 2 / (62.5 * MB) + 3 * 0.04
    assert chosen.predicted_s == pytest.approx(expected) and "ring" in chosen.reason
    assert predict(chosen, far(4), same(4, 62.5 * MB)) == pytest.approx(expected)


def test_slow_sites_get_the_ring_and_one_slow_path_gets_spans() -> None:
    """Where every path but those of one ring is slow, the ring wins; where one is, the mesh avoids it by its spans."""
    n, ring = 6, [0, 3, 1, 5, 2, 4]
    after = dict(itertools.pairwise([*ring, ring[0]]))
    rate = between(n, lambda a, b: 100 * MB if after[a] == b or after[b] == a else 1 * MB)
    known = Measurements(between(n, lambda a, b: 0.02), rate)
    chosen = plan(far(n), known)
    assert chosen.large_algorithm == Algorithm.RING and chosen.predicted_s < 2
    hops = set(itertools.pairwise([*chosen.order, chosen.order[0]]))
    assert all(rate[hop] == 100 * MB for hop in hops) and "100 MB/s" in chosen.reason
    assert predict(chosen, far(n), known) == pytest.approx(chosen.predicted_s)
    assert 0 < chosen.mesh_bytes_max < REFERENCE_BYTES
    one = Measurements(between(4, lambda a, b: 0.02), between(4, lambda a, b: 5 * MB if a + b == 1 else 60 * MB))
    chosen = plan(far(4), one)
    assert chosen.large_algorithm == Algorithm.MESH and chosen.weights[0] < chosen.weights[2]
    assert predict(plan(far(4)), far(4), one) > 2 * chosen.predicted_s
    assert predict(chosen, far(4), one) == pytest.approx(chosen.predicted_s, rel=1e-3)


def test_regions_get_two_levels() -> None:
    known = Measurements(
        between(6, lambda a, b: 0.001 if a % 2 == b % 2 else 0.08),
        between(6, lambda a, b: 1000 * MB if a % 2 == b % 2 else 20 * MB),
    )
    chosen = plan(far(6), known)
    assert chosen.large_algorithm == Algorithm.TWO_LEVEL and chosen.regions == (0, 1) * 3
    assert "2 regions" in chosen.reason and chosen.mesh_bytes_max < REFERENCE_BYTES
    assert predict(chosen, far(6), known) == pytest.approx(chosen.predicted_s)


def many(count: int, hosts: int) -> list[MemberInfo]:
    return [MemberInfo(k.to_bytes(16, "big"), 0, f"10.0.{k % hosts}.1:1", f"host{k % hosts}") for k in range(count)]


def test_many_members_are_told_apart_by_host() -> None:
    chosen = plan(many(FEW_MAX + 9, 9))
    assert chosen.large_algorithm == Algorithm.TWO_LEVEL and chosen.regions == tuple(k % 9 for k in range(FEW_MAX + 9))
    assert chosen.streams == 1 and not chosen.pair_streams and chosen.predicted_s == 0
    assert plan(many(FEW_MAX, 9)).large_algorithm == Algorithm.MESH, "few of them try every path"


def test_many_members_are_planned_by_what_was_measured() -> None:
    """Two hosts of a region each, and between them a slow path: two levels, whatever the number."""
    members = many(FEW_MAX + 32, 2)
    ids = [member.id for member in members]
    far = {(a, b): 20 * MB for k, a in enumerate(ids) for b in ids if (k + ids.index(b)) % 2}
    known = Measurements(dict.fromkeys(far, 0.1), far)
    chosen = plan(members, known)
    assert chosen.large_algorithm == Algorithm.TWO_LEVEL and chosen.predicted_s > 0
    assert chosen.streams == 1 and not chosen.pair_streams
    assert chosen.predicted_s < predict(plan(members), members, known) * 1.01
    assert chosen.predicted_s < predict(Plan(1, 1 << 18, 0, tuple(ids), Algorithm.RING), members, known) / 5


@given(matrices)
@settings(max_examples=40)
def test_plans_are_sound_and_deterministic(matrix: list[list[float]]) -> None:
    n, known = len(matrix), measured_of(matrix)
    chosen = plan(far(n), known)
    assert chosen == plan(far(n), known) and sorted(chosen.order) == [peer(k) for k in range(n)]
    assert len(chosen.weights) == len(chosen.regions) == n
    assert chosen.predicted_s == pytest.approx(predict(chosen, far(n), known), rel=1e-3)
    assert chosen.predicted_s <= predict(plan(far(n)), far(n), known) * 1.06
    assert all(a < b < n and 1 <= count <= STREAMS_MAX for a, b, count in chosen.pair_streams)
    assert not is_worth_it(chosen.predicted_s, chosen)


def test_what_is_worth_a_wait() -> None:
    ahead = Plan(4, 64, 0, (), predicted_s=1.0)
    assert is_worth_it(1.3, ahead) and not is_worth_it(1.2, ahead)
    assert not is_worth_it(0.002, Plan(4, 64, 0, (), predicted_s=0.001)), "too little to notice"
    assert not is_worth_it(9.9, Plan(4, 64, 0, ())), "nothing is known"


def test_two_levels_are_worth_a_try() -> None:
    """Pairs between regions that seem slow, because three of them share a line: by these figures both take as long."""
    known = Measurements(
        between(6, lambda a, b: 0.0004 if a % 2 == b % 2 else 0.08),
        between(6, lambda a, b: 300 * MB if a % 2 == b % 2 else 8 * MB),
    )
    present, ahead = plan(far(6)), plan(far(6), known)
    present_s = predict(present, far(6), known)
    assert (present.large_algorithm, ahead.large_algorithm) == (Algorithm.MESH, Algorithm.TWO_LEVEL)
    assert not is_worth_it(present_s, ahead) and is_worth_a_try(present, present_s, ahead)
    assert not is_worth_a_try(ahead, predict(ahead, far(6), known), ahead), "in use"
    assert not is_worth_a_try(present, ahead.predicted_s / 1.1, ahead), "they promise less"
    assert not is_worth_a_try(present, present_s, plan(far(6), same(6, 8 * MB))), "no regions"
    around = plan(far(6), known, frozenset({(peer(0), peer(1))}))
    assert around.detours and not is_worth_a_try(around, 99.0, ahead), "a try is for links that are whole"


def test_a_ring_is_worth_a_try_where_lines_limit_the_mesh() -> None:
    """Four lines that three links each share: a ring, which has one link per line, seems hardly faster, and is tried.
    Little data still takes the mesh; and so does all where each pair has a path of its own."""
    lines = {peer(k): 12.5 * MB for k in range(4)}

    known = replace(same(4, 4.2 * MB), up=lines, down=lines)
    present, ahead = plan(far(4)), plan(far(4), known)
    mesh_s = predict(present, far(4), known)
    assert present.large_algorithm == Algorithm.MESH and ahead.large_algorithm == Algorithm.RING
    assert 0.95 * mesh_s < ahead.predicted_s < 1.05 * mesh_s and 0 < ahead.mesh_bytes_max < REFERENCE_BYTES
    assert not is_worth_it(mesh_s, ahead) and is_worth_a_try(present, mesh_s, ahead)
    assert not is_worth_a_try(ahead, predict(ahead, far(4), known), ahead), "in use"
    assert plan(far(4), same(4, 4.2 * MB)).large_algorithm == Algorithm.MESH, "no lines"


# -- one round ------------------------------------------------------------------------------------------------------


def test_little_data_takes_one_round() -> None:
    """4 peers, 80 ms: half of the data again per path is worth 40 ms of it."""
    assert plan(far(4), same(4, 50 * MB)).one_round_bytes_max == 2 << 20  # 4 MB are 40 ms, less the folding
    assert plan(far(4), same(4, 1 * MB)).one_round_bytes_max == 64 << 10  # 80 KB
    assert plan(far(4), same(4, 50 * MB, 0.008)).one_round_bytes_max == 256 << 10
    assert plan(far(4), same(4, 900 * MB)).one_round_bytes_max == ONE_ROUND_BYTES_MAX
    assert plan(far(2), same(2, 1 * MB)).one_round_bytes_max == ONE_ROUND_BYTES_MAX, "of two, neither sends more"
    assert plan(far(1)).one_round_bytes_max == 0
    broken = frozenset({(peer(0), peer(1))})
    around = plan(far(4), same(4, 50 * MB), broken)
    assert around.one_round_bytes_max == 2 << 20  # twice the data over the detour's links, 80 ms saved


@given(matrices)
@settings(max_examples=40)
def test_one_round_is_better_up_to_its_size_and_not_beyond(matrix: list[list[float]]) -> None:
    n, known = len(matrix), measured_of(matrix)
    chosen = plan(far(n), known)
    most, without = chosen.one_round_bytes_max, replace(chosen, one_round_bytes_max=0)

    def is_better(nbytes: int) -> bool:
        one_round_s = predict(replace(chosen, one_round_bytes_max=nbytes), far(n), known, nbytes)
        return one_round_s < predict(without, far(n), known, nbytes)

    assert 0 < most <= ONE_ROUND_BYTES_MAX and most & (most - 1) == 0
    assert is_better(most) and (most == ONE_ROUND_BYTES_MAX or not is_better(2 * most))


def test_one_round_where_nothing_is_known() -> None:
    """The paths may be slow: at 25 MB/s and 50 ms a megabyte more in one round costs no more than 25 ms."""
    assert plan(far(4)).one_round_bytes_max == plan(far(2)).one_round_bytes_max == MESH_BYTES_MAX
    close = Measurements(dict.fromkeys(between(4, lambda a, b: 0), 0.01))
    assert plan(far(4), close).one_round_bytes_max == 128 << 10
    near = [MemberInfo(peer(n), 0, f"127.0.0.{n}:1", f"h{n}") for n in range(1, 5)]
    assert [plan(near[:n]).one_round_bytes_max >> 10 for n in (2, 4)] == [64, 16]
    many = [MemberInfo(k.to_bytes(16, "big"), 0, f"10.0.{k}.1:1", f"host{k}") for k in range(FEW_MAX + 2)]
    assert plan(many).one_round_bytes_max == 16 << 10, "129 others share a line"


# -- streams ------------------------------------------------------------------------------------------------------


def test_streams_follow_the_bandwidth_delay_product() -> None:
    a, b = peer(0), peer(1)

    def count(rate: float, rtt: float, loss: int = 0) -> int:
        return streams_between(a, b, rtt, False, Measurements({}, {(a, b): rate}, {(b, a): loss}))

    assert count(62.5 * MB, 0.08) == 3 and count(62.5 * MB, 0.02) == 1 and count(250 * MB, 0.15) == STREAMS_MAX
    assert count(1 * MB, 0.08) == 1 and count(1 * MB, 0.08, loss=100) == count(1 * MB, 0.08, loss=5000) == 2
    assert count(20 * MB, 0.08) == 1 and count(20 * MB, 0.08, loss=100) == 2 and count(20 * MB, 0.08, loss=5000) == 3
    assert count(60 * MB, 0.08, loss=100) == 4 and count(60 * MB, 0.08, loss=1000) == 7
    assert streams_between(a, b, 0.08, False, Measurements()) == STREAMS_FAR
    unknown = Measurements({}, {(a, b): 1 * MB})
    assert streams_between(a, b, 0.08, False, unknown) == STREAMS_FAR, "no fewer before it is known what is lost"
    assert streams_between(a, b, 0.08, True, Measurements({}, {(a, b): 1e9})) == 1


def test_a_plan_is_wanted_for_its_streams() -> None:
    def with_streams(usual: int, *pairs: tuple[int, int, int]) -> Plan:
        return Plan(usual, 1 << 18, 1 << 20, tuple(peer(k) for k in range(3)), pair_streams=pairs)

    three = with_streams(3)
    assert wants_other_streams(three, with_streams(1)) and wants_other_streams(three, with_streams(4))
    assert not wants_other_streams(three, three) and not wants_other_streams(three, with_streams(2))
    assert wants_other_streams(three, with_streams(3, (0, 2, 6)))
    every_pair = ((0, 1, 3), (0, 2, 3), (1, 2, 3))
    assert not wants_other_streams(three, with_streams(1, *every_pair))


# -- broken links -------------------------------------------------------------------------------------------------

pairs = st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6)).filter(lambda p: p[0] < p[1]), max_size=6)


@given(st.integers(2, 7), pairs, st.booleans())
@settings(max_examples=120)
def test_every_broken_link_that_a_way_joins_has_a_detour(n: int, cut: set[tuple[int, int]], known: bool) -> None:
    cut = {(a, b) for a, b in cut if b < n}
    broken = frozenset((peer(a), peer(b)) for a, b in cut)
    chosen = plan(far(n), same(n, 50 * MB) if known else None, broken)
    assert sorted(chosen.order) == [peer(k) for k in range(n)]
    live = {(a, b) for a in range(n) for b in range(n) if a != b and (min(a, b), max(a, b)) not in cut}
    near = shortest(n, live)
    named = [tuple(chosen.order[rank][0] - 1 for rank in detour) for detour in chosen.detours]
    first = {(a, b): via for a, b, via in named}
    assert len(first) == len(named), "one first hop for each"
    assert first.keys() == {pair for a, b in cut for pair in ((a, b), (b, a)) if near[pair] < n}
    for (a, b), via in first.items():
        assert (a, via) in live and near[via, b] == near[a, b] - 1, "every hop brings it closer"
    assert all(chosen.avoids((peer(a), peer(b))) == (near[a, b] < n) for a, b in cut)
    assert ("no way around" in chosen.reason) == any(near[pair] >= n for pair in cut)


def shortest(n: int, live: set[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Links between any two; n: there is no way."""
    far_off = {(a, b): 0 if a == b else 1 if (a, b) in live else n for a in range(n) for b in range(n)}
    for k, a, b in itertools.product(range(n), repeat=3):
        far_off[a, b] = min(far_off[a, b], far_off[a, k] + far_off[k, b])
    return {pair: min(hops, n) for pair, hops in far_off.items()}


def test_the_closest_relay_is_taken_and_the_work_is_shared() -> None:
    delay = [[0.0 if a == b else 0.04 for b in range(5)] for a in range(5)]
    delay[0][3] = delay[3][0] = 0.01
    assert detours_of(5, [(0, 1)], lambda a, b: delay[a][b]) == ((0, 1, 3), (1, 0, 3))
    even = detours_of(5, [(0, 1), (0, 2)], lambda a, b: 0.0)
    assert {via for _, _, via in even} == {3, 4}, "two relays for two pairs"


def test_a_ring_without_detours_is_looked_for() -> None:
    """Of a square with one dead diagonal the sides make a ring; with two ways to a member in one site, the sites do."""
    chosen = plan([MemberInfo(peer(k), 0, "", "host") for k in range(4)], None, frozenset({(peer(0), peer(1))}))
    assert chosen.large_algorithm == Algorithm.RING and chosen.detours
    hops = itertools.pairwise([*chosen.order, chosen.order[0]])
    assert not any({a, b} == {peer(0), peer(1)} for a, b in hops)
    star = frozenset((peer(a), peer(b)) for a, b in ((0, 1), (0, 2), (1, 2)))
    chosen = plan([MemberInfo(peer(k), 0, "", "host") for k in range(4)], None, star)
    assert chosen.large_algorithm == Algorithm.MESH, "every ring would go twice over some link"


def test_a_detour_is_as_slow_as_the_links_that_it_shares() -> None:
    """Three members: the mesh over two links takes twice as long as over three, a ring still longer."""
    whole, part = plan(far(3), same(3, 50 * MB)), plan(far(3), same(3, 50 * MB), frozenset({(peer(0), peer(1))}))
    assert whole.large_algorithm == part.large_algorithm == Algorithm.MESH
    assert part.weights[2] > part.weights[0], "the relay owns more: what it owns travels once"
    assert whole.predicted_s < part.predicted_s < 2.2 * whole.predicted_s
    assert predict(part, far(3), same(3, 50 * MB)) == pytest.approx(part.predicted_s)
    assert part.predicted_s < predict(replace(part, weights=()), far(3), same(3, 50 * MB))


def test_many_members_have_detours_too() -> None:
    broken = frozenset({(peer(5), peer(9)), (peer(5), peer(7))})
    chosen = plan(far(FEW_MAX + 1), None, broken)
    assert len(chosen.detours) == 4 and all(chosen.avoids(pair) for pair in broken)


def test_a_strangers_link_is_no_matter() -> None:
    assert plan(far(3), None, frozenset({(peer(0), peer(9))})) == plan(far(3))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["10.0.0.1", "10.0.0.2", "127.0.0.1"])), max_size=4))
def test_one_host_is_what_all_are_near_in_by_their_addresses_alone(places: list[tuple[str, str]]) -> None:
    members = [MemberInfo(bytes([n] * 16), 1, f"{place}:1", host) for n, (host, place) in enumerate(places)]
    assert on_one_host(members) == (not members or all_near(members, {}))
