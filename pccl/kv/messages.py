"""messages.py - what two pools say to each other (docs/kv.md): its shape, its limits, its bytes. Pure.

One message is one msgpack array [type, field, ...]. `decode` gives a message whose every field has been checked, or
raises ProtocolError: no other error, whatever the bytes. Whether it makes sense now is for receive.py and send.py.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from pccl.errors import ProtocolError

__all__ = [
    "MESSAGE_BYTES_MAX",
    "META_BYTES_MAX",
    "TEXT_MAX",
    "Beat",
    "Coded",
    "Committed",
    "End",
    "Finish",
    "Grouping",
    "Message",
    "Open",
    "Pull",
    "Ready",
    "Sums",
    "Taken",
    "decode",
    "encode",
]

MESSAGE_BYTES_MAX: Final = 4 << 20
META_BYTES_MAX: Final = 1 << 16
TEXT_MAX: Final = 400
TICKET_BYTES_MAX: Final = 2 << 20
_GROUPS_MAX: Final = 64
_BLOCKS_MAX: Final = 1 << 18

Tid = Annotated[bytes, Meta(min_length=16, max_length=16)]
Name = Annotated[str, Meta(min_length=1, max_length=255)]
Text = Annotated[str, Meta(max_length=TEXT_MAX)]
U32 = Annotated[int, Meta(ge=0, lt=1 << 32)]
U62 = Annotated[int, Meta(ge=0, lt=1 << 62)]
Seconds = Annotated[float, Meta(ge=0.0, le=1e9)]
#: Bytes a second; 0: not known.
Rate = Annotated[float, Meta(ge=0.0, le=1e15)]
State = Annotated[str, Meta(pattern=r"\A(aborted|expired|failed)\Z")]
#: Ids of blocks or positions, 4 bytes each, little endian.
Packed = Annotated[bytes, Meta(max_length=4 * _BLOCKS_MAX)]
#: (buffer, offset of place 0, bytes from one place to the next).
Place = tuple[Annotated[int, Meta(ge=0, lt=1 << 16)], U62, U62]


class _Message(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Base of all."""


class Grouping(_Message, frozen=True):
    """One group of an Open. `layers`: where each layer's pieces are; `blocks`: the place of each position; `need`: one
    bit for each, the first in the lowest bit of the first byte; b"": all. `tags`: 8 bytes for each; b"": their
    positions. `codec`: of a group that does not travel raw; then `layers` and `blocks` are empty.
    """

    layers: Annotated[tuple[Place, ...], Meta(max_length=4096)]
    blocks: Packed
    need: Annotated[bytes, Meta(max_length=_BLOCKS_MAX // 8)]
    tags: Annotated[bytes, Meta(max_length=_BLOCKS_MAX * 8)]
    codec: Name = "raw"


class Open(_Message, frozen=True, tag="open"):
    """P begins to serve a ticket."""

    transfer: Tid
    left_s: Seconds
    groups: Annotated[tuple[Grouping, ...], Meta(max_length=_GROUPS_MAX)]


class Ready(_Message, frozen=True, tag="ready"):
    """These positions of a layer can be read; b"": all that are needed."""

    transfer: Tid
    group: U32
    layer: U32
    positions: Packed


class Sums(_Message, frozen=True, tag="sums"):
    """Digests of their parts, 8 bytes each, in the order of the positions; b"" is for `count` of them from `first`."""

    transfer: Tid
    group: U32
    layer: U32
    first: U32
    count: U32
    positions: Packed
    digests: Annotated[bytes, Meta(max_length=_BLOCKS_MAX * 8)]


class Coded(_Message, frozen=True, tag="coded"):
    """A parcel of `nbytes` can be read: these parts of a layer, encoded; and the digests of what they are decoded to,
    8 bytes each. `parts`: b"" is for `count` of them from `first`.
    """

    transfer: Tid
    group: U32
    layer: U32
    number: U32
    nbytes: U32
    first: U32
    count: U32
    parts: Packed
    digests: Annotated[bytes, Meta(max_length=_BLOCKS_MAX * 8)]


class Taken(_Message, frozen=True, tag="taken"):
    """D has decoded and verified a parcel, and does not read it again."""

    transfer: Tid
    number: U32


class Finish(_Message, frozen=True, tag="finish"):
    """All has been said. `meta`: the user's."""

    transfer: Tid
    meta: Annotated[bytes, Meta(max_length=META_BYTES_MAX)]


class Committed(_Message, frozen=True, tag="committed"):
    """D has everything, verified. `rate`: what the link from P carries, as D sees it."""

    transfer: Tid
    rate: Rate = 0.0


class End(_Message, frozen=True, tag="end"):
    """It ended so, here."""

    transfer: Tid
    state: State
    cause: Name
    text: Text


class Pull(_Message, frozen=True, tag="pull"):
    """D wants what is offered by that name."""

    offer: Name
    ticket: Annotated[bytes, Meta(max_length=TICKET_BYTES_MAX)]


class Beat(_Message, frozen=True, tag="beat"):
    """D still waits for these. `rate`: as of Committed."""

    transfers: Annotated[tuple[Tid, ...], Meta(max_length=1 << 16)]
    rate: Rate = 0.0


Message = Open | Ready | Sums | Coded | Taken | Finish | Committed | End | Pull | Beat

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """As bytes."""
    return _ENCODER.encode(message)


def decode(data: bytes) -> Message:
    """From another peer."""
    try:
        return _DECODER.decode(data)  # type: ignore[no-any-return]
    except (msgspec.DecodeError, ValueError) as error:
        raise ProtocolError(f"no message of a pool: {error}") from None
