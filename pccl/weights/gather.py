"""gather.py - what a publisher is given, as blocks: whole tensors, shards with their place, or an arena.

A block of one large tensor is a view of that; small tensors that share a block are copied together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pccl.errors import ArgumentError
from pccl.weights.errors import SchemaError
from pccl.weights.schema import Schema

__all__ = ["Arena", "New", "ShardSpec", "gather"]

New = Mapping[str, Any] | Iterable[Sequence[Any]]
Array = np.ndarray[Any, Any]
Ready = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """Which part of a tensor a local shard is: rows `start` on along dimension 0, whole in all others."""

    start: int


class Parts:
    """Pieces of tensors: of each, (first element, elements)."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._of: dict[int, list[tuple[int, Array]]] = {}

    def add(self, tensor: int, start: int, data: Array) -> None:
        """One more piece."""
        if data.size:
            self._of.setdefault(tensor, []).append((start, data))

    def touched(self) -> list[int]:
        """Numbers of the blocks that something of is given."""
        return [
            block.number
            for block in self._schema.blocks
            if any(
                start < span.stop and span.start < start + data.size
                for span in block.spans
                for start, data in self._of.get(span.tensor, ())
            )
        ]

    def pieces(self, number: int) -> list[tuple[int, Array]]:
        """What is given of a block, in order: (first element, elements). Those that touch are one."""
        found = []
        for span in self._schema.blocks[number].spans:
            for start, data in self._of.get(span.tensor, ()):
                first, last = max(start, span.start), min(start + data.size, span.stop)
                if first < last:
                    found.append((span.at + first - span.start, data[first - start : last - start]))
        runs: list[tuple[int, int, list[Array]]] = []
        for at, data in sorted(found, key=lambda piece: piece[0]):
            if runs and runs[-1][1] == at:
                begin, _, parts = runs.pop()
                runs.append((begin, at + data.size, [*parts, data]))
            else:
                runs.append((at, at + data.size, [data]))
        return [(at, parts[0] if len(parts) == 1 else np.concatenate(parts)) for at, _, parts in runs]

    def ready(self, number: int) -> Ready | None:
        """The block encoded, and the digest of what it leads to, if that is there already."""
        return None

    def block(self, number: int, arena: Array) -> Array:
        """The block as it is to be; what is not given is as in the arena."""
        block = self._schema.blocks[number]
        if len(block.spans) == 1:
            span = block.spans[0]
            for start, data in self._of.get(span.tensor, ()):
                if start <= span.start and span.stop <= start + data.size:
                    whole: Array = data[span.start - start : span.stop - start]
                    return whole
        made: Array = self._schema.block_view(arena, block).copy()
        for span in block.spans:
            for start, data in self._of.get(span.tensor, ()):
                first, last = max(start, span.start), min(start + data.size, span.stop)
                if first < last:
                    made[span.at + first - span.start : span.at + last - span.start] = data[
                        first - start : last - start
                    ]
        return made


class Arena:
    """All of an arena."""

    def __init__(self, schema: Schema, arena: Array) -> None:
        self._schema, self._arena = schema, arena

    def touched(self) -> list[int]:
        """All blocks."""
        return list(range(len(self._schema.blocks)))

    def ready(self, number: int) -> Ready | None:
        """See Parts."""
        return None

    def block(self, number: int, arena: Array) -> Array:
        """The block as it is to be."""
        return self._schema.block_view(self._arena, self._schema.blocks[number])


def gather(schema: Schema, named: New) -> Parts:
    """What was given, checked against the schema. SchemaError, ArgumentError."""
    parts = Parts(schema)
    items: Iterable[Any] = named.items() if isinstance(named, Mapping) else named
    for item in items:
        name, value, spec = item[0], item[1], list(item[2:])
        number = schema.index.get(name)
        if number is None:
            raise SchemaError(f"the schema has no tensor {name!r}")
        shard, start = _shard_of(name, value, spec)
        if start is None:
            parts.add(number, 0, schema.flat(number, shard))
        else:
            parts.add(number, *_place(schema, number, shard, start))
    return parts


def _shard_of(name: str, value: Any, spec: list[Any]) -> tuple[Any, int | None]:
    """(what is here, its first row; None: all of it)."""
    if spec:
        if not isinstance(spec[0], ShardSpec):
            raise ArgumentError(f"{name!r}: the place of a shard must be a ShardSpec, not {type(spec[0]).__name__}")
        return value, spec[0].start
    if not hasattr(value, "to_local"):
        return value, None
    return value.to_local(), _first_row(name, value)


def _first_row(name: str, value: Any) -> int | None:
    """Of a DTensor's local shard; None if all of it is here."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    for placement in value.placements:
        if placement.is_partial() or (placement.is_shard() and placement.dim != 0):
            raise ArgumentError(f"{name!r} is placed {placement}: only shards along dimension 0 can be published")
    _, offset = compute_local_shape_and_global_offset(value.shape, value.device_mesh, value.placements)
    return int(offset[0]) if any(placement.is_shard() for placement in value.placements) else None


def _place(schema: Schema, number: int, shard: Any, row: int) -> tuple[int, Array]:
    tensor = schema.tensors[number]
    shape = tuple(shard.shape)
    if not tensor.shape or shape[1:] != tensor.shape[1:] or not 0 <= row <= row + shape[0] <= tensor.shape[0]:
        raise SchemaError(f"a shard of {tensor.name!r} is {shape} from row {row} on, the tensor is {tensor.shape}")
    of_shard = Schema.of([(tensor.name, shard)])
    if of_shard.tensors[0].dtype != tensor.dtype:
        raise SchemaError(f"a shard of {tensor.name!r} is {of_shard.tensors[0].dtype}, the schema says {tensor.dtype}")
    per_row = tensor.elements // max(1, tensor.shape[0])
    return row * per_row, of_shard.flat(0, shard)
