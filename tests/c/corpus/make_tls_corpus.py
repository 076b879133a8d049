"""make_tls_corpus.py - writes the seed inputs of fuzz_tls.c into the directory tls beside this file.

An input is flags and commands; fuzz_tls.c says which.

    python tests/c/corpus/make_tls_corpus.py
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
DIALLED, SLOWLY = 1, 8
ALERT, HANDSHAKE, DATA = 21, 22, 23
KEY = b"\2"
CUT = b"\5"
UPDATE, ASKED = b"\x18\0\0\1\0", b"\x18\0\0\1\1"
TICKET = b"\4\0\0\3abc"


def raw(data: bytes) -> bytes:
    """Bytes as they are."""
    return bytes((0, len(data))) + data


def record(kind: int, content: bytes, times: int = 0) -> bytes:
    """A sealed record of this content, so many times more."""
    return bytes((1, kind, times, len(content))) + content


def read(first: int = 255, second: int = 255, third: int = 255) -> bytes:
    """Into three pieces, of bytes, 16 and 128 bytes."""
    return bytes((3, first, second, third))


def write(first: int = 200, second: int = 200) -> bytes:
    """From two pieces, of bytes and of two."""
    return bytes((4, first, second))


def commands() -> Iterator[bytes]:
    """What an honest other side does, and what none does."""
    data = record(DATA, b"abcdefg")
    yield data + read() + write() + read()
    yield record(DATA, bytes(range(250)), 255) * 3 + read() + read(1, 0, 0) + read()
    yield record(DATA, bytes(range(250)), 255) + read(200, 3, 127) + read(0, 0, 128) + data + read()
    yield data + record(HANDSHAKE, UPDATE) + KEY + data + read() + write()
    yield record(HANDSHAKE, ASKED) + KEY + data + read() + write() + record(HANDSHAKE, ASKED) + KEY + read() + write()
    yield record(HANDSHAKE, UPDATE[:3]) + record(HANDSHAKE, UPDATE[3:]) + KEY + data + read()
    yield record(HANDSHAKE, UPDATE) + data + read() + write()
    yield record(HANDSHAKE, UPDATE + TICKET) + read()
    yield record(HANDSHAKE, UPDATE[:4] + b"\2") + read()
    yield record(HANDSHAKE, b"\x18\0\0\2\0\0") + read()
    yield record(HANDSHAKE, TICKET * 3) + data + read()
    yield (
        record(HANDSHAKE, TICKET[:5])
        + record(HANDSHAKE, TICKET[5:] + TICKET[:2])
        + record(HANDSHAKE, TICKET[2:])
        + data
        + read()
    )
    yield record(HANDSHAKE, TICKET[:5]) + data + read() + write()
    yield record(HANDSHAKE, b"\r\0\0\1a") + read()
    yield record(HANDSHAKE, b"") + read()
    yield data + record(ALERT, b"\1\0") + data + read() + read() + write()
    yield record(ALERT, b"\1\x5a") + data + read()
    yield record(ALERT, b"\2\x30") + read() + write()
    yield record(ALERT, b"\2") + read()
    yield record(0, b"abc\x17\0\0") + record(0, b"\x17") + record(0, b"\x15\0") + data + read()
    yield record(0, b"\0" * 200, 3) + read()
    yield record(20, b"\1") + read()
    yield record(DATA, b"") * 33 + data + read()
    yield data + raw(b"\x17\3\3\0\x20" + bytes(32)) + read() + read()
    yield raw(b"\x17\3\3\x40\x12") + read()
    yield raw(b"\x17\3\3\0\x10") + read()
    yield raw(b"\x15\3\3\0\2\2\x30") + read()
    yield data + raw(b"\x17\3\3") + CUT + read() + read()
    yield write(0, 0) + write(1, 0) + write(255, 255) * 3 + data + read()


def inputs() -> Iterator[bytes]:
    """Each by either side, in any suite, quickly and slowly."""
    for number, body in enumerate(commands()):
        yield bytes((DIALLED | (number % 3) << 1,)) + body
        yield bytes((SLOWLY | (number % 3) << 1, 1 + number)) + body


def main() -> None:
    """Writes them, by their hashes."""
    to = HERE / "tls"
    to.mkdir(exist_ok=True)
    for data in inputs():
        (to / hashlib.sha1(data).hexdigest()[:16]).write_bytes(data)


if __name__ == "__main__":
    main()
