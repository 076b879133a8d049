"""schema.py - what a model's weights are: names, shapes, dtypes in order; how they are cut into blocks; where all lies.

Elements are unsigned integers of 1, 2 or 4 bytes (an element of 8 bytes counts as two): bits, never numbers. A tensor
of at least PACK_BELOW elements has blocks of its own; smaller neighbours of one width share a block, whole. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import msgspec
import numpy as np

from pccl.buffers import byte_view, describe_dtype
from pccl.weights.codec import BLOCK_ELEMENTS
from pccl.weights.digests import strong
from pccl.weights.errors import SchemaError

__all__ = ["ALIGN", "Block", "Schema", "Span", "Tensor"]

PACK_BELOW = BLOCK_ELEMENTS // 4
ALIGN = 64
_UINT: dict[int, np.dtype[Any]] = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16), 4: np.dtype(np.uint32)}
_ITEMSIZE = {
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    **dict.fromkeys(("float32", "int32", "uint32"), 4),
    **dict.fromkeys(("bfloat16", "float16", "int16", "uint16"), 2),
    **dict.fromkeys(("int8", "uint8", "bool"), 1),
}


def itemsize_of(dtype: str) -> int:
    """Bytes of an element. SchemaError for a dtype that is not known."""
    if dtype.startswith("float8_"):
        return 1
    try:
        return _ITEMSIZE[dtype]
    except KeyError:
        raise SchemaError(f"weights cannot be of dtype {dtype!r}") from None


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor. `elements`: of `width` bytes, as they are coded."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    width: int = field(init=False)
    elements: int = field(init=False)

    def __post_init__(self) -> None:
        itemsize = itemsize_of(self.dtype)
        count = 1
        for size in self.shape:
            if size < 0:
                raise SchemaError(f"{self.name!r} has a negative size: {self.shape}")
            count *= size
        object.__setattr__(self, "width", min(itemsize, 4))
        object.__setattr__(self, "elements", count * itemsize // min(itemsize, 4))

    @property
    def nbytes(self) -> int:
        """Of all of it."""
        return self.elements * self.width


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a tensor within a block: elements `start` to `stop` of the tensor are from `at` on in the block."""

    tensor: int
    start: int
    stop: int
    at: int


@dataclass(frozen=True, slots=True)
class Block:
    """One block. `offset`: first byte in the arena."""

    number: int
    width: int
    elements: int
    offset: int
    spans: tuple[Span, ...]

    @property
    def nbytes(self) -> int:
        """Of the state."""
        return self.elements * self.width


class _Held:
    """Memory, for an array that is to keep its owner: a tensor may come from a generator that forgets it."""

    def __init__(self, data: np.ndarray[Any, Any], owner: Any) -> None:
        self.__array_interface__ = data.__array_interface__
        self.owner = (data, owner)


