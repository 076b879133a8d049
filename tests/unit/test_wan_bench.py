"""The WAN benchmark's own logic: whose turn it is, what a row says, what counts as reached. Starts no process."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # at the end: pccl itself is the installed one

pytest.importorskip("scipy", reason="SciPy is not installed")
pytest.importorskip("yaml", reason="PyYAML is not installed")
import numpy as np

from stress.wan.bench import faults, report, rows, store
from stress.wan.bench.crew import command
from stress.wan.bench.measure import Rounds, Samples, turn
from stress.wan.bench.scenarios import MIB, SCENARIOS, Scenario
from stress.wan.bench.sides import RUNS, SIDES, runs_of
from stress.wan.bench.targets import WORDS, at_least, at_most
from stress.wan.bench.worker import Rough, codec_error

PLAN = {
    "algorithm": "two_level",
    "mesh_bytes_max": MIB,
    "streams": 3,
    "reason": "because",
    "expected_s": 2.0,
    "achieved_s": 2.5,
    "epoch": 2,
    "members": 4,
    "log": [[0.1, "epoch", "x"]],
}


def found(plan: dict[str, Any] | None = None, **seconds: list[float]) -> Any:
    """As a Measurement that took these samples."""
    return SimpleNamespace(
        samples={
            side: Samples(times, [int(9e6)] * len(times), [10] * len(times), [1]) for side, times in seconds.items()
        },
        plans={"ours": plan or PLAN},
        streams=4,
        retries=0,
        crew=SimpleNamespace(congestion="bbr"),
        late_us_max=1500.0,
        warm_ups=3,
    )


def row(scenario: Scenario, measured: Any = None, failure: str = "", name: str = "pair") -> dict[str, Any]:
    known = rows.network_of(name, scenario, scenario.load())
    return rows.row_of(known, scenario, ("ours", *scenario.sides), measured, failure)


# -- what is measured ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenarios_can_be_measured_and_judged(name: str) -> None:
    scenario = SCENARIOS[name]
    made = row(scenario, name=name)
    assert made["bound_s"] == pytest.approx(made["bound_transfer_s"] + made["bound_delay_s"], abs=1e-3)
    assert made["bound_s"] <= made["mesh_bound_s"] + 1e-4 and made["bound_s"] <= made["ring_bound_s"] + 1e-4
    assert set(scenario.sides) <= set(SIDES) and all(target.figure in WORDS for target in scenario.targets)
    assert all(target["ok"] is None for target in made["targets"]), "nothing was measured"


@pytest.mark.parametrize("name", faults.FAULTS)
def test_faults_can_be_judged(name: str) -> None:
    fault = faults.FAULTS[name]
    assert {"c", "d"} <= {site.name for site in fault.load().peers}
    assert all(target.figure in WORDS for target in fault.targets)
    missed = faults.row_of(name, fault, {}, {}, "it failed")
    assert not any(target["ok"] for target in missed["targets"]), "what did not come about is missed"


def test_the_issue_s_bounds() -> None:
    assert row(SCENARIOS["pair"])["bound_s"] == pytest.approx(0.617, abs=1e-3)
    assert row(SCENARIOS["site"])["bound_s"] == pytest.approx(1.69, abs=1e-2)
    assert row(SCENARIOS["small"])["delays_limit_s"] == pytest.approx(3 * 0.04 + MIB * 4e-6 / 500, abs=1e-4)


def test_sides_share_the_runs_that_they_need() -> None:
    assert runs_of(("ours", "int8", "e3m0", "gloo")) == ["ours"]
    assert runs_of(("ring", "ours")) == ["ours", "ring"] and RUNS["one_stream"].streams == 1


def test_turns_are_fair() -> None:
    wanted = Rounds(ours=7, gloo=2, settle_s=0, budget_s=0).of(("ours", "one_stream", "gloo"))
    assert wanted == {"ours": 7, "one_stream": 4, "gloo": 2}
    turns = [turn(wanted, 7, number) for number in range(7)]
    for side, count in wanted.items():
        assert sum(side in sides for sides in turns) == count
    assert {sides[0] for sides in turns if len(sides) > 1} > {"ours"}, "not always the same one first"
    few = Rounds(ours=1, gloo=2, settle_s=0, budget_s=0).of(("ours", "ring", "gloo"))
    assert few == {"ours": 1, "ring": 1, "gloo": 1} and turn(few, 1, 0) == ["ours", "ring", "gloo"]


# -- rows ------------------------------------------------------------------------------------------------------------


def test_a_row_has_medians_and_what_they_mean() -> None:
    scenario = Scenario("mesh4_pair", {"loss": 0.0}, targets=(at_least("fraction", 0.85), at_least("vs_gloo", 6)))
    made = row(scenario, found(ours=[0.7, 0.9, 0.8], one_stream=[1.6], gloo=[4.0, 4.8]))
    assert (made["sides"]["ours"]["s"], made["sides"]["gloo"]["s"]) == (0.8, 4.4)
    figures = made["figures"]
    assert figures["fraction"] == pytest.approx(0.617 / 0.8, abs=1e-3) and figures["vs_gloo"] == 5.5
    assert figures["vs_one_stream"] == 2.0 and figures["vs_ring"] is None and figures["expected"] == 2.5
    assert [target["ok"] for target in made["targets"]] == [False, False] and report.missed([made])
    assert made["expected_s"] == 2.0 and made["router_late_max_ms"] == 1.5 and "log" not in made["plan"]
    fast = row(scenario, found(ours=[0.7], gloo=[4.4]))
    assert [target["ok"] for target in fast["targets"]] == [True, True] and not report.missed([fast])


def test_other_sizes_have_no_targets_and_no_prediction() -> None:
    scenario = SCENARIOS["pair"].of_size(MIB)
    made = row(scenario, found(ours=[0.1], gloo=[0.6]))
    assert made["targets"] == [] and made["expected_s"] is None and SCENARIOS["pair"].of_size(64 * MIB).targets


def test_codecs_are_compared_with_float32() -> None:
    measured = found(ours=[3.0], int8=[0.8], e3m0=[0.5])
    measured.samples["int8"].sent_bytes, measured.samples["e3m0"].sent_bytes = [int(2.3e6)], [int(1.2e6)]
    made = row(SCENARIOS["codecs"], measured)
    assert [target["ok"] for target in made["targets"]] == [True, True, True, True]
    assert made["figures"]["int8_speed"] == 3.75 and made["figures"]["e3m0_bytes"] == pytest.approx(0.1333, abs=1e-4)


@pytest.mark.parametrize(
    ("target", "value", "good"),
    [
        (at_least("fraction", 0.85), 0.85, True),
        (at_least("fraction", 0.85), 0.849, False),
        (at_most("int8_bytes", 0.27), 0.27, True),
        (at_most("int8_bytes", 0.27), 0.271, False),
        (at_most("int8_bytes", 0.27), None, None),
    ],
)
def test_limits_are_included(target: Any, value: float | None, good: bool | None) -> None:
    judged = target.judge({"figures": {target.figure: value}})
    assert judged["ok"] is good and judged["found"] == value and judged["what"]


# -- showing ---------------------------------------------------------------------------------------------------------


def all_rows() -> list[dict[str, Any]]:
    fault = faults.FAULTS["link_cut"]
    return [
        row(SCENARIOS["pair"], found(ours=[0.7], one_stream=[1.2], gloo=[4.4])),
        row(SCENARIOS["codecs"], found(ours=[3.0], int8=[0.8], e3m0=[0.5]), name="codecs"),
        row(SCENARIOS["uneven"], None, "the process at a ended\n  Traceback", name="uneven"),
        faults.row_of("link_cut", fault, {"usual_s": 1.0, "fault_s": 9.0, "gone": 1}, PLAN, ""),
    ]


def test_everything_is_shown() -> None:
    out = io.StringIO()
    report.show(all_rows(), out)
    text = out.getvalue()
    for expected in (
        "two-level x 4",
        "0.617",
        "because",
        "uneven (!)",
        "Traceback",
        "link_cut",
        "yes",
        "NO",
        "not measured",
    ):
        assert expected in text, expected
    assert "…" not in text, "no column is cut off"


def test_rows_are_kept_the_newest_of_each(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "wan.jsonl"
    assert store.read(path) == []
    for made in reversed(all_rows()):
        store.append(path, made)
    store.append(path, row(SCENARIOS["pair"], found(ours=[0.65])))
    kept = store.read(path)
    assert [made["scenario"] for made in kept] == ["pair", "uneven", "codecs", "link_cut"]
    assert kept[0]["sides"]["ours"]["s"] == 0.65


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="Matplotlib is not installed")
    from stress.wan.bench.plot import draw, heights_of

    timed = [made for made in all_rows() if made["kind"] == "times"]
    draw(timed, tmp_path / "wan.png")
    draw([], tmp_path / "empty.png")
    assert (tmp_path / "wan.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "empty.png").exists()
    assert heights_of(timed[0])["ours"] == pytest.approx(0.617 / 0.7, abs=1e-3) and heights_of(timed[2]) == {}


# -- results of codecs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["int8", "e3m0"])
def test_wrong_sums_of_a_codec_are_seen(codec: str) -> None:
    check = Rough(codec, 4)
    right = np.tile(np.arange(7, dtype=np.float32) * 4 + 6, 1000)
    check.check(right, codec)
    off = codec_error(codec, right.astype(np.float64))
    check.check((right + off * 0.9).astype(np.float32), codec)
    for wrong in (right + 40, -right, np.where(np.arange(7000) == 6999, np.nan, right)):
        with pytest.raises(SystemExit, match="farther off"):
            check.check(wrong.astype(np.float32), codec)


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_every_site_gives_its_host_a_name(name: str) -> None:
    """`hostname` takes letters, digits and hyphens."""
    for site in SCENARIOS[name].load().sites:
        words = command(site, {})
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", words[words.index(sys.executable) - 1])
