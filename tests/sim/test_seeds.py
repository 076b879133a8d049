"""Hundreds of seeds of the mixture: no promise is broken, and there was something to break."""

from __future__ import annotations

import pytest

from pccl.testing import simulate

SEEDS = 80


@pytest.mark.parametrize("start", range(0, 2 * SEEDS, SEEDS))
def test_no_seed_breaks_a_promise(start: int) -> None:
    report = simulate(SEEDS, start=start, jobs=2)
    assert not report["broken"], "\n".join(finding["detail"] for finding in report["broken"])
    assert report["seeds"] == SEEDS
    assert report["faults"] > 2 * SEEDS
    assert report["commits"] > 20 * SEEDS
    assert report["ops"] > report["commits"]
