"""digests.py - the hashes of pccl.weights: BLAKE3 where somebody might forge, xxh3 where only bits flip. Pure.

A Merkle tree over chunks: leaf and node are hashed with a prefix of their own, a level of odd length passes its last
node up. So one chunk can be verified by the root and log2 of their number hashes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import xxhash
from blake3 import blake3

__all__ = ["STRONG_BYTES", "Tree", "leaf", "merkle_root", "quick", "strong"]

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


class Tree:
    """The tree of leaves that are still coming."""

    def __init__(self) -> None:
        self._count = 0
        self._peaks: list[bytes] = []  # nodes above 2^k leaves each, one for each bit of their number

    def add(self, one: bytes) -> None:
        """The next leaf."""
        below = self._count
        while below & 1:
            one = strong(b"node", self._peaks.pop(), one)
            below >>= 1
        self._peaks.append(one)
        self._count += 1

    @property
    def root(self) -> bytes:
        """Of all that were added; their number is part of it."""
        top = self._peaks[-1:]
        for peak in reversed(self._peaks[:-1]):
            top = [strong(b"node", peak, *top)]
        return strong(b"root", self._count.to_bytes(8, "little"), *top)


def merkle_root(leaves: Iterable[bytes]) -> bytes:
    """Of all chunks."""
    tree = Tree()
    for one in leaves:
        tree.add(one)
    return tree.root
