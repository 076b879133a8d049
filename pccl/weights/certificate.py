"""certificate.py - what a publisher signs of a version, and the lineage that follows from it. Pure.

The certificate names the state (its digest) and the history (the lineage of the version before), so its hash, the
version's lineage, names both. That of version 0, the base, follows from schema and state alone: whoever has loaded the
base knows it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pccl.errors import ArgumentError
from pccl.weights.digests import strong
from pccl.weights.errors import DamageError

__all__ = ["CERTIFICATE_BYTES", "Certificate", "SigningKey", "Version", "base_lineage", "state_digest"]

_FORM = struct.Struct("<8s32sQQ32s32s32s32s")
_MAGIC = b"PCCLWCRT"
CERTIFICATE_BYTES = _FORM.size
SIGNATURE_BYTES = 64
RUN_BYTES = 32


@dataclass(frozen=True, slots=True)
class Version:
    """Where a state is in the run's history. Only equal versions are equal states: compare lineages, not numbers."""

    version: int
    lineage: bytes

    def __str__(self) -> str:
        return f"version {self.version} of lineage {self.lineage.hex()[:8]}"


def state_digest(schema_hash: bytes, blocks: Sequence[bytes]) -> bytes:
    """Of all bytes of a state, by the digests of its blocks in order."""
    return strong(b"state", schema_hash, b"".join(blocks))


def base_lineage(schema_hash: bytes, state: bytes) -> bytes:
    """Of version 0."""
    return strong(b"base", schema_hash, state)


@dataclass(frozen=True, slots=True)
class Certificate:
    """See the header. `run`: 32 bytes, hash of the run's name. `before`: lineage of version - 1. `root`: of the chunks
    of the delta from there.
    """

    run: bytes
    epoch: int
    version: int
    before: bytes
    schema: bytes
    state: bytes
    root: bytes

    def encode(self) -> bytes:
        """As CERTIFICATE_BYTES."""
        return _FORM.pack(_MAGIC, self.run, self.epoch, self.version, self.before, self.schema, self.state, self.root)

    @classmethod
    def decode(cls, data: bytes) -> Certificate:
        """From the network. DamageError if it is none."""
        if len(data) != CERTIFICATE_BYTES:
            raise DamageError(f"a certificate has {CERTIFICATE_BYTES} bytes, not {len(data)}")
        magic, *fields = _FORM.unpack(data)
        made = cls(*fields)
        if magic != _MAGIC or made.version < 1:
            raise DamageError(f"no certificate: {magic!r}, version {made.version}")
        return made

    @property
    def lineage(self) -> bytes:
        """Of the version."""
        return strong(b"lineage", self.encode())

    @property
    def at(self) -> Version:
        """The version with its lineage."""
        return Version(self.version, self.lineage)


class SigningKey:
    """An Ed25519 key. Receivers get `public`, 32 bytes."""

    def __init__(self, secret: bytes | None = None) -> None:
        if secret is not None and len(secret) != 32:
            raise ArgumentError(f"a signing key has 32 bytes, not {len(secret)}")
        self._key = Ed25519PrivateKey.generate() if secret is None else Ed25519PrivateKey.from_private_bytes(secret)

    @property
    def public(self) -> bytes:
        """What signatures are checked by."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, certificate: Certificate) -> bytes:
        """64 bytes."""
        return self._key.sign(certificate.encode())


def check_signature(public: bytes, certificate: Certificate, signature: bytes) -> None:
    """DamageError unless that key has signed it."""
    if not signature:
        raise DamageError(f"version {certificate.version} is not signed, and a key was given")
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, certificate.encode())
    except (InvalidSignature, ValueError) as error:
        raise DamageError(f"version {certificate.version} is not signed by the key that was given") from error
