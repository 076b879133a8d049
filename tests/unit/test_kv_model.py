"""The throughput model against the published case study, its limits, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pccl.errors import ArgumentError
from pccl.kv.model.case_study import DECODE_PER_S, H20, H200, case_study
from pccl.kv.model.lengths import Lengths
from pccl.kv.model.profile import Curve, Profile
from pccl.kv.model.throughput import ThroughputModel

GBIT = 125e6


def near(value: float, published: float, part: float = 0.03) -> bool:
    return abs(value - published) <= part * published


def test_the_case_study_is_found_again() -> None:
    """Sections 1.7 and 1.8 of the reference: the paper's 3.24 requests/s, t = 19.4K, 3 prefill and 5 decode."""
    found = case_study().solve()
    assert near(found.lambda_max_per_s, 3.24)
    assert near(found.threshold_tokens, 19.4e3)
    assert (found.n_remote, found.n_p, found.n_d) == (4, 3, 5)
    assert near(found.theta_remote_per_s, 1.61)
    assert near(found.theta_local_per_s, 1.64)
    assert near(found.theta_decode_per_s, 3.91)
    assert near(found.p, 0.491)
    assert near(found.egress_bytes_per_s, 13e9 / 8, 0.10)
    assert not found.extrapolated
    assert near(case_study().lengths.mean, 27e3)


def test_so_are_the_baselines() -> None:
    homogeneous = replace(case_study(), n_remote=0, n_local=12).homogeneous()
    assert near(homogeneous.lambda_max_per_s, 2.11)
    assert (homogeneous.n_p, homogeneous.n_d) == (9, 3)
    assert near(homogeneous.theta_decode_per_s, 2.35)
    naive = case_study().naive()
    assert near(naive.lambda_max_per_s, 2.45)
    assert near(naive.theta_decode_per_s, 6.25)
    assert (naive.p, naive.n_d) == (1.0, 8)


@pytest.mark.parametrize(
    ("gbit", "rate", "threshold"),
    [(1, 1.57, 88e3), (2, 1.62, 65e3), (5, 2.26, 42e3), (10, 3.04, 25.5e3), (14.7, 3.19, 19.5e3), (25, 3.19, 19.5e3)],
)
def test_less_bandwidth_means_a_higher_threshold(gbit: float, rate: float, threshold: float) -> None:
    found = case_study(gbit * GBIT).solve()
    assert near(found.lambda_max_per_s, rate)
    assert near(found.threshold_tokens, threshold)


def test_a_solution_is_the_best_of_all_thresholds_and_divisions() -> None:
    model = case_study(10 * GBIT)
    best = model.solve()
    everything = [model.at(t, n_p).lambda_max_per_s for t in range(0, 131072, 1500) for n_p in range(9)]
    assert best.lambda_max_per_s >= max(everything) * (1 - 1e-9)
    assert best.lambda_max_per_s == pytest.approx(model.at(best.threshold_tokens, best.n_p).lambda_max_per_s)
    assert model.solve(2).n_p == 2


def test_the_bottleneck_is_named() -> None:
    assert case_study(1e3).at(1000, 3).bottleneck == "link"
    assert case_study().at(0, 0).bottleneck == "remote prefill"
    assert case_study().at(130e3, 3).bottleneck == "local prefill"
    assert case_study().at(19e3, 8).bottleneck == "decode"


def test_the_lowest_threshold_that_link_and_cluster_bear() -> None:
    model = case_study(10 * GBIT)
    threshold = model.feasible_threshold(3.0, 0.85)
    fits, too_much = model.at(threshold, 3), model.at(threshold - 200, 3)
    assert 0.85 * fits.theta_remote_per_s / fits.p >= 3.0 > 0.85 * too_much.theta_remote_per_s / too_much.p
    assert model.feasible_threshold(0.01, 0.85) == 0.0
    assert model.feasible_threshold(1e9, 0.85) == model.lengths.tokens[-1]


def test_no_bandwidth_means_nothing_is_offloaded() -> None:
    found = case_study(0.0).solve()
    assert found.p == 0.0
    assert found.egress_bytes_per_s == 0.0
    assert found.lambda_max_per_s == pytest.approx(case_study().homogeneous().lambda_max_per_s)


