"""facts.py - what an examination measures, as values that can be sent, checked and judged. Decides nothing.

Text that came from the other machine is printable ASCII of bounded length, numbers are bounded: a decoded value is as
harmless as one of our own.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from pccl.messages import U32, U64, Address, Part

__all__ = ["Call", "Clock", "Flow", "Host", "Measurements", "Outcome", "Place", "Received", "Role", "Sent", "Words"]

ADDRESSES_MAX = 4
PINGS_MAX = 64
STREAMS_MAX = 32

Word = Annotated[str, Meta(max_length=120, pattern=r"\A[ -~]*\Z")]
Words = Annotated[tuple[Word, ...], Meta(max_length=32)]
I64 = Annotated[int, Meta(ge=-(1 << 62), lt=1 << 62)]
Role = Literal["client", "listener"]
Outcome = Literal["ok", "refused", "timeout", "unreachable", "stranger"]


class Host(Part, frozen=True):
    """What a machine says of itself. `wire` 0: its engine does not load, for the reason in `engine_error`. `tls`: the
    library that does TLS there; "": none.

    Congestion controls: the default, those that any program may ask for, those that are loaded. Buffers: (least,
    default, most) bytes of one connection, None where the system does not tell.
    """

    name: Word
    pccl: Word
    wire: U32
    control: U32
    engine_error: Word
    python: Word
    kernel: Word
    congestion: Word
    allowed: Words
    loaded: Words
    send_buffer: tuple[U64, U64, U64] | None
    receive_buffer: tuple[U64, U64, U64] | None
    descriptors: U64
    descriptors_max: U64
    tls: Word = ""


class Place(Part, frozen=True):
    """A side of the path. `own`: its numeric host as it sees it; `seen`: as the other side sees it.

    `listens`: what it was told to listen at for the other's calls (port 0: any); `advertised`: where the peers of a run
    would dial it.
    """

    host: Host
    own: Word
    seen: Word
    listens: Address
    advertised: Annotated[tuple[Address, ...], Meta(min_length=1, max_length=ADDRESSES_MAX)]

    @property
    def behind_nat(self) -> bool:
        """The other side sees another address than this one has (the scope of a link-local one is each host's own)."""
        return self.own.partition("%")[0] != self.seen.partition("%")[0]


class Call(Part, frozen=True):
    """One attempt to dial the other side. "stranger": something answered, but it was not the other side."""

    by: Role
    address: Address
    outcome: Outcome
    detail: Word


class Clock(Part, frozen=True):
    """How far the listener's clock is ahead of the client's, and how wrong that may be at most."""

    offset_us: I64
    bound_us: U64


class Sent(Part, frozen=True):
    """The sender's side of a flow: sums over its streams, of times and segments too; `streams_lost` broke meanwhile.

    `segments`, `resent`: data segments of TCP after the warm-up, and those of them that went again. `rtt_us`: the least
    that TCP saw; `loaded_rtt_us`: its smoothed one at the end. `delivered_bytes`, `delivered_us`: full segments that
    arrived after the warm-up, and in what time. `by_receiver_us`, `by_buffer_us` of `busy_us`: while the
    receiver's window or the send buffer, not the network, held it back. 0 where the kernel does not tell.
    """

    congestion: Word
    streams_lost: U32
    segments: U64
    resent: U64
    mss_bytes: U32
    mtu_bytes: U32
    delivered_bytes: U64
    delivered_us: U64
    rtt_us: U32
    loaded_rtt_us: U32
    busy_us: U64
    by_receiver_us: U64
    by_buffer_us: U64
    window_scaling: bool
    selective_acks: bool


class Received(Part, frozen=True):
    """The receiver's side: all bytes, and those within the time after the warm-up."""

    total_bytes: U64
    counted_bytes: U64
    counted_us: U64


class Flow(Part, frozen=True):
    """Traffic in one direction over some streams at once."""

    streams: Annotated[int, Meta(ge=1, le=STREAMS_MAX)]
    sent: Sent
    received: Received

    @property
    def bytes_per_s(self) -> float:
        """After the warm-up; 0 if nothing came.

        The receiver counts what it could read: in bursts, because what arrived beyond a gap waits until the gap is
        filled. The sender knows what arrived, in segments that may be smaller than the full ones. The less is right.
        """
        read = self.received.counted_bytes * 1e6 / max(1, self.received.counted_us)
        arrived = self.sent.delivered_bytes * 1e6 / max(1, self.sent.delivered_us)
        return min(read, arrived) if arrived > 0 else read


class Measurements(Part, frozen=True):
    """Everything about one path. `dialled`: the address that the client was given. "up": from client to listener."""

    client: Place
    listener: Place
    dialled: Address
    calls: Annotated[tuple[Call, ...], Meta(max_length=4 * ADDRESSES_MAX)]
    rtts_us: Annotated[tuple[U32, ...], Meta(min_length=1, max_length=PINGS_MAX)]
    clock: Clock
    up: Flow
    down: Flow
    up_many: Flow
    down_many: Flow
