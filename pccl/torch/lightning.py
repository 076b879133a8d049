"""lightning.py - Lightning's DDP over the backend "pccl": PcclStrategy, and the name "pccl" of a Trainer's strategy.

It belongs to the Lightning that the program has imported, `lightning.pytorch` or `pytorch_lightning`: their classes are
not those of each other. If it has imported none yet, to the one that is installed.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["PcclStrategy"]

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _strategies() -> Any:
    """The strategies of Lightning. ImportError: it is not installed."""
    for package in sorted(_PACKAGES, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(f"{package}.strategies")
        except ModuleNotFoundError as error:
            if error.name is None or not package.startswith(error.name):
                raise
    raise ImportError("pccl.torch.lightning wants Lightning: pip install pytorch-lightning (or lightning)")


_lightning = _strategies()
_Base: Any = _lightning.DDPStrategy


class PcclStrategy(_Base):  # type: ignore[misc]
    """DDP whose ranks are peers of a run of pccl; importing this module makes it a Trainer's `strategy="pccl"` too:

        trainer = pl.Trainer(strategy=PcclStrategy(), accelerator="cpu", devices=2)

    Takes what Lightning's DDPStrategy takes, but for `process_group_backend`. `ddp_comm_hook` is one of
    `pccl.torch.hooks`, or any other, and is used on every device; Lightning's own uses it on GPUs alone.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "process_group_backend" in kwargs:
            raise TypeError("PcclStrategy has the backend 'pccl': it takes no process_group_backend")
        super().__init__(*args, process_group_backend="pccl", **kwargs)

    def _register_ddp_hooks(self) -> None:
        super()._register_ddp_hooks()
        if self.root_device.type != "cuda" and self._ddp_comm_hook is not None:
            hook = self._ddp_comm_hook
            if self._ddp_comm_wrapper is not None:
                hook = self._ddp_comm_wrapper(hook)
            self.model.register_comm_hook(self._ddp_comm_state, hook)

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """As Lightning does it on gloo: a mean of integers is that of their sum, rounded towards zero."""
        whole = isinstance(tensor, torch.Tensor) and not tensor.is_floating_point()
        if whole and isinstance(reduce_op, str) and reduce_op.lower() in ("mean", "avg"):
            total = super().reduce(tensor, group, "sum")
            return total.copy_(total / dist.get_world_size(group))
        return super().reduce(tensor, group, reduce_op)

    @classmethod
    def register_strategies(cls, strategy_registry: Any) -> None:
        """Under the name "pccl"."""
        strategy_registry.register("pccl", cls, description="DDP over the backend 'pccl' of torch.distributed")


PcclStrategy.register_strategies(_lightning.StrategyRegistry)
