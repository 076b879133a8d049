"""staging.py - tensors of a torch program as what the engine works on: flat, contiguous, in this host's memory.

A contiguous CPU tensor is used where it lies. Any other is copied: before the op if it is read, after it if it is
written. What only moves travels as its bytes if the engine does not know the dtype; what is reduced must be known.
"""

from __future__ import annotations

import torch

from pccl.buffers import DTYPE_NAMES

__all__ = ["Landing", "all_equal", "moved", "reduced"]

_KNOWN = {dtype for name in DTYPE_NAMES if (dtype := getattr(torch, name, None)) is not None}


def check(tensor: torch.Tensor, what: str) -> None:
    """TypeError for what has no memory of its own."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{what}: expected a torch.Tensor, got {type(tensor).__name__}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{what}: the tensor is sparse ({tensor.layout}); pass tensor.to_dense()")


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the engine can work on the tensor where it lies."""
    return bool(tensor.is_cpu and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg())


def flat(tensor: torch.Tensor, what: str) -> torch.Tensor:
    """The elements of a tensor to read, in their order; a view if possible."""
    check(tensor, what)
    tensor = tensor.detach()
    if not is_plain(tensor):
        tensor = tensor.resolve_conj().resolve_neg().to("cpu").contiguous()
    return tensor.view(-1)


def as_moved(view: torch.Tensor) -> torch.Tensor:
    """A flat tensor as elements that the engine can move."""
    return view if view.dtype in _KNOWN else view.view(torch.uint8)


def as_reduced(view: torch.Tensor, what: str) -> torch.Tensor:
    """A flat tensor as elements that the engine can reduce: bool as 0 and 1. TypeError for other dtypes."""
    if view.dtype is torch.bool:
        return view.view(torch.uint8)
    if view.dtype not in _KNOWN:
        raise TypeError(f"{what}: {view.dtype} cannot be reduced; pass a tensor of {', '.join(DTYPE_NAMES)} or bool")
    return view


def moved(tensor: torch.Tensor, what: str) -> torch.Tensor:
    """A tensor to read that only moves."""
    return as_moved(flat(tensor, what))


def reduced(tensor: torch.Tensor, what: str) -> torch.Tensor:
    """A tensor to read that is reduced."""
    return as_reduced(flat(tensor, what), what)


class Landing:
    """A tensor that is written: `view` is where the engine writes, `land` brings it home. `keep`: what the tensor holds
    is read too, times `factor` if there is one.
    """

    __slots__ = ("_home", "view")

    def __init__(self, tensor: torch.Tensor, what: str, keep: bool = False, factor: float | None = None) -> None:
        check(tensor, what)
        target = tensor.detach()
        self._home: torch.Tensor | None = target
        if factor is not None:
            self.view = reduced(tensor, what) * factor
        elif is_plain(target):
            self.view, self._home = target.view(-1), None
        else:
            self.view = flat(tensor, what) if keep else torch.empty(tensor.numel(), dtype=tensor.dtype)

    @property
    def is_home(self) -> bool:
        """Whether the engine writes to the tensor itself."""
        return self._home is None

    def land(self) -> None:
        """Copies the result to the tensor, unless it is there."""
        if self._home is not None:
            with torch.no_grad():
                self._home.copy_(self.view.view(self._home.shape))


def all_equal(tensors: list[torch.Tensor], count: int, like: torch.Tensor, what: str) -> None:
    """ValueError unless there are `count` tensors, of the dtype and size of `like`."""
    if len(tensors) != count:
        raise ValueError(f"{what}: expected {count} tensors, one for each rank, got {len(tensors)}")
    for number, tensor in enumerate(tensors):
        if tensor.dtype != like.dtype or tensor.numel() != like.numel():
            raise ValueError(
                f"{what}[{number}]: expected {like.numel()} elements of {like.dtype}, "
                f"got {tensor.numel()} of {tensor.dtype}"
            )
