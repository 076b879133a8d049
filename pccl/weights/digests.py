"""digests.py - the hashes of pccl.weights: BLAKE3 where somebody might forge, xxh3 where only bits flip. Pure.

A Merkle tree over chunks: leaf and node are hashed with a prefix of their own, a level of odd length passes its last
node up. So one chunk can be verified by the root and log2 of their number hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import xxhash
from blake3 import blake3

__all__ = ["STRONG_BYTES", "leaf", "merkle_root", "quick", "strong"]

STRONG_BYTES = 32
QUICK_BYTES = 16


def strong(kind: bytes, *parts: Any) -> bytes:
    """32 bytes of BLAKE3 over parts, none of which can be taken for a piece of another."""
    state = blake3(len(kind).to_bytes(4, "little") + kind)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.digest()


def quick(data: Any) -> bytes:
    """16 bytes of xxh3. Without the interpreter's lock if there is much of it."""
    return bytes(xxhash.xxh3_128_digest(data))


def leaf(chunk: Any) -> bytes:
    """Of one chunk."""
    return strong(b"leaf", chunk)


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """Of all chunks; their number is part of it."""
    level = list(leaves)
    while len(level) > 1:
        pairs = [strong(b"node", level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = pairs + level[len(pairs) * 2 :]
    return strong(b"root", len(leaves).to_bytes(8, "little"), *level)
