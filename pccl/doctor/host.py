"""host.py - what this machine says of itself. Reads files of /proc; what cannot be read is left out, never guessed."""

from __future__ import annotations

import platform
import re
import resource
import socket
from importlib import metadata
from pathlib import Path

from pccl import messages
from pccl.doctor.facts import Host

__all__ = ["plain", "this_host"]

SYSCTL = Path("/proc/sys/net/ipv4")
UNLIMITED = 1 << 62


def this_host(sysctl: Path = SYSCTL) -> Host:
    """Of the network namespace that the caller is in."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wire, error, tls = _engine()
    return Host(
        name=plain(socket.gethostname()) or "?",
        pccl=plain(metadata.version("pccl")),
        wire=wire,
        control=messages.VERSION,
        engine_error=plain(error),
        python=plain(platform.python_version()),
        kernel=plain(platform.release()),
        congestion=plain(_read(sysctl / "tcp_congestion_control")),
        allowed=_names(sysctl / "tcp_allowed_congestion_control"),
        loaded=_names(sysctl / "tcp_available_congestion_control"),
        send_buffer=_three(sysctl / "tcp_wmem"),
        receive_buffer=_three(sysctl / "tcp_rmem"),
        descriptors=_limit(soft),
        descriptors_max=_limit(hard),
        tls=plain(tls),
    )


def plain(text: str) -> str:
    """Text as a fact may hold it: printable ASCII, not too long."""
    return re.sub(r"[^ -~]", "?", text)[:120]


def _engine() -> tuple[int, str, str]:
    """(wire version, "", library for TLS) or (0, why the engine does not load, "")."""
    try:
        from pccl import _native
    except ImportError as error:
        return 0, str(error) or "the extension is missing", ""
    return _native.wire_version(), "", _native.tls_library()


def _limit(number: int) -> int:
    return UNLIMITED if number == resource.RLIM_INFINITY else min(number, UNLIMITED)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _names(path: Path) -> tuple[str, ...]:
    return tuple(plain(name) for name in _read(path).split()[:32])


def _three(path: Path) -> tuple[int, int, int] | None:
    """A line such as "4096 16384 4194304"."""
    parts = _read(path).split()
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        return None
    return int(parts[0]), int(parts[1]), int(parts[2])
