"""advice_path.py - what the path itself does: round trips, bandwidth, loss, packet size. Pure."""

from __future__ import annotations

import statistics

from pccl.doctor.facts import Measurements
from pccl.doctor.finding import Finding, mbit, percent, rate_text
from pccl.doctor.way import Way, label

__all__ = ["bandwidth", "is_lossy", "loss", "mtu", "round_trip", "use_streams"]

#: From here on a stream that takes losses for full queues is slow, however little the path holds.
LOSS_SHARE = 50e-6
#: What a queue that was full before we came adds to a round trip.
QUEUE_S = 0.02
MTU_LEAST = 1280


def is_lossy(way: Way) -> bool:
    """Packets are lost, and that holds a lone stream back: it has not just overfilled the path."""
    return way.resent_share >= LOSS_SHARE and way.held_back


def use_streams(way: Way) -> str:
    """How to get as many streams as the path needs."""
    needed, planned = way.streams_needed, way.streams_planned
    if planned >= needed:
        return (
            f"use {needed} streams or more: pccl's planner takes {planned} here by itself, other programs must be told"
        )
    return f"use {needed} streams: pccl coordinator --streams {needed} (its planner would take {planned})"


def round_trip(measured: Measurements) -> Finding:
    """Of small messages, before any load."""
    rtts = sorted(rtt / 1e3 for rtt in measured.rtts_us)
    least, median, most = rtts[0], statistics.median(rtts), rtts[-1]
    where = f"{label(measured, 'client')} <-> {label(measured, 'listener')}"
    values = {"min_ms": least, "median_ms": median, "max_ms": most, "round_trips": len(rtts)}
    text = f"{median:.2f} ms (least {least:.2f}, most {most:.2f}) over {len(rtts)} round trips"
    if median > 2 * least + QUEUE_S * 1e3:
        change = "find out what else fills the link, or measure again when it is idle"
        return Finding("round trip", where, "advice", f"{text}: packets wait in a queue", change, values)
    return Finding("round trip", where, "ok", text, values=values)


def bandwidth(way: Way) -> Finding:
    """One stream beside several."""
    one, many = way.one.bytes_per_s, way.many.bytes_per_s
    lost = way.one.sent.streams_lost + way.many.sent.streams_lost
    values = {
        "one_stream_mbit_per_s": mbit(one),
        "all_streams_mbit_per_s": mbit(many),
        "streams": way.many.streams,
        "streams_lost": lost,
        "loaded_rtt_ms": way.many.sent.loaded_rtt_us / 1e3,
    }
    text = f"{rate_text(one)} over 1 stream, {rate_text(many)} over {way.many.streams}"
    if way.silent:
        change = "see path MTU: small messages pass, full packets do not"
        return Finding("bandwidth", way.name, "problem", "nothing arrived", change, values)
    if lost:
        change = f"ask who runs the firewalls between {way.source} and {way.target} whether they limit connections"
        return Finding("bandwidth", way.name, "advice", f"{text}; {lost} broke under load", change, values)
    if way.held_back:
        text = f"{text}: one does not fill this path"
        return Finding("bandwidth", way.name, "advice", text, use_streams(way), values)
    return Finding("bandwidth", way.name, "ok", text, values=values)


def loss(way: Way) -> Finding:
    """What had to be sent again, by TCP's own account."""
    one, many = way.one.sent, way.many.sent
    values = {
        "segments": one.segments,
        "resent": one.resent,
        "resent_percent": round(100 * way.resent_share, 4),
        "all_streams_segments": many.segments,
        "all_streams_resent": many.resent,
    }
    if not one.segments:
        return Finding("loss", way.name, "ok", "the kernel does not tell, or nothing was sent", values=values)
    text = f"{one.resent} of {one.segments} segments sent again ({percent(way.resent_share)})"
    if not one.selective_acks:
        change = f"on {way.source} and {way.target}: sysctl -w net.ipv4.tcp_sack=1; if it is, a device removes it"
        return Finding("loss", way.name, "advice", f"{text}; no selective acknowledgements", change, values)
    if is_lossy(way):
        change = f"{use_streams(way)}; see congestion control, and show the figure to the network's operator"
        return Finding("loss", way.name, "advice", f"{text}: the path loses packets", change, values)
    borne = ": one stream fills the path all the same" if way.resent_share >= LOSS_SHARE else ""
    return Finding("loss", way.name, "ok", text + borne, values=values)


def mtu(way: Way) -> Finding:
    """Packet size, and whether full packets pass at all."""
    sent = way.one.sent
    values = {"mtu_bytes": sent.mtu_bytes, "mss_bytes": sent.mss_bytes}
    text = f"path MTU {sent.mtu_bytes} bytes, {sent.mss_bytes} bytes of data per segment"
    if way.silent:
        text = "the connection stands, but full packets are lost without a word on the way (a path MTU black hole)"
        change = (
            f"on {way.source}: sysctl -w net.ipv4.tcp_mtu_probing=1, or ip link set dev INTERFACE mtu {MTU_LEAST}; "
            "and let ICMP pass the firewalls"
        )
        return Finding("path MTU", way.name, "problem", text, change, values)
    if 0 < sent.mtu_bytes < MTU_LEAST:
        change = f"raise the MTU of the tunnel between {way.source} and {way.target} to {MTU_LEAST} or more"
        return Finding("path MTU", way.name, "advice", f"{text}: small", change, values)
    return Finding("path MTU", way.name, "ok", text if sent.mtu_bytes else "the kernel does not tell", values=values)
