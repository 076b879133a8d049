"""One process of a replica that is sharded over two by FSDP2 on the CPU; its peer is the same shard of the other one.

    python -m integration.fsdp_replica COORDINATOR GLOO_PORT REPLICA SHARD

Prints the outer parameters, whole, as a list of numbers, from shard 0.
"""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import pccl
from pccl.optim import DiLoCo, Nesterov

STEPS, EVERY, SHARDS = 12, 3, 2


def build() -> nn.Module:
    """A model whose first dimensions do not divide evenly over the shards."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def train(model: nn.Module, opt: torch.optim.Optimizer, replica: int) -> None:
    """The same batches for every shard of a replica."""
    numbers = torch.Generator().manual_seed(replica)
    for _ in range(STEPS):
        x = torch.randn(8, 4, generator=numbers)
        (model(x) - x[:, :3]).square().mean().backward()
        opt.step()
        opt.zero_grad()


def main() -> None:
    """See the header."""
    coordinator, port, replica, shard = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=shard, world_size=SHARDS)
    model = build()
    fully_shard(model, mesh=init_device_mesh("cpu", (SHARDS,)))
    inner = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with pccl.connect(coordinator, group=shard, op_timeout=60.0) as comm:
        opt = DiLoCo(inner, model, comm, every=EVERY, outer=Nesterov(0.7, 0.9))
        train(model, opt, replica)
        assert opt.stats.last is not None
        assert len(opt.stats.last.peers) == 2
        whole = torch.cat([parameter.full_tensor().flatten() for parameter in model.parameters()])  # type: ignore[attr-defined]
        if shard == 0:
            print(json.dumps(whole.tolist()), flush=True)
        comm.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
