"""Schedules of chaos runs: the same for the same seed, legal, complete, and read as they were written."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # at the end: pccl itself is the installed one

from stress.chaos import schedule  # noqa: E402

LEASE_S = 4.0
LINKS = ("cut", "one_way", "loss", "collapse", "corrupt")


def drawn(seed: int, minutes: float = 30.0, **options: object) -> list[schedule.Fault]:
    return schedule.draw(seed, minutes * 60, 2.0, 8, LEASE_S, **options)  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_schedule() -> None:
    assert drawn(5) == drawn(5) != drawn(6)


@pytest.mark.parametrize("keeping", schedule.KEEPING)
@pytest.mark.parametrize("seed", range(5))
def test_half_an_hour_has_every_kind_and_enough_of_them(seed: int, keeping: str) -> None:
    faults = drawn(seed, keeping=keeping)
    assert len(faults) >= 800
    assert min(Counter(fault.kind for fault in faults).values()) >= 5
    others = {kind for kind, needed in schedule.NEEDS.items() if needed != keeping}
    assert {fault.kind for fault in faults} == set(schedule.WEIGHTS) - others and others


@pytest.mark.parametrize("keeping", schedule.KEEPING)
def test_a_coordinator_has_recovered_before_something_happens_to_it_again(keeping: str) -> None:
    faults = [fault for fault in drawn(7, keeping=keeping) if fault.site == "hub"]
    assert len(faults) > 50
    for before, after in itertools.pairwise(faults):
        assert after.at_s >= before.at_s + before.seconds + LEASE_S


def test_clocks_jump_both_ways_and_far() -> None:
    jumps = {fault.amount for fault in drawn(2) if fault.kind in ("clock", "hub_clock")}
    assert min(jumps) < -86400 and max(jumps) > 86400


@pytest.mark.parametrize("seed", range(5))
def test_it_is_legal(seed: int) -> None:
    faults = drawn(seed)
    veterans = set(schedule.sites_of(8)[0][: schedule.VETERANS])
    for fault in faults:
        now = [other for other in faults if other.at_s <= fault.at_s < other.at_s + other.seconds]
        assert sum(other.kind in ("cut", "one_way") for other in now) <= schedule.DEAD_PAIRS_MAX
        pairs = [frozenset((other.site, other.other)) for other in now if other.kind in LINKS]
        assert len(pairs) == len(set(pairs))
        away = {
            o.site
            for o in faults
            if o.kind in ("kill", "leave", "stop_long", "isolate_long") and 0 <= fault.at_s - o.at_s <= 6.0
        }
        assert len(away) <= 2
        assert not away & veterans
        if fault.kind in ("stop", "isolate"):
            assert fault.seconds < LEASE_S / 2
        if fault.kind == "stop_long":
            assert fault.seconds > LEASE_S + 1.0


def test_what_was_written_is_what_is_read() -> None:
    faults = drawn(3)
    assert schedule.read(schedule.written(faults)) == faults


@pytest.mark.parametrize("text", ["{}", "nonsense", '{"at_s": 1, "kind": "flood", "site": "p0"}', '{"when": 1}'])
def test_what_is_no_schedule_is_refused_by_its_line(text: str) -> None:
    with pytest.raises(ValueError, match="line 2"):
        schedule.read(schedule.written(drawn(3)[:1]) + text)


def test_only_some_kinds() -> None:
    assert {fault.kind for fault in drawn(1, only=["kill", "cut"])} == {"kill", "cut"}
    with pytest.raises(ValueError, match="flood"):
        drawn(1, only=["flood"])
