"""Transfers from processes that are killed or stopped: others take over, and every fetch ends within its deadline."""

from __future__ import annotations

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
from pccl.coordinator.server import Coordinator
from pccl.errors import Evicted, PeerLost, Timeout

PEER = Path(__file__).parent / "transfer_peer.py"
MIB = 1 << 20
NBYTES = 32 * MIB


@contextmanager
def sources(
    cluster: Any, count: int, seconds: float, lease_s: float
) -> Iterator[tuple[pccl.Communicator, dict[bytes, Any]]]:
    """A communicator, and so many processes that offer, each in so many seconds what is fetched."""
    coordinator = cluster.coordinator(1, form_peers=1 + count, lease_s=lease_s)
    argv = [sys.executable, str(PEER), coordinator.address, cluster.secret, str(NBYTES), str(seconds)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [subprocess.Popen(argv, text=True, **pipes) for _ in range(count)]  # type: ignore[call-overload]
    try:
        with cluster.connect(coordinator, transport="tcp", timeout=60.0) as comm:
            yield comm, {bytes.fromhex(process.stdout.readline()): process for process in processes}
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def some_arrived(fetch: Any, nbytes: int) -> None:
    for _ in range(2000):
        if fetch.progress().done_bytes >= nbytes:
            return
        with pytest.raises(Timeout):
            fetch.wait(0.005)
    raise AssertionError("nothing arrives")


def expected() -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).integers(0, 256, NBYTES, np.uint8)


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_the_others_take_over(cluster: Any, fault: signal.Signals) -> None:
    with sources(cluster, 3, 4.0, lease_s=30.0) as (comm, processes):
        fetch = comm.transfers.fetch("a", sources=list(processes), timeout=60.0)
        some_arrived(fetch, 4 * MIB)
        victim = next(iter(processes))
        processes[victim].send_signal(fault)
        result = fetch.wait()
        assert np.array_equal(result.tensor, expected())
        report = result.report
        assert set(report.received) == set(processes)
        assert report.received[victim] < min(report.received[peer] for peer in processes if peer != victim)
        assert report.duration_s < 10.0, "two of three need two seconds, and a silence of a second or so"


def test_when_the_only_source_is_frozen_the_deadline_ends_it(cluster: Any) -> None:
    with sources(cluster, 1, 4.0, lease_s=30.0) as (comm, processes):
        into = np.zeros(NBYTES, np.uint8)
        fetch = comm.transfers.fetch("a", into, sources=list(processes), timeout=2.0)
        some_arrived(fetch, MIB)
        (process,) = processes.values()
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(Timeout, match="came in time"):
            fetch.wait(10.0)
        assert 1.9 < fetch.report.duration_s < 3.0
        have = fetch.have()
        into[:] = 0xAA
        began = time.monotonic()
        process.send_signal(signal.SIGCONT)
        with pytest.raises(Timeout):
            comm.transfers.fetch("b", sources=list(processes), timeout=0.5).wait()
        assert time.monotonic() - began < 2.0
        assert (into == 0xAA).all() and any(have)


def test_when_the_only_source_is_killed_it_is_named(cluster: Any) -> None:
    with sources(cluster, 1, 4.0, lease_s=1.0) as (comm, processes):
        fetch = comm.transfers.fetch("a", sources=list(processes), timeout=60.0)
        some_arrived(fetch, MIB)
        ((peer, process),) = processes.items()
        process.kill()
        with pytest.raises(PeerLost) as caught:
            fetch.wait()
        assert caught.value.peer == peer
        assert fetch.report.duration_s < 15.0


def test_who_is_evicted_is_told_by_its_fetches(cluster: Any) -> None:
    """Be they amid the bytes or waiting for an offer: the others are there, but know this peer no more."""
    coordinator = cluster.coordinator(1, form_peers=2)
    joined: list[pccl.Communicator] = []
    threads = [threading.Thread(target=lambda: joined.append(cluster.connect(coordinator))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    source, comm = joined
    with source, comm:
        source.transfers.limit("normal", MIB)
        source.transfers.offer("slow", expected())
        fetches = [comm.transfers.fetch(name, sources=source.peer_id, timeout=60.0) for name in ("slow", "never")]
        some_arrived(fetches[0], MIB)
        coordinator.close()
        with Coordinator(coordinator.address, secret=cluster.secret):  # without the state: it knows nobody
            began = time.monotonic()
            for fetch in fetches:
                with pytest.raises(Evicted, match="fetch"):
                    fetch.wait(20.0)
            assert time.monotonic() - began < 10.0
