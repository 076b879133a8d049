"""keys.py - everything that derives from the run's secret (docs/protocol.md 1.1).

One secret gives the engine's data key and the CURVE key pairs of the coordinator and of all peers. Whoever lacks the
secret knows neither the coordinator's public key nor a client key that it accepts.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

import zmq
from zmq.utils import z85


@dataclass(slots=True, frozen=True)
class KeyPair:
    """A CURVE key pair in Z85, as libzmq takes it."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(slots=True, frozen=True)
class RunKeys:
    """All keys of a run. Who entered by a token (tokens.py) knows of the coordinator's only the public one."""

    data: bytes = field(repr=False)
    tls: bytes = field(repr=False)
    coordinator: KeyPair
    peer: KeyPair


def derive(secret: bytes, run: str, label: str) -> bytes:
    """32 bytes for one purpose."""
    return hmac.new(secret, f"pccl/1 {run} {label}".encode(), hashlib.sha256).digest()


def curve_pair(secret: bytes, run: str, label: str) -> KeyPair:
    """A key pair for one role."""
    return pair_of(_clamp(derive(secret, run, label)))


def pair_of(secret_key: bytes) -> KeyPair:
    """The pair of a secret CURVE key of 32 bytes."""
    key = z85.encode(secret_key)
    return KeyPair(public=zmq.curve_public(key), secret=key)


def run_keys(secret: bytes, run: str) -> RunKeys:
    """All keys of a run."""
    return RunKeys(
        data=derive(secret, run, "data"),
        tls=derive(secret, run, "tls"),
        coordinator=curve_pair(secret, run, "coordinator"),
        peer=curve_pair(secret, run, "peer"),
    )


def run_id(run: str) -> bytes:
    """The 16 bytes that name the run on the data plane."""
    return hashlib.sha256(f"pccl/1 {run}".encode()).digest()[:16]


def as_secret(secret: bytes | str | None) -> bytes:
    """The secret as bytes; none is the empty one."""
    if secret is None:
        return b""
    return secret.encode() if isinstance(secret, str) else bytes(secret)


def _clamp(key: bytes) -> bytes:
    scalar = bytearray(key)
    scalar[0] &= 248
    scalar[31] &= 127
    scalar[31] |= 64
    return bytes(scalar)
