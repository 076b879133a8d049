"""Where one request goes and why; the plan behind it, that follows bandwidth and load, but not every whim."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pccl.errors import ArgumentError
from pccl.kv.model.case_study import DECODE_PER_S, H20, H200
from pccl.kv.model.controller import Controller, Pace
from pccl.kv.model.decide import Decision, Load, Paths, Plan, decide, predict
from pccl.kv.model.recent import RecentLengths

GBIT = 125e6
PATHS = Paths(H200, H20)
FREE = Plan("offload", 0.0, 19e3, "test")
IDLE = Load(25 * GBIT)


def choose(total: int, here: int = 0, there: int = 0, load: Load = IDLE, plan: Plan = FREE, **how: Any) -> Decision:
    return decide(total, here, there, load, PATHS, plan, **how)


def test_the_sooner_way_is_taken_and_both_predictions_are_told() -> None:
    away = choose(50_000)
    assert (away.where, away.reason, away.extrapolated) == ("remote", "sooner", False)
    assert away.predicted["local"] == pytest.approx(0.38 + 0.141 * 50)
    sent_s = H200.kv_bytes.at(50_000) / (25 * GBIT)
    assert away.predicted["remote"] == pytest.approx(0.03 + H200.prefill_s.at(50_000) + sent_s / 32)
    here = choose(50_000, load=replace(IDLE, remote_wait_s=20.0))
    assert (here.where, here.reason) == ("local", "sooner")
    assert choose(1500).reason == "the remote way gains too little"


def test_a_slow_link_is_waited_for() -> None:
    size = H200.kv_bytes.at(50_000)
    slow = Load(1 * GBIT, queued_bytes=1e9)
    assert predict(50_000, 0, 0, slow, PATHS).remote_s == pytest.approx(0.03 + (1e9 + size) / GBIT)
    assert choose(50_000, load=slow).where == "local"


def test_the_floor_must_be_exceeded() -> None:
    plan = Plan("offload", 20e3, 30e3, "test")
    assert (choose(20_000, plan=plan).where, choose(20_000, plan=plan).reason) == ("local", "not above the floor")
    assert choose(20_001, plan=plan).where == "remote"
    assert choose(40_001, here=20_001, there=20_001, plan=plan).where == "local", "only what is not cached counts"


def test_above_the_ceiling_the_floor_is_t() -> None:
    plan, busy = Plan("offload", 5e3, 30e3, "test"), replace(IDLE, utilisation=0.85)
    assert choose(29_000, plan=plan).where == "remote"
    assert choose(29_000, plan=plan, load=replace(busy, utilisation=0.84)).where == "remote"
    scarce = choose(29_000, plan=plan, load=busy)
    assert (scarce.where, scarce.threshold, scarce.reason) == ("local", 30e3, "not above t, bandwidth is scarce")
    assert choose(31_000, plan=plan, load=busy).where == "remote"


def test_with_bandwidth_to_spare_a_prefix_is_pulled_with_scarce_each_has_its_own() -> None:
    waits = replace(IDLE, local_wait_s=60.0)
    plenty = choose(100_000, here=80_000, load=waits)
    assert (plenty.where, plenty.pull_tokens) == ("remote", 80_000)
    scarce = choose(100_000, here=80_000, load=replace(waits, utilisation=0.9))
    assert (scarce.where, scarce.pull_tokens) == ("remote", 0)
    assert plenty.predicted["remote"] < scarce.predicted["remote"]
    assert choose(100_000, here=80_000, there=90_000, load=waits).pull_tokens == 0
    assert choose(100_000, here=80_000, load=replace(IDLE, remote_wait_s=9.0)).pull_tokens == 0, "it stays here"


def test_who_joins_a_queue_pays_for_the_delay_of_others() -> None:
    """The remote way is a little later for this request, but spares a long work to those in the local queue."""
    waits = Load(25 * GBIT, local_wait_s=3.0, remote_instances=4, local_instances=3)
    found = predict(30_000, 0, 0, waits, PATHS)
    later = replace(waits, remote_wait_s=found.local_s - found.remote_s + 0.1)
    decision = choose(30_000, load=later)
    assert decision.predicted["remote"] == pytest.approx(decision.predicted["local"] + 0.1)
    assert (decision.where, decision.reason) == ("remote", "others are sooner, the local queue is long")
    much_later = replace(later, queued_bytes=25 * GBIT * 2.1 * found.local_s)
    assert choose(30_000, load=much_later).where == "local", "there are limits"
    both = replace(waits, remote_wait_s=20.0, local_wait_s=18.0)
    assert predict(4000, 0, 0, both, PATHS).remote_s > predict(4000, 0, 0, both, PATHS).local_s
    assert choose(4000, load=replace(both, local_wait_s=20.1)).reason == "sooner", (
        "0.3 s sooner here, 0.5 s of work less there"
    )


def test_a_deadline_that_only_one_way_keeps_decides() -> None:
    plan = Plan("offload", 60e3, 60e3, "test")
    assert choose(50_000, plan=plan).where == "local"
    assert choose(50_000, plan=plan, now_s=10.0, deadline_s=15.0).reason == "only so the deadline is kept"
    assert choose(50_000, plan=plan, now_s=10.0, deadline_s=15.0).where == "remote"
    assert choose(50_000, plan=plan, now_s=10.0, deadline_s=11.0).where == "local", "neither does"
    assert choose(50_000, plan=plan, now_s=10.0, deadline_s=90.0).where == "local", "both do"


def test_relief_lends_the_link_only_to_save_the_slo() -> None:
    relief = Plan("relief", 0.0, 0.0, "test")
    assert choose(30_000, plan=relief).where == "local"
    assert choose(40_000, plan=relief).where == "remote"
    assert choose(10_000, plan=relief, load=replace(IDLE, local_wait_s=5.0)).where == "remote"


def test_without_a_peer_everything_is_local() -> None:
    gone = choose(120_000, load=replace(IDLE, peer_up=False), deadline_s=8.0)
    assert (gone.where, gone.reason) == ("local", "the peer is down")
    assert choose(120_000, plan=Plan("local only", 0.0, 0.0, "asked so")).reason == "asked so"


def test_a_request_longer_than_the_profile_is_decided_and_flagged() -> None:
    assert not choose(131_072).extrapolated
    long = choose(200_000)
    assert long.extrapolated
    assert long.predicted["local"] == pytest.approx(0.38 + 0.141 * 200)
    assert not choose(200_000, here=150_000, there=150_000).extrapolated
    assert choose(200_000, here=150_000, load=replace(IDLE, utilisation=1.0)).extrapolated


def test_a_full_hit_is_legal() -> None:
    assert choose(1000, here=1000, there=1000).where == "local"


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Load(math.nan), "bandwidth_bytes_per_s"),
        (lambda: Load(0.0), "bandwidth_bytes_per_s"),
        (lambda: Load(math.inf), "bandwidth_bytes_per_s"),
        (lambda: Load(1.0, queued_bytes=math.nan), "queued_bytes"),
        (lambda: Load(1.0, utilisation=-0.1), "utilisation"),
        (lambda: Load(1.0, remote_wait_s=math.inf), "remote_wait_s"),
        (lambda: Load(1.0, local_wait_s=-1.0), "local_wait_s"),
        (lambda: Load(1.0, remote_instances=0), "remote_instances"),
        (lambda: Load(1.0, local_instances=0), "local_instances"),
        (lambda: Plan("offload", -1.0, 0.0, ""), "floor_tokens"),
        (lambda: Plan("offload", 0.0, math.nan, ""), "threshold_tokens"),
        (lambda: Paths(H200, H20, layers=0), "layers"),
        (lambda: Paths(H200, H20, rtt_s=-1.0), "rtt_s"),
        (lambda: Paths(H200, H20, ceiling=1.1), "ceiling"),
        (lambda: Paths(H200, H20, slo_s=0.0), "slo_s"),
        (lambda: Paths(H200, H20, gain_min_s=-1.0), "gain_min_s"),
        (lambda: choose(-1), "total_tokens"),
        (lambda: choose(1, here=-1), "cached_local"),
        (lambda: choose(1, there=2), "cached_remote"),
        (lambda: choose(1, now_s=5.0, deadline_s=5.0), "deadline_s is in the past"),
        (lambda: choose(1, deadline_s=math.nan), "deadline_s"),
        (lambda: Pace(dwell_s=0.0), "dwell_s"),
        (lambda: Pace(hysteresis=0.0), "hysteresis"),
        (lambda: Pace(seen_min=0), "seen_min"),
        (lambda: RecentLengths(0.0), "window_s"),
        (lambda: RecentLengths(1.0).add(0.0, -1.0), "tokens"),
        (lambda: Controller(PATHS, -1, 3, 5, 1.0), "n_remote"),
        (lambda: Controller(PATHS, 4, 3, 5, math.nan), "decode_per_s"),
    ],
)
def test_what_is_wrong_is_named(make: Any, named: str) -> None:
    with pytest.raises(ArgumentError, match=named):
        make()


# -- the controller --------------------------------------------------------------------------------------------------


def length(number: int) -> int:
    """Twenty lengths in turn, from 500 tokens to 47,000, the short ones closer together."""
    return round(500 * 1.27 ** (7 * number % 20))


def driven(controller: Controller, begin_s: float, end_s: float, load: Load, every_s: float = 0.3) -> list[Plan]:
    """Plans after every request."""
    plans = []
    for step in range(round((end_s - begin_s) / every_s)):
        now_s = begin_s + step * every_s
        controller.saw(now_s, length(step))
        plans.append(controller.tick(now_s, load))
    return plans


def fresh(pace: Pace | None = None, n_p: int = 3, n_d: int = 5) -> Controller:
    return Controller(PATHS, 4, n_p, n_d, DECODE_PER_S, pace)


def test_the_floor_falls_with_bandwidth() -> None:
    floors = [driven(fresh(), 0, 120, Load(gbit * GBIT))[-1].floor_tokens for gbit in (1, 3, 5, 25)]
    assert floors == sorted(floors, reverse=True)
    assert floors[0] > 3000
    assert floors[-1] == 0.0


def test_the_floor_rises_with_load() -> None:
    quiet, busy = (driven(fresh(), 0, 120, Load(5 * GBIT), every_s=every_s)[-1] for every_s in (0.5, 0.25))
    assert quiet.mode == busy.mode == "offload"
    assert quiet.floor_tokens < busy.floor_tokens


def test_where_local_prefill_suffices_the_link_is_left_alone() -> None:
    plan = driven(fresh(), 0, 600, Load(25 * GBIT), every_s=3.0)[-1]
    assert (plan.mode, plan.reason) == ("relief", "local prefill suffices")


def test_before_enough_was_seen_nothing_is_known() -> None:
    assert {plan.reason for plan in driven(fresh(), 0, 7, IDLE)} == {"too few requests seen"}


def test_a_small_change_is_not_followed_and_a_large_one_once_per_dwell() -> None:
    controller = fresh(Pace(window_s=1000))
    before = driven(controller, 0, 300, Load(5 * GBIT))[-1]
    assert driven(controller, 300, 400, Load(4.9 * GBIT))[-1] is before
    plans = driven(controller, 400, 460, Load(3 * GBIT))
    assert plans[-1].floor_tokens > before.floor_tokens
    changes = [n for n, (a, b) in enumerate(itertools.pairwise(plans)) if a is not b]
    assert all((later - sooner) * 0.3 >= 10.0 - 0.3 for sooner, later in itertools.pairwise(changes))
    restless = [Load((3 + 2 * (n % 2)) * GBIT) for n in range(40)]
    seen = [driven(controller, 460 + n * 2, 462 + n * 2, load)[-1] for n, load in enumerate(restless)]
    assert sum(a is not b for a, b in itertools.pairwise(seen)) <= 80 / 10


def test_a_peer_that_is_down_counts_at_once_and_one_that_is_back_after_the_dwell() -> None:
    controller = fresh()
    driven(controller, 0, 60, Load(10 * GBIT))
    down = controller.tick(60.05, Load(10 * GBIT, peer_up=False))
    assert (down.mode, down.reason) == ("local only", "the peer is down")
    assert {plan.mode for plan in driven(controller, 60.1, 70, Load(10 * GBIT))} == {"local only"}
    assert driven(controller, 70.1, 73, Load(10 * GBIT))[-1].mode == "offload"


def test_roles_are_advised_after_minutes_and_the_advice_ends_when_it_is_followed() -> None:
    controller = fresh(n_p=7, n_d=1)
    driven(controller, 0, 150, Load(10 * GBIT))
    assert controller.advice is None, "not yet long enough"
    driven(controller, 150, 300, Load(10 * GBIT))
    advice = controller.advice
    assert advice is not None
    assert advice.n_d > 1
    assert advice.n_p + advice.n_d == 8
    assert advice.lambda_then_per_s > 1.1 * advice.lambda_now_per_s
    controller.converted(advice.n_p, advice.n_d)
    driven(controller, 300, 700, Load(10 * GBIT))
    assert controller.advice is None


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 200_000)), min_size=1, max_size=60))
def test_the_window_holds_the_newest_and_keeps_their_mean(found: list[tuple[float, int]]) -> None:
    recent, now_s, seen = RecentLengths(100.0), 0.0, []
    for after_s, tokens in found:
        now_s += after_s
        recent.add(now_s, tokens)
        seen.append((now_s, tokens))
    kept, number, rate = recent.lengths(now_s)
    assert kept is not None
    newest = seen[-number:]
    assert kept.mean == pytest.approx(sum(tokens for _, tokens in newest) / number)
    assert newest[0][0] >= now_s - 100.0
    assert all(at < now_s - 89.0 for at, _ in seen[:-number])
    assert rate > 0
    assert recent.lengths(now_s + 200.0)[0] is None
