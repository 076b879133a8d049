"""doctor_wire.py - the doctor's bytes (docs/doctor.md 3), for tests that speak to it as strangers or as traitors.

Written against the text, not the code: what both agree on is right twice.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

MAGIC = b"PCCLDOCT"
SESSION, STREAM, CALL = 1, 2, 3
WELCOME, WRONG_SECRET, BUSY, NOT_EXPECTED = range(4)
PATIENCE_S = 30.0


def key_of(secret: str, run: str = "default") -> bytes:
    return hmac.new(secret.encode(), f"pccl/1 {run} doctor".encode(), hashlib.sha256).digest()


def hello(purpose: int = SESSION, session: bytes = bytes(16), index: int = 0, version: int = 1) -> bytes:
    return MAGIC + struct.pack("<HBBI", version, purpose, 0, index) + session + secrets.token_bytes(32)


def challenge(version: int = 1) -> bytes:
    return MAGIC + struct.pack("<HH", version, 0) + secrets.token_bytes(32)


def proof(key: bytes, said: bytes) -> bytes:
    return hmac.digest(key, b"dialler " + said, "sha256")


def verdict(key: bytes, said: bytes, answer: int) -> bytes:
    return bytes([answer, 0, 0, 0]) + hmac.digest(key, b"acceptor" + bytes([answer]) + said, "sha256")


def receive(sock: socket.socket, count: int) -> bytes:
    """Up to so many bytes: fewer if the other side ends."""
    data = b""
    while len(data) < count:
        try:
            more = sock.recv(count - len(data))
        except ConnectionError:
            break
        if not more:
            break
        data += more
    return data


@contextmanager
def dialled(address: str) -> Iterator[socket.socket]:
    """A plain connection to "host:port"."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE_S) as sock:
        yield sock


def shake(sock: socket.socket, key: bytes, first: bytes) -> tuple[int, bytes]:
    """The dialler's handshake: (answer, everything said); the signature of the verdict is checked."""
    sock.sendall(first)
    said = first + receive(sock, 44)
    assert len(said) == 108, "no CHALLENGE"
    sock.sendall(proof(key, said))
    answer = receive(sock, 36)
    assert len(answer) == 36, "no VERDICT"
    if answer[0] != WRONG_SECRET:
        assert answer == verdict(key, said, answer[0])
    return answer[0], said


def accept(sock: socket.socket, key: bytes) -> bytes:
    """The acceptor's handshake with whoever comes: everything said."""
    first = receive(sock, 64)
    said = first + challenge()
    sock.sendall(said[64:])
    assert receive(sock, 32) == proof(key, said)
    sock.sendall(verdict(key, said, WELCOME))
    return said


class Talk:
    """Frames after the handshake, as arrays."""

    def __init__(self, sock: socket.socket, key: bytes, said: bytes, side: str) -> None:
        self.sock = sock
        self._key = hmac.digest(key, b"talk    " + said, "sha256")
        self._sides = {"client": (b"client", b"listener"), "listener": (b"listener", b"client")}[side]
        self._numbers = [0, 0]

    def signature(self, direction: int, data: bytes) -> bytes:
        head = self._sides[direction] + struct.pack("<Q", self._numbers[direction])
        self._numbers[direction] += 1
        return hmac.digest(self._key, head + data, "sha256")[:16]

    def say(self, *message: Any) -> None:
        self.say_bytes(msgspec.msgpack.encode(message))

    def say_bytes(self, data: bytes) -> None:
        self.sock.sendall(struct.pack("<I", len(data)) + data + self.signature(0, data))

    def hear(self) -> list[Any]:
        """The next message; [] if the other side has ended."""
        head = receive(self.sock, 4)
        if len(head) < 4:
            return []
        data = receive(self.sock, struct.unpack("<I", head)[0])
        assert receive(self.sock, 16) == self.signature(1, data)
        message: list[Any] = msgspec.msgpack.decode(data)
        return message
