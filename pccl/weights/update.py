"""update.py - a version that is fetched, decoded and verified, and waits to be committed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pccl.weights.certificate import Version
from pccl.weights.errors import WeightsError
from pccl.weights.schema import Schema
from pccl.weights.shadow import Shadow, Staged

__all__ = ["Patch", "Update", "UpdateStats"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Patch:
    """What changes in one tensor. `index`: places in the flattened tensor, ascending, each once (int64). `values`: what
    is there from now on, as unsigned integers of the element's width (uint16 for bfloat16; elements of 8 bytes are two
    of uint32). `shape`, `dtype`: of the tensor; `tensor`: its number in the schema.
    """

    name: str
    index: Array
    values: Array
    shape: tuple[int, ...]
    dtype: str
    tensor: int


@dataclass(slots=True)
class UpdateStats:
    """Of the payloads that an update came by. `bytes`: payloads, `received_bytes`: off the wire; `changed`: elements;
    `stage_s`: from the last byte to the verified update; `commit_s`: of the shadow, without the engine.
    """

    bytes: int = 0
    received_bytes: int = 0
    changed: int = 0
    stage_s: float = 0.0
    commit_s: float = 0.0


class Update:
    """The newest version when it was given out. Nothing of shadow or engine has changed yet; it may be dropped, and a
    newer one, which contains it, committed instead.
    """

    def __init__(
        self,
        shadow: Shadow,
        staged: Staged,
        stats: UpdateStats,
        owned: frozenset[int] | None,
        commit: Callable[..., Any],
    ) -> None:
        self._shadow = shadow
        self._staged = staged
        self._owned = owned
        self._commit = commit
        self.stats = stats

    def __repr__(self) -> str:
        return f"<pccl.weights.Update to version {self.version}, {self.changed} elements>"

    @property
    def version(self) -> int:
        """Where it leads."""
        return self._staged.at.version

    @property
    def at(self) -> Version:
        """Where it leads, with the lineage."""
        return self._staged.at

    @property
    def base_version(self) -> int:
        """What the shadow has committed now: where it begins."""
        return self.base.version

    @property
    def base(self) -> Version:
        """What the shadow has committed now, with the lineage."""
        assert self._shadow.at is not None
        return self._shadow.at

    @property
    def schema(self) -> Schema:
        """Of all tensors."""
        return self._shadow.schema

    @property
    def changed(self) -> int:
        """Elements; 0: nothing but the version changes, and an engine need not be paused."""
        return self._staged.changed

    def patches(self) -> Iterator[Patch]:
        """What changes, tensor by tensor, in the order of the schema. Made before the first commit, read any time."""
        return iter(self._patches)

    def owned_names(self) -> list[str]:
        """Of the tensors that this receiver owns, which `dense` gives, in order."""
        owned = self._owned_tensors()
        return [tensor.name for number, tensor in enumerate(self.schema.tensors) if number in owned]

    def dense(self, changed_only: bool = False) -> Iterator[tuple[str, Array]]:
        """(name, elements of the tensor at `version`, as unsigned integers, flat) of every tensor that this receiver
        owns; `arrays.as_torch` makes tensors of them. Arrays are copies, one tensor at a time.
        """
        patches = {patch.tensor: patch for patch in self._patches}
        owned = self._owned_tensors()
        for number, tensor in enumerate(self.schema.tensors):
            patch = patches.get(number)
            if number not in owned or (changed_only and patch is None):
                continue
            made = self.schema.view(self._shadow.arena, number).copy()
            if patch is not None:
                made[patch.index] = patch.values
            yield tensor.name, made

    def before(self) -> Iterator[tuple[str, Array]]:
        """(name, elements as they are committed now) of every tensor that changes, in order. Views of the shadow: read
        them before the commit.
        """
        for patch in self._patches:
            yield patch.name, self.schema.view(self._shadow.arena, patch.tensor)

    @contextmanager
    def commit(self) -> Iterator[Update]:
        """Within the `with` the caller brings its engine to `version`, perhaps while that is paused; when the body ends
        well the shadow and the receiver's version follow, at once. If it raises, they stay; the update can be committed
        again. Raises WeightsError if this or a newer version is committed already.
        """
        with self._commit(self):
            yield self

    @cached_property
    def _patches(self) -> list[Patch]:
        pieces: dict[int, list[tuple[Array, Array]]] = {}
        for number in sorted(self._staged.patches):
            indices, values = self._staged.patches[number]
            spans = self.schema.blocks[number].spans
            cuts = np.searchsorted(indices, [span.at for span in spans] + [self.schema.blocks[number].elements])
            for span, first, last in zip(spans, cuts, cuts[1:], strict=False):
                if first < last:
                    index = indices[first:last].astype(np.int64) + (span.start - span.at)
                    pieces.setdefault(span.tensor, []).append((index, values[first:last]))
        return [self._patch(tensor, pieces[tensor]) for tensor in sorted(pieces)]

    def _patch(self, number: int, pieces: list[tuple[Array, Array]]) -> Patch:
        of = self.schema.tensors[number]
        index, values = pieces[0] if len(pieces) == 1 else map(np.concatenate, zip(*pieces, strict=True))
        return Patch(of.name, index, values, of.shape, of.dtype, number)

    def _owned_tensors(self) -> set[int]:
        if self._owned is None:
            return set(range(len(self.schema.tensors)))
        return {span.tensor for block in self.schema.blocks if block.number in self._owned for span in block.spans}


def refuse_old(update: Update) -> None:
    """WeightsError unless the update leads on."""
    if update.version <= update.base_version:
        raise WeightsError(f"version {update.version} is committed already: the shadow is at {update.base_version}")


Commit = Callable[[Update], AbstractContextManager[None]]
