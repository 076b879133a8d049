"""advice_host.py - what is to be said of the two hosts: versions, clocks, descriptors. Pure."""

from __future__ import annotations

from pccl.doctor.facts import Host, Measurements, Place
from pccl.doctor.finding import Finding
from pccl.doctor.host import UNLIMITED
from pccl.doctor.way import label

__all__ = ["clock", "descriptors", "versions"]

#: pccl itself measures time by each host's own steady clock; logs of two hosts are compared by this one.
CLOCK_US = 500_000
STREAMS_PER_PEER = 16
DESCRIPTORS_OWN = 64
DESCRIPTORS_GOOD = 1024
DESCRIPTORS_WISH = 65536


def clock(measured: Measurements) -> Finding:
    """How far apart the clocks are, beyond what the measurement leaves open."""
    offset_us, bound_us = measured.clock.offset_us, measured.clock.bound_us
    client, listener = label(measured, "client"), label(measured, "listener")
    behind, ahead = (client, listener) if offset_us >= 0 else (listener, client)
    values = {"offset_ms": offset_us / 1e3, "bound_ms": bound_us / 1e3}
    text = f"{ahead} is {abs(offset_us) / 1e3:.2f} ms ahead of {behind}, give or take {bound_us / 1e3:.2f} ms"
    where = f"{client} <-> {listener}"
    if abs(offset_us) - bound_us > CLOCK_US:
        change = (
            f"on {client} and {listener}: timedatectl set-ntp true; a run works without, its logs do not fit together"
        )
        return Finding("clocks", where, "advice", text, change, values)
    return Finding("clocks", where, "ok", text, values=values)


def versions(measured: Measurements) -> Finding:
    """Whether the two sides understand each other, and whether their engines load."""
    client, listener = label(measured, "client"), label(measured, "listener")
    a, b = measured.client.host, measured.listener.host
    where = f"{client} <-> {listener}"
    values = {f"{role}_{name}": value for role, host in (("client", a), ("listener", b)) for name, value in _of(host)}
    text = f"{client}: {_version(a)}; {listener}: {_version(b)}"
    broken = [f"{name}: {host.engine_error}" for name, host in ((client, a), (listener, b)) if not host.wire]
    if broken:
        change = "install pccl again from its wheel or source where the engine does not load"
        return Finding("versions", where, "problem", f"no engine on {'; on '.join(broken)}", change, values)
    if (a.wire, a.control) != (b.wire, b.control):
        change = f"install the same pccl on {client} and {listener}: they do not understand each other"
        return Finding("versions", where, "problem", text, change, values)
    if a.pccl != b.pccl:
        change = f"install the same pccl on {client} and {listener}; these two still understand each other"
        return Finding("versions", where, "advice", text, change, values)
    return Finding("versions", where, "ok", text, values=values)


def descriptors(where: str, place: Place) -> Finding:
    """How many peers the limit of open files leaves room for."""
    soft, hard = place.host.descriptors, place.host.descriptors_max
    room = max(0, soft - DESCRIPTORS_OWN) // STREAMS_PER_PEER
    known = soft < UNLIMITED
    values = {"descriptors": soft if known else None, "descriptors_max": hard if hard < UNLIMITED else None}
    text = f"{soft} open files: enough for {room} peers with {STREAMS_PER_PEER} streams" if known else "no limit"
    if soft >= DESCRIPTORS_GOOD:
        return Finding("open files", where, "ok", text, values=values)
    return Finding("open files", where, "advice" if room else "problem", text, _raise_limit(where, hard), values)


def _raise_limit(where: str, hard: int) -> str:
    if hard >= DESCRIPTORS_GOOD:
        return f"on {where} before the program: ulimit -n {min(hard, DESCRIPTORS_WISH)}"
    return f'on {where} in /etc/security/limits.conf: "* - nofile {DESCRIPTORS_WISH}", then log in again'


def _of(host: Host) -> list[tuple[str, str | int]]:
    return [
        ("pccl", host.pccl),
        ("wire_version", host.wire),
        ("control_version", host.control),
        ("python", host.python),
        ("kernel", host.kernel),
        ("tls", host.tls),
    ]


def _version(host: Host) -> str:
    tls = f"TLS by {host.tls}" if host.tls else "no TLS (OpenSSL 3 is missing)"
    return f"pccl {host.pccl}, wire {host.wire}, Python {host.python}, Linux {host.kernel}, {tls}"
