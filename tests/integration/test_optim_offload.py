"""DiLoCo with offload=False between real peers: Theta, outer state and rounds on the device, threads in its place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from streams import Far, Threads, far, installed, near
from torch import Tensor, nn

import pccl
from pccl.errors import ArgumentError
from pccl.optim import DiLoCo, LocalComm
from pccl.optim.outer import Nesterov

ROUNDS, EVERY = 3, 2


class InOrder(Threads):
    """What the test computes on the device runs at once, on no stream: so a fence holds up the thread itself."""

    def fence(self, event: Any) -> None:
        """See Device."""
        event.synchronize()


@pytest.fixture
def device() -> Iterator[Threads]:
    """The device of all `far` tensors, and of all peers."""
    with installed(InOrder) as made:
        yield made


def model_of(is_far: bool) -> list[tuple[str, nn.Parameter]]:
    values = {
        "h.0.w": torch.linspace(-1, 1, 300_000).view(300, 1000),
        "h.1.w": torch.arange(7.0),
        "bias": torch.ones(3),
    }
    return [(name, nn.Parameter(far(value.clone()) if is_far else value.clone())) for name, value in values.items()]


def trained(comm: Any, offload: bool, **options: Any) -> tuple[dict[str, Tensor], DiLoCo]:
    """What the parameters are in the end, of a replica whose gradients follow from its rank and the step."""
    model = model_of(not offload)
    optimizer = DiLoCo(
        torch.optim.SGD([parameter for _, parameter in model], lr=0.1),
        model,
        comm,
        every=EVERY,
        offload=offload,
        **options,
    )
    for step in range(ROUNDS * EVERY):
        for _, parameter in model:
            parameter.grad = torch.cos(parameter.detach() * (3 + step) + comm.rank)
        optimizer.step()
    optimizer.flush()
    return {name: near(parameter.detach()) for name, parameter in model}, optimizer


KINDS = {
    "diloco": {"outer": Nesterov(0.7, 0.9)},
    "adam": {"outer": lambda parameters: torch.optim.Adam(parameters, lr=0.01, foreach=False)},
    "rda": {"aggregate": "rda"},
    "int8": {"codec": "int8"},
    "streaming": {"mode": "streaming", "fragments": 2, "overlap": 1, "merge": 0.5},
    "delayed": {"mode": "delayed", "staleness_penalty": 0.1},
    "eager": {"mode": "eager", "resync_every": 2},
}


@pytest.mark.parametrize("kind", KINDS)
def test_outer_state_on_the_device_gives_what_host_memory_does(cluster: Any, device: Threads, kind: str) -> None:
    def body(comm: pccl.Communicator) -> dict[str, Tensor]:
        here, optimizer = trained(comm, True, **KINDS[kind])
        there, _ = trained(comm, False, **KINDS[kind])
        assert optimizer.stats.rounds > 0
        for name, value in here.items():
            assert torch.equal(value, there[name]), name
        return there

    first, second = cluster(2, body)
    if kind not in ("eager", "streaming"):  # whose replicas differ by design
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert device.copies["out"] and device.copies["back"]


def test_everything_that_is_kept_lies_on_the_device(cluster: Any, device: Threads) -> None:
    def body(comm: pccl.Communicator) -> None:
        _, optimizer = trained(comm, False, mode="delayed", staleness_penalty=0.1, outer=Nesterov(0.7, 0.9))
        sync = optimizer._sync
        kept = [value for value in sync.entries().values() if isinstance(value, Tensor)]
        kept += [fragment.take() for fragment in sync.fragments]
        assert len(kept) >= 3 and all(isinstance(value, Far) for value in kept)

    cluster(2, body)


def test_a_checkpoint_from_the_device_goes_on_in_host_memory(cluster: Any, device: Threads) -> None:
    def body(comm: pccl.Communicator) -> None:
        options = {"outer": Nesterov(0.7, 0.9)}
        there, optimizer = trained(comm, False, **options)
        saved = optimizer.state_dict()
        model = model_of(False)
        resumed = DiLoCo(torch.optim.SGD([p for _, p in model], lr=0.1), model, comm, every=EVERY, **options)
        resumed.load_state_dict(saved)
        assert all(torch.equal(near(parameter.detach()), there[name]) for name, parameter in model)
        momentum = [resumed._sync.fragments[0].outer_state(), optimizer._sync.fragments[0].outer_state()]
        assert all(torch.equal(near(momentum[0][key]), near(momentum[1][key])) for key in momentum[0])

    cluster(2, body)


def test_a_fragment_lies_on_one_device() -> None:
    model = [*model_of(True)[:1], *model_of(False)[1:]]
    with pytest.raises(ArgumentError, match=r"'h.0.w' is on privateuseone:0, 'h.1.w' of the same fragment on cpu"):
        DiLoCo(torch.optim.SGD([p for _, p in model], lr=0.1), model, None, every=1, offload=False)


@pytest.mark.parametrize("mode", ["gossip", "sparse"])
def test_what_is_packed_in_host_memory_stays_there(mode: Any) -> None:
    model = model_of(False)
    with LocalComm(1) as comms, pytest.raises(ArgumentError, match=f"offload=False is not for mode '{mode}'"):
        DiLoCo(torch.optim.SGD([p for _, p in model], lr=0.1), model, comms[0], every=1, mode=mode, offload=False)
