"""manifest.py - what a payload says of itself: from where to where, what is in it, and what must come out. Pure.

Bytes from a disk or the network end in DamageError when they are not what they should be.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise

import msgspec
import xxhash

from pccl.weights.certificate import SIGNATURE_BYTES, Certificate, Version, check_signature, state_digest
from pccl.weights.digests import QUICK_BYTES, STRONG_BYTES, merkle_root
from pccl.weights.errors import DamageError, SchemaError
from pccl.weights.schema import Schema

__all__ = ["END_BYTES", "PRELUDE_BYTES", "TRAILER_BYTES", "Manifest", "Prelude", "Record", "Trailer"]

FORMAT = 1
_MAGIC = b"PCCLWGHT"
_PRELUDE = struct.Struct("<8sIxxxxQQ32s32s32x")
PRELUDE_BYTES = _PRELUDE.size
_TRAILER = struct.Struct("<QQ8s")
TRAILER_BYTES = _TRAILER.size
_END = b"PCCLWEND"
END_BYTES = len(_END)


@dataclass(frozen=True, slots=True)
class Prelude:
    """The first bytes of a payload."""

    base: Version
    version: int
    schema: bytes

    def encode(self) -> bytes:
        """As PRELUDE_BYTES."""
        return _PRELUDE.pack(_MAGIC, FORMAT, self.base.version, self.version, self.base.lineage, self.schema)

    @classmethod
    def decode(cls, data: bytes) -> Prelude:
        """Of the first bytes."""
        if len(data) < PRELUDE_BYTES:
            raise DamageError(f"a payload of {len(data)} bytes has no beginning")
        magic, form, base, version, lineage, schema = _PRELUDE.unpack(bytes(data[:PRELUDE_BYTES]))
        if magic != _MAGIC or form != FORMAT or base == version:
            raise DamageError(f"no payload of format {FORMAT}: {magic!r}, {form}, from {base} to {version}")
        return cls(Version(base, lineage), version, schema)


@dataclass(frozen=True, slots=True)
class Record:
    """Where an encoded block is in the payload."""

    block: int
    offset: int
    nbytes: int


class _Wire(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    form: int
    base: int
    base_lineage: bytes
    ends: list[int]
    blocks: list[int]
    sizes: list[int]
    leaves: bytes
    digests: bytes
    certificate: bytes
    signature: bytes


_decoder = msgspec.msgpack.Decoder(_Wire)


@dataclass(frozen=True, slots=True)
class Manifest:
    """See docs/weights.md. `ends`: of the chunks, the prelude being the first. `leaves`: hashes of the chunks.
    `digests`: of every block of the target state.
    """

    base: Version
    ends: tuple[int, ...]
    records: tuple[Record, ...]
    leaves: tuple[bytes, ...]
    digests: tuple[bytes, ...]
    certificate: Certificate
    signature: bytes

    @property
    def at(self) -> Version:
        """Where it leads."""
        return self.certificate.at

    @property
    def is_delta(self) -> bool:
        """Whether it is what was published, not a fold."""
        here = self.certificate
        return (self.base.version + 1, self.base.lineage) == (here.version, here.before)

    def chunk_of(self, offset: int) -> int:
        """The chunk that a byte is in."""
        low, high = 0, len(self.ends)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.ends[middle] <= offset else (low, middle)
        return low

    def span(self, chunk: int) -> tuple[int, int]:
        """(first byte, byte after the last) of a chunk."""
        return (self.ends[chunk - 1] if chunk else 0), self.ends[chunk]

    def encode(self) -> bytes:
        """As msgpack."""
        sizes = [record.nbytes for record in self.records]
        return msgspec.msgpack.encode(
            _Wire(
                FORMAT, self.base.version, self.base.lineage, list(self.ends),
                [record.block for record in self.records], sizes, b"".join(self.leaves), b"".join(self.digests),
                self.certificate.encode(), self.signature,
            )
        )  # fmt: skip

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """DamageError if it is no manifest, or contradicts itself."""
        try:
            wire = _decoder.decode(data)
        except (msgspec.MsgspecError, ValueError) as error:
            raise DamageError(f"a manifest cannot be read: {error}") from error
        if (
            wire.form != FORMAT
            or len(wire.base_lineage) != STRONG_BYTES
            or len(wire.signature) not in (0, SIGNATURE_BYTES)
        ):
            raise DamageError(f"no manifest of format {FORMAT}")
        if len(wire.leaves) != len(wire.ends) * STRONG_BYTES or len(wire.digests) % QUICK_BYTES:
            raise DamageError("a manifest has hashes of another number than chunks")
        return cls(
            Version(wire.base, wire.base_lineage), tuple(wire.ends), _records(wire),
            _pieces(wire.leaves, STRONG_BYTES), _pieces(wire.digests, QUICK_BYTES),
            Certificate.decode(wire.certificate), wire.signature,
        )  # fmt: skip

    def check(self, schema: Schema, public: bytes | None, root: bytes | None = None) -> None:
        """SchemaError if it is of another schema; DamageError if what is signed is not what it says, or not signed by
        `public` (None: by anybody). `root`: of `leaves`, where that is known.
        """
        certificate = self.certificate
        if certificate.schema != schema.hash:
            raise SchemaError(f"version {certificate.version} is of another schema than {schema!r}")
        if len(self.digests) != len(schema.blocks) or any(r.block >= len(schema.blocks) for r in self.records):
            raise DamageError("a manifest is of another number of blocks than its schema has")
        if state_digest(schema.hash, self.digests) != certificate.state:
            raise DamageError(f"the digests of version {certificate.version} are not those that were signed")
        if self.is_delta and (root or merkle_root(self.leaves)) != certificate.root:
            raise DamageError(f"the chunks of version {certificate.version} are not those that were signed")
        if public is not None:
            check_signature(public, certificate, self.signature)


@dataclass(frozen=True, slots=True)
class Trailer:
    """The last bytes of a payload: where its manifest begins."""

    manifest_bytes: int

    @staticmethod
    def encode(manifest: bytes) -> bytes:
        """As TRAILER_BYTES."""
        return _TRAILER.pack(len(manifest), xxhash.xxh3_64_intdigest(manifest), _END)

    @staticmethod
    def ends_so(rest: memoryview) -> bool:
        """Whether what comes behind the last record is manifest and trailer, whole but for the last END_BYTES."""
        size = len(rest) - (TRAILER_BYTES - END_BYTES)
        if size < 0:
            return False
        nbytes, digest = struct.unpack("<QQ", rest[size:])
        return bool(nbytes == size and digest == xxhash.xxh3_64_intdigest(rest[:size]))

    @staticmethod
    def manifest_of(payload: memoryview | bytes, foretold: bool = False) -> tuple[int, Manifest]:
        """(where it begins, the manifest) of a whole payload. `foretold`: the last END_BYTES are not looked at."""
        total = len(payload)
        if total < PRELUDE_BYTES + TRAILER_BYTES:
            raise DamageError(f"a payload of {total} bytes has no end")
        nbytes, digest, end = _TRAILER.unpack(bytes(payload[total - TRAILER_BYTES :]))
        start = total - TRAILER_BYTES - nbytes
        if (end != _END and not foretold) or start < PRELUDE_BYTES:
            raise DamageError("a payload does not end as one")
        data = bytes(payload[start : total - TRAILER_BYTES])
        if xxhash.xxh3_64_intdigest(data) != digest:
            raise DamageError("a manifest does not have its digest")
        manifest = Manifest.decode(data)
        if manifest.ends[-1] != start:
            raise DamageError("a manifest does not begin where its chunks end")
        if Prelude.decode(bytes(payload[:PRELUDE_BYTES])) != prelude_of(manifest):
            raise DamageError("a manifest is of another payload than its beginning")
        return start, manifest


def prelude_of(manifest: Manifest) -> Prelude:
    """What the payload must begin with."""
    return Prelude(manifest.base, manifest.certificate.version, manifest.certificate.schema)


RECORD = struct.Struct("<II")


def _records(wire: _Wire) -> tuple[Record, ...]:
    """Their places follow from their sizes; chunks must end where records do."""
    if len(wire.blocks) != len(wire.sizes) or any(a >= b for a, b in pairwise(wire.blocks)):
        raise DamageError("a manifest's blocks are out of order")
    at, found, places = PRELUDE_BYTES, [], {PRELUDE_BYTES}
    for block, nbytes in zip(wire.blocks, wire.sizes, strict=True):
        if block < 0 or not 0 < nbytes < 1 << 32:
            raise DamageError(f"a manifest has block {block} of {nbytes} bytes")
        found.append(Record(block, at + RECORD.size, nbytes))
        at += RECORD.size + nbytes
        places.add(at)
    ends = wire.ends
    ordered = all(a < b for a, b in pairwise(ends))
    if not ends or ends[0] != PRELUDE_BYTES or ends[-1] != at or not ordered or not places.issuperset(ends):
        raise DamageError("a manifest's chunks are not made of its records")
    return tuple(found)


def _pieces(data: bytes, size: int) -> tuple[bytes, ...]:
    return tuple(data[at : at + size] for at in range(0, len(data), size))
