"""addresses.py - hosts and ports as people write them, as sockets have them, and as other peers dial them."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

from pccl.errors import ArgumentError

__all__ = ["advertised", "host_of", "joined", "split"]


def split(address: str) -> tuple[str, int]:
    """("host", port) of "host:port" or "[host]:port". Raises ArgumentError."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host.strip("[]") or (":" in host and not bracketed):
        raise ArgumentError(f"{address!r} is not host:port, as in 192.0.2.7:29500 or [2001:db8::7]:29500")
    if not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ArgumentError(f"{address!r} names no valid port")
    return host.strip("[]"), int(port)


def joined(host: str, port: int) -> str:
    """The opposite of `split`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_of(sockaddr: Any) -> str:
    """The numeric host of what getsockname and getpeername give; an IPv4 address that IPv6 wraps is unwrapped."""
    host = str(sockaddr[0])
    if ":" in host and "%" not in host:
        mapped = ipaddress.IPv6Address(host).ipv4_mapped
        return str(mapped) if mapped is not None else host
    return host


def advertised(address: str, port: int) -> str:
    """The "host" or "host:port" of a peer as others dial it: numeric, with `port` where none is given. May ask the
    resolver. Raises ArgumentError.
    """
    host, colon, service = address.rpartition(":")
    if not colon or (address.count(":") > 1 and not host.startswith("[")):
        host, service = address, str(port)
    try:
        number = socket.getaddrinfo(host.strip("[]"), int(service), type=socket.SOCK_STREAM)[0][4][0]
    except (OSError, ValueError) as error:
        raise ArgumentError(f"advertise: {address!r} is no address: {error}") from error
    return joined(str(number), int(service))
