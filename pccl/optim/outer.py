"""outer.py - the outer optimizers: named settings that make a torch optimizer over the outer parameters.

Any callable that turns a list of parameters into a torch.optim.Optimizer will do instead; it must work element by
element or tensor by tensor, since a replica may hold only shards, and be deterministic, since every peer steps alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pccl.errors import ArgumentError

__all__ = ["Average", "ClippedMomentum", "HeavyBall", "Nesterov"]


def _check(lr: float, momentum: float) -> None:
    if not lr > 0:
        raise ArgumentError(f"outer lr must be above 0, not {lr}")
    if not 0 <= momentum < 1:
        raise ArgumentError(f"outer momentum must be in [0, 1), not {momentum}")


@dataclass(frozen=True, slots=True)
class Nesterov:
    """SGD with Nesterov momentum as torch has it: v <- mu v + d; Theta <- Theta - lr (d + mu v) (arXiv 2311.08105)."""

    lr: float = 0.7
    momentum: float = 0.9

    def __post_init__(self) -> None:
        _check(self.lr, self.momentum)

    def __call__(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        nesterov = self.momentum > 0
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, nesterov=nesterov, foreach=False)


@dataclass(frozen=True, slots=True)
class HeavyBall:
    """SGD with classical momentum: v <- mu v + d; Theta <- Theta - lr v."""

    lr: float = 0.7
    momentum: float = 0.3

    def __post_init__(self) -> None:
        _check(self.lr, self.momentum)

    def __call__(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, foreach=False)


@dataclass(frozen=True, slots=True)
class Average:
    """Theta <- Theta - lr d. With lr 1 Theta becomes the mean of the replicas: local SGD, federated averaging."""

    lr: float = 1.0

    def __post_init__(self) -> None:
        _check(self.lr, 0.0)

    def __call__(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=self.lr, foreach=False)


@dataclass(frozen=True, slots=True)
class ClippedMomentum:
    """CO2's outer step (arXiv 2401.16265, algorithm 1): m <- clip(mu m + d, -clip, clip); Theta <- Theta - lr m."""

    lr: float = 1.0
    momentum: float = 0.5
    clip: float = 1.0

    def __post_init__(self) -> None:
        _check(self.lr, self.momentum)
        if not self.clip > 0:
            raise ArgumentError(f"clip must be above 0, not {self.clip}")

    def __call__(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return _ClippedMomentum(parameters, {"lr": self.lr, "momentum": self.momentum, "clip": self.clip})


class _ClippedMomentum(torch.optim.Optimizer):
    """See ClippedMomentum."""

    def __init__(self, parameters: list[nn.Parameter], defaults: dict[str, Any]) -> None:
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                momentum: Tensor = state["momentum_buffer"]
                momentum.mul_(group["momentum"]).add_(parameter.grad).clamp_(-group["clip"], group["clip"])
                parameter.sub_(momentum, alpha=group["lr"])
