"""The bandwidth estimator: what counts, what an idle link is believed to carry, and bad counters."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pccl.errors import ArgumentError
from pccl.kv.estimator import BandwidthEstimator, Watch

RATE = 1e8


def fed(rate: float = RATE, until_s: float = 20.0) -> BandwidthEstimator:
    """Backlogged all the time."""
    link = BandwidthEstimator(1e9)
    for step in range(int(until_s * 10) + 1):
        link.note(step / 10, step / 10, step / 10 * rate, 1e6)
    return link


def test_what_is_told_is_believed_until_something_is_seen() -> None:
    link = BandwidthEstimator(1e9)
    found = link.estimate(0.0)
    assert (found.bandwidth_bytes_per_s, found.uncertainty) == (1e9, 0.5)
    assert found.cautious_bytes_per_s == 5e8
    link.note(0.1, 0.1, 1e7, 0.0)
    assert link.bandwidth_bytes_per_s == pytest.approx(RATE)


def test_the_first_samples_weigh_alike() -> None:
    """Or a link that begins slowly would be taken to be slow for seconds."""
    link = BandwidthEstimator(None)
    for step in range(11):
        link.note(step / 10, step / 10, max(0, step - 1) / 10 * RATE + (step > 0) * 1e5, 1e6)
    assert link.bandwidth_bytes_per_s == pytest.approx(0.91 * RATE, rel=0.03)


def test_only_backlogged_time_counts() -> None:
    """A tenth of the time something is to be sent: the link is as fast as it is then."""
    link = BandwidthEstimator(1e9)
    for step in range(1000):
        link.note(step * 0.1, step * 0.01, step * 0.01 * RATE, 0.0)
    assert link.estimate(100.0).bandwidth_bytes_per_s == pytest.approx(RATE)
    assert link.estimate(100.0).uncertainty < 0.5


def test_the_mean_follows_and_the_peak_is_that_of_ten_seconds() -> None:
    link = fed()
    for step in range(1, 201):
        link.note(20 + step / 10, 20 + step / 10, 20 * RATE + step / 10 * RATE / 2, 5e6)
        if step == 90:
            assert link.estimate(29.0).peak_bytes_per_s == pytest.approx(RATE)
    found = link.estimate(40.0)
    assert found.bandwidth_bytes_per_s == pytest.approx(RATE / 2, rel=0.01)
    assert found.peak_bytes_per_s == pytest.approx(RATE / 2, rel=0.01)
    assert found.drain_s == pytest.approx(5e6 / (RATE / 2), rel=0.01)


@given(st.lists(st.floats(0, 500), min_size=2, max_size=10))
def test_an_idle_link_keeps_its_estimate_and_is_less_and_less_certain(times: list[float]) -> None:
    link = fed()
    found = [link.estimate(20.0 + after) for after in sorted(times)]
    assert {one.bandwidth_bytes_per_s for one in found} == {link.bandwidth_bytes_per_s}
    assert all(a.uncertainty <= b.uncertainty <= 1 for a, b in pairwise(found))
    assert all(a.cautious_bytes_per_s >= b.cautious_bytes_per_s >= 0 for a, b in pairwise(found))


def test_after_a_pause_the_first_traffic_makes_it_certain_again() -> None:
    link = fed()
    doubtful = link.estimate(600.0).uncertainty
    link.note(600.2, 20.2, 20.2 * RATE, 1e6)
    assert link.estimate(600.2).uncertainty < 0.1 < 0.9 < doubtful


def test_resent_bytes_and_round_trips_tell_of_congestion() -> None:
    link = BandwidthEstimator(1e9)
    for step in range(300):
        at = step / 10
        link.note(at, at, at * RATE, 1e6, resent_bytes=at * RATE * 0.02, rtt_s=0.03 if step < 150 else 0.06)
    found = link.estimate(30.0)
    assert found.retransmission_ratio == pytest.approx(0.02, rel=0.02)
    assert found.rtt_inflation == pytest.approx(2.0)


def test_a_link_that_brings_nothing_through_is_no_measurement() -> None:
    link = fed()
    for step in range(1, 50):
        link.note(20 + step, 20 + step, 20 * RATE, 1e6)
    assert link.estimate(70.0).bandwidth_bytes_per_s == pytest.approx(RATE)
    assert link.estimate(70.0).uncertainty > 0.3


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("backlogged_s", (1.0, math.nan, 0.0, 0.0)),
        ("backlogged_s", (1.0, -1.0, 0.0, 0.0)),
        ("sent_bytes", (1.0, 1.0, math.nan, 0.0)),
        ("queued_bytes", (1.0, 1.0, 1.0, math.nan)),
        ("queued_bytes", (1.0, 1.0, 1.0, -1.0)),
    ],
)
def test_counters_that_are_none_are_refused(field: str, values: tuple[float, float, float, float]) -> None:
    with pytest.raises(ArgumentError, match=field):
        BandwidthEstimator(1.0).note(*values)


@pytest.mark.parametrize("told", [math.nan, 0.0, -1.0, math.inf])
def test_so_is_a_bandwidth(told: float) -> None:
    with pytest.raises(ValueError, match="told_bytes_per_s"):
        BandwidthEstimator(told)
    with pytest.raises(ValueError, match="rtt_s"):
        BandwidthEstimator(1.0).note(0.0, 0.0, 0.0, 0.0, rtt_s=told)


def test_nothing_is_believed_until_something_is_seen_if_nothing_was_told() -> None:
    link = BandwidthEstimator(None)
    found = link.estimate(0.0)
    assert (found.bandwidth_bytes_per_s, found.uncertainty, found.drain_s) == (0.0, 1.0, 0.0)
    link.note(0.0, 0.0, 0.0, 1e6)
    assert link.estimate(0.0).drain_s == math.inf
    link.note(0.1, 0.1, 0.1 * RATE, 1e6)
    found = link.estimate(0.1)
    assert found.bandwidth_bytes_per_s == pytest.approx(RATE) and found.uncertainty < 1.0


def test_a_receiver_sees_its_link_while_something_could_come() -> None:
    watch = Watch()
    assert watch.peak_bytes_per_s(0.0) == 0.0
    pushed(watch, 0.0, 0.03)
    assert watch.peak_bytes_per_s(1.03) == pytest.approx(RATE, rel=0.01)
    watch.busy(1, 0.06, 100.0)  # idle time does not count, and an idle link keeps what was known
    watch.landed(17_000_000, 100.2)
    watch.busy(0, 0.06, 100.2)
    found = watch.estimator.estimate(100.2)
    assert watch.peak_bytes_per_s(100.2) == found.peak_bytes_per_s == pytest.approx(RATE, rel=0.01)
    assert found.rtt_inflation == pytest.approx(2.0) and found.queued_bytes == 0.0


def pushed(watch: Watch, begin_s: float, rtt_s: float) -> None:
    """A second at RATE, that begins to come a round trip after it was asked for."""
    watch.busy(1, rtt_s, begin_s)
    for step in range(1, 21):
        watch.landed(5_000_000, begin_s + rtt_s + step * 0.05)
        watch.busy(step < 20, rtt_s, begin_s + rtt_s + step * 0.05)


def test_the_round_trip_before_the_first_byte_makes_no_link_slow() -> None:
    """Nor does a first sample that is low for some other reason, where the last peak is long ago."""
    watch = Watch()
    for number in range(10):
        pushed(watch, 20.0 * number, 0.5)
    found = watch.estimator.estimate(181.5)
    assert found.bandwidth_bytes_per_s == pytest.approx(RATE, rel=0.01)
    watch.busy(1, 0.5, 300.0)
    watch.landed(1_000_000, 300.7)
    watch.busy(1, 0.5, 300.7)
    assert watch.peak_bytes_per_s(300.7) == watch.estimator.bandwidth_bytes_per_s > 0.9 * RATE


def test_what_comes_earlier_than_any_before_counts_as_well() -> None:
    watch = Watch()
    watch.busy(1, 1.0, 0.0)
    for step in range(1, 31):
        watch.landed(5_000_000, 0.5 + step * 0.05)
        watch.busy(1, 0.5, 0.5 + step * 0.05)
    assert watch.peak_bytes_per_s(2.0) >= RATE
