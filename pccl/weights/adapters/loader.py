"""loader.py - engines that load by `load_weights(iterator of (name, tensor))`, as vLLM's and SGLang's models do.

The engine gets whole tensors, of those that changed; it fuses, cuts and converts them as it does with a checkpoint.
They are made before the pause, which takes as much memory as they have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pccl.weights.adapters.engine import Apply, EngineError
from pccl.weights.arrays import as_torch
from pccl.weights.update import Update

__all__ = ["LoaderAdapter", "changed_tensors"]

Named = Iterable[tuple[str, Any]]


class LoaderAdapter:
    """`load_weights`: such as `model.load_weights`. `knows`: it gives the set of the names that it took, in the words
    of the update, and one that is not among them is an error; otherwise only what it raises is. `hold`: False saves
    the memory, and makes tensors one by one while the engine stands still.
    """

    def __init__(self, load_weights: Callable[[Named], Any], *, knows: bool = False, hold: bool = True) -> None:
        self._load, self._knows, self._hold = load_weights, knows, hold

    def prepare(self, update: Update) -> Apply:
        """See Adapter."""
        held = list(changed_tensors(update)) if self._hold else None

        def apply() -> None:
            self._give(changed_tensors(update) if held is None else held)

        return apply

    def _give(self, named: Named) -> None:
        given: list[str] = []

        def watched() -> Iterator[tuple[str, Any]]:
            for name, tensor in named:
                given.append(name)
                yield name, tensor

        try:
            taken = self._load(watched())
        except Exception as error:
            raise EngineError(f"the engine does not take {given[-1] if given else None!r}: {error!r}") from error
        if self._knows:
            missing = [name for name in given if name not in taken]
            if missing:
                raise EngineError(f"the engine has no tensor {missing[0]!r}")


def changed_tensors(update: Update) -> Iterator[tuple[str, Any]]:
    """(name, torch CPU tensor with memory of its own) of every tensor that changes, in its shape."""
    for name, elements in update.dense(changed_only=True):
        tensor = update.schema.tensors[update.schema.index[name]]
        yield name, as_torch(elements, tensor.dtype, tensor.shape)
