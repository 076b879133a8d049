"""make_codec_corpus.py - writes the seed inputs of fuzz_codec.c into the directory codec beside this file.

An input is codec, fixes, count (2 bytes), encoded bytes; fuzz_codec.c says more.

    python tests/c/corpus/make_codec_corpus.py
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
CODECS = NONE, BF16, FP16, INT8, E3M0 = range(5)
FIX_SIZE, FIX_SCALES = 1, 2
SPECIAL = (0x00000000, 0x80000000, 0x00000001, 0x007FFFFF, 0x00800000, 0x3F800000, 0xBFC00000, 0x477FF000, 0x7F7FFFFF)
NOT_FINITE = (0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF)


def program(codec: int, fixes: int, count: int, encoded: bytes) -> bytes:
    """One input."""
    return struct.pack("<BBH", codec, fixes, count) + encoded


def words(*values: int) -> bytes:
    """32-bit words in a row."""
    return struct.pack(f"<{len(values)}I", *values)


def inputs() -> Iterator[bytes]:
    """Whole and short blocks, special values, and scales at the ends of their ranges and beyond them."""
    for codec in CODECS:
        for count in (0, 1, 7, 9, 255, 256, 257, 515):
            ramp = bytes((7 * i + 3) % 251 for i in range(4 * count))
            yield program(codec, FIX_SIZE | FIX_SCALES, count, ramp.replace(b"\x80", b"\x7f"))
        yield program(codec, FIX_SIZE, len(SPECIAL), words(*SPECIAL))
        for value in NOT_FINITE:
            yield program(codec, FIX_SIZE, 300, words(value, 0x3F800000, 0x40000000))
        yield program(codec, 0, 300, bytes(1000))
    for codec, block, scales in (
        (INT8, 260, (0x007FFFFF, 0x00800000, 0x7C010203, 0x7C010204, 0x7FC00000, 0xBF800000)),
        (E3M0, 132, (0x037FFFFF, 0x03800000, 0x7F7FFFFF, 0x7F800000, 0x7FC00000, 0xBF800000)),
    ):
        codes = bytes(i % 128 for i in range(block - 4))
        for scale in scales:
            yield program(codec, 0, 256, words(scale) + codes)
            yield program(codec, 0, 512, words(0x3F800000) + codes + words(scale) + codes)
        yield program(codec, 0, 256, words(0x3F800000) + codes[:-1] + b"\x80")


def main() -> None:
    """Writes every input under the hash of its bytes."""
    directory = HERE / "codec"
    directory.mkdir(exist_ok=True)
    for data in inputs():
        (directory / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


if __name__ == "__main__":
    main()
