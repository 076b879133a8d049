"""A member whose own line is its bottleneck shows on all its paths at once (coordinator/access.py)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pccl.coordinator.access import alone, likened, shown, slow_lines
from pccl.coordinator.cost import Measurements, mesh_regions, paths_of
from pccl.coordinator.plan import Plan, plan, predict
from pccl.coordinator.spans import best_shares
from pccl.types import Algorithm, MemberInfo

MB = 1_000_000.0
THIN = 3
#: 62.5 MB/s each, the last with a quarter of that, and 6.25 MB/s between the first two; while all are busy.
UNEVEN = np.array([[0, 6, 23, 5.2], [6, 0, 22, 5.0], [20, 24, 0, 5.4], [5.2, 4.9, 5.5, 0]]) * MB


def everywhere(n: int) -> np.ndarray:
    return ~np.eye(n, dtype=np.bool_)


def test_a_slow_line_shows_on_all_paths() -> None:
    up, down = slow_lines(UNEVEN, everywhere(4))
    assert up.tolist() == [np.inf] * 3 + [pytest.approx(15.6 * MB)]
    assert down.tolist() == [np.inf] * 3 + [pytest.approx(15.6 * MB)]


@pytest.mark.parametrize(
    "rates",
    [
        np.full((4, 4), 60 * MB),
        np.where(np.arange(4)[None, :] == 0, np.nan, UNEVEN),
        np.where(UNEVEN == 5.5 * MB, 9 * MB, UNEVEN.T),
        np.full((4, 4), np.nan),
    ],
    ids=["all alike", "one path not known", "one path faster", "nothing known"],
)
def test_where_nothing_speaks_for_a_slow_line(rates: np.ndarray) -> None:
    up, _ = slow_lines(rates, everywhere(4))
    assert np.isinf(up).all()


def test_paths_that_do_not_use_the_line_do_not_count() -> None:
    shared = everywhere(4)
    shared[THIN, 2] = shared[2, THIN] = False
    rates = np.where(shared, UNEVEN, 1000 * MB)
    assert slow_lines(rates, shared)[0][THIN] == pytest.approx(10.1 * MB)
    shared[THIN, 1] = shared[1, THIN] = False
    assert np.isinf(slow_lines(np.where(shared, UNEVEN, 1000 * MB), shared)[0]).all(), "a single path tells nothing"


MEMBERS = [MemberInfo(bytes([k]) * 16, 0, f"10.0.{k}.1:1", f"host{k}") for k in range(4)]
IDS = [member.id for member in MEMBERS]


def known(rates: np.ndarray, up: float = 0.0, down: float = 0.0) -> Measurements:
    """Of four members, 80 ms apart, all of whose paths were busy together; and the line of the last."""
    pairs = [(a, b) for a in range(4) for b in range(4) if a != b]
    lines = ({IDS[THIN]: line} if line else {} for line in (up, down))
    went = (dict(zip(IDS, rates.sum(axis=way).tolist(), strict=True)) for way in (1, 0))
    rtt = {(IDS[a], IDS[b]): 0.08 for a, b in pairs}
    return Measurements(rtt, {(IDS[a], IDS[b]): rates[a, b] for a, b in pairs}, {}, *lines, *went)


def test_who_has_a_slow_line_owns_nothing() -> None:
    paths = paths_of(MEMBERS, known(UNEVEN))
    assert paths.up[THIN] == paths.hop_rate(THIN, 0) == pytest.approx(15.6 * MB)
    shares = best_shares(paths, mesh_regions(4))
    assert shares[THIN] < 0.01 and shares[0] + shares[1] < 0.45


# -- a line that was measured ---------------------------------------------------------------------------------------

MBIT = MB / 8
#: The same place while its plan gives unequal spans: thin's paths end one after the other, and the last has all.
UNEQUAL = np.array([[0, 48, 330, 40], [48, 0, 340, 41], [310, 320, 0, 60], [37, 50, 77, 0]]) * MBIT
LINE = 121 * MBIT


def test_measured_is_better_than_inferred() -> None:
    paths = paths_of(MEMBERS, known(UNEVEN, 14 * MB, 18 * MB))
    assert paths.up[THIN] == paths.rate[THIN, 0] == pytest.approx(14 * MB)
    assert paths.down[THIN] == paths.rate[0, THIN] == pytest.approx(18 * MB)
    assert paths.rate[0, 1] == 6 * MB and paths.up[0] > 60 * MB, "the others' are as before"


def test_a_measured_line_can_be_had_by_each_path_alone() -> None:
    assert paths_of(MEMBERS, known(UNEQUAL)).rate[THIN, 0] == 37 * MBIT, "not alike: nothing is inferred"
    paths = paths_of(MEMBERS, known(UNEQUAL, LINE, LINE))
    assert paths.up[THIN] == paths.down[THIN] == LINE
    assert paths.rate[THIN, :THIN].tolist() == paths.rate[:THIN, THIN].tolist() == [LINE] * 3


def test_a_path_with_a_limit_of_its_own_does_not_get_the_line() -> None:
    rates = np.array([[0, 48, 330, 50], [1, 0, 1, 1], [200, 250, 0, 50], [1, 1, 1, 0]]) * MBIT
    nothing = np.full(4, np.inf)
    found = alone(rates, everywhere(4), nothing, np.array([500, np.nan, 500, np.nan]) * MBIT)
    assert (found[0] / MBIT).tolist() == [0, 0, 500, 0]
    assert (found[2] / MBIT).tolist() == [500, 500, 0, 0]
    assert not found[1].any() and not found[3].any()


def test_a_path_of_which_nothing_is_known_gets_no_line() -> None:
    rates = np.where(np.arange(4)[None, :] == 2, np.nan, UNEQUAL)
    found = alone(rates, everywhere(4), np.full(4, np.inf), np.array([np.nan, np.nan, np.nan, LINE]))
    assert found[THIN].tolist() == [LINE, LINE, 0, 0]


def test_a_plan_stays_when_the_rates_of_its_unequal_spans_come_in() -> None:
    alike = plan(MEMBERS, known(UNEVEN, LINE, LINE))
    unequal = plan(MEMBERS, known(UNEQUAL, LINE, LINE))

    def weights(chosen: Plan) -> list[float]:
        return [chosen.weights[chosen.order.index(peer)] / 1e6 for peer in IDS]

    assert weights(alike)[THIN] < 0.01 and weights(unequal)[THIN] < 0.01
    assert predict(alike, MEMBERS, known(UNEQUAL, LINE, LINE)) <= 1.05 * unequal.predicted_s, "no reason to leave it"
    flapping = plan(MEMBERS, known(UNEQUAL))
    assert weights(flapping)[THIN] > 0.05, "without the line it does not stay"


# -- figures that come in one after the other -----------------------------------------------------------------------

#: Four lines of 12.2 MB/s. What a path carries while nothing else goes over its lines, and in its turn.
SINGLE = np.full((4, 4), 12 * MB)
IN_TURN = np.array([[0, 4.0, 3.9, 4.2], [4.3, 0, 4.6, 3.9], [4.1, 4.9, 0, 3.4], [4.2, 4.0, 3.8, 0]]) * MB


def half_known(rates: np.ndarray, lines: tuple[float, ...], went: tuple[float, ...]) -> Measurements:
    """The same four; each one's line, and what went over it, both ways alike; 0 where nothing is known."""
    pairs = [(a, b) for a in range(4) for b in range(4) if a != b]
    up, seen = ({IDS[k]: value * MB for k, value in enumerate(of) if value} for of in (lines, went))
    rtt = {(IDS[a], IDS[b]): 0.08 for a, b in pairs}
    return Measurements(rtt, {(IDS[a], IDS[b]): rates[a, b] for a, b in pairs}, {}, up, up, seen, seen)


