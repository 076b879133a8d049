"""What of sglang an adapter meets, by its documentation: an engine whose model runner takes tensors."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["Engine", "Model"]


class Model:
    """A model two of whose tensors, `fuse`, are rows of one parameter, as sglang's q, k and v are. The second one may
    be made here: `twin` rows of zeros, like those of the first.
    """

    def __init__(self, tensors: dict[str, Any], fuse: tuple[str, str] | None = None, twin: int = 0) -> None:
        import torch

        self._shards: dict[str, tuple[str, slice]] = {}
        self._params = dict(tensors)
        if fuse is not None:
            if twin:
                self._params[fuse[1]] = torch.zeros_like(self._params[fuse[0]][:twin])
            parts = [self._params.pop(name) for name in fuse]
            self._params["fused"] = torch.cat(parts)
            start = 0
            for name, part in zip(fuse, parts, strict=True):
                self._shards[name] = ("fused", slice(start, start + len(part)))
                start += len(part)

    def named_parameters(self, remove_duplicate: bool = True) -> Any:
        return iter(self._params.items())

    def named_buffers(self, remove_duplicate: bool = True) -> Any:
        return iter(())

    def load_weights(self, weights: Any) -> None:
        for name, tensor in weights:
            param, rows = self._shards.get(name, (name, slice(None)))
            target = self._params[param]
            (target[rows] if target.ndim else target).copy_(tensor)

    def get(self, name: str) -> Any:
        param, rows = self._shards.get(name, (name, slice(None)))
        return self._params[param][rows] if self._params[param].ndim else self._params[param]


class Engine:
    """`custom_weight_loader`: dotted names that `load_format` may be."""

    def __init__(self, model: Model, custom_weight_loader: tuple[str, ...] = ()) -> None:
        self.model, self.custom_weight_loader = model, custom_weight_loader
        self.flushed, self.received_bytes = 0, 0

    def update_weights_from_tensor(
        self, named_tensors: list[tuple[str, Any]], load_format: str | None = None, flush_cache: bool = True
    ) -> tuple[bool, str]:
        self.received_bytes = sum(t.nbytes for _, t in named_tensors)
        try:
            if load_format in self.custom_weight_loader:
                module, _, name = load_format.rpartition(".")
                getattr(importlib.import_module(module), name)(self.model, named_tensors)
            elif load_format is None:
                self.model.load_weights(named_tensors)
            else:
                raise NotImplementedError(f"Unknown load_format={load_format}")
        except Exception as error:  # noqa: BLE001 - the scheduler answers with the text
            return False, f"Failed to update: {error}"
        self.flushed += flush_cache
        return True, "Success"
