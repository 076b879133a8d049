"""encryption.py - whether a peer's data is encrypted, and how it proves itself: decided from its settings alone.

Data goes in plain between processes of one host, and where plain was asked for: `transport="tcp"`, `transport="auto"`
or `insecure=True`. A peer that others reach from outside and that has a secret uses TLS.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pccl import _native
from pccl.addresses import split
from pccl.errors import ArgumentError, TlsMissing

__all__ = ["TlsFiles", "choose_transport", "tls_files"]

_TRUE = ("1", "true", "yes", "on")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files: the authority's certificate, this peer's (and those between them), and its private key."""

    ca: str
    cert: str
    key: str


def tls_files(given: TlsFiles | Sequence[str] | None, env: Mapping[str, str]) -> TlsFiles | None:
    """The argument, else PCCL_TLS_CA, PCCL_TLS_CERT and PCCL_TLS_KEY; None: the run's secret proves who we are."""
    if isinstance(given, TlsFiles):
        return given
    names = ("PCCL_TLS_CA", "PCCL_TLS_CERT", "PCCL_TLS_KEY")
    paths = tuple(given) if given is not None else tuple(env.get(name, "") for name in names)
    if not any(paths):
        return None
    if len(paths) != 3 or not all(paths):
        raise ArgumentError(
            "TLS with certificates takes three PEM files: tls=(ca, cert, key), or PCCL_TLS_CA, PCCL_TLS_CERT and "
            "PCCL_TLS_KEY"
        )
    return TlsFiles(*paths)


def choose_transport(
    transport: str | None,
    *,
    insecure: bool | None,
    env: Mapping[str, str],
    has_secret: bool,
    files: TlsFiles | None,
    coordinator: str,
    listen: str,
    advertise: Sequence[str],
) -> str:
    """The name of the transport. Raises ArgumentError, or TlsMissing where TLS is wanted and cannot be had."""
    plain = insecure if insecure is not None else env.get("PCCL_INSECURE", "").lower() in _TRUE
    if transport is None:
        local = _is_local(listen, advertise) or _is_local(coordinator.removeprefix("tcp://"), advertise)
        wants = not plain and (files is not None or (has_secret and not local))
        transport = "tls" if wants else "auto"
    if "tls" not in transport:
        if files is not None:
            raise ArgumentError(f"certificates were given, but transport {transport!r} does not use them: take 'tls'")
        return transport
    if plain:
        raise ArgumentError("transport 'tls' and insecure=True contradict each other")
    if not has_secret and files is None:
        raise ArgumentError(
            "transport 'tls' needs the run's secret, or certificates: nothing else proves who a peer is"
        )
    if _native.tls_missing():
        raise TlsMissing(f"{_native.tls_missing()}; or ask for plain data with insecure=True or PCCL_INSECURE=1")
    return transport


def _is_local(address: str, advertise: Sequence[str]) -> bool:
    """Whether nobody outside this host is meant to come: a loopback address, and nothing else advertised."""
    return all(_is_loopback(each) for each in (address, *advertise))


def _is_loopback(address: str) -> bool:
    try:
        host = split(address)[0]
    except ArgumentError:
        host = address.strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
