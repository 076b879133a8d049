"""The checkers see what they are there to see: every planted defect is found, under the name of its promise."""

from __future__ import annotations

from itertools import chain
from random import Random

import pytest
from sim.planted import (
    AsksForAll,
    BelievesBrokenStreams,
    BelievesSources,
    CommitsUnfinished,
    DeniesCalls,
    EvictsOnLinkFault,
    ForgetsAtOnce,
    ForgetsBoundaries,
    ForgetsToWrite,
    IgnoresHold,
    KeepsRelay,
    NeverForgets,
    OffByOne,
    SpeaksTooSoon,
    WaitsForDeadLinks,
    WritesTooLate,
)

from pccl.errors import PcclError
from pccl.testing import moving, run_seed
from pccl.testing.simulate import draw_options
from pccl.transfer.job import Job
from pccl.transfer.receipt import Receipt

SEEDS_MAX = 60

# pccl_defect: its number, the promise it breaks, the scenario that provokes it (None: the mixture)
ENGINE = [
    pytest.param(1, "P1", "kill_during_reduce_scatter", id="commit_early"),
    pytest.param(2, "P2", "too_few_peers", id="no_backup"),
    pytest.param(4, "P1", "flapping_link", id="no_dedupe"),
    pytest.param(8, "P6", "corrupt_wire", id="no_crc"),
    pytest.param(16, "P1", "staggered_freeze", id="no_fence"),
    pytest.param(32, "P1", None, id="arrival_order"),
    pytest.param(64, "P4", "flapping_link", id="lose_resend"),
    pytest.param(128, "P5", "overdue_peer", id="ignore_deadline"),
    pytest.param(256, "P4", "dead_link", id="no_relay"),
    pytest.param(512, "P2", "cancelled_fetches", id="late_write"),
    pytest.param(1, "P1", "across_groups", id="commit_early_in_groups"),
    pytest.param(256, "P4", "relayed_transfers", id="no_relay_of_transfers"),
    pytest.param(1024, "P6", "source_dies_relay_serves", id="serve_unready"),
    pytest.param(2048, "P5", "frozen_counterpart", id="ignore_cancel"),
    pytest.param(4096, "P5", "across_groups", id="keep_serving"),
    pytest.param(8192, "P4", "relayed_transfers", id="stay_on_way"),
    pytest.param(16384, "P5", "across_groups", id="leak_stream"),
]
CONTROL = [
    pytest.param({"session": IgnoresHold}, "P3", "join_storm", id="ignores_hold"),
    pytest.param({"session": OffByOne}, "P3", "join_storm", id="off_by_one"),
    pytest.param({"membership": CommitsUnfinished}, "P1", "staggered_freeze", id="commits_unfinished"),
    pytest.param({"session": ForgetsBoundaries}, "P1", "skipped_op", id="forgets_boundaries"),
    pytest.param({"session": DeniesCalls}, "P1", "skipped_op", id="denies_calls"),
    pytest.param({"session": SpeaksTooSoon}, "P5", "given_up", id="speaks_too_soon"),
    pytest.param({"membership": BelievesBrokenStreams}, "P4", "forgetful_router", id="believes_broken_streams"),
    pytest.param({"membership": EvictsOnLinkFault}, "P4", "flapping_link", id="evicts_on_link_fault"),
    pytest.param({"membership": WaitsForDeadLinks}, "P4", "dead_link", id="waits_for_dead_links"),
    pytest.param({"ledger": ForgetsToWrite}, "P7", "restart_during_change", id="forgets_to_write"),
    pytest.param({"ledger": WritesTooLate}, "P7", "restart_during_change", id="writes_too_late"),
    pytest.param({"job": BelievesSources}, "P8", "drifting_state", id="believes_sources"),
    pytest.param({"job": AsksForAll}, "P8", "drifting_state", id="asks_for_all"),
    pytest.param({"job": BelievesSources, "defects": 1024}, "P8", "source_dies_relay_serves", id="believes_relays"),
    pytest.param({"job": KeepsRelay}, "P5", "everything_moves", id="keeps_relay"),
    pytest.param({"named": NeverForgets}, "P5", "across_groups", id="never_forgets"),
    pytest.param({"named": ForgetsAtOnce}, "P4", "across_groups", id="forgets_at_once"),
]


@pytest.mark.parametrize(("defect", "promise", "scenario"), ENGINE)
def test_engine_defect_is_found(defect: int, promise: str, scenario: str | None) -> None:
    found = (run_seed(seed, scenario, defect).broken for seed in range(SEEDS_MAX))
    assert any(promise == named for named, _ in chain.from_iterable(found))


@pytest.mark.parametrize(("classes", "promise", "scenario"), CONTROL)
def test_control_plane_defect_is_found(classes: dict[str, type | int], promise: str, scenario: str) -> None:
    def broken(seed: int) -> tuple[tuple[str, str], ...]:
        options = draw_options(Random(f"{seed}:planted"))
        for name, replacement in classes.items():
            setattr(options, name, replacement)
        return run_seed(seed, scenario, options=options).broken

    found = (broken(seed) for seed in range(SEEDS_MAX))
    assert any(promise == named for named, _ in chain.from_iterable(found))


def test_chunks_that_nobody_verifies_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Job, "_is_right", lambda job, chunk, memory, base: True)
    found = (run_seed(seed, "guest_prefetches").broken for seed in range(SEEDS_MAX))
    assert any(promise == "P8" for promise, _ in chain.from_iterable(found))


def test_pushes_that_nobody_took_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def well(generation: int, root: bytes, error: PcclError | None) -> Receipt:
        return Receipt(generation, root, "", "")

    monkeypatch.setattr(moving, "receipt_of", well)
    found = (run_seed(seed, "frozen_counterpart").broken for seed in range(SEEDS_MAX))
    assert any(promise == "P1" and "did not take it" in detail for promise, detail in chain.from_iterable(found))
