"""Replicas for the tests of pccl.optim: small models with given gradients, in threads over a LocalComm."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pccl.optim import DiLoCo, LocalComm
from pccl.optim.local import LocalCommunicator

SIZE = 12
TIMEOUT_S = 20.0
_TORCH = threading.Lock()  # the generator of random numbers is one for all threads


class Model(nn.Module):
    """Two vectors and a matrix, named as blocks, whose gradients are set by hand."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        numbers = torch.Generator().manual_seed(seed)
        self.blocks = nn.ModuleList(nn.Module() for _ in range(2))
        for block in self.blocks:
            block.w = nn.Parameter(torch.randn(SIZE // 3, 3, generator=numbers))
        self.head = nn.Parameter(torch.randn(5, generator=numbers))


def gradients(model: nn.Module, seed: int) -> None:
    """Sets gradients drawn from the seed."""
    numbers = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=numbers)


def flat(model: nn.Module) -> Tensor:
    """All parameters, one after the other."""
    return torch.cat([parameter.detach().float().flatten().clone() for parameter in model.parameters()])


def theta(opt: DiLoCo) -> Tensor:
    """The outer parameters, in the order of fragments."""
    return torch.cat([fragment.theta.clone() for fragment in opt._sync.fragments])


def replica(
    comm: LocalCommunicator | None, every: int, lr: float = 0.1, seed: int = 0, **options: Any
) -> tuple[Model, DiLoCo]:
    """A model with plain SGD inside."""
    with _TORCH:
        model = Model(seed)
    return model, DiLoCo(torch.optim.SGD(model.parameters(), lr=lr), model, comm, every=every, **options)


def steps(model: Model, opt: DiLoCo, place: int, first: int, number: int) -> Iterator[int]:
    """Makes inner steps with gradients that follow from the replica's place and the step."""
    for step in range(first, first + number):
        gradients(model, 1000 * place + step)
        opt.step()
        yield step


def run(peers: int, body: Callable[[LocalCommunicator, int], Any]) -> list[Any]:
    """body(comm, place) on every replica."""
    with LocalComm(peers, op_timeout=TIMEOUT_S) as comms:
        return comms.run(lambda comm: body(comm, comm.rank))


def door_of(comms: LocalComm) -> threading.Event:
    """Set when somebody waits to enter."""
    event, entered = threading.Event(), comms._hub.entered

    def tell(*arguments: Any) -> None:
        event.set()
        entered(*arguments)

    comms._hub.entered = tell  # type: ignore[method-assign]
    return event
