"""receipt.py - what a peer that accepts a push shows to the one that pushes: a door, and later a receipt. Pure.

The *door* of a name says that this peer accepts it, and by which ticket, a number that is never used twice. The
*receipt*, whose generation is the ticket, is offered with the door but has no bytes before the push has ended; whoever
asks for it has begun to push. Both have a fixed size; bytes from the network end in ProtocolError when they are not
what they should be.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from pccl.errors import ArgumentError, ProtocolError
from pccl.transfer.manifest import GENERATION_MAX, NAME_BYTES_MAX, check_name, digest_of, key_of

__all__ = [
    "DOOR_BYTES",
    "DOOR_GENERATION",
    "NO_ROOT",
    "RECEIPT_BYTES",
    "Door",
    "Receipt",
    "door_key",
    "pushed_name",
    "receipt_key",
]

#: As a head, a door is asked for before anything is known of it.
DOOR_GENERATION = 1

_VERSION = 1
_DIGEST_BYTES = 16
_DOOR = struct.Struct("<8sHxxxxxxQ")
_DOOR_MAGIC, _RECEIPT_MAGIC = b"PCCLDOOR", b"PCCLRCPT"
NO_ROOT = bytes(_DIGEST_BYTES)
_TEXT_BYTES = 360
_RECEIPT = struct.Struct(f"<8sHxxxxxxQ16s16s{_TEXT_BYTES}s")
DOOR_BYTES = _DOOR.size + _DIGEST_BYTES
RECEIPT_BYTES = _RECEIPT.size + _DIGEST_BYTES
CAUSES = frozenset({"", "gone", "lost", "digest", "protocol", "size", "memory", "timeout", "cancelled"})


def door_key(name: str) -> bytes:
    """Under which the door of a name is offered."""
    return key_of("door", name)


def receipt_key(name: str) -> bytes:
    """Under which the receipt is offered, with the ticket as its generation."""
    return key_of("receipt", name)


def pushed_name(name: str, to: bytes) -> str:
    """The name under which what is pushed is offered to the one that accepts it: no other offer has it. ArgumentError
    if it is too long.
    """
    full = f"push/{to.hex()}/{name}"
    spare = len(check_name(full[: len(full) - len(name)]))
    nbytes = len(check_name(name))
    if nbytes + spare > NAME_BYTES_MAX:
        raise ArgumentError(f"what is pushed has a name of {NAME_BYTES_MAX - spare} bytes at most, not {nbytes}")
    return full


@dataclass(slots=True, frozen=True)
class Door:
    """An acceptance that has not ended."""

    ticket: int

    def encode(self) -> bytes:
        """As DOOR_BYTES."""
        packed = _DOOR.pack(_DOOR_MAGIC, _VERSION, self.ticket)
        return packed + digest_of(packed)

    @classmethod
    def decode(cls, data: bytes) -> Door:
        """From the network."""
        magic, version, ticket = _unpack(_DOOR, data, "a door")
        if magic != _DOOR_MAGIC or version != _VERSION or not 0 < ticket <= GENERATION_MAX:
            raise ProtocolError(f"no door of version {_VERSION}: {magic!r}, {version}, ticket {ticket}")
        return cls(ticket)


@dataclass(slots=True, frozen=True)
class Receipt:
    """How an acceptance has ended. `cause`: "" if it went well, else as of TransferError, or "timeout" or "cancelled".
    `generation`, `root`: of the content that was taken; 0 and zeros if none was. `text`: for people.
    """

    generation: int
    root: bytes
    cause: str
    text: str

    def encode(self) -> bytes:
        """As RECEIPT_BYTES; a long text loses its end."""
        text = self.text.encode("utf-8", "replace")[:_TEXT_BYTES]
        packed = _RECEIPT.pack(_RECEIPT_MAGIC, _VERSION, self.generation, self.root, self.cause.encode(), text)
        return packed + digest_of(packed)

    @classmethod
    def decode(cls, data: bytes) -> Receipt:
        """From the network."""
        magic, version, generation, root, cause, text = _unpack(_RECEIPT, data, "a receipt")
        known = cause.rstrip(b"\0").decode("ascii", "replace")
        if magic != _RECEIPT_MAGIC or version != _VERSION or known not in CAUSES:
            raise ProtocolError(f"no receipt of version {_VERSION}: {magic!r}, {version}, {cause!r}")
        return cls(generation, root, known, text.rstrip(b"\0").decode("utf-8", "replace"))


def _unpack(form: struct.Struct, data: bytes, what: str) -> tuple[Any, ...]:
    if len(data) != form.size + _DIGEST_BYTES:
        raise ProtocolError(f"{what} has {form.size + _DIGEST_BYTES} bytes, not {len(data)}")
    packed = data[: form.size]
    if digest_of(packed) != data[form.size :]:
        raise ProtocolError(f"{what} does not have its digest")
    return form.unpack(packed)
