"""FSDP2: two replicas of two shards each, in four processes, train as two whole replicas do."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from integration.fsdp_replica import EVERY, SHARDS, build, train

from pccl.coordinator.server import Coordinator
from pccl.optim import DiLoCo, LocalComm, Nesterov

TESTS = Path(__file__).resolve().parents[1]
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
        train(model, DiLoCo(inner, model, comm, every=EVERY, outer=Nesterov(0.7, 0.9)), comm.rank)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    with LocalComm(2, op_timeout=60.0) as comms:
        return comms.run(replica)


def test_sharded_replicas_train_as_whole_ones() -> None:
    with Coordinator(form_peers=2) as coordinator:
        ports = [free_port() for _ in range(2)]
        processes = {
            (replica, shard): subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "integration.fsdp_replica",
                    coordinator.address,
                    *map(str, (ports[replica], replica, shard)),
                ],
                cwd=TESTS,
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
    sharded = [torch.tensor(json.loads(outputs[replica, 0])) for replica in range(2)]
    assert torch.equal(sharded[0], sharded[1])
    torch.testing.assert_close(sharded[0], whole_replicas()[0], rtol=1e-4, atol=1e-5)
