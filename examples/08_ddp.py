"""DistributedDataParallel on pccl: a stock script, of which only the backend's name is pccl's.

torchrun --nproc-per-node 3 examples/08_ddp.py
torchrun --nproc-per-node 3 examples/08_ddp.py --backend gloo      the same losses
torchrun --nproc-per-node 3 examples/08_ddp.py --hook int8         a quarter of the bytes, almost the same losses
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from text import Task
from torch.nn.parallel import DistributedDataParallel

from pccl.torch import hooks  # importing it makes the backend "pccl" known


def train(steps: int, hook: str | None = None) -> list[float]:
    """The mean loss of each step. Every rank has batches of its own."""
    task = Task(place=1000 * dist.get_rank())
    task.model = model = DistributedDataParallel(task.model)
    if hook:
        model.register_comm_hook(None, hooks.by_name(hook))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
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
    parser.add_argument("--hook", choices=hooks.NAMES, help="what gradients travel as")
    options = parser.parse_args()
    dist.init_process_group(options.backend)
    losses = train(options.steps, options.hook)
    if dist.get_rank() == 0:
        print(f"{dist.get_world_size()} ranks on {options.backend}: loss {losses[0]:.6f} -> {losses[-1]:.6f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