EARLY = {
    "one line is not known yet": (SINGLE, (12.2, 11.8, 12.0, 0), (12.2, 11.8, 12.0, 12.1)),
    "nor what went over it": (SINGLE, (12.2, 11.8, 12.0, 0), (12.2, 11.8, 12.0, 0)),
    "of one all paths were busy": (
        np.where(np.arange(4)[:, None] == 0, IN_TURN, SINGLE),
        (0, 0, 0, 0),
        (12.2, 12.0, 12.0, 12.0),
    ),
    "of all but one": (np.where(np.arange(4)[:, None] == THIN, SINGLE, IN_TURN), (0, 12.2, 0, 0), (12.2, 12, 11.9, 12)),
    "two lines are known, and a path was late": (
        np.where((np.arange(4)[:, None] == 1) & (np.arange(4) == 3), 2.6 * MB, IN_TURN),
        (12.2, 11.8, 0, 0),
        (12.2, 11.8, 11.0, 12.3),
    ),
}


@pytest.mark.parametrize(("rates", "lines", "went"), EARLY.values(), ids=EARLY)
def test_equals_are_not_told_apart_by_what_is_known_first(
    rates: np.ndarray, lines: tuple[float, ...], went: tuple[float, ...]
) -> None:
    chosen = plan(MEMBERS, half_known(rates, lines, went))
    assert not any(chosen.weights), chosen.reason


def test_a_better_line_owns_more_once_that_was_seen() -> None:
    """Three lines of 12 MB/s, and one of 50 whose paths end at theirs."""
    lines = (12.2, 11.8, 12.0, 0)
    cautious, seen = (plan(MEMBERS, half_known(SINGLE, lines, (12, 12, 12, went))) for went in (12.0, 36.0))
    assert not any(cautious.weights)
    assert seen.weights[seen.order.index(IDS[THIN])] > 0.6 * sum(seen.weights)


def test_what_a_line_has_shown() -> None:
    lines, fastest = np.array([12.0, np.inf, np.inf, np.inf]), np.array([20.0, 5.0, 14.0, 5.0])
    went = np.array([30.0, 9.0, 10.0, np.nan])
    assert shown(lines, went, fastest).tolist() == [12.0, 9.0, 14.0, 12.0], "the last like the best that is known"
    assert shown(np.full(4, np.inf), went, fastest).tolist() == [30.0, 9.0, 14.0, np.inf]


