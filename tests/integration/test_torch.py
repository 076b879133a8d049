"""pccl.torch: gloo is the oracle. The same programs give the same on both; what goes wrong is said on every rank."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parents[1]
PATIENCE_S = 150
RANKS = 4


def run_ranks(module: str, folder: Path, size: int, *arguments: str) -> list[dict[str, Any]]:
    """What so many processes print, as JSON; each must end well, but for those that are told to be killed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PCCL_")}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(folder), str(rank), str(size), *arguments],
            cwd=TESTS,
            env=environment | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    found = []
    try:
        for rank, process in enumerate(ranks):
            output, errors = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0, f"rank {rank}: exit code {process.returncode}\n{errors}"
            found.append(json.loads(output.splitlines()[-1]))
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What all ranks have seen; they are started once, since importing torch takes longer than all they do."""
    return run_ranks("integration.torch_peer", tmp_path_factory.mktemp("torch"), RANKS)


def test_collectives_give_what_gloo_gives(found: list[dict[str, Any]]) -> None:
    for seen in found:
        assert seen["wrong"] == []
        assert seen["count"] > 1000


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_stock_scripts_train_to_the_losses_of_gloo(found: list[dict[str, Any]], kind: str) -> None:
    for seen in found:
        assert seen[f"{kind} pccl"] == pytest.approx(seen[f"{kind} gloo"], rel=1e-5)
        assert seen[f"{kind} pccl"][-1] < seen[f"{kind} pccl"][0]
        assert seen[f"{kind} pccl"] == found[0][f"{kind} pccl"]


@pytest.mark.parametrize(("hook", "nearness"), [("bf16", 1e-3), ("int8", 1e-2), ("e3m0", 0.1)])
def test_hooks_train_almost_as_well(found: list[dict[str, Any]], hook: str, nearness: float) -> None:
    plain, coded = found[0]["ddp pccl"], found[0][f"hook {hook}"]
    assert coded == pytest.approx(plain, rel=nearness)
    assert coded != plain
    assert all(math.isfinite(loss) for loss in coded)
