"""Three minutes of chaos: eight real processes on an emulated WAN, a fault every 2 s, and every promise holds.

`make test` runs this beside other tests (docs/testing.md).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # at the end: pccl itself is the installed one

pytest.importorskip("yaml", reason="PyYAML is not installed")
from stress.wan.namespaces import why_not  # noqa: E402

REASON = why_not()
pytestmark = [
    pytest.mark.skipif(REASON is not None, reason=f"no WAN can be emulated here: {REASON}"),
    pytest.mark.needs_root,
    pytest.mark.slow,
    pytest.mark.timeout(420),
]

WORK_S = 0.5  # two fifths of the time, in which others may have the processors; `make soak` has no pauses
SEED = 14  # it has everything that happens to coordinators
TIMEOUT_S = 400


def test_every_promise_holds_amid_faults(tmp_path: Path) -> None:
    arguments = ["--minutes", "3", "--seed", str(SEED), "--peers", "8", "--work-s", str(WORK_S), "--json"]
    command = [sys.executable, "-m", "stress.chaos", *arguments, "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.stdout, done.stderr
    row = json.loads(done.stdout)
    assert (done.returncode, row["broken"], row["ended_early"]) == (0, [], ""), done.stderr
    assert row["faults"] >= 70 and len(row["kinds"]) >= 15, row["kinds"]
    assert row["commits"] > 1500 and row["retries"] > 0 and row["kills"] > 0 and row["leaders"] > 1, row
