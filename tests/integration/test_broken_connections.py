"""All connections of a peer break at once, and it lives: real engines, sockets and coordinator."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

import pccl

PEERS = 3
BREAKS = 9
OPS_BETWEEN = 50
PATIENCE_S = 30.0


def break_all(comm: pccl.Communicator) -> None:
    """As a router does that forgets its table: every stream is reset, and the control connection with them."""
    control, engine = comm._runtime.control, comm._runtime.engine
    broken = threading.Event()

    def act() -> None:
        dealer, endpoint = control._dealer, control._endpoints.current
        dealer.disconnect(endpoint)
        for link in engine.links():
            for _ in range(link.streams):
                engine.kill_stream(link.peer)
        dealer.connect(endpoint)
        control._reader.poke()
        broken.set()

    control._thread.call(act)
    assert broken.wait(PATIENCE_S)


def test_nobody_is_lost(cluster: Any) -> None:
    coordinator = cluster.coordinator(PEERS)
    progress = threading.Semaphore(0)
    done = threading.Event()

    def loop(comm: pccl.Communicator) -> None:
        while comm.all_reduce(np.array([float(done.is_set())])).tensor[0] == 0:
            if comm.rank == 0:
                progress.release()

    with ThreadPoolExecutor(PEERS) as pool:
        comms = list(pool.map(lambda _: cluster.connect(coordinator), range(PEERS)))
        loops = [pool.submit(loop, comm) for comm in comms]
        try:
            for number in range(BREAKS):
                for _ in range(OPS_BETWEEN):
                    assert progress.acquire(timeout=PATIENCE_S)
                break_all(comms[number % PEERS])
        finally:
            done.set()
        for ended in loops:
            ended.result(PATIENCE_S)
    group = coordinator.status().groups[0]
    assert group.epoch == 1 and len(group.members) == PEERS
    said = {(entry.what, "reset" in entry.reason) for entry in group.log}
    assert {("disconnected", False), ("suspect", True)} <= said, "nothing was broken"
    for comm in comms:
        comm.close()
