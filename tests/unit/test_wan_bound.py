"""The lower bound of an all-reduce on an emulated WAN, against cases computed by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # at the end: pccl itself is the installed one

pytest.importorskip("scipy", reason="SciPy is not installed")
from stress.wan.bound import BoundError, bound, delay_s
from stress.wan.ring_bound import ring_bound
from stress.wan.topology import Topology, load, parse

MIB = 1 << 20
SIZE = 64 * MIB
SECONDS_PER_MBIT = SIZE * 8 / 1e6  # for all of SIZE over one Mbit/s


def sites(names: str, **settings: Any) -> dict[str, Any]:
    return {name: dict(settings) for name in names}


def mesh4(**defaults: float) -> Topology:
    return parse({"sites": sites("abcd"), "defaults": {"rtt_ms": 80, "rate_mbit": 500, **defaults}})


def shared4(mbit: float = 500) -> Topology:
    return parse({"sites": sites("abcd", up_mbit=mbit, down_mbit=mbit), "defaults": {"rtt_ms": 80}})


def two_regions() -> Topology:
    regions = {"eu0": {"region": "eu"}, "eu1": {"region": "eu"}, "us0": {"region": "us"}, "us1": {"region": "us"}}
    link = {"pair": ["eu", "us"], "rtt_ms": 95, "rate_mbit": 300}
    return parse({"sites": regions, "defaults": {"rtt_ms": 0.4}, "links": [link]})


def uneven() -> Topology:
    names = {"centre": 2000, "office": 500, "far": 200}
    even = {name: {"up_mbit": mbit, "down_mbit": mbit} for name, mbit in names.items()}
    document = {"sites": {**even, "home": {"up_mbit": 50, "down_mbit": 300}}, "defaults": {"rtt_ms": 30}}
    return parse({**document, "links": [{"pair": ["far", "*"], "rtt_ms": 180}]})


def test_four_equal_pairs_carry_half_the_data_each() -> None:
    """A quarter to the owner, another quarter back from the one at this end."""
    found = bound(mesh4(), SIZE)
    assert found.transfer_s == pytest.approx(SECONDS_PER_MBIT / 2 / 500)
    assert found.total_s == pytest.approx(0.537 + 0.08, abs=1e-3)


def test_a_shared_line_carries_one_and_a_half_times_the_data() -> None:
    """2 (N - 1) / N."""
    found = bound(shared4(), SIZE)
    assert found.transfer_s == pytest.approx(SECONDS_PER_MBIT * 1.5 / 500)
    assert found.total_s == pytest.approx(1.61 + 0.08, abs=2e-3)


def test_small_data_is_all_delay() -> None:
    assert bound(mesh4(), MIB).total_s == pytest.approx(SECONDS_PER_MBIT / 64 / 2 / 500 + 0.08)


@pytest.mark.parametrize("slower", [400, 100])
def test_two_peers_send_each_other_all_of_it(slower: float) -> None:
    link = {"from": "a", "to": "b", "rate_mbit": slower}
    topology = parse({"sites": sites("ab"), "defaults": {"rate_mbit": 400}, "links": [link]})
    assert bound(topology, SIZE).total_s == pytest.approx(SECONDS_PER_MBIT / slower)


def test_lost_packets_use_the_rate() -> None:
    assert bound(mesh4(loss=0.2), SIZE).transfer_s == pytest.approx(SECONDS_PER_MBIT / 2 / 400)


def test_lost_packets_use_the_uplink_but_not_the_downlink() -> None:
    lossy = {"rate_mbit": 0, "loss": 0.5}
    up = parse({"sites": sites("ab", up_mbit=100), "defaults": lossy})
    down = parse({"sites": sites("ab", down_mbit=100), "defaults": lossy})
    assert bound(up, SIZE).transfer_s == pytest.approx(SECONDS_PER_MBIT / 50)
    assert bound(down, SIZE).transfer_s == pytest.approx(SECONDS_PER_MBIT / 100)


def test_regions_sum_before_they_send() -> None:
    """All of it once each way over four pairs; owners that talk to each peer themselves send half over each pair."""
    assert bound(two_regions(), SIZE).transfer_s == pytest.approx(SECONDS_PER_MBIT / (4 * 300))
    assert bound(two_regions(), SIZE, direct=True).transfer_s == pytest.approx(SECONDS_PER_MBIT / 2 / 300)


def test_a_thin_uplink_carries_the_data_once() -> None:
    assert bound(uneven(), SIZE).total_s == pytest.approx(SECONDS_PER_MBIT / 50 + 0.18)


def test_a_useless_pair_is_gone_around() -> None:
    """Without a - b all goes through c, to it and back; directly c has to own all of it."""
    link = {"pair": ["a", "b"], "loss": 1.0}
    topology = parse({"sites": sites("abc"), "defaults": {"rate_mbit": 100, "rtt_ms": 10}, "links": [link]})
    assert bound(topology, SIZE).transfer_s == pytest.approx(SECONDS_PER_MBIT / 100)
    assert bound(topology, SIZE, direct=True).transfer_s == pytest.approx(SECONDS_PER_MBIT / 100)
    assert delay_s(topology) == pytest.approx(0.01)


def test_owners_far_from_a_bad_pair_own_more() -> None:
    """Directly, a and b own nothing, so c and d half each: they exchange all of it."""
    link = {"pair": ["a", "b"], "loss": 1.0}
    topology = parse({"sites": sites("abcd"), "defaults": {"rate_mbit": 100}, "links": [link]})
    assert bound(topology, SIZE, direct=True).transfer_s == pytest.approx(SECONDS_PER_MBIT / 100)
    assert bound(topology, SIZE).transfer_s < 0.8 * SECONDS_PER_MBIT / 100


@pytest.mark.parametrize("topology", [mesh4(loss=0.01), shared4(), two_regions(), uneven()])
def test_passing_on_never_costs_and_bytes_cost_alike(topology: Topology) -> None:
    flow, direct = (bound(topology, SIZE, direct) for direct in (False, True))
    assert flow.transfer_s <= direct.transfer_s * (1 + 1e-9)
    assert bound(topology, 2 * SIZE).transfer_s == pytest.approx(2 * flow.transfer_s)


def test_delays_are_those_to_the_best_owner_by_the_shortest_way() -> None:
    """The middle is 5 ms from a and 20 ms from b, on foot; the direct line of a and b is the long way round."""
    links = [
        {"pair": ["a", "m"], "delay_ms": 5},
        {"pair": ["m", "b"], "delay_ms": 20},
        {"pair": ["a", "b"], "rtt_ms": 300},
    ]
    assert delay_s(parse({"sites": sites("amb"), "links": links})) == pytest.approx(0.04)


def test_the_coordinator_takes_no_part() -> None:
    hub = {"role": "coordinator", "up_mbit": 1, "down_mbit": 1}
    document = {"defaults": {"rate_mbit": 100}, "links": [{"pair": ["hub", "*"], "rtt_ms": 900}]}
    topology = parse({**document, "sites": {"hub": hub, **sites("ab")}})
    assert bound(topology, SIZE).total_s == pytest.approx(SECONDS_PER_MBIT / 100)


def test_no_limit_is_no_time_and_no_way_is_an_error() -> None:
    assert bound(parse({"sites": sites("abc"), "defaults": {"rtt_ms": 20}}), SIZE).total_s == pytest.approx(0.02)
    cut = parse({"sites": sites("ab"), "defaults": {"rate_mbit": 10}, "links": [{"from": "a", "to": "b", "loss": 1.0}]})
    with pytest.raises(BoundError, match="cannot reach"):
        bound(cut, SIZE)


# -- local pairs -----------------------------------------------------------------------------------------------------


def test_what_is_local_does_not_use_the_shared_lines() -> None:
    """Three peers on each side: regions sum inside, and each line carries a third of the data each way."""
    lan = load("two_regions_lan", wan_mbit=300, rtt_ms=80)
    assert bound(lan, SIZE).total_s == pytest.approx(SECONDS_PER_MBIT / 3 / 300 + 0.08)
    assert lan.expected_mbit("eu0", "eu1") == 0 and lan.expected_mbit("eu0", "us1") == 300


# -- the ring --------------------------------------------------------------------------------------------------------


def test_a_ring_of_equal_hops() -> None:
    """Three halves of the data over each hop, the last span's way, and the word."""
    assert ring_bound(mesh4(), SIZE).total_s == pytest.approx(SECONDS_PER_MBIT * 1.5 / 500 + 0.08)
    assert ring_bound(shared4(), SIZE).total_s == pytest.approx(bound(shared4(), SIZE).total_s)


