"""Predicted times against sums done by hand, and who sends what against csrc/two_level.c's rules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pccl.coordinator.cost import (
    FAR_BYTES_PER_S,
    FOLD_BYTES_PER_S,
    LINE_PATHS,
    LOCAL_RTT_MAX_S,
    Measurements,
    Paths,
    Routes,
    agents_of,
    equal_shares,
    mesh_regions,
    one_round_line,
    owners_delay,
    owners_seconds,
    paths_of,
    ring_seconds,
)
from pccl.types import MemberInfo

MB = 1e6
INFINITE = float("inf")


def flat(n: int, delay: float, rate: float, up: float = INFINITE, down: float = INFINITE) -> Paths:
    """The same between all."""
    apart = 1.0 - np.eye(n)
    return Paths(
        delay=delay * apart,
        rate=rate * apart,
        known=apart > 0,
        near=apart < 0,
        up=np.full(n, up),
        down=np.full(n, down),
        up_shown=np.full(n, up),
        down_shown=np.full(n, down),
        shared=np.ones((n, n), dtype=bool),
    )


def peers(n: int, hosts: int | None = None) -> list[MemberInfo]:
    return [
        MemberInfo(bytes([k + 1]) * 16, 0, f"10.0.0.{k % (hosts or n)}:1", f"host{k % (hosts or n)}") for k in range(n)
    ]


# -- the ring -----------------------------------------------------------------------------------------------------


def test_a_ring_of_busy_hops() -> None:
    """4 peers, 64 MB, 50 MB/s, 10 ms: 6 spans of 16 MB take 1.92 s, then one way for the last and one for the FIN."""
    assert ring_seconds(flat(4, 0.01, 50 * MB), 64 * MB, 1) == pytest.approx(1.92 + 0.01 + 0.01)


def test_a_ring_of_long_ways() -> None:
    """Next to no data: a segment's way over 6 hops, and the FIN."""
    assert ring_seconds(flat(4, 0.1, 1000 * MB), 4.0, 1) == pytest.approx(6 * 0.1 + 0.1, rel=1e-3)


def test_a_ring_is_as_slow_as_its_slowest_hop() -> None:
    paths = flat(3, 0.0, 100 * MB)
    slow = replace(paths, rate=np.array([[0, 10 * MB, 1], [1, 0, 100 * MB], [100 * MB, 1, 0]]))
    assert ring_seconds(slow, 30 * MB, 1) == pytest.approx(4 * 10 / 10)
    assert ring_seconds(slow.ordered((1, 2, 0)), 30 * MB, 1) == pytest.approx(4.0), "the same ring from elsewhere"
    assert ring_seconds(slow.ordered((0, 2, 1)), 30 * MB, 1) > 1e6, "the other way round"


def test_a_site_s_limit_counts_in_a_ring() -> None:
    assert ring_seconds(flat(4, 0.0, 50 * MB, up=25 * MB), 64 * MB, 1) == pytest.approx(2 * 1.92)


# -- the mesh -----------------------------------------------------------------------------------------------------


def test_a_mesh_with_equal_spans() -> None:
    """4 peers, 64 MB, 50 MB/s per pair, 10 ms: each path carries two spans of 16 MB, and 3 one-way delays."""
    paths = flat(4, 0.01, 50 * MB)
    seconds = owners_seconds(paths, mesh_regions(4), equal_shares(4), 64 * MB)
    assert seconds == pytest.approx(32 / 50 + 0.03)


def test_a_mesh_with_uneven_spans() -> None:
    """The busiest path is the one between the owners of the largest spans."""
    seconds = owners_seconds(flat(3, 0.0, 10 * MB), mesh_regions(3), (0.5, 0.3, 0.2), 100 * MB)
    assert seconds == pytest.approx(80 / 10)


def test_a_site_s_limit_counts_in_a_mesh() -> None:
    """(1 + (n - 2) w) of the whole leave a site: 1.5 times 64 MB here."""
    for limits in ({"up": 50 * MB}, {"down": 50 * MB}):
        paths = flat(4, 0.0, 1e12, **limits)
        assert owners_seconds(paths, mesh_regions(4), equal_shares(4), 64 * MB) == pytest.approx(96 / 50, rel=1e-3)


# -- one round ------------------------------------------------------------------------------------------------------


