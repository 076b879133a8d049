"""Golden histories: every mode goes through an error, a death and a newcomer as it did when golden/*.json were written.

A change that is meant is written down by `python -m unit.optim_golden`, whose diff belongs into the review.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from unit.optim_golden import CASES, DEATH, PEERS, PLACE, TOLERANCE, history

from pccl.optim.settings import MODES


def differences(now: Any, then: Any, where: str = "") -> list[str]:
    """Numbers with a point may differ by TOLERANCE of themselves or of 1, all else not at all."""
    if isinstance(then, dict) and isinstance(now, dict) and now.keys() == then.keys():
        return [found for key in then for found in differences(now[key], then[key], f"{where}.{key}")]
    if isinstance(then, list) and isinstance(now, list) and len(now) == len(then):
        return [found for i in range(len(then)) for found in differences(now[i], then[i], f"{where}[{i}]")]
    if isinstance(then, float) and isinstance(now, float):
        return [] if now == pytest.approx(then, rel=TOLERANCE, abs=TOLERANCE) else [f"{where}: {now}, was {then}"]
    return [] if now == then else [f"{where}: {now}, was {then}"]


@pytest.mark.parametrize("case", CASES)
def test_the_history_is_as_it_was(case: str) -> None:
    found = differences(history(case), json.loads((PLACE / f"{case}.json").read_text()))
    assert not found, "\n".join(found)


def test_histories_are_of_every_mode_and_tell_of_failure_and_recovery() -> None:
    """What is written down is worth comparing with."""
    assert {CASES[case]["mode"] for case in CASES} == set(MODES)
    assert {path.stem for path in PLACE.iterdir()} == set(CASES)
    for case in CASES:
        then = json.loads((PLACE / f"{case}.json").read_text())
        members = [set(entry["members"]) for entries in then["rounds"].values() for entry in entries]
        assert any(DEATH[0] in them for them in members)
        assert any(PEERS in them for them in members), case
        assert any(entry["excluded"] == [1] for entry in then["rounds"]["1"]), case
        assert set(then["ends"]) == {"0", "1", "3"}
        assert len({json.dumps(end["sum"]) for end in then["ends"].values()}) == 1, case
        assert then["ends"]["0"]["loss"] < 0.7, case  # 2 in the beginning


def test_a_changed_number_is_found() -> None:
    then = json.loads((PLACE / "diloco.json").read_text())
    now = json.loads((PLACE / "diloco.json").read_text())
    now["rounds"]["0"][3]["ramp"] *= 1.001
    now["rounds"]["1"][0]["members"] = [0, 1]
    assert [found.split(":")[0] for found in differences(now, then)] == [".rounds.0[3].ramp", ".rounds.1[0].members"]
