"""binding.py - what keys and digests of a transfer are bound to: its id, group, layer, block; never the place. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash

from pccl.errors import ProtocolError
from pccl.kv.memory import Ids, Numbers
from pccl.transfer.manifest import key_of

__all__ = ["coded_key", "data_key", "packed", "positions_of", "seeds", "tags", "unpacked"]

_PART = np.uint64(0xC2B2AE3D27D4EB4F)

_MIX = np.uint64(0x9E3779B97F4A7C15)


def data_key(transfer: bytes, buffer: int) -> bytes:
    """Of the region over one of P's buffers."""
    return key_of("kv.data", f"{transfer.hex()}/{buffer}")


def coded_key(transfer: bytes, number: int) -> bytes:
    """Of the region over one parcel."""
    return key_of("kv.coded", f"{transfer.hex()}/{number}")


def packed(ids: Ids) -> bytes:
    """As they travel."""
    return ids.astype("<u4").tobytes()


def unpacked(data: bytes, below: int, count: int | None = None) -> Ids:
    """From another peer: all below that, and so many. Raises ProtocolError."""
    if len(data) % 4:
        raise ProtocolError(f"{len(data)} bytes are no list of numbers")
    ids: Ids = np.frombuffer(data, "<u4").astype(np.int64)
    if count is not None and ids.size != count:
        raise ProtocolError(f"{ids.size} blocks where {count} are wanted")
    if ids.size and int(ids.max()) >= below:
        raise ProtocolError(f"position {int(ids.max())} is none of the {below} that are wanted")
    return ids


def tags(hashes: Sequence[Any] | None, count: int) -> Numbers:
    """What each position's digests are bound to: the hash of its block, or the position."""
    if hashes is None:
        return np.arange(count, dtype=np.uint64)
    of = xxhash.xxh3_64_intdigest
    return np.fromiter((of(bytes(one)) for one in hashes), np.uint64, count)


def seeds(transfer: bytes, group: str, layer: str, tag: Numbers, split: int) -> Numbers:
    """Of the digests of one layer's parts, `split` of each piece, by the tags of their positions."""
    tag = (tag[:, None] ^ (np.arange(split, dtype=np.uint64) * _PART)).ravel()
    name = b"%s/%d/%s/%s" % (transfer, len(group.encode()), group.encode(), layer.encode())
    mixed = (tag ^ np.uint64(xxhash.xxh3_64_intdigest(name))) * _MIX
    found: Numbers = mixed ^ (mixed >> np.uint64(29))
    return found


def positions_of(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> Ids:
    """Where it is set."""
    return np.flatnonzero(mask).astype(np.int64, copy=False)
