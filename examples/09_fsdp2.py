"""FSDP2 on pccl: a stock script, of which only the backend's name is pccl's. Parameters are sharded over the ranks.

torchrun --nproc-per-node 2 examples/09_fsdp2.py
torchrun --nproc-per-node 2 examples/09_fsdp2.py --backend gloo    the same losses
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from text import Task
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import pccl.torch  # noqa: F401 - makes the backend "pccl" known


def train(steps: int) -> list[float]:
    """The mean loss of each step. Every rank has batches of its own."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    task = Task(place=1000 * dist.get_rank())
    for layer in task.model.modules():
        if type(layer).__name__ == "Block":
            fully_shard(layer, mesh=mesh)
    fully_shard(task.model, mesh=mesh)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        loss = task.loss()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach() / dist.get_world_size()
        dist.all_reduce(mean)
        losses.append(float(mean))
    return losses


def main() -> None:
    """One rank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="pccl")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    dist.init_process_group(options.backend)
    losses = train(options.steps)
    if dist.get_rank() == 0:
        print(f"{dist.get_world_size()} ranks on {options.backend}: loss {losses[0]:.6f} -> {losses[-1]:.6f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
