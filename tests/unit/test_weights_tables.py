"""The tables of stress/weights: entropies of known cases, densities as asked, and bounds that bite."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # at the end: pccl itself is the installed one

pytest.importorskip("zstandard", reason="zstandard is not installed")
from stress.weights import bytes as table
from stress.weights import speed, synthetic


def test_entropy_of_known_cases() -> None:
    assert table.entropy(np.array([4, 4, 4, 4])) == pytest.approx(32)
    assert table.entropy(np.array([16, 0])) == 0
    old = np.zeros(1000, np.uint16)
    new = old.copy()
    new[:500:2] += 1  # a quarter, all by one
    iid, context = table.limits(old, new)
    assert iid == context == pytest.approx(1000 * (0.25 * 2 + 0.75 * np.log2(4 / 3)))
    old[:500] = 1 << 7  # another exponent, of which half changes
    new = old + (new != 0)
    assert table.limits(old, new)[1] == pytest.approx(500)


@pytest.mark.parametrize("density", [0.001, 0.05])
def test_synthetic_steps_are_as_dense_as_asked(density: float) -> None:
    old, new = synthetic.pair(1 << 20, density)
    assert np.mean(old != new) == pytest.approx(density, rel=0.1)
    small = (old >> 7 & 255) < 118
    assert np.mean((old != new)[small]) > 3 * density


def test_gaps_beyond_16_bits_go_on() -> None:
    assert table.gaps16(np.array([0, 1, 0xFFFF, 2 * 0xFFFF + 2])).tolist() == [0, 0, 0xFFFD, 0xFFFF, 1]
    assert table.gaps16(np.array([3 * 0xFFFF])).tolist() == [0xFFFF, 0xFFFF, 0xFFFF, 0]


def test_a_row_keeps_its_bounds_and_says_so_if_not() -> None:
    found = table.row("synthetic", *synthetic.pair(1 << 20, 0.01))
    assert not table.broken(found)
    assert (
        found["bits"]["context"]
        < found["bits"]["B"]
        < found["bits"]["A"]
        < found["bits"]["gap16"]
        < found["bits"]["xor"]
        < 48
    )
    assert len(table.broken(found | {"data": "AdamW", "a_over_iid": 1.03, "b_of_iid": 0.76})) == 2


def test_speed_measures_every_case_and_names_what_is_slow() -> None:
    rows = speed.measure(8, 0.01, 1)
    assert set(speed.BOUNDS) < set(rows)
    assert all(row["gb_per_s"] > 0 for row in rows.values())
    slow = {name: {"gb_per_s": 0.1, "of_memcpy": 0.01, "speedup": 2.0} for name in speed.BOUNDS}
    assert len(speed.broken(slow)) == len(speed.BOUNDS)
