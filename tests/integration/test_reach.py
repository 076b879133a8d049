"""Peers that cannot be dialled, for real: they advertise a port at which nobody answers, as if behind NAT."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import pccl
from pccl.coordinator.server import Coordinator

PATIENCE_S = 60.0


@pytest.mark.parametrize("hidden", [1, 2, 3])
def test_all_reduce_with_peers_that_only_dial_out(hidden: int) -> None:
    peers = 4
    with (
        socket.socket() as closed,
        Coordinator(run="reach", secret=b"secret", min_peers=peers) as coordinator,
        ThreadPoolExecutor(peers) as pool,
    ):
        closed.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"

        def work(index: int) -> tuple[int, int, float]:
            with pccl.connect(
                coordinator.address,
                run="reach",
                secret=b"secret",
                listen="127.0.0.1:0",
                advertise=nobody if index < hidden else None,
                transport="tcp",
                timeout=PATIENCE_S,
                environ={},
            ) as comm:
                for _ in range(5):
                    array = np.full(300_000, index + 1.0, np.float32)
                    comm.all_reduce(array, timeout=PATIENCE_S)
                    assert array.min() == array.max() == sum(range(1, peers + 1))
                    comm.advance()
                group = coordinator.status().groups[0]
                inbound = sum(peer.inbound for peer in group.members)
                around = sum(entry.what in ("turned", "dead link", "lost", "lease") for entry in group.log)
                comm.barrier()
                return len(group.members), inbound, around

        seen = list(pool.map(work, range(peers)))
    assert seen == [(peers, peers - hidden, 0)] * peers, "nobody is evicted, and nothing had to be found out by failing"
