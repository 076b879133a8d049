"""Wall clocks of chaos runs: one process's jumps while it runs, and its monotonic clock does not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # at the end: pccl itself is the installed one

from stress.chaos.wallclock import WallClocks  # noqa: E402

CHILD = """
import sys, time
for _ in sys.stdin:
    print(time.time(), time.monotonic(), time.localtime().tm_year, flush=True)
"""


@pytest.mark.parametrize("jump_s", [4000 * 86400.0, -400 * 86400.0])
def test_it_jumps_and_comes_back(tmp_path: Path, jump_s: float) -> None:
    clocks = WallClocks(tmp_path)
    env = {**os.environ, **clocks.environment("p0.1")}
    command = [sys.executable, "-c", CHILD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as child:

        def off_by() -> tuple[float, float]:
            assert child.stdin is not None and child.stdout is not None
            child.stdin.write("tell\n")
            child.stdin.flush()
            wall, monotonic, _ = map(float, child.stdout.readline().split())
            return wall - time.time(), monotonic - time.monotonic()

        seen = [off_by()]
        for seconds in (jump_s, 0.0):
            clocks.move("p0.1", seconds)
            seen.append(off_by())
        child.stdin.close()  # type: ignore[union-attr]
    assert [round(wall / 60) for wall, _ in seen] == [0, round(jump_s / 60), 0]
    assert all(abs(monotonic) < 10.0 for _, monotonic in seen)
