"""shards.py - Shards: what the processes of one sharded replica (FSDP2) must decide alike, and how they find out.

Every shard index has a communicator of its own, so a round may fail, or miss a peer, for one shard and not for another.
Then the replica would be half in the round. So before anything changes its processes ask each other, over the process
groups of their device mesh: a contribution counts if it is finite on all shards, a round lands if it has arrived on all
and the same replicas count in it, a boundary is passed if it is on all. Since a group's ops end alike on all replicas,
all replicas come to the same verdict.

The collectives are those of torch.distributed, inside the replica, of three numbers. They wait for the slowest shard.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from pccl.optim.line import Call, Steps

__all__ = ["APART", "DONE", "FAILED", "OVER", "Mesh", "Shards", "Whole", "shards_of"]

#: States of `agree`: must be raised on all shards; must be tried again; done, but not alike; done.
OVER, FAILED, APART, DONE = range(4)


class Shards(Protocol):
    """`replica`: a number of 32 bits that all shards of a replica have, drawn by chance."""

    @property
    def replica(self) -> int: ...

    def weigh(self, weight: float, finite: bool) -> Steps[tuple[float, bool]]:
        """Of a contribution: the mean weight of the shards, 0.0 if any is not finite; whether all are."""

    def agree(self, state: int, digest: int) -> Steps[int]:
        """The worst (smallest) state of all shards; `APART` if they are all above it and the digests differ."""


class Whole:
    """A replica in one process: nobody to ask."""

    def __init__(self, peer_id: bytes) -> None:
        self.replica = int.from_bytes(peer_id[:4], "little")

    def weigh(self, weight: float, finite: bool) -> Steps[tuple[float, bool]]:
        yield from ()
        return (weight if finite else 0.0), finite

    def agree(self, state: int, digest: int) -> Steps[int]:
        yield from ()
        return state


class Mesh:
    """The processes of a device mesh: reductions along its dimensions, one after the other."""

    def __init__(self, groups: Sequence[Any], device: str) -> None:
        self._groups, self._device = list(groups), device
        self._size = 1
        for group in self._groups:
            self._size *= dist.get_world_size(group)
        own = torch.tensor([int.from_bytes(secrets.token_bytes(4), "little")], dtype=torch.int64)
        self.replica = int(self._reduced(own, dist.ReduceOp.MIN)[0])

    def weigh(self, weight: float, finite: bool) -> Steps[tuple[float, bool]]:
        told = torch.tensor([weight if finite else 0.0, float(not finite)], dtype=torch.float64)
        total, bad = (yield Call(lambda: self._reduced(told, dist.ReduceOp.SUM))).tolist()
        return (0.0, False) if bad else (total / self._size, True)

    def agree(self, state: int, digest: int) -> Steps[int]:
        told = torch.tensor([state, digest, -digest], dtype=torch.int64)
        worst, least, most = (yield Call(lambda: self._reduced(told, dist.ReduceOp.MIN))).tolist()
        return APART if worst == DONE and least != -most else int(worst)

    def _reduced(self, told: Tensor, op: Any) -> Tensor:
        there = told.to(self._device)
        for group in self._groups:
            dist.all_reduce(there, op=op, group=group)
        return there.cpu()


def shards_of(parameters: Iterable[Tensor], peer_id: bytes) -> Shards:
    """Those of the largest device mesh that the parameters lie on; a Whole without DTensors. Blocks until all shards
    have come here."""
    meshes = [mesh for parameter in parameters if (mesh := getattr(parameter, "device_mesh", None)) is not None]
    mesh = max(meshes, key=lambda mesh: mesh.size(), default=None)
    if mesh is None or mesh.size() == 1:
        return Whole(peer_id)
    return Mesh([mesh.get_group(dimension) for dimension in range(mesh.ndim)], mesh.device_type)
