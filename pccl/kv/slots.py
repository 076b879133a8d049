"""slots.py - the pure part of mail: messages as slots of a fixed size, in order, and which slots must be offered.

The writer fills slot n only when slot n + AHEAD is offered, so that a reader never asks for one that is not there; a
reader that asks for slot n has read n - AHEAD and all before.
"""

from __future__ import annotations

import struct
from collections import deque

import xxhash

from pccl.errors import ProtocolError, ResourceError
from pccl.kv.messages import MESSAGE_BYTES_MAX

__all__ = ["AHEAD", "HEAD_BYTES", "SLOT_BYTES", "Head", "SlotReader", "SlotWriter"]

SLOT_BYTES = 8192
AHEAD = 32
UNREAD_MAX = 4096
_SLOT = struct.Struct("<IIQ")
ROOM = SLOT_BYTES - _SLOT.size
_HEAD = struct.Struct("<8sHHHHQ")
_MAGIC = b"PCCLKVMB"
HEAD_BYTES = _HEAD.size + 8
VERSION = 1


class Head:
    """The first thing that is read of a box."""

    @staticmethod
    def encode(session: int) -> bytes:
        """Of a box with that session."""
        body = _HEAD.pack(_MAGIC, VERSION, SLOT_BYTES // 64, AHEAD, 0, session)
        return body + bytes(xxhash.xxh3_64_digest(body))

    @staticmethod
    def decode(data: bytes) -> int:
        """Its session. Raises ProtocolError."""
        body, digest = data[: _HEAD.size], data[_HEAD.size :]
        if len(data) != HEAD_BYTES or xxhash.xxh3_64_digest(body) != digest:
            raise ProtocolError("the head of a mail box is damaged")
        magic, version, size, ahead, zero, session = _HEAD.unpack(body)
        if magic != _MAGIC or zero:
            raise ProtocolError("no head of a mail box")
        if (version, size * 64, ahead) != (VERSION, SLOT_BYTES, AHEAD):
            raise ProtocolError(f"a mail box of version {version} with {ahead} slots of {size * 64} bytes ahead")
        return int(session)


class SlotWriter:
    """What is to be offered, filled and withdrawn. Numbers begin at 1."""

    def __init__(self) -> None:
        self.offered = 0
        self.filled = 0
        self.read = 0

    def begin(self) -> range:
        """The slots to be offered before anybody is told of the box."""
        self.offered = AHEAD
        return range(1, AHEAD + 1)

    def put(self, message: bytes) -> list[tuple[int, bytes, int]]:
        """(slot, its bytes, slot to be offered before it is filled) of each. ResourceError: nobody reads."""
        count = max(1, -(-len(message) // ROOM))
        if len(message) > MESSAGE_BYTES_MAX or self.filled - self.read + count > UNREAD_MAX:
            raise ResourceError(f"{self.filled - self.read} slots are unread and the message has {len(message)} bytes")
        out = []
        for at in range(0, count * ROOM, ROOM):
            part = message[at : at + ROOM]
            self.filled += 1
            self.offered = self.filled + AHEAD
            last = at + ROOM >= len(message)
            out.append((self.filled, _SLOT.pack(len(part), last, self.filled) + part, self.offered))
        return out

    def asked(self, number: int) -> range:
        """The reader asks for this one: those that are not needed any more."""
        until = number - AHEAD
        done = range(self.read + 1, until + 1)
        self.read = max(self.read, until)
        return done


class SlotReader:
    """Slots come in any order, messages go in theirs."""

    def __init__(self) -> None:
        self.asked = 0
        self._next = 1
        self._come: dict[int, bytes] = {}
        self._parts: list[bytes] = []
        self._bytes = 0
        self._whole: deque[bytes] = deque()

    def wanted(self) -> range:
        """The slots to be asked for now."""
        until = self._next - 1 + AHEAD
        new = range(self.asked + 1, until + 1)
        self.asked = until
        return new

    def came(self, number: int, slot: bytes) -> list[bytes]:
        """One was read; gives the messages that are complete now. Raises ProtocolError."""
        used, flags, inside = _SLOT.unpack_from(slot)
        if inside != number or used > ROOM or flags > 1:
            raise ProtocolError(f"slot {number} of a mail box holds {used} bytes of slot {inside}, flags {flags}")
        self._come[number] = slot
        while self._next in self._come:
            self._take(self._come.pop(self._next))
            self._next += 1
        whole, self._whole = list(self._whole), deque()
        return whole

    def _take(self, slot: bytes) -> None:
        used, last, _ = _SLOT.unpack_from(slot)
        self._bytes += used
        if self._bytes > MESSAGE_BYTES_MAX:
            raise ProtocolError(f"a message of more than {MESSAGE_BYTES_MAX} bytes")
        self._parts.append(slot[_SLOT.size : _SLOT.size + used])
        if last:
            self._whole.append(b"".join(self._parts))
            self._parts, self._bytes = [], 0