# -- two places with a line for each member --------------------------------------------------------------------------

SIX = [MemberInfo(bytes([k]) * 16, 0, f"10.0.{k}.1:1", f"host{k}") for k in range(6)]
#: Lines of 37.5 MB/s; what the paths between the places carried in their turn, when a mesh was tried.
THERE = np.array([[13.3, 11.2, 12.1], [12.4, 11.7, 12.2], [11.5, 12.8, 13.1]]) * MB
BACK = np.array([[12.0, 12.5, 11.9], [12.6, 13.6, 11.1], [12.5, 11.0, 16.6]]) * MB
WENT_UP, WENT_DOWN = (36.7, 36.1, 37.7, 36.6, 35.0, 35.9), (32.8, 36.2, 36.2, 36.2, 35.0, 36.0)


def two_places(there: np.ndarray, up: tuple[float, ...], went_up: tuple[float, ...] = WENT_UP) -> Measurements:
    """Of six members in two places; 0 where a line is not known, which is the same up and down."""
    ids = [member.id for member in SIX]

    def by_id(values: tuple[float, ...]) -> dict[bytes, float]:
        return {peer: value * MB for peer, value in zip(ids, values, strict=True) if value}

    rtt = {(a, b): 0.08 if (i < 3) != (j < 3) else 0.0005 for i, a in enumerate(ids) for j, b in enumerate(ids)}
    rates = {(ids[a], ids[3 + b]): float(there[a, b]) for a in range(3) for b in range(3)}
    rates |= {(ids[3 + a], ids[b]): float(BACK[a, b]) for a in range(3) for b in range(3)}
    return Measurements(rtt, rates, {}, by_id(up), by_id(up), by_id(went_up), by_id(WENT_DOWN))


@pytest.mark.parametrize(
    "lines",
    [
        (0, 0, 0, 36.5, 0, 33.0),
        (35.4, 0, 36.4, 36.6, 0, 35.8),
        (40.5, 0, 36.4, 36.6, 0, 35.8),
        (0, 36.5, 0, 0, 0, 0),
        (36, 36, 36, 36, 36, 36),
        (0, 0, 0, 0, 0, 0),
    ],
)
def test_equal_lines_of_which_some_are_known_own_equal_parts(lines: tuple[float, ...]) -> None:
    chosen = plan(SIX, two_places(THERE, lines))
    assert chosen.large_algorithm == Algorithm.TWO_LEVEL and not any(chosen.weights), chosen.reason


def test_a_line_over_which_less_went_is_not_like_the_others() -> None:
    there, went_up = THERE * np.array([[0.25], [1], [1]]), (9.2, *WENT_UP[1:])
    chosen = plan(SIX, two_places(there, (0, 36.2, 0, 36.6, 0, 35.8), went_up))
    weights = [chosen.weights[chosen.order.index(member.id)] / sum(chosen.weights) for member in SIX]
    assert chosen.large_algorithm == Algorithm.TWO_LEVEL and weights[0] < 0.1, chosen.reason


def test_two_levels_begin_with_equal_spans() -> None:
    """Turns on one line may differ by half, and so would spans; a slow line is found when each path has its own."""
    unfair = np.array([[17.0, 12, 7], [7, 17, 12], [12, 7, 17]]) * MB
    seen = two_places(unfair[:, ::-1], (36.2, 0, 0, 36.6, 36.9, 0))
    told, untold = plan(SIX, seen), plan(SIX, replace(seen, untried=frozenset((Algorithm.TWO_LEVEL,))))
    assert any(told.weights) and told.large_algorithm == untold.large_algorithm == Algorithm.TWO_LEVEL, told.reason
    assert not any(untold.weights), untold.reason


def test_lines_like_the_known_ones() -> None:
    nan = np.nan
    together = np.array([[0, 9, 9, 18], [12, 0, 12, 6], [20, 20, 0, 20], [10, nan, 10, 0.0]])
    lines, went = np.array([36.0, nan, nan, nan]), np.array([20.0, 33.0, 33.0, 33.0])
    found = likened(lines, went, together, everywhere(4))
    assert found[:2].tolist() == [36, 33] and np.isnan(found[2:]).all(), "paths that carry more, or nobody knows"
    assert np.isnan(likened(lines, went / 2, together, everywhere(4))[1:]).all(), "less went over it"
    assert np.isnan(likened(lines * nan, went, together, everywhere(4))).all()


def test_who_waits_for_a_slow_line_is_not_taken_for_one() -> None:
    """While all wait for it with equal spans, as much goes over the others' lines as over that."""
    chosen = plan(MEMBERS, replace(known(UNEVEN, LINE, LINE), went_up=dict.fromkeys(IDS, LINE)))
    assert chosen.weights[chosen.order.index(IDS[THIN])] < 0.01 * sum(chosen.weights), chosen.reason