class Schema:
    """Ordered tensors. Equal schemas have equal hashes, and cut alike."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.tensors = tuple(tensors)
        self.index = {tensor.name: number for number, tensor in enumerate(self.tensors)}
        if len(self.index) != len(self.tensors):
            raise SchemaError("two tensors have one name")
        self.blocks = tuple(_cut(self.tensors))
        last = self.blocks[-1] if self.blocks else None
        self.arena_bytes = 0 if last is None else _aligned(last.offset + last.nbytes)
        self._places = self._find_places()

    @classmethod
    def of(cls, named: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> Schema:
        """That of tensors or arrays by name, such as `model.state_dict()`."""
        pairs = named.items() if isinstance(named, Mapping) else named
        return cls(Tensor(name, tuple(value.shape), describe_dtype(value)) for name, value in pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and self.tensors == other.tensors

    def __hash__(self) -> int:
        return hash(self.tensors)

    def __repr__(self) -> str:
        return f"<pccl.weights.Schema of {len(self.tensors)} tensors, {self.nbytes} bytes, {len(self.blocks)} blocks>"

    @cached_property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @cached_property
    def hash(self) -> bytes:
        """32 bytes that say all of it."""
        return strong(b"pccl.weights/schema", self.encode())

    def encode(self) -> bytes:
        """As msgpack."""
        return msgspec.msgpack.encode([[t.name, list(t.shape), t.dtype] for t in self.tensors])

    @classmethod
    def decode(cls, data: bytes) -> Schema:
        """What `encode` gave. SchemaError if it is something else."""
        try:
            rows = msgspec.msgpack.decode(data, type=list[tuple[str, tuple[int, ...], str]])
        except (msgspec.MsgspecError, ValueError) as error:
            raise SchemaError(f"this is no schema: {error}") from error
        return cls(Tensor(*row) for row in rows)

    # -- the arena --

    def offset_of(self, tensor: int) -> int:
        """First byte of a tensor in the arena, where all of it is in one piece."""
        return self._places[tensor]

    def view(self, arena: np.ndarray[Any, Any], tensor: int) -> np.ndarray[Any, Any]:
        """A tensor in the arena, as flat unsigned integers."""
        of, at = self.tensors[tensor], self._places[tensor]
        return arena[at : at + of.nbytes].view(_UINT[of.width])

    def block_view(self, arena: np.ndarray[Any, Any], block: Block) -> np.ndarray[Any, Any]:
        """A block in the arena, as flat unsigned integers."""
        return arena[block.offset : block.offset + block.nbytes].view(_UINT[block.width])

    def blocks_of(self, wanted: Callable[[str], bool]) -> frozenset[int]:
        """Numbers of the blocks that hold something of the tensors whose names are wanted."""
        chosen = [wanted(tensor.name) for tensor in self.tensors]
        return frozenset(b.number for b in self.blocks if any(chosen[span.tensor] for span in b.spans))

    def names_in(self, block: int) -> list[str]:
        """Of the tensors that a block holds something of."""
        return [self.tensors[span.tensor].name for span in self.blocks[block].spans]

    def flat(self, tensor: int, value: Any) -> np.ndarray[Any, Any]:
        """A tensor or array of the user's as flat unsigned integers: a view if it is contiguous, which keeps it
        alive. SchemaError if it is not what the schema says.
        """
        of = self.tensors[tensor]
        data, shape, owner = byte_view(value, writable=False, what=of.name)
        dtype = describe_dtype(value)
        if dtype != of.dtype or tuple(shape) != of.shape:
            raise SchemaError(f"{of.name!r} is {dtype} {tuple(shape)}, the schema says {of.dtype} {of.shape}")
        return np.asarray(_Held(data, owner)).view(_UINT[of.width])

    def _find_places(self) -> list[int]:
        places = [0] * len(self.tensors)
        for block in self.blocks:
            for span in block.spans:
                if span.start == 0:
                    places[span.tensor] = block.offset + span.at * block.width
        return places


def uint_of(width: int) -> np.dtype[Any]:
    """The dtype of elements."""
    return _UINT[width]


def _aligned(offset: int) -> int:
    return -(-offset // ALIGN) * ALIGN


def _cut(tensors: tuple[Tensor, ...]) -> Iterable[Block]:
    number = offset = 0
    open_spans: list[Span] = []
    filled = width = 0

    def closed() -> Block:
        nonlocal number, offset, open_spans, filled
        block = Block(number, width, filled, offset, tuple(open_spans))
        number, offset = number + 1, _aligned(offset + block.nbytes)
        open_spans, filled = [], 0
        return block

    for place, tensor in enumerate(tensors):
        large = tensor.elements >= PACK_BELOW
        if open_spans and (large or tensor.width != width or filled + tensor.elements > BLOCK_ELEMENTS):
            yield closed()
        width = tensor.width
        if not large:
            if tensor.elements:
                open_spans.append(Span(place, 0, tensor.elements, filled))
                filled += tensor.elements
            continue
        for start in range(0, tensor.elements, BLOCK_ELEMENTS):
            stop = min(start + BLOCK_ELEMENTS, tensor.elements)
            open_spans, filled = [Span(place, start, stop, 0)], stop - start
            yield closed()
    if open_spans:
        yield closed()
