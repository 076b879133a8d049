"""talk.py - what client and listener say to each other once each has proved itself, and how it is framed and signed.

A frame: its length (u32, little-endian), a msgpack array [type, field, ...], 16 bytes of HMAC-SHA256 over the side, the
number of the frame and the array. What does not decode, is signed wrongly or comes out of turn ends the examination.
"""

from __future__ import annotations

import hmac
import struct
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from pccl.doctor.connection import Connection, within
from pccl.doctor.errors import GaveUp
from pccl.doctor.facts import (
    ADDRESSES_MAX,
    I64,
    STREAMS_MAX,
    Call,
    Host,
    Measurements,
    Place,
    Received,
    Role,
    Sent,
    Word,
)
from pccl.errors import ProtocolError
from pccl.messages import Address

__all__ = ["Bye", "CallMe", "Called", "Failed", "FlowDone", "FlowPlan", "FlowReady", "Open", "Ping", "Pong", "Talk"]

FRAME_BYTES_MAX: Final = 32 << 10
SIGNATURE_BYTES: Final = 16
SECONDS_MAX: Final = 30.0
_LENGTH: Final = struct.Struct("<I")

Seconds = Annotated[float, Meta(ge=0.0, le=SECONDS_MAX)]
SessionId = Annotated[bytes, Meta(min_length=16, max_length=16)]


class Said(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=True):
    """Base of all messages."""


class Open(Said, frozen=True):
    """From the client, first: who it is, and how long a flow is to take at most."""

    host: Host
    seconds: Seconds


class Welcome(Said, frozen=True):
    """The answer: who the listener is, and where it sees the client."""

    session: SessionId
    listener: Place
    client_seen: Word


class Ping(Said, frozen=True):
    """Answered with Pong."""


class Pong(Said, frozen=True):
    """When the Ping came and when this was sent, by the listener's clock: nanoseconds since 1970."""

    received_ns: I64
    sent_ns: I64


class CallMe(Said, frozen=True):
    """Asks the listener to dial these addresses; answered with Called."""

    addresses: Annotated[tuple[Address, ...], Meta(min_length=1, max_length=2 * ADDRESSES_MAX)]


class Called(Said, frozen=True):
    """What came of it, in the same order."""

    calls: Annotated[tuple[Call, ...], Meta(max_length=2 * ADDRESSES_MAX)]


class FlowPlan(Said, frozen=True):
    """Announces traffic over so many streams, which the client will dial; answered with FlowReady, then FlowDone."""

    by: Role
    streams: Annotated[int, Meta(ge=1, le=STREAMS_MAX)]
    seconds: Seconds
    warm_up_s: Seconds


class FlowReady(Said, frozen=True):
    """The streams may be dialled."""


class FlowDone(Said, frozen=True):
    """The listener's side of the flow: one of the two."""

    sent: Sent | None
    received: Received | None


class Done(Said, frozen=True):
    """The client has all it wanted, so that the listener can tell its user too; answered with Bye."""

    measurements: Measurements


class Bye(Said, frozen=True):
    """The end."""


class Failed(Said, frozen=True):
    """From the listener instead of any answer: why it gives up."""

    reason: Word


S = TypeVar("S", bound=Said)
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(
    Open | Welcome | Ping | Pong | CallMe | Called | FlowPlan | FlowReady | FlowDone | Done | Bye | Failed
)


def encode(message: Said) -> bytes:
    """The array."""
    return _encoder.encode(message)


def decode(data: bytes) -> Said:
    """Raises ProtocolError, nothing else, whatever the bytes."""
    try:
        message: Said = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        raise ProtocolError(f"said what does not decode: {error}") from None
    return message


class Talk:
    """Messages over a connection whose handshake is done. `role`: this side's."""

    def __init__(self, connection: Connection, key: bytes, role: Role) -> None:
        self.connection = connection
        self._key = key
        self._sides = (b"client", b"listener") if role == "client" else (b"listener", b"client")
        self._said = self._heard = 0

    async def say(self, message: Said, seconds: float) -> None:
        """Raises Gone or Timeout."""
        data = encode(message)
        frame = _LENGTH.pack(len(data)) + data + self._signature(self._sides[0], self._said, data)
        self._said += 1
        await within(seconds, self.connection.write(frame), f"{self.connection.remote} takes no more data")

    async def hear(self, kind: type[S], seconds: float) -> S:
        """The next message, which must be of that kind. Raises Timeout, Gone, ProtocolError, or GaveUp when the other
        side has failed.
        """
        message = await self.hear_any(seconds)
        if isinstance(message, Failed):
            raise GaveUp(f"{self.connection.remote} gave up: {message.reason}")
        if not isinstance(message, kind):
            raise ProtocolError(
                f"{self.connection.remote} said {type(message).__name__} where {kind.__name__} was expected"
            )
        return message

    async def hear_any(self, seconds: float) -> Said:
        """The next message. Raises Timeout, Gone or ProtocolError."""
        remote = self.connection.remote
        data = await within(seconds, self._read(), f"{remote} said nothing for {seconds:g} s")
        try:
            return decode(data)
        except ProtocolError as error:
            raise ProtocolError(f"{remote} {error.message}") from None

    async def _read(self) -> bytes:
        remote = self.connection.remote
        (count,) = _LENGTH.unpack(await self.connection.read(_LENGTH.size))
        if count > FRAME_BYTES_MAX:
            raise ProtocolError(f"{remote} announced a message of {count} bytes; {FRAME_BYTES_MAX} are the most")
        data = await self.connection.read(count)
        signature = await self.connection.read(SIGNATURE_BYTES)
        if not hmac.compare_digest(signature, self._signature(self._sides[1], self._heard, data)):
            raise ProtocolError(f"a message from {remote} was changed on the way: its signature is wrong")
        self._heard += 1
        return data

    def _signature(self, side: bytes, number: int, data: bytes) -> bytes:
        return hmac.digest(self._key, side + struct.pack("<Q", number) + data, "sha256")[:SIGNATURE_BYTES]