@given(st.lists(st.integers(0, 200_000), min_size=1, max_size=40), st.floats(0, 200_000))
def test_a_cut_is_what_counting_says(samples: list[int], t: float) -> None:
    cut = Lengths.of(samples).cut(t)
    above, below = [n for n in samples if n > t], [n for n in samples if n <= t]
    assert cut.p[0] == pytest.approx(len(above) / len(samples), abs=1e-12)
    assert cut.long[0] == pytest.approx(np.mean(above) if above else 0.0, rel=1e-9)
    assert cut.short[0] == pytest.approx(np.mean(below) if below else 0.0, rel=1e-9)


@given(st.floats(0, 300_000))
def test_one_length_and_many_are_alike(tokens: float) -> None:
    for curve in (H200.prefill_s, H200.kv_bytes, H20.prefill_s):
        assert curve.at(tokens) == pytest.approx(float(curve.many(np.array([tokens]))[0]))


def test_beyond_the_last_point_the_last_line_goes_on_and_is_flagged() -> None:
    curve = Curve("t", ((1000, 1.0), (2000, 3.0), (4000, 4.0)))
    assert [curve.at(n) for n in (500, 1000, 1500, 3000, 4000, 6000)] == [0.0, 1.0, 2.0, 3.5, 4.0, 5.0]
    assert not H200.extrapolated(131072)
    assert H200.extrapolated(131073)
    long = Lengths.of([200_000])
    assert replace(case_study(), lengths=long).at(0, 3).extrapolated


def test_phi_is_that_of_the_table() -> None:
    for tokens, gbit in ((1024, 3.61), (8192, 3.59), (32768, 3.19), (131072, 2.62)):
        phi = H200.kv_bytes.at(tokens) / H200.prefill_s.at(tokens)
        assert near(phi * 8 / 1e9, gbit, 0.01)


@pytest.mark.parametrize(
    ("points", "named"),
    [
        ([], "h.prefill_s is empty"),
        ([(1, 1.0)], "h.prefill_s needs at least 2"),
        ([(2, 1.0), (1, 1.0)], "h.prefill_s: tokens must rise"),
        ([(1, 1.0), (2, math.nan)], "h.prefill_s: the value at 2"),
        ([(1, 1.0), (math.inf, 2.0)], "h.prefill_s: tokens"),
        ([(1, -1.0), (2, 1.0)], "h.prefill_s: the value at 1"),
    ],
)
def test_a_profile_that_is_none_is_refused(points: list[tuple[float, float]], named: str) -> None:
    with pytest.raises(ArgumentError, match=named):
        Profile.of("h", points, [(1, 1.0), (2, 2.0)])


@pytest.mark.parametrize(
    ("found", "named"), [({}, "remote.prefill_s"), ({"prefill_s": [[1, 1], [2, 2]], "kv_bytes": 3}, "remote.kv_bytes")]
)
def test_so_is_a_file_of_profiles(found: object, named: str) -> None:
    with pytest.raises(ArgumentError, match=named):
        Profile.from_dict("remote", found)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bandwidth_bytes_per_s", math.nan),
        ("bandwidth_bytes_per_s", -1.0),
        ("decode_per_s", 0.0),
        ("n_remote", -1),
        ("n_local", 0),
    ],
)
def test_a_model_names_the_field_that_is_wrong(field: str, value: float) -> None:
    fields = {
        "remote": H200,
        "local": H20,
        "n_remote": 4,
        "n_local": 8,
        "decode_per_s": DECODE_PER_S,
        "bandwidth_bytes_per_s": 1e9,
        "lengths": Lengths.of([1000]),
    }
    with pytest.raises(ArgumentError, match=field):
        ThroughputModel(**{**fields, field: value})  # type: ignore[arg-type]


def test_a_threshold_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="threshold_tokens"):
        case_study().at(-1, 3)
    with pytest.raises(ValueError, match="n_p must be at most"):
        case_study().at(1, 9)


@pytest.mark.parametrize("samples", [[], [-1.0], [math.nan]])
def test_lengths_that_are_none_are_refused(samples: list[float]) -> None:
    with pytest.raises(ArgumentError, match="lengths"):
        Lengths.of(samples)