def test_the_best_ring_goes_around_a_slow_pair() -> None:
    document = {"sites": sites("abcd"), "defaults": {"rate_mbit": 500}, "links": [{"pair": ["a", "b"], "rate_mbit": 5}]}
    assert ring_bound(parse(document), SIZE).total_s == pytest.approx(SECONDS_PER_MBIT * 1.5 / 500)
    three = {**document, "sites": sites("abc")}
    assert ring_bound(parse(three), SIZE).transfer_s == pytest.approx(SECONDS_PER_MBIT * 4 / 3 / 5), "none to be had"


def test_a_ring_of_long_ways() -> None:
    """Next to no data: one span's way over 2 (n - 1) hops, and the word."""
    assert ring_bound(mesh4(), 4).total_s == pytest.approx(6 * 0.04 + 0.04, rel=1e-3)


def test_losses_and_cuts_of_a_ring() -> None:
    assert ring_bound(mesh4(loss=0.2), SIZE).transfer_s == pytest.approx(SECONDS_PER_MBIT * 1.5 / 400)
    cut = {"defaults": {"rate_mbit": 10}, "links": [{"pair": ["a", "*"], "loss": 1.0}], "sites": sites("abc")}
    with pytest.raises(BoundError, match="no ring"):
        ring_bound(parse(cut), SIZE)
    with pytest.raises(BoundError, match="too many"):
        ring_bound(parse({"sites": sites("abcdefghi"), "defaults": {"rate_mbit": 10}}), SIZE)


@pytest.mark.parametrize("topology", [mesh4(loss=0.01), shared4(), two_regions(), uneven()])
def test_no_ring_is_faster_than_the_bound(topology: Topology) -> None:
    assert bound(topology, SIZE).total_s <= ring_bound(topology, SIZE).total_s * (1 + 1e-9)