def test_one_round_by_hand() -> None:
    """4 peers, 3 MB, 50 MB/s per pair, 10 ms: a path carries it all, 3 are folded everywhere, and 2 one-way delays."""
    folding = 9 * MB / FOLD_BYTES_PER_S
    assert one_round_line(flat(4, 0.01, 50 * MB)).seconds(3 * MB) == pytest.approx(3 / 50 + folding + 0.02)
    assert one_round_line(flat(4, 0.01, 50 * MB, up=90 * MB)).seconds(3 * MB) == pytest.approx(9 / 90 + folding + 0.02)
    assert one_round_line(flat(4, 0.01, 50 * MB, down=45 * MB)).seconds(3 * MB) == pytest.approx(
        9 / 45 + folding + 0.02
    )
    assert one_round_line(flat(1, 0, 1)).seconds(1e9) == 0.0


# -- two levels ---------------------------------------------------------------------------------------------------


def test_agents_follow_the_place_in_the_region() -> None:
    regions = (0, 0, 0, 1, 1)
    agents = agents_of(regions).tolist()
    assert agents[0] == [0, 0, 0, 3, 3] and agents[1] == [1, 1, 1, 4, 4]
    assert agents[2] == [2, 2, 2, 3, 3], "the third of three has the first of two"
    assert agents[3] == [0, 0, 0, 3, 3] and agents[4] == [1, 1, 1, 4, 4]


def test_every_span_is_collected_once_and_spread_once() -> None:
    regions = (0, 1, 0, 1, 2, 0)
    hops = Routes(regions).hops
    for span in range(6):
        assert hops[span][span] == span, "an owner keeps its own"
        sent = [(a, int(b)) for a, b in enumerate(hops[span]) if a != span]
        between = [(a, b) for a, b in sent if regions[a] != regions[b]]
        assert len(between) == 2, "out of each other region once"
        for a, b in sent:
            assert b == span or (regions[a] == regions[b] and hops[span][b] == span), "to the owner, or to an agent"


def test_what_is_carried_is_the_sum_of_all_ways() -> None:
    """Also in the mesh, which takes a shorter way to the same sums."""
    shares = (0.1, 0.2, 0.3, 0.4, 0.0, 0.0)
    for regions in ((0, 1, 0, 1, 2, 0), mesh_regions(6)):
        routes = Routes(regions)
        carried, longest = np.zeros((6, 6)), 0.0
        delay = np.random.default_rng(1).random((6, 6)) * (1 - np.eye(6))
        for span, share in enumerate(shares):
            there = back = 0.0
            for member, hop in enumerate(routes.hops[span]):
                if member != span:
                    carried[member, hop] += share
                    carried[hop, member] += share
                    there = max(there, delay[member, hop] + delay[hop, span])
                    back = max(back, delay[span, hop] + delay[hop, member])
            longest = max(longest, there + back)
        assert routes.carried(shares) == pytest.approx(carried)
        paths = replace(flat(6, 0.0, 1.0), delay=delay)
        assert owners_delay(paths, routes) == pytest.approx(longest + delay.max())


def test_two_levels_by_hand() -> None:
    """2 regions of 2, 40 MB: 10 MB/s between regions. A pair of partners has 2 spans of 10 MB there, each way; inside,
    a contribution and a result to each of 2 spans of the region, and as much again for the partners' spans.
    """
    regions = (0, 0, 1, 1)
    place = np.array(regions)
    close = place[:, None] == place[None, :]
    apart = 1 - np.eye(4)
    paths = replace(
        flat(4, 0, 1), rate=np.where(close, 100 * MB, 10 * MB) * apart, delay=np.where(close, 0.001, 0.1) * apart
    )
    seconds = owners_seconds(paths, regions, equal_shares(4), 40 * MB)
    assert seconds == pytest.approx(20 / 10 + 2 * (0.001 + 0.1) + 0.1)
    inside = replace(paths, rate=100 * MB * apart)
    assert owners_seconds(inside, regions, equal_shares(4), 40 * MB) == pytest.approx(40 / 100 + 0.302)


