"""Measurements of a good path, to be changed by tests in what they are about."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from pccl.doctor.facts import Call, Clock, Flow, Host, Measurements, Place, Received, Sent

RTT_US = 80_000
LISTENER = "198.51.100.9:29500"
CLIENT = "192.0.2.7:29501"


def host(name: str, **changes: Any) -> Host:
    """A Linux machine as it comes."""
    usual = Host(
        name=name,
        pccl="0.1.0",
        wire=1,
        control=1,
        engine_error="",
        python="3.11.7",
        kernel="6.1.0",
        congestion="cubic",
        allowed=("reno", "cubic"),
        loaded=("reno", "cubic"),
        send_buffer=(4096, 16384, 4 << 20),
        receive_buffer=(4096, 131072, 32 << 20),
        descriptors=20000,
        descriptors_max=20000,
        tls="OpenSSL 3.0.19",
    )
    return replace(usual, **changes)


def flow(mbit: float, streams: int = 1, **changes: Any) -> Flow:
    """Two seconds of so many Mbit/s, nothing lost. `changes` are of `Sent`."""
    count = int(mbit * 1e6 / 8 * 2)
    sent = Sent(
        congestion="cubic",
        streams_lost=0,
        segments=max(1, count // 1448),
        resent=0,
        mss_bytes=1448,
        mtu_bytes=1500,
        delivered_bytes=0,
        delivered_us=2_000_000,
        rtt_us=RTT_US,
        loaded_rtt_us=RTT_US + 5000,
        busy_us=2_000_000,
        by_receiver_us=0,
        by_buffer_us=0,
        window_scaling=True,
        selective_acks=True,
    )
    return Flow(streams, replace(sent, **changes), Received(count + 1000, count, 2_000_000) if count else NOTHING)


NOTHING = Received(0, 0, 0)


def good(**changes: Any) -> Measurements:
    """alpha (the client) and beta reach each other over 80 ms and 200 Mbit/s, which one stream fills."""
    client = Place(host("alpha"), "192.0.2.7", "192.0.2.7", "[::]:29501", (CLIENT,))
    listener = Place(host("beta"), "198.51.100.9", "198.51.100.9", "[::]:29500", (LISTENER,))
    calls = (Call("listener", CLIENT, "ok", ""), Call("client", LISTENER, "ok", ""))
    usual = Measurements(
        client=client,
        listener=listener,
        dialled=LISTENER,
        calls=calls,
        rtts_us=(RTT_US, RTT_US + 300, RTT_US + 900),
        clock=Clock(1500, 40_000),
        up=flow(200),
        down=flow(200),
        up_many=flow(200, 8),
        down_many=flow(200, 8),
    )
    return replace(usual, **changes)
