"""Every named scenario: no promise is broken, what it is named for does happen, and a seed is the same run again."""

from __future__ import annotations

import pytest

from pccl.testing import SCENARIOS, run_seed, simulate
from pccl.testing.simulate import replay

SEEDS = 5
#: Of those in which several groups, or all kinds of faults, keep many processes busy: `make sim` runs thousands.
FEWER = 3
LARGE = {
    "across_groups",
    "everything_moves",
    "frozen_counterpart",
    "guest_dies",
    "guest_prefetches",
    "guests_deal",
    "relayed_transfers",
    "source_dies_relay_serves",
}


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_scenario(name: str) -> None:
    seeds = FEWER if name in LARGE else SEEDS
    outcomes = [run_seed(seed, name) for seed in range(seeds)]
    broken = [f"{detail}; {replay(outcome.seed, name)}" for outcome in outcomes for _, detail in outcome.broken]
    assert not broken, "\n".join(broken)
    assert sum(any(outcome.marks.values()) for outcome in outcomes) >= seeds // 2, "it does not do what it says"
    assert all(outcome.commits for outcome in outcomes)
    assert run_seed(0, name).digest == outcomes[0].digest


def test_an_unknown_scenario_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"no scenario 'nonsense'; there are: .*zombie_return"):
        simulate(1, scenario="nonsense")
