"""One of several ranks that run the same on gloo and on pccl, and compare; started by test_torch.py.

    PYTHONPATH=tests python tests/integration/torch_peer.py FOLDER RANK SIZE

Prints, as JSON, what differs: nothing, if all is well.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from integration.torch_cases import Place, cases

import pccl.torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
HALVES = (torch.float16, torch.bfloat16)


def differs(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """To the bit; but gloo leaves 2 in a bool, and divides halves in another place."""
    if ours.dtype is torch.bool:
        ours, theirs = ours.view(torch.uint8), (theirs.contiguous().view(torch.uint8) != 0).to(torch.uint8)
    if ours.dtype in HALVES:
        return not torch.allclose(ours.float(), theirs.float(), rtol=1e-2, atol=1e-3)
    if ours.dtype.is_floating_point:
        return not torch.allclose(ours, theirs, rtol=1e-6, atol=0)
    return not torch.equal(ours, theirs)


def matrix(rank: int, size: int) -> dict[str, Any]:
    """Every case in groups of all sizes, of which this rank is in some. Gaps in tensors matter to each rank by itself:
    so those with gaps only in the largest group.
    """
    wrong, count = [], 0
    for members in range(1, size + 1):
        ranks = tuple(range(members))
        theirs = dist.new_group(list(ranks), backend="gloo")
        ours = dist.new_group(list(ranks), backend="pccl")
        if rank not in ranks:
            continue
        for name, case in cases():
            expected = case(Place(theirs, ranks))
            for strided in (False, True) if members == size else (False,):
                count += 1
                got = case(Place(ours, ranks, strided))
                if len(got) != len(expected) or any(map(differs, [g.contiguous() for g in got], expected)):
                    wrong.append(f"{name}, {members} ranks, rank {rank}, strided {strided}")
        dist.barrier(group=theirs)
        dist.destroy_process_group(ours)
    return {"wrong": wrong, "count": count}


def sparse_ddp(hook: Any = None) -> list[float]:
    """Losses of DDP over an embedding whose gradients are sparse."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Embedding(50, 4, sparse=True), torch.nn.Linear(4, 1))
    model = torch.nn.parallel.DistributedDataParallel(net)
    if hook is not None:
        model.register_comm_hook(None, hook)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    words = (torch.arange(12) * 7 + 5 * dist.get_rank()) % 50
    losses = []
    for _ in range(4):
        loss = (model(words) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = loss.detach() / dist.get_world_size()
        dist.all_reduce(mean)
        losses.append(float(mean))
    return losses


def example(name: str) -> Any:
    """A program of examples/, as a module."""
    sys.path.insert(0, str(EXAMPLES))
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def quiet() -> None:
    """One thread, and no word about names that torch has deprecated."""
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(1)


def main() -> None:
    """One rank."""
    folder, rank, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    quiet()
    found: dict[str, Any] = {}
    begin = time.monotonic()
    ddp, fsdp = example("08_ddp"), example("09_fsdp2")
    text: Any = sys.modules["text"]
    text.load_windows = functools.cache(text.load_windows)
    for backend in ("gloo", "pccl"):
        dist.init_process_group(backend, init_method=f"file://{folder}/{backend}", rank=rank, world_size=size)
        found[f"ddp {backend}"] = ddp.train(4)
        found[f"fsdp {backend}"] = fsdp.train(4)
        found[f"sparse {backend}"] = sparse_ddp()
        if backend == "pccl":
            found |= {f"hook {hook}": ddp.train(4, hook) for hook in pccl.torch.hooks.NAMES}
            found["sparse bf16"] = sparse_ddp(pccl.torch.hooks.bf16)
        dist.destroy_process_group()
    found["train_s"] = time.monotonic() - begin
    dist.init_process_group("gloo", init_method=f"file://{folder}/matrix", rank=rank, world_size=size)
    found |= matrix(rank, size)
    dist.destroy_process_group()
    found["matrix_s"] = time.monotonic() - begin - found["train_s"]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
