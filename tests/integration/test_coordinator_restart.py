"""A coordinator of its own process is killed while tensors move, and another one takes its place on the same address:
no op is lost, nobody enters anew, and what happened meanwhile is found out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration.leaders import LEASE_S, PCCL, SECRET, Leader, connect, together, who

import pccl

AWAY_S = 1.0
ELEMENTS = 16 << 20  # 64 MiB of float32
OPS = 8
CHILD = """
import sys
import pccl

comm = pccl.connect(sys.argv[1], secret=sys.argv[2], listen="127.0.0.1:0")
while comm.world_size < 3:
    comm.barrier()
    comm.advance()
comm.barrier()
print("in", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def leader(tmp_path: Path) -> Iterator[Leader]:
    made = Leader(tmp_path, "--state", "run.state", "--min-peers", "2")
    made.start()
    yield made
    made.kill()


class Accident:
    """The coordinator dies while ops are in flight, comes back, and a joiner enters; `members`: before and after."""

    def __init__(self, leader: Leader) -> None:
        self.leader = leader
        self.members: list[set[tuple[bytes, int]]] = []
        self.formed, self.asked, self.started = (threading.Barrier(3) for _ in range(3))
        self.committed_alone = threading.Event()

    def run(self) -> None:
        self.formed.wait(60)
        self.members.append(who(self.leader))
        self.asked.wait(60)
        self.started.wait(60)
        self.leader.kill()
        begin = time.monotonic()
        assert self.committed_alone.wait(60)
        threading.Event().wait(max(0.0, AWAY_S - (time.monotonic() - begin)))
        self.leader.start()
        with connect(self.leader) as joiner:
            joiner.barrier(tag="with the joiner")
            self.members.append(who(self.leader))
            joiner.barrier(tag="the end")

    def body(self, comm: pccl.Communicator) -> list[pccl.Result]:
        arrays = [np.full(ELEMENTS, comm.rank + 1.0, np.float32) for _ in range(2)]
        comm.barrier()
        self.formed.wait(60)
        self.asked.wait(60)
        results = []
        for number in range(OPS):
            works = [comm.all_reduce(array.copy(), async_op=True, tag=str(k)) for k, array in enumerate(arrays)]
            if number == 1:
                self.started.wait(60)  # ops are in flight: the coordinator may die now
            results += [work.wait(60) for work in works]
            if number == 3 and comm.rank == 0:
                self.committed_alone.set()
        while comm.world_size < 3:
            comm.barrier()
            comm.advance(timeout=60)
        comm.barrier(tag="with the joiner")
        return results


def test_killed_amid_large_all_reduces(leader: Leader) -> None:
    """Every op in flight commits while nobody leads; afterwards a joiner enters among the same members."""
    accident = Accident(leader)
    helper = threading.Thread(target=accident.run, daemon=True)
    helper.start()
    outcomes = together(leader, 2, accident.body)
    helper.join(60)
    assert not helper.is_alive()
    for results in outcomes:
        assert [result.retries for result in results] == [0] * (2 * OPS), "no change was needed"
        assert all(float(result.tensor[k]) == 3.0 for result in results for k in (0, ELEMENTS - 1))
    before, after = accident.members
    assert [since for _, since in before] == [0, 0]
    assert before < after and len(after) == 3, "the members are who they were, and since when they were"
    assert [re.findall(r"incarnation (\d+), state in run.state", line) for line in leader.said] == [["1"], ["2"]]


def test_a_peer_that_died_while_nobody_led_is_out_after_its_lease(leader: Leader, tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, leader.address, SECRET]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as child:
        assert child.stdout is not None

        def body(comm: pccl.Communicator) -> Any:
            while comm.world_size < 3:
                comm.barrier()
                comm.advance()
            comm.barrier()
            lives.wait(60)
            died.wait(60)
            result = comm.all_reduce(np.ones(ELEMENTS, np.float32), timeout=60)
            return result.world_size, result.retries, float(result.tensor[0])

        lives, died = threading.Barrier(3), threading.Event()
        begin = 0.0

        def accident() -> None:
            nonlocal begin
            assert child.stdout is not None and child.stdout.readline() == "in\n"
            lives.wait(60)
            leader.kill()
            child.kill()
            died.set()
            leader.start()
            begin = time.monotonic()

        helper = threading.Thread(target=accident, daemon=True)
        helper.start()
        outcomes = together(leader, 2, body)
        elapsed = time.monotonic() - begin
        helper.join(60)
    assert outcomes == [(2, 1, 2.0)] * 2
    assert elapsed < LEASE_S + 10.0
    assert "lease" in (tmp_path / "coordinator.log").read_text()


def test_without_a_state_the_peers_end_with_a_clear_error(tmp_path: Path) -> None:
    leader = Leader(tmp_path, "--min-peers", "1")
    leader.start()
    try:
        comm = connect(leader)
        try:
            leader.kill()
            leader.start()
            begin = time.monotonic()
            with pytest.raises(pccl.Evicted, match="does not know the peer; if it was started anew, then without"):
                while time.monotonic() < begin + 30:
                    comm.barrier(timeout=30)
        finally:
            comm.close()
    finally:
        leader.kill()


def test_status_tells_the_incarnation(leader: Leader, tmp_path: Path) -> None:
    leader.kill()
    leader.start()
    env = {**os.environ, "PCCL_SECRET": SECRET, "COLUMNS": "200"}
    shown = subprocess.run([*PCCL, "status", leader.address], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert "incarnation 2, state in run.state" in shown.stdout


def test_a_file_that_cannot_be_used_is_one_line(leader: Leader, tmp_path: Path) -> None:
    env = {**os.environ, "PCCL_SECRET": SECRET}
    command = [*PCCL, "coordinator", "--bind", "tcp://127.0.0.1:0", "--state", "run.state"]
    second = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert second.returncode == 1
    assert second.stderr.strip().endswith("run.state is in use by another coordinator")
    assert "Traceback" not in second.stderr
