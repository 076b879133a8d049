"""pieces.py - what one of several publishers has of a version: encoded pieces of blocks, as bytes. Pure.

A piece is a run of elements of one block, coded like a block, with the digest of what it leads to. Where a publisher
has all of a block, its piece is the block's record. Bytes from the network end in DamageError.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pccl.weights import codec
from pccl.weights.codec import Codec, DeltaError
from pccl.weights.digests import QUICK_BYTES, quick
from pccl.weights.errors import DamageError
from pccl.weights.gather import Parts
from pccl.weights.schema import Block, Schema

__all__ = ["Piece", "Place", "part_of", "piece_of", "pieces_in", "places"]

Array = np.ndarray[Any, Any]
Place = tuple[int, int, int]  # block, first element, elements

_HEAD = struct.Struct("<8sII")
_MAGIC, _FORM = b"PCCLPART", 1
_ITEM = struct.Struct(f"<IIII{QUICK_BYTES}s")


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements `at` to `at + elements` of a block. `digest`: of these elements after it."""

    block: int
    at: int
    elements: int
    digest: bytes
    encoded: bytes

    @property
    def place(self) -> Place:
        """Which elements these are."""
        return self.block, self.at, self.elements

    def is_all_of(self, block: Block) -> bool:
        """Whether no element of the block is missing."""
        return self.elements == block.elements


def places(schema: Schema, parts: Parts) -> list[tuple[Place, Array]]:
    """What is given, piece by piece, in the order of blocks."""
    found = ((number, parts.pieces(number)) for number in parts.touched())
    return [((number, at, data.size), data) for number, pieces in found for at, data in pieces]


def piece_of(place: Place, old: Array | None, new: Array, codecs: str) -> Piece:
    """The step from old to new; None: all of new."""
    encoded = codec.encode(new, new, Codec.RAW) if old is None else codec.encode(old, new, codecs)
    return Piece(*place, quick(new), encoded)


def part_of(pieces: Iterable[Piece]) -> bytes:
    """As bytes."""
    parts = [b""]
    for piece in pieces:
        head = _ITEM.pack(piece.block, piece.at, piece.elements, len(piece.encoded), piece.digest)
        parts += [head, piece.encoded]
    parts[0] = _HEAD.pack(_MAGIC, _FORM, len(parts) // 2)
    return b"".join(parts)


def pieces_in(data: memoryview, schema: Schema) -> list[Piece]:
    """What `part_of` was given. DamageError if it is none, or not of this schema."""
    if len(data) < _HEAD.size or _HEAD.unpack(data[: _HEAD.size])[:2] != (_MAGIC, _FORM):
        raise DamageError(f"{len(data)} bytes are no part of format {_FORM}")
    at, found = _HEAD.size, []
    for _ in range(_HEAD.unpack(data[: _HEAD.size])[2]):
        if len(data) - at < _ITEM.size:
            raise DamageError("a part ends too soon")
        number, first, elements, nbytes, digest = _ITEM.unpack(data[at : at + _ITEM.size])
        at += _ITEM.size
        if number >= len(schema.blocks) or len(data) - at < nbytes:
            raise DamageError(f"a part has {nbytes} bytes of block {number}, which cannot be")
        piece = Piece(number, first, elements, digest, bytes(data[at : at + nbytes]))
        at += nbytes
        _check(piece, schema.blocks[number])
        found.append(piece)
    if at != len(data):
        raise DamageError(f"a part has {len(data) - at} bytes too many")
    return found


def _check(piece: Piece, block: Block) -> None:
    try:
        info = codec.describe(piece.encoded)
    except DeltaError as error:
        raise DamageError(f"a piece of block {piece.block} is none: {error}") from error
    if (info.width, info.elements) != (block.width, piece.elements) or piece.at + piece.elements > block.elements:
        raise DamageError(f"a piece of block {piece.block} does not fit into it")
