"""tcp_info.py - what the kernel tells of a TCP connection (struct tcp_info of linux/tcp.h).

Older kernels give fewer bytes: the fields beyond are 0.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

__all__ = ["TcpInfo", "congestion_of", "parse", "tcp_info"]

STRUCT_BYTES = 216
OPTION_SACK, OPTION_WINDOW_SCALE = 2, 4
NEVER_MEASURED = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """Of one connection, seen from the side that sends. `segments`: with data; `resent`: of them again; `delivered`:
    of them known to have arrived, also beyond a gap.
    """

    window_scaling: bool
    selective_acks: bool
    mss_bytes: int
    mtu_bytes: int
    rtt_us: int
    min_rtt_us: int
    segments: int
    resent: int
    delivered: int
    busy_us: int
    by_receiver_us: int
    by_buffer_us: int


def parse(data: bytes) -> TcpInfo:
    """The fields that the doctor looks at. Any number of bytes."""
    data = data[:STRUCT_BYTES].ljust(STRUCT_BYTES, b"\0")

    def u32(offset: int) -> int:
        return int(struct.unpack_from("=I", data, offset)[0])

    def u64(offset: int) -> int:
        return int(struct.unpack_from("=Q", data, offset)[0])

    min_rtt_us = u32(148)
    return TcpInfo(
        window_scaling=bool(data[5] & OPTION_WINDOW_SCALE),
        selective_acks=bool(data[5] & OPTION_SACK),
        mss_bytes=u32(16),
        mtu_bytes=u32(60),
        rtt_us=u32(68),
        min_rtt_us=0 if min_rtt_us == NEVER_MEASURED else min_rtt_us,
        segments=u32(156),
        resent=u32(100),
        delivered=u32(192),
        busy_us=u64(168),
        by_receiver_us=u64(176),
        by_buffer_us=u64(184),
    )


def tcp_info(sock: socket.socket) -> TcpInfo:
    """Of a connection as it is now."""
    return parse(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, STRUCT_BYTES))


def congestion_of(sock: socket.socket) -> str:
    """The congestion control in force: "bbr"."""
    name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return name.split(b"\0", 1)[0].decode("ascii", "replace")
