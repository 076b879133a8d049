"""FSDP2: two replicas of two shards each, in four processes, train as two whole replicas do, and err together."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from integration.fsdp_replica import EVERY, SHARDS, STEPS, build, train

from pccl.coordinator.server import Coordinator
from pccl.optim import DiLoCo, LocalComm, Nesterov

REPLICA = str(Path(__file__).with_name("fsdp_replica.py"))
PATIENCE_S = 120


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def whole_replicas() -> list[torch.Tensor]:
    models = [build() for _ in range(2)]

    def replica(comm: Any) -> torch.Tensor:
        model = models[comm.rank]
        inner = torch.optim.AdamW(model.parameters(), lr=1e-2)
        train(model, DiLoCo(inner, model, comm, every=EVERY, outer=Nesterov(0.7, 0.9)), comm.rank, STEPS)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    with LocalComm(2, op_timeout=60.0) as comms:
        return comms.run(replica)


def test_sharded_replicas_train_as_whole_ones_and_shards_decide_alike(forked: str) -> None:
    with Coordinator(form_peers=2) as coordinator:
        ports = [free_port() for _ in range(2)]
        processes = {
            (replica, shard): subprocess.Popen(
                [sys.executable, forked, REPLICA, coordinator.address, *map(str, (ports[replica], replica, shard))],
                stdout=subprocess.PIPE,
                text=True,
            )
            for replica in range(2)
            for shard in range(SHARDS)
        }
        try:
            outputs = {place: process.communicate(timeout=PATIENCE_S)[0] for place, process in processes.items()}
        finally:
            for process in processes.values():
                process.kill()
                process.wait()
    assert [process.returncode for process in processes.values()] == [0] * 4
    seen = {place: json.loads(output) for place, output in outputs.items()}
    rounds = STEPS // EVERY + 1
    for one in seen.values():
        assert one["peers"] == [2] * rounds
        assert one["retries"] == [1] + [0] * (rounds - 1)  # what failed for one shard is begun again for both
        assert one["excluded"] == [0] * (rounds - 1) + [1]  # what is wrong in one shard counts for neither
        assert one["trained"] == seen[0, 0]["trained"]  # to the bit
        assert one["after"] == seen[0, 0]["after"]
        assert torch.isfinite(torch.tensor(one["after"])).all()
    assert {place: one["own"][-1] for place, one in seen.items()} == {place: place[0] == 1 for place in seen}
    torch.testing.assert_close(torch.tensor(seen[0, 0]["trained"]), whole_replicas()[0], rtol=1e-4, atol=1e-5)
