"""Settings of a communicator: one frozen object, made from arguments and, where they are missing, the environment.

No other module reads the environment. `pccl launch` sets these variables for the processes it starts:

PCCL_COORDINATOR  "tcp://host:29400"; of several that stand by for each other all, separated by commas
PCCL_RUN          name of the run
PCCL_SECRET       the run's shared secret
PCCL_TOKEN        instead of it, a token (`pccl token`)
PCCL_GROUP        number of the group
PCCL_LISTEN       where the engine listens, "host:port"; port 0: any free one
PCCL_ADVERTISE    addresses under which others reach it, separated by commas
PCCL_TLS_CA, PCCL_TLS_CERT, PCCL_TLS_KEY   PEM files, if certificates and not the secret prove who a peer is
PCCL_INSECURE     1: data may travel in plain between hosts
PCCL_TRACE        directory in which each peer writes its trace (`pccl trace`)

PCCL_PINNED_BYTES how much pinned host memory a communicator takes for tensors of devices, "512MiB" (the default), "2GB"
PCCL_SGLANG       JSON for the SGLang adapter of pccl.kv (docs/kv_adapters.md)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from pccl.encryption import TlsFiles, choose_transport, tls_files
from pccl.errors import ArgumentError
from pccl.tokens import read
from pccl.units import parse_bytes

__all__ = [
    "DEFAULT_PORT",
    "Settings",
    "TooFew",
    "endpoint_of",
    "group_of_environment",
    "pinned_bytes_max",
    "settings_from",
    "sglang_json",
]

#: Port of a coordinator whose address names none.
DEFAULT_PORT = 29400
#: Where an engine listens when nothing is said: every interface, any free port, IPv6 and IPv4 where the host has both.
DEFAULT_LISTEN = "[::]:0"

_PINNED_BYTES = "512MiB"
_PINNED_BYTES_LEAST = 32 << 20  # one piece, pccl/device/pieces.py

TooFew = Literal["wait", "raise"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that `pccl.connect` was told, checked."""

    coordinator: str
    run: str
    secret: str | bytes = field(repr=False)
    token: str = field(repr=False)  # "": the secret counts
    group: int
    listen: tuple[str, ...]  # tried in this order
    advertise: tuple[str, ...]  # empty: what the engine can find out by itself
    congestion: str
    too_few: TooFew
    enter: bool
    join_timeout: float
    op_timeout: float
    transport: str
    tls: TlsFiles | None
    fault_seed: int
    trace: str = ""  # directory; "": none is written


