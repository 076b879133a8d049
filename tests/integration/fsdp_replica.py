"""One process of a replica that is sharded over two by FSDP2 on the CPU; its peer is the same shard of the other one.

    python tests/integration/fsdp_replica.py COORDINATOR GLOO_PORT REPLICA SHARD

In the first round the collective of shard 1 fails on both replicas, of shard 0 on none. After the training shard 0 of
replica 1 alone goes wrong: a NaN before one round more. Prints, as JSON, what every process has seen of all that.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import pccl
from pccl.errors import Timeout
from pccl.optim import DiLoCo, Nesterov
from pccl.optim.line import Call
from pccl.optim.master import local_of

STEPS, EVERY, SHARDS = 12, 3, 2


def build() -> nn.Module:
    """A model whose first dimensions do not divide evenly over the shards."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def train(model: nn.Module, opt: torch.optim.Optimizer, replica: int, steps: int) -> None:
    """The same batches for every shard of a replica."""
    numbers = torch.Generator().manual_seed(replica)
    for _ in range(steps):
        x = torch.randn(8, 4, generator=numbers)
        (model(x) - x[:, :3]).square().mean().backward()
        opt.step()
        opt.zero_grad()


def fail_once(opt: DiLoCo) -> None:
    """The next all-reduce of this process is none: its deadline has passed."""
    flights: Any = opt._sync.rounds
    begin = flights.exchange.begin

    def overdue() -> None:
        raise Timeout("by the test")

    def failing(*arguments: Any, **options: Any) -> Any:
        flights.exchange.begin = begin
        return Call(overdue)

    flights.exchange.begin = failing


def whole(model: nn.Module) -> list[float]:
    """All parameters, gathered from the shards."""
    parts: Any = [parameter.full_tensor().flatten() for parameter in model.parameters()]  # type: ignore[attr-defined]
    numbers: list[float] = torch.cat(parts).tolist()
    return numbers


def spoil(model: nn.Module, inner: torch.optim.Optimizer, opt: DiLoCo) -> None:
    """A NaN in this shard after the last inner step of the period."""

    def strike(*arguments: Any) -> None:
        if (opt.global_step + 1) % EVERY == 0:
            local_of(next(model.parameters())).view(-1)[0] = float("nan")

    inner.register_step_post_hook(strike)


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
        if shard == 1:
            fail_once(opt)
        rounds: list[Any] = []
        opt.add_round_hook(rounds.append)
        train(model, opt, replica, STEPS)
        trained = whole(model)
        if (replica, shard) == (1, 0):
            spoil(model, inner, opt)
        train(model, opt, replica, EVERY)
        seen = {
            "trained": trained,
            "after": whole(model),
            "peers": [len(done.peers) for done in rounds],
            "retries": [done.retries for done in rounds],
            "excluded": [len(done.excluded) for done in rounds],
            "own": [comm.peer_id in done.excluded for done in rounds],
        }
        print(json.dumps(seen), flush=True)
        comm.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
