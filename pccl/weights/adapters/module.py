"""module.py - a torch module, or tensors by name: patched in place, so that whoever holds their addresses keeps them.

Tensors that an engine has fused are given as views: rows of `qkv_proj.weight` under the names of q, k and v.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pccl.buffers import describe_dtype
from pccl.weights.adapters.engine import Apply, EngineError
from pccl.weights.adapters.scatter import Piece, scatter
from pccl.weights.update import Patch, Update

__all__ = ["ModuleAdapter", "pieces", "tensors_of"]


class ModuleAdapter:
    """`engine`: a torch module, whose parameters and buffers are taken, or a mapping of tensors by name. `ignore`:
    names that may be missing, such as a head that is tied to the embedding. CPU or device; blocks in `prepare` only.
    """

    def __init__(self, engine: Any, ignore: Iterable[str] = ()) -> None:
        self._targets = tensors_of(engine)
        self._ignore = frozenset(ignore)

    def prepare(self, update: Update) -> Apply:
        """See Adapter."""
        wanted = (patch for patch in update.patches() if patch.name in self._targets or patch.name not in self._ignore)
        return scatter(pieces(self._targets, wanted))


def tensors_of(engine: Any) -> dict[str, Any]:
    """By name; those of a module without their gradients."""
    if isinstance(engine, Mapping):
        return dict(engine)
    named = [*engine.named_parameters(remove_duplicate=False), *engine.named_buffers(remove_duplicate=False)]
    return {name: value.detach() for name, value in named}


def pieces(targets: Mapping[str, Any], patches: Iterable[Patch]) -> list[Piece]:
    """What goes where. EngineError names the first tensor that the engine has not, or has otherwise."""
    made = []
    for patch in patches:
        target = targets.get(patch.name)
        if target is None:
            raise EngineError(f"the engine has no tensor {patch.name!r}")
        dtype = describe_dtype(target)
        if tuple(target.shape) != patch.shape or dtype != patch.dtype:
            raise EngineError(
                f"{patch.name!r} is {dtype} {tuple(target.shape)} in the engine, not {patch.dtype} {patch.shape}"
            )
        made.append(Piece(patch.name, target, patch.index, patch.values))
    return made
