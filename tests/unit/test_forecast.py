"""When a fetch will have ended."""

from __future__ import annotations

import math

import pytest

from pccl.sharing.forecast import Forecast


def test_nobody_knows_before_something_has_come_for_a_while() -> None:
    forecast = Forecast()
    assert forecast.left_s(0.0, 0, 100) == math.inf
    assert forecast.left_s(0.05, 50, 100) == math.inf
    assert forecast.left_s(0.2, 50, 100) == pytest.approx(0.2)


def test_nothing_is_left() -> None:
    assert Forecast().left_s(0.0, 100, 100) == 0.0


def test_what_has_come_in_the_last_second_counts() -> None:
    forecast = Forecast()
    for tick in range(41):
        forecast.left_s(tick / 20, tick * 10, 10_000)
    slow = [forecast.left_s(2 + tick / 20, 400 + tick, 1400) for tick in range(1, 31)]
    assert slow[0] < 10 and slow[-1] == pytest.approx(970 / 20, rel=0.1)
    assert slow == sorted(slow[:20]) + slow[20:], "it falls with the last of the fast time"


def test_a_fetch_that_stands_still_never_ends() -> None:
    forecast = Forecast()
    forecast.left_s(0.0, 50, 100)
    assert [forecast.left_s(t, 50, 100) for t in (1.0, 2.0)] == [math.inf, math.inf]
