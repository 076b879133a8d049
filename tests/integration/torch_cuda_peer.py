"""One of several ranks that do on a GPU, by pccl, what gloo does in host memory; started by test_torch_cuda.py.

    PYTHONPATH=tests python tests/integration/torch_cuda_peer.py FOLDER RANK SIZE cpu|cuda

Prints, as JSON, what differs and the losses of training. All ranks share one GPU.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from integration.torch_cases import Place, cases
from integration.torch_peer import differs, quiet
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import pccl.torch

STEPS = 5


def matrix(ranks: tuple[int, ...]) -> dict[str, Any]:
    """Every case on the device, and by gloo in host memory."""
    theirs = dist.new_group(list(ranks), backend="gloo")
    ours = dist.new_group(list(ranks), backend="pccl")
    wrong, count = [], 0
    for name, case in cases():
        expected = case(Place(theirs, ranks))
        for strided in (False, True):
            count += 1
            got = [tensor.cpu().contiguous() for tensor in case(Place(ours, ranks, strided, "cuda"))]
            if len(got) != len(expected) or any(map(differs, got, expected)):
                wrong.append(f"{name}, rank {dist.get_rank()}, strided {strided}")
    return {"wrong": wrong, "count": count}


def train(kind: str, how: str, hook: Any = None) -> list[float]:
    """The losses of some steps; `how`: "ddp" or "fsdp"."""
    torch.manual_seed(0)
    mesh = dist.init_device_mesh(kind, (dist.get_world_size(),)) if how == "fsdp" else None  # may choose a GPU
    model: Any = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.Tanh(), torch.nn.Linear(512, 1)).to(kind)
    if mesh is not None:
        model = fully_shard(model, mesh=mesh)
    else:
        model = DistributedDataParallel(model)
        if hook is not None:
            model.register_comm_hook(None, hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(STEPS):
        whole = torch.randn(32, 64, generator=generator)
        rows = whole.chunk(dist.get_world_size())[dist.get_rank()].to(kind)
        loss = (model(rows) - rows.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean, dist.ReduceOp.SUM)
        losses.append(mean.item() / dist.get_world_size())
    return losses


def main() -> None:
    """One rank."""
    folder, rank, size, kind = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    quiet()
    if kind == "cuda":
        torch.cuda.set_device(0)
    found: dict[str, Any] = {"wrong": [], "count": 0}
    dist.init_process_group("gloo", init_method=f"file://{folder}/gloo", rank=rank, world_size=size)
    found["gloo"] = train("cpu", "ddp")
    if kind == "cuda":
        found |= matrix(tuple(range(size)))
    dist.destroy_process_group()
    dist.init_process_group("pccl", init_method=f"file://{folder}/pccl", rank=rank, world_size=size)
    found["ddp pccl"] = train(kind, "ddp")
    found["fsdp pccl"] = train(kind, "fsdp")
    found["int8"] = train(kind, "ddp", pccl.torch.hooks.int8)
    dist.destroy_process_group()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
