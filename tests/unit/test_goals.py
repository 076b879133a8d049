"""What `make bench` wants of its figures: found in the rows that the steps print, judged with the limit included."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(
    str(Path(__file__).resolve().parents[2] / "stress")
)  # at the end: as `python stress/bench_all.py` has it

import bench_all
import measured
from bench_all import QUICK, chosen, in_words, steps
from goals import GOALS, MIB

ROOT = Path(__file__).resolve().parents[2]

ROWS: dict[str, list[dict[str, Any]]] = {
    "tcp": [
        {"peers": peers, "bytes": nbytes, "ours_ms": ms, "ratio": 0.8}
        for peers, nbytes, ms in ((2, 1024, 0.3), (4, 1024, 1.0), (2, MIB, 0.9), (2, 64 * MIB, 15), (4, 64 * MIB, 44))
    ],
    "in_flight": [{"peers": 4, "bytes": 1024, "ours_ops_per_s": 7000.0}],
    "fused": [{"peers": 4, "bytes": nbytes, "fused_gain": 5.0} for nbytes in (1024, 64 << 10)],
    "shm": [{"peers": peers, "bytes": 64 * MIB, "ratio": 0.5} for peers in (2, 4)],
    "kernels": [
        {"kernel": f"{codec} {way}", "isa": isa, "gb_per_s": speed}
        for codec in ("int8", "e3m0")
        for way in ("encode", "decode")
        for isa, speed in (("scalar", 1.0), ("avx2", 12.0))
    ],
    "kill": [{"wrong": 0, "median_ms": 80.0, "worst_ms": 200.0}],
    "join": [{"wrong": 0, "aborted": 0, "median_ms": 43.0}],
    "plans": [{"bytes": nbytes, "speedup": 2.0 + nbytes / MIB, "plan_cpu_ms": 400.0} for nbytes in (MIB, 64 * MIB)],
    "coordinator": [{"event": "join", "trials": 1, "messages": 9}, {"event": "advance", "trials": 8, "messages": 0}],
    "transfer": [{"chunk_bytes": nbytes, "gbit_per_s": 21.0} for nbytes in (MIB, 64 << 10)],
    "transfers": [{"share": 0.94}, {"share": 0.9}],
    "wan": [{"targets": [{"ok": True}, {"ok": None}]}, {"targets": []}],
    "torch": [{"ratio": 1.02}],
    **{step: [{"ok": True}, {"op": "others"}] for step in ("kv", "kv_wan", "weights")},
    "kv_codecs": [
        {"cache": cache, "codec": "bf16-exp", "of_plain": part} for cache, part in (("normal", 0.7), ("gpt", 0.9))
    ],
    "weights_bytes": [{"a_over_iid": 1.01}, {"a_over_iid": 0.99}],
    "weights_speed": [{"kernel": "B encode", "of_memcpy": 0.3}, {"kernel": "A encode", "of_memcpy": 0.1}],
    "state": [{"join_ratio": 1.24, "step_ratio": 1.0}],
    "optim": [{"missed": []}, {"missed": []}],
}
BAD: dict[str, list[dict[str, Any]]] = {
    "tcp": [{**row, "ours_ms": 99.0, "ratio": 1.2} for row in ROWS["tcp"]],
    "in_flight": [{"peers": 4, "bytes": 1024, "ours_ops_per_s": 4999.0}],
    "fused": [{**row, "fused_gain": 0.9} for row in ROWS["fused"]],
    "shm": [{**row, "ratio": 0.8} for row in ROWS["shm"]],
    "kernels": [{**row, "gb_per_s": 2.9} for row in ROWS["kernels"]],
    "kill": [{"wrong": 1, "median_ms": 301.0, "worst_ms": 1001.0}],
    "join": [{"wrong": 1, "aborted": 1, "median_ms": 101.0}],
    "plans": [{"bytes": 64 * MIB, "speedup": 0.99, "plan_cpu_ms": 1001.0}],
    "coordinator": [{"event": "advance", "trials": 8, "messages": 1}],
    "transfer": [{"chunk_bytes": nbytes, "gbit_per_s": 14.9} for nbytes in (MIB, 64 << 10)],
    "transfers": [{"share": 0.94}, {"share": 0.89}],
    "wan": [{"targets": [{"ok": True}, {"ok": False}]}],
    "torch": [{"ratio": 1.2}],
    **{step: [{"ok": True}, {"ok": False}] for step in ("kv", "kv_wan", "weights")},
    "kv_codecs": [{"cache": "normal", "codec": "bf16-exp", "of_plain": 0.8}],
    "weights_bytes": [{"a_over_iid": 1.03}, {"a_over_iid": 0.99}],
    "weights_speed": [{"kernel": "B encode", "of_memcpy": 0.1}],
    "state": [{"join_ratio": 1.26, "step_ratio": 1.2}],
    "optim": [{"missed": []}, {"missed": ["too good"]}],
}


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: f"{goal.step}-{goal.what}")
def test_a_goal_is_reached_missed_or_not_measured(goal: Any) -> None:
    good, bad, none = (goal.judge(rows) for rows in (ROWS[goal.step], BAD[goal.step], []))
    assert good["ok"] is True and bad["ok"] is False and none["ok"] is None and none["found"] is None
    assert goal.judge(ROWS[goal.step])["wanted"].startswith(">=" if goal.at_least else "<=")


def test_every_goal_has_a_step_that_can_be_run() -> None:
    known = steps(Path("out"), 3)
    assert {goal.step for goal in GOALS} == set(known)
    programs = [part for command in known.values() for part in command if part.startswith("stress/")]
    modules = [part for command in known.values() for part in command if part.startswith("stress.")]
    assert programs and all((ROOT / program).exists() for program in programs)
    for name in modules:
        path = ROOT.joinpath(*name.split("."))
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), name


def test_some_steps_can_be_chosen() -> None:
    known = steps(ROOT / "build" / "bench", 3)
    assert chosen(known, "", False) == known
    quick = chosen(known, "", True)
    assert list(quick) == list(QUICK)
    rounds = [quick["kv"][place + 1] for place, word in enumerate(quick["kv"]) if word == "--rounds"]
    assert rounds == ["3"] and "pair" in quick["wan"] and quick["tcp"] == known["tcp"]
    assert list(chosen(known, "torch,tcp", False)) == ["torch", "tcp"]
    with pytest.raises(ValueError, match="no such step: optim; there are tcp"):
        chosen(known, "tcp,optim", True)
    assert not [words for words in map(in_words, known.values()) if "/usr" in words or str(ROOT) in words]


def test_rows_of_steps_that_end_well_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a step that fails stay what they were."""
    measured.write(tmp_path, measured.Measured("broken", "an earlier one", "2026-01-01", "abc", {}, [{"ms": 1}]))
    program = "print('words'); print('{\"ms\": 2.5}'); raise SystemExit("
    made = {name: ["python", "-c", f"{program}{code})"] for name, code in (("broken", 3), ("whole", 0))}
    monkeypatch.setattr(bench_all, "steps", lambda out, rounds: made)
    monkeypatch.setattr(sys, "argv", ["bench_all.py", "--out", str(tmp_path / "out"), "--rows", str(tmp_path)])
    assert bench_all.main() == 1
    kept = measured.read(tmp_path)
    assert kept["broken"].rows == [{"ms": 1}] and kept["whole"].rows == [{"ms": 2.5}]
    assert kept["whole"].command.startswith("python -c") and kept["whole"].host["cores"] >= 1
    assert kept["whole"].commit and kept["whole"].date > "2026"
    assert (tmp_path / "out" / "broken.jsonl").read_text() == '{"ms": 2.5}\n'
