"""The examples and a short demo, with real processes: they end well and show what they claim to show."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PCCL = [sys.executable, "-c", "from pccl.cli import main; main()"]
PATIENCE_S = 150


def run(tmp_path: Path, *command: str | Path) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def launch(tmp_path: Path, *arguments: str | Path) -> str:
    return run(tmp_path, *PCCL, "launch", *arguments)


def test_all_reduce_alone(tmp_path: Path) -> None:
    output = run(tmp_path, sys.executable, EXAMPLES / "01_all_reduce.py")
    assert "the sum of 1 ones is 1" in output


def test_all_reduce_launched(tmp_path: Path) -> None:
    output = launch(tmp_path, "-n", "4", EXAMPLES / "01_all_reduce.py")
    assert output.count("the sum of 4 ones is 4") == 4
    assert output.count("the means are [0.0, 1.0, 2.0, 3.0]") == 4
    assert output.count("the highest rank is 3 of 4, 0 retries") == 4


def test_elastic_alone(tmp_path: Path) -> None:
    output = run(tmp_path, sys.executable, EXAMPLES / "02_elastic.py", "--steps", "20", "--pause", "0")
    assert "done after 20 steps with 1 peers" in output


def test_elastic_survives_a_kill_and_a_join(tmp_path: Path) -> None:
    options = ["-n", "4", "--kill-at", "20", "--join-at", "40", "--lease", "5"]
    output = launch(tmp_path, *options, EXAMPLES / "02_elastic.py", "--steps", "150")
    last = [line.partition("] ")[2] for line in output.splitlines() if "done after" in line]
    assert len(last) == 4, output
    assert set(last) == {last[0]}, "the same weights on all peers print the same error"
    assert last[0].startswith("done after 150 steps with 4 peers")
    assert "3 peers: -" in output
    assert "4 peers: +" in output


def finals(output: str) -> list[str]:
    return [line.partition("] ")[2] for line in output.splitlines() if "] done: " in line]


def test_diloco_survives_a_kill(forked: str, tmp_path: Path) -> None:
    options = ["-n", "3", "--kill-at", "2", "--lease", "5"]
    output = launch(tmp_path, *options, forked, EXAMPLES / "03_diloco.py", "--steps", "40", "--every", "10")
    last = finals(output)
    assert len(last) == 2, output
    losses, states = {line.split(",")[0] for line in last}, {line.split("state ")[1] for line in last}
    assert len(losses) == len(states) == 1, "one Theta on all peers"
    assert "3 peers, |change|" in output
    assert "2 peers, |change|" in output


def test_streaming_ends_with_one_theta(forked: str, tmp_path: Path) -> None:
    options = ["--steps", "24", "--every", "8", "--overlap", "2"]
    output = launch(tmp_path, "-n", "2", forked, EXAMPLES / "04_streaming.py", *options)
    last = finals(output)
    assert len(last) == 2, output
    assert last[0] == last[1]


def test_noloco_ends_in_a_consensus(forked: str, tmp_path: Path) -> None:
    output = launch(tmp_path, "-n", "2", forked, EXAMPLES / "05_noloco.py", "--steps", "20", "--every", "5")
    last = finals(output)
    assert len(last) == 2, output
    assert last[0].split(" and ")[1] == last[1].split(" and ")[1]


@pytest.mark.parametrize("example", ["10_lightning.py", "11_accelerate.py"])
def test_frameworks_keep_their_loop(forked: str, tmp_path: Path, example: str) -> None:
    output = launch(tmp_path, "-n", "2", forked, EXAMPLES / example, "--steps", "20", "--every", "5")
    last = finals(output)
    assert len(last) == 2, output
    assert last[0] == last[1] and "4 rounds" in last[0]


@pytest.mark.parametrize("name", ["08_ddp.py", "09_fsdp2.py"])
def test_stock_scripts_of_torch(forked: str, tmp_path: Path, name: str) -> None:
    torchrun = [sys.executable, forked, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    output = run(tmp_path, *torchrun, EXAMPLES / name, "--steps", "3")
    assert "2 ranks on pccl: loss 5." in output


@pytest.mark.slow
def test_short_demo(forked: str, tmp_path: Path) -> None:
    options = ["--steps", "24", "--batch", "4", "--out", tmp_path]
    output = run(tmp_path, sys.executable, forked, EXAMPLES / "demo" / "run.py", *options)
    assert "watch the run at http://127.0.0.1:" in output
    verdict = json.loads(output.splitlines()[-1])
    assert verdict["failures"] == []
    assert verdict["steps"] == 24
    assert (verdict["kills"], verdict["joins"]) == (1, 1)
    assert verdict["retries"] > 0
    assert [peers for _, peers in verdict["peers_over_time"]] == [4, 3, 4]
    assert verdict["equal"]
    assert sorted(verdict["state_digests"]) == ["A", "B", "D", "E"]
    assert len(set(verdict["state_digests"].values())) == 1
    assert verdict["loss_last"] < 0.8 * verdict["loss_first"]
    assert Path(verdict["png"]).read_bytes().startswith(b"\x89PNG")


def test_rl_weight_sync(forked: str, tmp_path: Path) -> None:
    output = run(tmp_path, sys.executable, forked, EXAMPLES / "06_rl_weight_sync.py", "--local")
    assert output.count(" everywhere") == 12
    assert "east-2 is killed" in output and "east-2 begins at version 3" in output
    assert "4 workers" in output and "done: 12 versions in " in output


def test_prefill_offload(forked: str, tmp_path: Path) -> None:
    options = ["--local", "--tokens", "200", "--requests", "1"]
    output = run(tmp_path, sys.executable, forked, EXAMPLES / "07_prefill_offload.py", *options)
    assert "logits equal to the last bit" in output
    assert "here aborted (the user has gone), there TransferAborted (the user has gone)" in output
    assert "one whose prefill freezes: here Transfer" in output
    assert "done: no block is held on either side" in output
