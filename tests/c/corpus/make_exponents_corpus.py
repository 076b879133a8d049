"""make_exponents_corpus.py - writes the seed inputs of fuzz_exponents.c into the directory exponents beside this file.

An input is what to do, count (3 bytes), bytes; fuzz_exponents.c says more, csrc/exponents.h what an encoding is.

    python tests/c/corpus/make_exponents_corpus.py
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).parent
DECODE, ENCODE, LARGE = 0, 1, 0xF8
SMALL = 2300
SPECIAL = (0x0000, 0x8000, 0x0001, 0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFFF, 0x3F80, 0xBF80, 0x0080)


def program(what: int, count: int, data: bytes) -> bytes:
    """One input."""
    what |= LARGE if count > SMALL else 0
    return struct.pack("<BHB", what, count & 0xFFFF, count >> 16) + data


def block(
    width: int, codes: Sequence[int], others: bytes, table: bytes | None = None, count: int | None = None
) -> bytes:
    """An encoding of so many values, right or not: `count` of those without a code, if it is not how many there are."""
    known = (1 << width) - 1
    table = bytes(range(120, 120 + known)) if table is None else table
    bits = sum(code << width * at for at, code in enumerate(codes))
    packed = bits.to_bytes((len(codes) * width + 7) // 8, "little")
    rests = bytes((37 * at) % 256 for at in range(len(codes)))
    return bytes([width]) + table + struct.pack("<I", len(others) if count is None else count) + rests + packed + others


def inputs() -> Iterator[bytes]:
    """Whole blocks of every width, others that are too few and too many, and values of all kinds."""
    for width in range(1, 6):
        none = (1 << width) - 1
        codes = [at % (none + 1) for at in range(67)]
        others = bytes(at % 256 for at in range(codes.count(none)))
        yield program(DECODE, 67, block(width, codes, others))
        yield program(DECODE, 67, block(width, codes, others[:-1]))
        yield program(DECODE, 67, block(width, codes, others + b"x"))
        yield program(DECODE, 67, block(width, codes, others, count=0xFFFFFFFF))
        yield program(DECODE, 67, block(width, codes, others, table=bytes(none)))
        yield program(DECODE, 66, block(width, codes, others))
    yield program(DECODE, 9, b"\0" + bytes(range(18)))
    yield program(DECODE, 9, b"\0" + bytes(range(17)))
    yield program(DECODE, 9, b"\x06" + bytes(range(200)))
    yield program(DECODE, 0, b"")
    yield program(DECODE, 0, b"\0")
    for count in (1, 7, 8, 9, 2047, 2048, 2049, 65535, 65536, 65537, 69000):
        yield program(ENCODE, count, struct.pack(f"<{len(SPECIAL)}H", *SPECIAL))
        yield program(ENCODE, count, bytes((at * at * 31 + at // 7) % 256 for at in range(997)))
        yield program(ENCODE, count, b"\x12\x3f" * 3 + b"\x01\xbf")


def main() -> None:
    """Writes them, by their hashes."""
    to = HERE / "exponents"
    to.mkdir(exist_ok=True)
    for data in inputs():
        (to / hashlib.sha1(data).hexdigest()[:16]).write_bytes(data)


if __name__ == "__main__":
    main()
