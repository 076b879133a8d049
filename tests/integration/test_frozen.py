"""A peer that is frozen (SIGSTOP): its sockets stay open and its links fall silent, so only its lease tells. It is out
within the lease, the others go on, and when it wakes it learns that it was removed, changes nothing, may come again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pccl

LEASE_S = 1.0
#: How long it stays stopped while the others train. Seen with 30 as well.
STOPPED_S = 3.0
ELEMENTS = 4 << 20  # 16 MiB of float32: far more than the sockets hold
WORTH = {"first": 1.0, "second": 10.0, "child": 100.0}
CHILD = """
import sys
import numpy as np
import pccl

def connect():
    return pccl.connect(sys.argv[1], secret=sys.argv[2], listen="127.0.0.1:0", transport="tcp")

comm = connect()
mine = np.full(int(sys.argv[3]), 100.0, np.float32)
try:
    comm.barrier(tag="all are here")
    work = comm.all_reduce(mine, async_op=True, timeout=120)
    print("called", flush=True)
    sys.stdin.readline()
    work.wait()
except pccl.PeerLost as error:
    print(type(error).__name__, bool((mine == 100.0).all()), flush=True)
try:
    comm.barrier()
except pccl.PeerLost as error:
    print(type(error).__name__, flush=True)
comm.close()
sys.stdin.readline()
with connect() as comm:
    print("in again", flush=True)
    print(comm.all_reduce(np.full(8, 100.0, np.float32)).tensor[0], flush=True)
    comm.barrier(tag="the end")
"""


@contextmanager
def child_of(cluster: Any, coordinator: Any, folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", CHILD, coordinator.address, cluster.secret, str(ELEMENTS)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, cwd=folder, **pipes) as child:  # type: ignore[call-overload]
        try:
            yield child
        finally:
            child.kill()


def heard(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def told(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("go on\n")
    child.stdin.flush()


def both(cluster: Any, coordinator: Any) -> dict[str, pccl.Communicator]:
    """The two that stay awake."""
    joined: list[pccl.Communicator] = []
    threads = [
        threading.Thread(target=lambda: joined.append(cluster.connect(coordinator, transport="tcp"))) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return dict(zip(("first", "second"), joined, strict=True))


def reduced(peers: dict[str, pccl.Communicator], count: int = 8) -> list[pccl.Result]:
    """An all-reduce of the two."""
    works = [comm.all_reduce(np.full(count, WORTH[who], np.float32), async_op=True) for who, comm in peers.items()]
    return [work.wait(20) for work in works]


def test_stopped_amid_an_op_it_is_out_and_its_late_bytes_change_nothing(cluster: Any, tmp_path: Path) -> None:
    coordinator = cluster.coordinator(2, form_peers=3, lease_s=LEASE_S)
    with child_of(cluster, coordinator, tmp_path) as child:
        peers = both(cluster, coordinator)
        with peers["first"], peers["second"]:
            arrays = {who: np.full(ELEMENTS, WORTH[who], np.float32) for who in peers}
            met = [comm.barrier(tag="all are here", async_op=True) for comm in peers.values()]
            for work in met:
                work.wait(20)
            works = [peers["first"].all_reduce(arrays["first"], async_op=True)]
            assert heard(child) == "called"  # and now it sends to the first; the second has granted nothing yet
            os.kill(child.pid, signal.SIGSTOP)
            begin = time.monotonic()
            works.append(peers["second"].all_reduce(arrays["second"], async_op=True))
            results = [work.wait(20) for work in works]
            elapsed = time.monotonic() - begin
            assert elapsed < LEASE_S + 1.0
            assert [(result.world_size, result.retries) for result in results] == [(2, 1)] * 2
            assert all((array == 11.0).all() for array in arrays.values())

            steps = 0
            while time.monotonic() < begin + STOPPED_S or steps < 3:
                assert all((result.tensor == 11.0).all() for result in reduced(peers))
                steps += 1
            os.kill(child.pid, signal.SIGCONT)
            told(child)
            assert heard(child) == "Evicted True", "it is told, and its input is what it was"
            assert heard(child) == "Evicted"
            for _ in range(20):
                assert all((result.tensor == 11.0).all() for result in reduced(peers, 1 << 18))
            assert all((array == 11.0).all() for array in arrays.values())
            print(f"the others had it after {elapsed:.2f} s, and {steps} more before it woke")
            told(child)
            _together_again(peers, child)


def _together_again(peers: dict[str, pccl.Communicator], child: subprocess.Popen[str]) -> None:
    """It enters as a new peer."""

    def until_it_is_there(comm: pccl.Communicator) -> None:
        while comm.world_size < 3:
            comm.barrier()
            comm.advance()

    threads = [threading.Thread(target=until_it_is_there, args=(comm,)) for comm in peers.values()]
    for thread in threads:
        thread.start()
    assert heard(child) == "in again"
    for thread in threads:
        thread.join(30)
    assert all(float(result.tensor[0]) == 111.0 for result in reduced(peers))
    assert heard(child) == "111.0"
    ends = [comm.barrier(tag="the end", async_op=True) for comm in peers.values()]
    for work in ends:
        work.wait(20)
    assert child.wait(20) == 0


def test_with_too_few_left_the_other_is_told_within_the_lease(cluster: Any, tmp_path: Path) -> None:
    coordinator = cluster.coordinator(2, lease_s=LEASE_S)
    with child_of(cluster, coordinator, tmp_path) as child, cluster.connect(coordinator, transport="tcp") as comm:
        comm.barrier(tag="all are here")
        assert heard(child) == "called"
        os.kill(child.pid, signal.SIGSTOP)
        begin = time.monotonic()
        work = comm.all_reduce(np.ones(ELEMENTS, np.float32), async_op=True)
        with pytest.raises(pccl.TooFewPeers):
            work.wait(20)
        assert time.monotonic() - begin < LEASE_S + 1.0
        os.kill(child.pid, signal.SIGCONT)
        told(child)
        assert heard(child) == "Evicted True"
    text = str(coordinator.status())
    assert "lease" in text and "nothing heard for 1 s" in text
