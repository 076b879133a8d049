"""Hundreds of seeds of the mixture: no promise is broken, and there was something to break."""

from __future__ import annotations

from pccl.testing import simulate

SEEDS = 400


def test_no_seed_breaks_a_promise() -> None:
    report = simulate(SEEDS, jobs=2)
    assert not report["broken"], "\n".join(finding["detail"] for finding in report["broken"])
    assert report["seeds"] == SEEDS
    assert report["faults"] > 2 * SEEDS
    assert report["commits"] > 20 * SEEDS
    assert report["ops"] > report["commits"]
