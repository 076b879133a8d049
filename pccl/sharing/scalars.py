"""scalars.py - int, float, bool, str, bytes, None and numpy scalars as bytes that are equal for equal values.

The scalars of a content travel together, as one part of it. Bytes from the network end in ProtocolError if they are no
scalars.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from pccl.errors import ProtocolError

__all__ = ["decode", "encode", "pack", "unpack"]

_decoder = msgspec.msgpack.Decoder(list[bytes])


def pack(encoded: Sequence[bytes]) -> bytes:
    """Several encodings as one."""
    return msgspec.msgpack.encode(list(encoded))


def unpack(data: Any, count: int) -> list[bytes]:
    """What `pack` made it of. ProtocolError if it is not so many."""
    try:
        encoded: list[bytes] = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ProtocolError(f"sync_state: scalars that cannot be read: {error}") from error
    if len(encoded) != count:
        raise ProtocolError(f"sync_state: {len(encoded)} scalars where {count} were expected")
    return encoded


def encode(value: Any, what: str) -> bytes:
    """A type letter and the value, equal for equal values."""
    if value is None:
        return b"n"
    if isinstance(value, np.generic):
        if value.dtype.hasobject:
            raise TypeError(f"{what}: dtype {value.dtype} cannot be sent")
        name = value.dtype.name if value.dtype.kind == "V" else value.dtype.str  # bfloat16 and its kin are kind V
        return b"g" + str(name).encode() + b"|" + bytes(value.tobytes())
    if isinstance(value, bool):
        return b"b1" if value else b"b0"
    if isinstance(value, int):
        return b"i" + value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if isinstance(value, float):
        return b"f" + struct.pack("<d", value)
    if isinstance(value, str):
        return b"s" + value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes | bytearray):
        return b"y" + bytes(value)
    raise TypeError(f"{what}: expected a tensor, an array or a scalar, got {type(value).__name__}")


def decode(data: bytes) -> Any:
    """The value that `encode` made the bytes of. ProtocolError if there is none."""
    try:
        return _decode(data)
    except (ValueError, TypeError, IndexError, struct.error) as error:
        raise ProtocolError(f"sync_state: a scalar that cannot be read: {error}") from error


def _decode(data: bytes) -> Any:
    letter, rest = data[:1], data[1:]
    if letter == b"n":
        return None
    if letter == b"g":
        name, _, raw = rest.partition(b"|") if not rest.startswith(b"|") else _split_after_bar(rest)
        return np.frombuffer(raw, np.dtype(name.decode()))[0]
    if letter == b"b":
        return rest == b"1"
    if letter == b"i":
        return int.from_bytes(rest, "little", signed=True)
    if letter == b"f":
        return struct.unpack("<d", rest)[0]
    if letter == b"s":
        return rest.decode("utf-8", "surrogatepass")
    if letter == b"y":
        return rest
    raise ProtocolError(f"sync_state: a scalar of unknown type {letter!r}")


def _split_after_bar(rest: bytes) -> tuple[bytes, bytes, bytes]:
    """Types of one byte have a bar in their names ("|u1")."""
    name, bar, raw = rest[1:].partition(b"|")
    return b"|" + name, bar, raw
