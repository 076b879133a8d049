"""A member whose own line is its bottleneck shows on all its paths at once (coordinator/access.py)."""

from __future__ import annotations

import numpy as np
import pytest

from pccl.coordinator.access import slow_lines
from pccl.coordinator.cost import Measurements, mesh_regions, paths_of
from pccl.coordinator.spans import best_shares
from pccl.types import MemberInfo

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


def test_who_has_a_slow_line_owns_nothing() -> None:
    members = [MemberInfo(bytes([k]) * 16, 0, f"10.0.{k}.1:1", f"host{k}") for k in range(4)]
    pairs = [(a, b) for a in range(4) for b in range(4) if a != b]
    ids = [member.id for member in members]
    known = Measurements({(ids[a], ids[b]): 0.08 for a, b in pairs}, {(ids[a], ids[b]): UNEVEN[a, b] for a, b in pairs})
    paths = paths_of(members, known)
    assert paths.up[THIN] == paths.hop_rate(THIN, 0) == pytest.approx(15.6 * MB)
    shares = best_shares(paths, mesh_regions(4))
    assert shares[THIN] < 0.01 and shares[0] + shares[1] < 0.45