def between_two_houses(n: int, rtt_s: float) -> Measurements:
    """100 MB/s within a house, in so much time, and 5 MB/s between them."""
    ids = [member.id for member in peers(n)]
    pairs = [(a, b) for a in range(n) for b in range(n) if a != b]
    return Measurements(
        rtt_s={(ids[a], ids[b]): rtt_s if a % 2 == b % 2 else 0.05 for a, b in pairs},
        bytes_per_s={(ids[a], ids[b]): (100 if a % 2 == b % 2 else 5) * MB for a, b in pairs},
    )


def test_a_local_path_is_none_of_the_line() -> None:
    known = between_two_houses(4, LOCAL_RTT_MAX_S)
    known.up.update(dict.fromkeys([member.id for member in peers(4)], 10 * MB))
    paths = paths_of(peers(4), known)
    assert not paths.shared[0, 2] and paths.shared[0, 1] and paths.hop_rate(0, 2) == 100 * MB
    assert paths.hop_rate(0, 1) == 10 * MB, "5 MB/s was its turn"
    assert owners_seconds(paths, (0, 1, 0, 1), equal_shares(4), 40 * MB) == pytest.approx(2 + 2 * 0.0255 + 0.025)
    farther = between_two_houses(4, 1.01 * LOCAL_RTT_MAX_S)
    farther.up.update(known.up)
    assert paths_of(peers(4), farther).hop_rate(0, 2) == 10 * MB


def test_a_line_of_which_nothing_is_known() -> None:
    """A mesh of twelve has six far paths each, which it may fill; one of thirty has more than a line carries."""
    for n in (12, 30):
        paths = paths_of(peers(n), between_two_houses(n, LOCAL_RTT_MAX_S))
        assert paths.up.tolist() == paths.down.tolist() == [LINE_PATHS * 5 * MB] * n
        seconds = owners_seconds(paths, mesh_regions(n), equal_shares(n), n * MB)
        assert seconds - 0.075 == pytest.approx(2 / 5 * max(1, n / 2 / LINE_PATHS))
    alone = paths_of(peers(3), Measurements(rtt_s=dict.fromkeys(between_two_houses(3, 0).rtt_s, LOCAL_RTT_MAX_S)))
    assert alone.up.tolist() == [INFINITE] * 3, "nobody to share it with"


def test_one_alone_and_nobody_wait_for_no_one() -> None:
    alone = flat(1, 0, 1)
    assert owners_seconds(alone, (0,), (1.0,), 1e9) == 0.0 == ring_seconds(alone, 1e9, 1)


# -- what is not known --------------------------------------------------------------------------------------------


def test_what_is_unknown_is_assumed() -> None:
    members = peers(4, hosts=3)  # 0 and 3 share a host
    ids = [member.id for member in members]
    measured = Measurements(
        rtt_s={(ids[0], ids[1]): 0.2},
        bytes_per_s={(ids[0], ids[1]): 7.0, (ids[1], ids[2]): 9.0, (ids[2], ids[1]): 8.0},
    )
    paths = paths_of(members, measured)
    assert paths.near[0][3] and not paths.near[0][1]
    assert paths.rate[0][1] == 7.0 == paths.rate[1][0], "as in the other direction"
    assert (paths.rate[1][2], paths.rate[2][1]) == (9.0, 8.0)
    assert paths.rate[0][2] == 8.0, "like the median of those that are known"
    assert paths.rate[0][3] > 1e9 and paths.delay[0][3] < 1e-3
    assert paths.delay[0][1] == paths.delay[1][2] == 0.1 and paths.known[0][1] and not paths.known[1][0]


def test_unknown_paths_within_a_place_are_not_like_those_between_places() -> None:
    """Four in two places, of which two pairs between them and one within were measured; then none within."""
    members = peers(4)
    ids = [member.id for member in members]
    rtt = {(ids[a], ids[b]): 0.0005 if a % 2 == b % 2 else 0.08 for a in range(4) for b in range(4) if a != b}
    known = {(ids[0], ids[1]): 9 * MB, (ids[0], ids[3]): 10 * MB, (ids[0], ids[2]): 200 * MB}
    paths = paths_of(members, Measurements(rtt, known))
    assert paths.rate[1][3] == paths.rate[3][1] == 200 * MB and paths.rate[2][1] == paths.rate[1][2] == 9 * MB
    del known[ids[0], ids[2]]
    paths = paths_of(members, Measurements(rtt, known))
    assert paths.rate[0][2] == paths.rate[1][3] == FAR_BYTES_PER_S and paths.rate[2][3] == 9 * MB
