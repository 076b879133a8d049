"""make_delta_corpus.py - writes the seed inputs of fuzz_delta.c into the directory delta beside this file.

An input is what to do, width, count (2 bytes), changed (2 bytes), bytes; fuzz_delta.c says more. Blocks come from the
codec itself.

    python tests/c/corpus/make_delta_corpus.py
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pccl.weights import codec
from pccl.weights.codec import Codec

HERE = Path(__file__).parent
AS_BLOCK, WITH_HEADER, AS_STATES = range(3)
HEADER_BYTES = 16  # of digests


def program(way: int, shift: int, count: int, changed: int, data: bytes) -> bytes:
    """One input."""
    return struct.pack("<BBHH", way, shift, count, changed) + data


def state_of(count: int, width: int) -> np.ndarray[Any, Any]:
    """The state that the fuzzer makes up."""
    x, out = 1, bytearray()
    for i in range(count * width):
        x = (x * 1664525 + 1013904223) % (1 << 32)
        out.append(0x30 + (x >> 28) if i % 2 else x >> 24)
    return np.frombuffer(bytes(out), f"u{width}")


def blocks(shift: int, count: int, share: float) -> Iterator[bytes]:
    """A step of so many elements in every form, as a block, and as a body behind a header of the fuzzer's."""
    rng = np.random.default_rng(count)
    old = state_of(count, 1 << shift)
    size = np.where(rng.random(count) < 0.8, 1, rng.integers(0, 1 << 7, count)).astype(old.dtype)
    new = np.where(rng.random(count) < share, old + size, old).astype(old.dtype)
    for one in Codec:
        if one == Codec.ZERO:
            continue
        block = codec.encode(old, new, one)
        changed = codec.describe(block).changed
        head = 1 + sum(1 + (n >= 128) for n in (count, changed)) + (HEADER_BYTES if one >= Codec.DIFF_A else 0)
        yield program(AS_BLOCK, shift, count, changed, block)
        yield program(WITH_HEADER, shift, count, changed, bytes([one]) + block[head:])


def inputs() -> Iterator[bytes]:
    """Sparse and dense steps, short and long ones, blocks that are cut, and states."""
    for shift in range(3):
        for count in (0, 1, 63, 65, 500, 2048):
            yield program(AS_STATES, shift, count, 7, bytes(range(1, 200, 3)))
            yield program(AS_STATES, shift, count, 0, bytes([1, 0, 255, 0]) * 20)
        for count, share in ((40, 0.5), (500, 0.9), (2048, 0.05)):
            for data in blocks(shift, count, share):
                if len(data) < 1200:
                    yield data
                    yield data[: len(data) * 2 // 3]
    yield program(AS_BLOCK, 1, 100, 0, bytes([0x10, 100]))


def main() -> None:
    """Writes every input under the hash of its bytes."""
    directory = HERE / "delta"
    directory.mkdir(exist_ok=True)
    for data in inputs():
        (directory / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


if __name__ == "__main__":
    main()
