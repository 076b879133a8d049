"""A rank of a trainer that FSDP2 shards over two processes: `weights_fsdp.py ADDRESS SECRET STORE RANK LOG`.

Both ranks give their DTensors; rank 0 leads. Prints the id of the lead, and for each line of input, after a step and a
version of both, the version and a digest of all weights. Ends with its input.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import pccl
from pccl.weights import DeltaLog, Publisher, Schema, ShardPublisher

WAIT_S = 60.0


def build() -> nn.Module:
    """A model whose first dimensions do not divide evenly over the ranks."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(40, 51), nn.Tanh(), nn.Linear(51, 33)).bfloat16()


def digest(model: nn.Module) -> str:
    """Of all weights, wherever they are."""
    whole = [value.full_tensor().detach() for value in model.state_dict().values()]
    return xxhash.xxh3_128_hexdigest(b"".join(value.view(torch.uint8).numpy().tobytes() for value in whole))


def publisher(comm: Any, lead: bytes, others: list[bytes], log: str) -> Any:
    """The lead, which holds the base, or a rank beside it, which need not."""
    base = {name: value.detach() for name, value in build().state_dict().items()}
    if comm.peer_id == lead:
        return Publisher(comm, Schema.of(base), base=base, log=DeltaLog(log), ranks=others)
    return ShardPublisher(comm, Schema.of(base), lead=lead)


def main() -> None:
    address, secret, store, rank, log = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=int(rank), world_size=2)
    model = build()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    opt = torch.optim.SGD(model.parameters(), lr=0.01)
    options = {"secret": secret, "listen": "127.0.0.1:0", "timeout": WAIT_S, "transport": "tcp"}
    with pccl.connect(address, group=20 + int(rank), **options) as comm:
        ids: list[Any] = [None, None]
        dist.all_gather_object(ids, comm.peer_id)
        with publisher(comm, ids[0], ids[1:], log) as pub:
            print(ids[0].hex(), flush=True)
            for _ in sys.stdin:
                model(torch.ones(2, 40, dtype=torch.bfloat16)).float().square().sum().backward()
                opt.step()
                opt.zero_grad()
                ticket = pub.publish(model.state_dict())
                ticket.wait("durable", WAIT_S)
                print(ticket.version, digest(model), flush=True)
            dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
