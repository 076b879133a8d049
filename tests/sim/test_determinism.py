"""A seed is a run: twice the same, in another process and under another hash seed too. Scenarios: test_scenarios.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pccl.testing import run_seed

SCRIPT = "import sys; from pccl.testing import run_seed; print(*[run_seed(s).digest for s in range(int(sys.argv[1]))])"
SEEDS = 10


@pytest.mark.parametrize("seed", range(20))
def test_a_seed_gives_the_same_run_twice(seed: int) -> None:
    first, second = run_seed(seed), run_seed(seed)
    assert first.trace == second.trace
    assert first == second


def test_another_process_gives_the_same_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(SEEDS)]
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    # Elsewhere, so that the installed package is taken and not the source tree, which has no extension.
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    text = done.stdout
    assert text.split() == [run_seed(seed).digest for seed in range(SEEDS)]


def test_seeds_differ() -> None:
    assert len({run_seed(seed).digest for seed in range(SEEDS)}) == SEEDS
