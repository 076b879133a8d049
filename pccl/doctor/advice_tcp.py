"""advice_tcp.py - what TCP on the two hosts makes of the path: congestion control and buffers. Pure."""

from __future__ import annotations

from pccl.doctor.advice_path import is_lossy, use_streams
from pccl.doctor.facts import Host
from pccl.doctor.finding import Finding, mbit, rate_text
from pccl.doctor.way import Way

__all__ = ["buffers", "congestion", "window_bytes"]

#: These take every loss for a full queue.
LOSS_BASED = ("reno", "cubic", "bic", "htcp", "westwood", "illinois", "scalable", "highspeed", "hybla", "yeah")
BETTER = "bbr"
#: What of a buffer's maximum is data on its way; the rest is the kernel's own account of it.
SEND_SHARE = 0.85
RECEIVE_SHARE = 0.5
#: A window without scaling.
WINDOW_UNSCALED = 65535
#: Room for what a path carries in better moments.
SPARE = 1.5
BUFFER_MAX = 1 << 30


def congestion(way: Way) -> Finding:
    """What the sender does about loss."""
    host, name = way.sender.host, way.one.sent.congestion or way.sender.host.congestion
    values = {"in_force": name, "default": host.congestion, "allowed": list(host.allowed), "loaded": list(host.loaded)}
    text = f"{name or 'unknown'} in force, allowed: {', '.join(host.allowed) or 'unknown'}"
    if name in LOSS_BASED and is_lossy(way):
        text = f"{text}; {name} takes each loss for a full queue, and this path loses packets"
        return Finding("congestion control", way.source, "advice", text, _better(host, way.source), values)
    return Finding("congestion control", way.source, "ok", text, values=values)


def _better(host: Host, where: str) -> str:
    ask = f'pccl.connect(..., congestion="{BETTER}")'
    if BETTER in host.allowed:
        return f"on {where}: {ask}"
    if BETTER in host.loaded:
        allowed = " ".join((*host.allowed, BETTER))
        return f'on {where}: sysctl -w net.ipv4.tcp_allowed_congestion_control="{allowed}", then {ask}'
    return f"on {where}: modprobe tcp_{BETTER} && sysctl -w net.ipv4.tcp_congestion_control={BETTER}"


def window_bytes(way: Way) -> tuple[int | None, int | None]:
    """What one connection can have on its way: by the sender's buffer, by the receiver's. None: not known."""
    send, receive = way.sender.host.send_buffer, way.receiver.host.receive_buffer
    by_sender = None if send is None else int(send[2] * SEND_SHARE)
    by_receiver = None if receive is None else int(receive[2] * RECEIVE_SHARE)
    if way.one.sent.mss_bytes and not way.one.sent.window_scaling:
        by_receiver = WINDOW_UNSCALED
    return by_sender, by_receiver


def buffers(way: Way) -> Finding:
    """Whether one connection may have enough on its way to fill the path."""
    by_sender, by_receiver = window_bytes(way)
    path_bytes = int(way.best_bytes_per_s * way.rtt_s)
    known = [window for window in (by_sender, by_receiver) if window is not None]
    limit = min(known) / way.rtt_s if known and way.rtt_s > 0 else None
    values = {
        "path_bytes": path_bytes,
        "send_window_bytes": by_sender,
        "receive_window_bytes": by_receiver,
        "one_stream_limit_mbit_per_s": None if limit is None else mbit(limit),
        "held_by_send_buffer_percent": _share(way.one.sent.by_buffer_us, way.one.sent.busy_us),
        "held_by_receiver_percent": _share(way.one.sent.by_receiver_us, way.one.sent.busy_us),
    }
    if limit is None:
        return Finding("buffers", way.name, "ok", "the system does not tell its limits", values=values)
    text = (
        f"one connection can carry {rate_text(limit)} at {way.rtt_s * 1e3:.2f} ms; "
        f"the path was seen to carry {rate_text(way.best_bytes_per_s)}"
    )
    changes = _changes(way, by_sender, by_receiver, path_bytes)
    if changes:
        instead = f"; or {use_streams(way)}" if way.streams_needed > 1 else ""
        return Finding("buffers", way.name, "advice", text, "; ".join(changes) + instead, values)
    return Finding("buffers", way.name, "ok", text, values=values)


def _changes(way: Way, by_sender: int | None, by_receiver: int | None, path_bytes: int) -> list[str]:
    changes = []
    if by_receiver == WINDOW_UNSCALED and path_bytes > WINDOW_UNSCALED:
        both = f"on {way.source} and {way.target}"
        changes.append(f"sysctl -w net.ipv4.tcp_window_scaling=1 {both}; if it is, a device between removes the option")
    elif by_receiver is not None and by_receiver < path_bytes:
        changes.append(_sysctl(way.target, "tcp_rmem", way.receiver.host.receive_buffer, path_bytes / RECEIVE_SHARE))
    if by_sender is not None and by_sender < path_bytes:
        changes.append(_sysctl(way.source, "tcp_wmem", way.sender.host.send_buffer, path_bytes / SEND_SHARE))
    return changes


def _sysctl(where: str, name: str, present: tuple[int, int, int] | None, wanted: float) -> str:
    least, default, _ = present or (4096, 16384, 0)
    most = min(BUFFER_MAX, 1 << (int(wanted * SPARE) - 1).bit_length())
    return f'on {where}: sysctl -w net.ipv4.{name}="{least} {default} {most}"'


def _share(part_us: int, whole_us: int) -> float | None:
    return round(100 * part_us / whole_us, 1) if whole_us else None
