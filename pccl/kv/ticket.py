"""ticket.py - what D gives to P, by whatever way: what is wanted, by whom, how soon. Bytes, validated; pure."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from pccl.errors import ProtocolError
from pccl.kv.layout import Layout
from pccl.kv.messages import Name, Rate, Seconds, Tid
from pccl.types import PEER_ID_BYTES

__all__ = ["WANTED_MAX", "CodecWish", "Priority", "Ticket", "Wanted"]

Priority = Literal["critical", "normal", "prefetch"]
CodecWish = Literal["auto", "raw", "bf16", "int8"]
_HASH_BYTES_MAX = 64
WANTED_MAX = 1 << 18
_CODECS_MAX = 16
_VERSION = 2


class Wanted(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Of one group: how many blocks, and at which positions there is one already, by its hash. `first`: of a pull,
    which block of the offer is the first of them.
    """

    blocks: Annotated[int, Meta(ge=0, le=WANTED_MAX)]
    have: Annotated[
        dict[Annotated[int, Meta(ge=0)], Annotated[bytes, Meta(max_length=_HASH_BYTES_MAX)]],
        Meta(max_length=WANTED_MAX),
    ] = {}
    first: Annotated[int, Meta(ge=0, le=WANTED_MAX)] = 0


class Ticket(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Opens one send. `left_s`: until the receiver's deadline, when the ticket was made. `wanted`: of every group of
    `layout`, the receiver's. `codec`: see `Pool.prep_recv`; `decodes`: the codecs that it knows, and how fast.
    """

    transfer: Tid
    peer: Annotated[bytes, Meta(min_length=PEER_ID_BYTES, max_length=PEER_ID_BYTES)]
    pool: Name
    request: Name
    left_s: Seconds
    priority: Priority
    wanted: Annotated[tuple[Wanted, ...], Meta(max_length=64)]
    layout: Layout
    codec: CodecWish = "auto"
    decodes: Annotated[dict[Name, Rate], Meta(max_length=_CODECS_MAX)] = {}

    def encode(self) -> bytes:
        """As bytes."""
        return _ENCODER.encode(("kvticket", _VERSION, self))

    @classmethod
    def decode(cls, data: bytes) -> Ticket:
        """Raises ProtocolError."""
        try:
            kind, version, *_ = _ANY.decode(data)
            if (kind, version) != ("kvticket", _VERSION):
                raise ProtocolError(f"no ticket of this version: {kind!r} {version!r}")
            ticket: Ticket = _DECODER.decode(data)[2]
        except (msgspec.DecodeError, ValueError, TypeError) as error:
            raise ProtocolError(f"no ticket: {error}") from None
        if len(ticket.wanted) != len(ticket.layout.groups):
            raise ProtocolError(f"a ticket for {len(ticket.wanted)} of {len(ticket.layout.groups)} groups")
        for wanted in ticket.wanted:
            if any(position >= wanted.blocks for position in wanted.have):
                raise ProtocolError(f"a ticket that has blocks beyond the {wanted.blocks} that it wants")
        return ticket


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(tuple[str, int, Ticket])
_ANY = msgspec.msgpack.Decoder(list)
