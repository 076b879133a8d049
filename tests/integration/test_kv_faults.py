"""Pools whose peers are killed, stopped or of another group: every transfer ends in time, with a typed error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration import kv_pools

import pccl.kv as kv
from pccl.errors import Timeout

PEER = Path(__file__).parent / "kv_peer.py"
BLOCKS = 64
WAIT_S = 20.0


class Other:
    """The pool of another process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.id = bytes.fromhex(self.line())

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, *words: object) -> None:
        print(*words, file=self.process.stdin, flush=True)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@contextmanager
def with_other(
    cluster: Any, lease_s: float = 30.0, groups: tuple[int, int] = (0, 0)
) -> Iterator[tuple[Any, Any, Other]]:
    """A pool here, its memory, and one in another process."""
    same = groups[0] == groups[1]
    coordinator = cluster.coordinator(1, form_peers=2 if same else 1, lease_s=lease_s)
    argv = [sys.executable, str(PEER), coordinator.address, cluster.secret, str(groups[1])]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(PEER.parents[1]), *sys.path])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(argv, text=True, env=env, **pipes)  # type: ignore[call-overload]
    try:
        with cluster.connect(coordinator, transport="tcp", timeout=60.0, group=groups[0]) as comm:
            layout = kv_pools.layout()
            memory = kv_pools.buffers(layout, BLOCKS, None)
            with kv.register(comm, layout, memory) as pool:
                yield pool, memory, Other(process)
    finally:
        process.kill()
        process.communicate()


def sent_by_other() -> dict[str, Any]:
    return kv_pools.buffers(kv_pools.layout(), BLOCKS, 1)


def test_pools_of_different_groups_find_each_other(cluster: Any) -> None:
    with with_other(cluster, groups=(0, 1)) as (pool, memory, other):
        for _ in range(2):
            receive = pool.prep_recv("r", list(range(8)))
            other.tell("send", receive.ticket.hex(), 3)
            receive.wait(WAIT_S)
            for mine, theirs in zip(memory["full"], sent_by_other()["full"], strict=True):
                assert np.array_equal(mine[: 8 * kv_pools.BLOCK_BYTES], theirs[: 8 * kv_pools.BLOCK_BYTES])
            assert [other.line(), other.line()] == ["opened", "end committed"]


def test_a_frozen_sender_is_over_at_the_deadline_and_learns_of_it(cluster: Any) -> None:
    with with_other(cluster) as (pool, memory, other):
        receive = pool.prep_recv("r", list(range(8)), deadline=2.0)
        began = time.monotonic()
        other.tell("send", receive.ticket.hex(), 2)
        receive.wait_layer("L0", WAIT_S)
        assert other.line() == "opened"
        other.signal(signal.SIGSTOP)
        with pytest.raises(kv.TransferExpired):
            receive.wait(WAIT_S)
        assert 1.9 < time.monotonic() - began < 3.0
        assert not pool.busy("full").size
        for layer in memory["full"]:
            layer[:] = 0xAA
        other.signal(signal.SIGCONT)
        assert other.line() == "end expired deadline"
        assert all((layer == 0xAA).all() for layer in memory["full"])


def test_a_killed_sender_is_known_when_its_link_is_lost(cluster: Any) -> None:
    with with_other(cluster, lease_s=1.0) as (pool, _memory, other):
        receive = pool.prep_recv("r", list(range(8)), deadline=60.0)
        other.tell("send", receive.ticket.hex(), 1)
        receive.wait_layer("L0", WAIT_S)
        began = time.monotonic()
        other.signal(signal.SIGKILL)
        with pytest.raises(kv.TransferFailed) as caught:
            receive.wait(WAIT_S)
        assert caught.value.cause == "lost" and caught.value.peer == other.id
        assert time.monotonic() - began < 15.0
        assert not pool.busy("full").size


@pytest.mark.parametrize("fault", [signal.SIGSTOP, signal.SIGKILL])
def test_a_receiver_that_is_gone_does_not_keep_blocks(cluster: Any, fault: signal.Signals) -> None:
    with with_other(cluster, lease_s=1.0) as (pool, memory, other):
        for layer in memory["full"]:
            layer[:] = 7
        other.tell("recv", 8, 3.0)
        began = time.monotonic()
        send = pool.open_send(bytes.fromhex(other.line()), list(range(8)))
        send.layer_ready("L0")
        with pytest.raises(Timeout):
            send.wait(0.3)
        other.signal(fault)
        with pytest.raises((kv.TransferExpired, kv.TransferFailed)) as caught:
            send.wait(WAIT_S)
        assert caught.value.cause in ("deadline", "lost")
        assert time.monotonic() - began < (4.5 if fault is signal.SIGSTOP else 15.0)
        assert not pool.busy("full").size


def test_a_silent_receiver_loses_its_lease(cluster: Any) -> None:
    with with_other(cluster) as (pool, _memory, other):
        other.tell("recv", 8, 60.0)
        began = time.monotonic()
        send = pool.open_send(bytes.fromhex(other.line()), list(range(8)), lease=1.0)
        other.signal(signal.SIGSTOP)
        with pytest.raises(kv.TransferExpired) as caught:
            send.wait(WAIT_S)
        assert caught.value.cause == "lease" and 0.9 < time.monotonic() - began < 3.0
        other.signal(signal.SIGCONT)
        assert other.line() == "end expired lease"


def slow_pair(cluster: Any, stack: ExitStack, nbytes_per_s: int, blocks: int) -> tuple[Any, Any, Any]:
    """Two pools of this process; the second sends no faster than that."""
    d, p = stack.enter_context(kv_pools.two(cluster))
    p.transfers.limit("normal", nbytes_per_s)
    layout = kv_pools.layout(("L0",), 1 << 20)
    pools = [
        stack.enter_context(kv.register(comm, layout, kv_pools.buffers(layout, blocks, seed)))
        for comm, seed in ((d, None), (p, 1))
    ]
    return (*pools, (d, p))


def test_a_connection_that_is_cut_in_the_middle_does_not_start_it_again(cluster: Any) -> None:
    with ExitStack() as stack:
        d, p, comms = slow_pair(cluster, stack, 16 << 20, 16)
        receive = d.prep_recv("r", list(range(16)))
        send = p.open_send(receive.ticket, list(range(16)))
        send.layer_ready("L0")
        send.finish()
        for share in (0.2, 0.5):
            while receive.progress[0] < share * (16 << 20):
                with pytest.raises(Timeout):
                    receive.wait(0.01)
            for comm, other in (comms, comms[::-1]):
                comm._runtime.engine.kill_stream(other.peer_id, 0)
        assert receive.wait(WAIT_S).nbytes == 16 << 20
        send.wait(WAIT_S)
        assert np.array_equal(d._memory.views[0], p._memory.views[0])


def test_what_will_not_come_in_time_is_said_before_the_deadline(cluster: Any) -> None:
    with ExitStack() as stack:
        d, p, _ = slow_pair(cluster, stack, 8 << 20, 64)
        receive = d.prep_recv("r", list(range(64)), deadline=4.0, on_failure="recompute")
        send = p.open_send(receive.ticket, list(range(64)))
        send.layer_ready("L0")
        began = time.monotonic()
        while not receive.recompute_suggested:
            with pytest.raises(Timeout):
                receive.wait(0.01)
        assert time.monotonic() - began < 3.5
        got = receive.wait(WAIT_S)
        assert got.end.state is kv.State.EXPIRED and 0 < got.recompute["full"].size < 64
        with pytest.raises(kv.TransferExpired):
            send.wait(WAIT_S)
        assert not d.busy("full").size and not p.busy("full").size
