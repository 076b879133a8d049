"""traffic.py - flows: as many bytes as streams take in a time, counted where they arrive.

Bounded by time on both sides, whatever the other side does. The bytes are random, so that nothing on the way can
shrink them, and are not looked at.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from typing import Any

from pccl.doctor.connection import Connection
from pccl.doctor.facts import Received, Sent
from pccl.doctor.host import plain
from pccl.doctor.tcp_info import TcpInfo, congestion_of, tcp_info

__all__ = ["receive", "send", "warm_up_s"]

BLOCK_BYTES = 256 << 10
#: The first byte may take so long.
FIRST_BYTE_S = 5.0
#: A new connection doubles its speed once per round trip; a dozen of them fill any path.
WARM_UP_S = 0.2
WARM_UP_RTTS = 12


def warm_up_s(rtt_s: float, seconds: float) -> float:
    """How much of a flow is not counted: what TCP needs to come up to speed, at most half."""
    return min(seconds / 2, WARM_UP_S + WARM_UP_RTTS * rtt_s)


async def send(connections: Sequence[Connection], seconds: float, warm_up_s: float) -> Sent:
    """Sends on all connections for so long. A connection that breaks meanwhile is counted, not raised.

    Segments count from the warm-up on: the first burst of a connection overfills any queue.
    """
    block = os.urandom(BLOCK_BYTES)
    loop = asyncio.get_running_loop()

    async def flood(connection: Connection) -> None:
        while True:
            await loop.sock_sendall(connection.sock, block)

    tasks = [asyncio.ensure_future(flood(connection)) for connection in connections]
    try:
        await _for(warm_up_s, tasks)
        before, begun = [tcp_info(connection.sock) for connection in connections], time.monotonic()
        await _for(seconds - warm_up_s, tasks)
        broken = sum(task.done() for task in tasks)
        infos, took_s = [tcp_info(connection.sock) for connection in connections], time.monotonic() - begun
        return _sum(congestion_of(connections[0].sock), broken, before, infos, took_s)
    finally:
        await _end(tasks)


async def receive(connections: Sequence[Connection], seconds: float, warm_up_s: float) -> Received:
    """Counts what arrives until so long after the first byte, or until all connections have ended."""
    meter = _Meter(warm_up_s)
    buffer = bytearray(BLOCK_BYTES)  # nobody reads it
    loop = asyncio.get_running_loop()

    async def drain(connection: Connection) -> None:
        while count := await loop.sock_recv_into(connection.sock, buffer):
            meter.count(count)

    tasks = [asyncio.ensure_future(drain(connection)) for connection in connections]
    first = asyncio.ensure_future(meter.begun.wait())
    try:
        await asyncio.wait([first], timeout=FIRST_BYTE_S)
        if meter.begun.is_set():
            await _for(seconds, tasks)
        return meter.result()
    finally:
        await _end([first, *tasks])


class _Meter:
    """Counts bytes, and apart from the others those after the warm-up."""

    def __init__(self, warm_up_s: float) -> None:
        self.begun = asyncio.Event()
        self._warm_up_s = warm_up_s
        self._first = 0.0
        self._counted_from = 0.0
        self._total = self._counted = 0

    def count(self, count: int) -> None:
        now = time.monotonic()
        if not self._total:
            self._first = now
            self.begun.set()
        self._total += count
        if self._counted_from:
            self._counted += count
        elif now >= self._first + self._warm_up_s:
            self._counted_from = now  # what has just come was sent before

    def result(self) -> Received:
        """Until now."""
        counted_s = time.monotonic() - self._counted_from if self._counted_from else 0.0
        return Received(self._total, self._counted, int(counted_s * 1e6))


async def _for(seconds: float, tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Waits so long, or until all tasks have ended."""
    await asyncio.wait(tasks, timeout=seconds)


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Ends them; what they failed with was counted."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _sum(congestion: str, broken: int, before: Sequence[TcpInfo], infos: Sequence[TcpInfo], took_s: float) -> Sent:
    pairs = list(zip(infos, before, strict=True))
    measured = [info.min_rtt_us for info in infos if info.min_rtt_us]
    return Sent(
        congestion=plain(congestion),
        streams_lost=broken,
        segments=sum(max(0, now.segments - then.segments) for now, then in pairs),
        resent=sum(max(0, now.resent - then.resent) for now, then in pairs),
        delivered_bytes=sum(max(0, now.delivered - then.delivered) * now.mss_bytes for now, then in pairs),
        delivered_us=int(took_s * 1e6),
        mss_bytes=min(info.mss_bytes for info in infos),
        mtu_bytes=min(info.mtu_bytes for info in infos),
        rtt_us=min(measured, default=0),
        loaded_rtt_us=max(info.rtt_us for info in infos),
        busy_us=sum(info.busy_us for info in infos),
        by_receiver_us=sum(info.by_receiver_us for info in infos),
        by_buffer_us=sum(info.by_buffer_us for info in infos),
        window_scaling=all(info.window_scaling for info in infos),
        selective_acks=all(info.selective_acks for info in infos),
    )