def settings_from(
    address: str | None = None,
    *,
    run: str | None = None,
    secret: str | bytes | None = None,
    token: str | None = None,
    group: int | None = None,
    timeout: float = 60.0,
    listen: str | None = None,
    advertise: str | Sequence[str] | None = None,
    congestion: str | None = None,
    too_few: TooFew = "wait",
    enter: bool = True,
    op_timeout: float = 300.0,
    transport: str | None = None,
    tls: TlsFiles | Sequence[str] | None = None,
    insecure: bool | None = None,
    fault_seed: int = 0,
    trace: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Arguments first, then the environment, then defaults. Raises ArgumentError (a ValueError) that names what is
    missing or wrong.
    """
    env = os.environ if environ is None else environ
    coordinator = address or env.get("PCCL_COORDINATOR")
    if not coordinator:
        raise ArgumentError(
            "no coordinator: pass its address, as in pccl.connect('tcp://host:29400'), or set PCCL_COORDINATOR"
        )
    if too_few not in get_args(TooFew):
        raise ArgumentError(f"too_few must be 'wait' or 'raise', not {too_few!r}")
    for name, seconds in (("timeout", timeout), ("op_timeout", op_timeout)):
        if not seconds > 0:
            raise ArgumentError(f"{name} must be a positive number of seconds, not {seconds!r}")
    endpoint = ",".join(endpoint_of(part.strip()) for part in coordinator.split(","))
    listens = _listen(_first(listen, env.get("PCCL_LISTEN"), DEFAULT_LISTEN))
    advertises = _addresses(advertise if advertise is not None else env.get("PCCL_ADVERTISE"))
    known, ticket = _credentials(secret, token, env)
    named = read(ticket).run if ticket else "default"
    files = tls_files(tls, env)
    return Settings(
        coordinator=endpoint,
        run=_first(run, env.get("PCCL_RUN"), named),
        secret=known,
        token=ticket,
        group=_group(group, env.get("PCCL_GROUP")),
        listen=listens,
        advertise=advertises,
        congestion=congestion or "",
        too_few=too_few,
        enter=enter,
        join_timeout=float(timeout),
        op_timeout=float(op_timeout),
        transport=choose_transport(
            transport,
            insecure=insecure,
            env=env,
            has_secret=bool(known or ticket),
            files=files,
            coordinator=endpoint,
            listen=listens[0],
            advertise=advertises,
        ),
        tls=files,
        fault_seed=fault_seed,
        trace=os.fspath(env.get("PCCL_TRACE", "") if trace is None else trace),
    )


def pinned_bytes_max(environ: Mapping[str, str] | None = None) -> int:
    """The limit of pinned host memory that the environment names. Raises ArgumentError."""
    text = (os.environ if environ is None else environ).get("PCCL_PINNED_BYTES") or _PINNED_BYTES
    try:
        nbytes = parse_bytes(text)
    except ValueError as error:
        raise ArgumentError(f"PCCL_PINNED_BYTES: {error}") from None
    if nbytes < _PINNED_BYTES_LEAST:
        raise ArgumentError(f"PCCL_PINNED_BYTES must be at least {_PINNED_BYTES_LEAST}, not {text!r}")
    return nbytes


def sglang_json() -> str | None:
    """What PCCL_SGLANG says; None: it is not set."""
    return os.environ.get("PCCL_SGLANG")


def group_of_environment(environ: Mapping[str, str] | None = None) -> int | None:
    """The group that the environment names, with the run to which it belongs; None if it names no coordinator."""
    env = os.environ if environ is None else environ
    return _group(None, env.get("PCCL_GROUP")) if env.get("PCCL_COORDINATOR") else None


def endpoint_of(address: str) -> str:
    """The ZeroMQ endpoint of an address such as "host", "host:29400", "[::1]:29400" or "tcp://host:29400"."""
    scheme, separator, rest = address.rpartition("://")
    if separator and scheme != "tcp":
        raise ArgumentError(f"the coordinator's address {address!r} must begin with tcp://")
    bracketed = rest.startswith("[")
    if not rest or (bracketed and "]" not in rest):
        raise ArgumentError(f"the coordinator's address {address!r} names no host")
    if not bracketed and rest.count(":") > 1:
        rest = f"[{rest}]"  # a bare IPv6 address
    host, colon, port = rest.rpartition(":")
    if not colon or rest.endswith("]"):
        return f"tcp://{rest}:{DEFAULT_PORT}"
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ArgumentError(f"the coordinator's address {address!r} names no valid port")
    return f"tcp://{rest}"


def _credentials(secret: str | bytes | None, token: str | None, env: Mapping[str, str]) -> tuple[str | bytes, str]:
    """(secret, token): one of them, or neither."""
    if secret is None and not token:
        secret, token = env.get("PCCL_SECRET", ""), env.get("PCCL_TOKEN", "")
        if secret and token:
            raise ArgumentError("PCCL_SECRET and PCCL_TOKEN are both set: a peer enters by one of them")
    if secret and token:
        raise ArgumentError("secret and token are both given: a peer enters by one of them")
    return secret or "", token or ""


def _first(*values: str | None) -> str:
    return next(value for value in values if value)


def _group(group: int | None, text: str | None) -> int:
    try:
        number = int(text or 0) if group is None else int(group)
    except ValueError:
        raise ArgumentError(f"PCCL_GROUP must be a number, not {text!r}") from None
    if number < 0:
        raise ArgumentError(f"group must not be negative, got {number}")
    return number


def _listen(address: str) -> tuple[str, ...]:
    """The address itself; the default falls back to IPv4 on hosts without IPv6."""
    if address == DEFAULT_LISTEN:
        return (address, "0.0.0.0:0")
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise ArgumentError(
            f"listen must be 'host:port' with a numeric host, as in '0.0.0.0:29500' or '[::]:0', not {address!r}"
        )
    return (address,)


def _addresses(value: str | Sequence[str] | None) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value or ()
    return tuple(part.strip() for part in parts if part.strip())
