"""master.py - what a replica holds of the outer optimizer: the outer parameters Theta in float32, cut into fragments.

A Fragment owns, for some of the model's parameters, one flat Theta, the outer optimizer over views of it, and buffers
for rounds: the replica's delta and the mean that comes back. Which parameter is in which fragment is decided by
fragments.py, what is done with a mean by the modes. The sign is that of DiLoCo (arXiv 2311.08105, algorithm 1): delta =
Theta - theta, and the outer optimizer descends along it.

Parameters may have any floating dtype, live on any device and be DTensors (FSDP2): then the local shard counts. What a
fragment owns is in host memory, where no accelerator misses it, or beside its parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pccl.errors import ArgumentError

__all__ = ["Fragment", "Named", "OuterFactory", "local_of", "named_parameters"]

Named = tuple[str, Tensor]
OuterFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def local_of(parameter: Tensor) -> Tensor:
    """The memory of a parameter that this process holds: of a DTensor its local shard, else the parameter itself."""
    to_local = getattr(parameter, "to_local", None)
    with torch.no_grad():
        return (parameter if to_local is None else to_local()).detach()


def named_parameters(model: nn.Module | Iterable[Named]) -> list[Named]:
    """The trainable parameters by name, in the model's order. ArgumentError for none, for a name or a parameter that
    comes twice, and for a parameter that is not of a floating type."""
    pairs = list(model.named_parameters() if isinstance(model, nn.Module) else model)
    pairs = [(name, parameter) for name, parameter in pairs if parameter.requires_grad]
    if not pairs:
        raise ArgumentError("model: it has no trainable parameters")
    seen: set[str] = set()
    for name, parameter in pairs:
        if name in seen:
            raise ArgumentError(f"model: two parameters are called {name!r}")
        if not parameter.dtype.is_floating_point:
            raise ArgumentError(f"model: parameter {name!r} is {parameter.dtype}, which has no gradient to average")
        seen.add(name)
    return pairs


class Fragment:
    """Theta, outer state and buffers of some parameters. All flat tensors are float32 in host memory, or, if `offload`
    is False, on the device of the parameters: ArgumentError if they lie on several."""

    def __init__(self, parameters: Sequence[Named], outer: OuterFactory, offload: bool = True) -> None:
        self.names = [name for name, _ in parameters]
        self.locals = [local_of(parameter) for _, parameter in parameters]
        self.numel = sum(local.numel() for local in self.locals)
        self._place = torch.empty(0) if offload else _place_of(parameters)
        self.theta = self.empty()
        self._spare: list[Tensor] = []
        self._views = self._cut(self.theta)
        self._outers = [nn.Parameter(view) for view in self._views]
        self.outer = outer(self._outers)
        _begin_state(self.outer, outer, self._outers, self._place)
        self.read(self.theta)

    def slices(self) -> list[tuple[int, int]]:
        """(first, end) of every parameter in the flat tensors."""
        ends, end = [], 0
        for local in self.locals:
            ends.append((end, end + local.numel()))
            end += local.numel()
        return ends

    def _cut(self, flat: Tensor) -> list[Tensor]:
        return [flat[a:b].view(t.shape) for (a, b), t in zip(self.slices(), self.locals, strict=True)]

    def read(self, flat: Tensor) -> None:
        """flat <- theta, the model's parameters."""
        for view, local in zip(self._cut(flat), self.locals, strict=True):
            view.copy_(local)

    def write(self, flat: Tensor) -> None:
        """theta <- flat."""
        with torch.no_grad():
            for view, local in zip(self._cut(flat), self.locals, strict=True):
                local.copy_(view)

    def empty(self) -> Tensor:
        """A new flat tensor where Theta is."""
        return self._place.new_empty(self.numel, dtype=torch.float32)

    def take(self) -> Tensor:
        """A flat buffer of undefined content; give it back."""
        return self._spare.pop() if self._spare else self.empty()

    def give(self, *flats: Tensor) -> None:
        """Takes buffers back."""
        self._spare += flats

    def delta(self) -> Tensor:
        """Theta - theta, in a buffer that was taken."""
        flat = self.take()
        self.read(flat)
        return torch.sub(self.theta, flat, out=flat)

    def step(self, gradient: Tensor) -> None:
        """Theta <- OuterOpt(Theta, gradient)."""
        for parameter, part in zip(self._outers, self._cut(gradient), strict=True):
            parameter.grad = part
        self.outer.step()
        for parameter in self._outers:
            parameter.grad = None

    def merge(self, alpha: float) -> None:
        """theta <- alpha theta + (1 - alpha) Theta (arXiv 2501.18512, section 2.3); alpha 0 copies, 1 does nothing."""
        if alpha == 1.0:
            return
        if alpha == 0.0:
            self.write(self.theta)
            return
        mixed = self.take()
        self.read(mixed)
        self.write(torch.lerp(self.theta, mixed, alpha, out=mixed))
        self.give(mixed)

    def outer_state(self) -> dict[str, Any]:
        """State of the outer optimizer, "parameter.key" -> tensor (shared) or number; what must be equal on all."""
        return {
            f"{name}.{key}": value
            for name, parameter in zip(self.names, self._outers, strict=True)
            for key, value in sorted(self.outer.state[parameter].items())
        }

    def load_outer_state(self, values: dict[str, Any]) -> None:
        """Takes over numbers that are not tensors, and copies tensors in place. KeyError for a name that is missing."""
        for name, parameter in zip(self.names, self._outers, strict=True):
            state = self.outer.state[parameter]
            for key, old in state.items():
                new = values[f"{name}.{key}"]
                if isinstance(old, Tensor):
                    old.copy_(new)
                else:
                    state[key] = new

    def theta_by_name(self) -> dict[str, Tensor]:
        """Theta as views, by parameter."""
        return dict(zip(self.names, self._views, strict=True))


def _place_of(parameters: Sequence[Named]) -> Tensor:
    """A parameter beside which everything of its fragment has its place."""
    (first, place), *others = [(name, local_of(parameter)) for name, parameter in parameters]
    for name, local in others:
        if local.device != place.device:
            raise ArgumentError(
                f"offload=False: {first!r} is on {place.device}, {name!r} of the same fragment on {local.device}; "
                "cut fragments by device, or leave offload=True"
            )
    return place


def _begin_state(
    outer: torch.optim.Optimizer, factory: OuterFactory, parameters: list[nn.Parameter], place: Tensor
) -> None:
    """Makes the state that the optimizer would only make in its first step, as zeros: a newcomer must be able to
    receive it. Which keys there are is seen from a step on a parameter of one element. (For torch.optim's SGD, Adam,
    AdamW and RMSprop zeros are what the first step begins with.)
    """
    trial = nn.Parameter(place.new_zeros(1, dtype=torch.float32))
    trial.grad = torch.zeros_like(trial)
    optimizer = factory([trial])
    optimizer.step()
    for parameter in parameters:
        state = outer.state[parameter]
        for key, value in optimizer.state[trial].items():
            if key in state or value is None:
                continue
            if not isinstance(value, Tensor):
                state[key] = type(value)()
            else:
                shape = parameter.shape if value.shape == trial.shape else value.shape
                state[key] = value.new_zeros(shape)
