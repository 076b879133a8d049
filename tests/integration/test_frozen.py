"""A peer that is frozen (SIGSTOP): its sockets stay open and its links fall silent, so only its lease tells. It is out
within the lease, the others go on, and when it wakes it learns that it was removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

LEASE_S = 1.0
CHILD = """
import sys
import numpy as np
import pccl

comm = pccl.connect(sys.argv[1], secret=sys.argv[2], listen="127.0.0.1:0")
try:
    for _ in range(3):
        comm.all_reduce(np.ones(8, np.float32))
    print("ready", flush=True)
    comm.all_reduce(np.ones(1 << 20, np.float32), timeout=60)
except pccl.PeerLost as error:
    print(type(error).__name__, flush=True)
"""


def test_a_frozen_peer_is_out_within_its_lease_and_learns_of_it(cluster: Any, tmp_path: Path) -> None:
    coordinator = cluster.coordinator(2, lease_s=LEASE_S)
    command = [sys.executable, "-c", CHILD, coordinator.address, cluster.secret]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as child:
        assert child.stdout is not None
        with cluster.connect(coordinator) as comm:
            for _ in range(3):
                comm.all_reduce(np.ones(8, np.float32))
            assert child.stdout.readline().strip() == "ready"
            os.kill(child.pid, signal.SIGSTOP)
            begin = time.monotonic()
            work = comm.all_reduce(np.ones(1 << 20, np.float32), async_op=True)
            error = _end_of(work)
            elapsed = time.monotonic() - begin
            os.kill(child.pid, signal.SIGCONT)
            assert child.stdout.readline().strip() == "Evicted"
        child.wait(20)
    assert "TooFewPeers" in error, error
    assert elapsed < LEASE_S + 1.0
    text = str(coordinator.status())
    assert "lease" in text and "nothing heard for 1 s" in text


def _end_of(work: Any) -> str:
    try:
        return repr(work.wait(20))
    except Exception as error:  # noqa: BLE001 - the test judges which
        return repr(error)
