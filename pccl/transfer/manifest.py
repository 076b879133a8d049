"""manifest.py - what an offer consists of: its chunks with their digests, the head that leads to them, and the keys.

A peer that offers a name offers regions under keys derived from it: the *head* (HEAD_BYTES, always of the same
generation, so that a fetcher needs nothing but the name), the *manifest*, of the offer's own generation, and the
*data*, one region for each part. Head and manifest are small and are read whole; data is read chunk by chunk.

A hash tree: the digests of a part's chunks give the digest of the part, these the root.

Digests are xxh3-128: they find what was damaged or overwritten, not what somebody forged. Pure; bytes from the network
end in ProtocolError when they are not what they should be.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import xxhash

from pccl.errors import ArgumentError, ProtocolError
from pccl.transfer.layout import Layout

__all__ = [
    "CHUNK_BYTES",
    "HEAD_BYTES",
    "HEAD_GENERATION",
    "MANIFEST_BYTES_MAX",
    "NAME_BYTES_MAX",
    "PARTS_MAX",
    "Head",
    "Manifest",
    "chunk_size",
    "data_key",
    "digest_of",
    "head_key",
    "manifest_key",
]

NAME_BYTES_MAX = 512
CHUNK_BYTES = 1 << 20
CHUNK_BYTES_MIN = 1 << 10
CHUNK_BYTES_MAX = 1 << 30
CHUNKS_MAX = 1 << 16
DIGEST_BYTES = 16
PARTS_MAX = 1 << 15
MANIFEST_BYTES_MAX = CHUNKS_MAX * DIGEST_BYTES + PARTS_MAX * 9 + NAME_BYTES_MAX + 64
GENERATION_MAX = 2**63 - 1
#: The head is replaced, not versioned: a fetcher asks for it before it knows of any generation.
HEAD_GENERATION = 1

_VERSION = 2
_MAGIC = b"PCCLHEAD"
_HEAD = struct.Struct("<8sHxxIQQQ16s16s")
HEAD_BYTES = _HEAD.size + DIGEST_BYTES


def digest_of(data: Any) -> bytes:
    """The 16 bytes that a chunk is known by. Lets other threads run meanwhile if there is much of it."""
    return bytes(xxhash.xxh3_128_digest(data))


def head_key(name: str) -> bytes:
    """Under which the head of a name is offered."""
    return key_of("head", name)


def manifest_key(name: str) -> bytes:
    """Under which the manifest is offered, with the generation of the head."""
    return key_of("manifest", name)


def data_key(name: str, part: int = 0) -> bytes:
    """Under which a part of the data is offered, with the generation that the manifest says."""
    return key_of("data" if part == 0 else f"data{part}", name)


def key_of(kind: str, name: str) -> bytes:
    """Of one kind of region that belongs to a name."""
    return digest_of(b"pccl.transfer/" + kind.encode() + b"/" + check_name(name))


def check_name(name: str) -> bytes:
    """A name as bytes. ArgumentError if it is no name."""
    if not isinstance(name, str):
        raise ArgumentError(f"a name must be a str, not {type(name).__name__}")
    data = name.encode("utf-8", "surrogatepass")
    if not 0 < len(data) <= NAME_BYTES_MAX:
        raise ArgumentError(f"a name must have 1 to {NAME_BYTES_MAX} bytes, {name[:40]!r} has {len(data)}")
    return data


def chunk_size(nbytes: int, chunk_bytes: int | None, parts: Sequence[int] = (), least: int = CHUNK_BYTES) -> int:
    """The chunk size of an offer: what was asked for, or `least` and as much more as keeps the manifest small.

    `parts`: the sizes of what it is made of, if that is more than one. ArgumentError for a size that is no power of
    two, out of bounds, or too small for so much data.
    """
    if chunk_bytes is None:
        size = least
        while _chunks(nbytes, size, parts) > CHUNKS_MAX and size <= CHUNK_BYTES_MAX:
            size *= 2
        if size > CHUNK_BYTES_MAX:
            raise ArgumentError(f"an offer can have at most {CHUNK_BYTES_MAX * CHUNKS_MAX} bytes, not {nbytes}")
        return size
    if not isinstance(chunk_bytes, int) or not _is_chunk_size(chunk_bytes):
        raise ArgumentError(
            f"chunk_bytes must be a power of two from {CHUNK_BYTES_MIN} to {CHUNK_BYTES_MAX}, not {chunk_bytes!r}"
        )
    if _chunks(nbytes, chunk_bytes, parts) > CHUNKS_MAX:
        raise ArgumentError(f"chunk_bytes={chunk_bytes} would make more than {CHUNKS_MAX} chunks of {nbytes} bytes")
    return chunk_bytes


def _chunks(nbytes: int, size: int, parts: Sequence[int]) -> int:
    return sum(-(-part // size) for part in parts or (nbytes,))


def _is_chunk_size(size: int) -> bool:
    return CHUNK_BYTES_MIN <= size <= CHUNK_BYTES_MAX and size & (size - 1) == 0


def check_generation(generation: int) -> int:
    """ArgumentError unless it is a generation: 1 to 2**63 - 1."""
    if isinstance(generation, bool) or not isinstance(generation, int) or not 1 <= generation <= GENERATION_MAX:
        raise ArgumentError(f"generation must be 1 to 2**63 - 1, not {generation!r}")
    return generation


class _Wire(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A manifest as msgpack."""

    version: int
    name: str
    generation: int
    nbytes: int
    chunk_bytes: int
    digests: bytes
    parts: tuple[int, ...]
    data_generation: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Wire)


@dataclass(slots=True, frozen=True)
class Manifest:
    """What one generation of a name consists of. `digests`: 16 bytes for each chunk, in order. `parts`: the sizes of
    what it is made of. `data_generation`: under which the data is offered.
    """

    name: str
    generation: int
    nbytes: int
    chunk_bytes: int
    digests: bytes
    parts: tuple[int, ...]
    data_generation: int
    layout: Layout = field(init=False, repr=False, compare=False)
    _root: list[bytes] = field(init=False, repr=False, compare=False, default_factory=list)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layout", Layout(self.chunk_bytes, self.parts))

    @classmethod
    def of(cls, name: str, generation: int, data: Any, chunk_bytes: int | None = None) -> Manifest:
        """That of flat bytes (a uint8 array), or of a list of them. Reads all of it."""
        check_name(name)
        parts = data if isinstance(data, list | tuple) else [data]
        if len(parts) > PARTS_MAX:
            raise ArgumentError(f"an offer can have at most {PARTS_MAX} parts, not {len(parts)}")
        sizes = tuple(len(part) for part in parts)
        size = chunk_size(sum(sizes), chunk_bytes, sizes)
        digests = b"".join(
            digest_of(part[start : start + size]) for part in parts for start in range(0, len(part), size)
        )
        return cls(name, check_generation(generation), sum(sizes), size, digests, sizes, generation)

    @property
    def count(self) -> int:
        """Number of chunks."""
        return self.layout.count

    @property
    def root(self) -> bytes:
        """The digest of the whole: of the chunk size and of all parts' digests, not of the name or the generation."""
        if not self._root:
            parts = b"".join(self.part_digest(part) for part in range(len(self.parts)))
            self._root.append(digest_of(struct.pack("<QQ", self.nbytes, self.chunk_bytes) + parts))
        return self._root[0]

    def part_digest(self, part: int) -> bytes:
        """Of one part: of its size and of its chunks' digests."""
        chunks = self.layout.chunks(part)
        digests = self.digests[chunks.start * DIGEST_BYTES : chunks.stop * DIGEST_BYTES]
        return digest_of(struct.pack("<Q", self.parts[part]) + digests)

    def digest(self, chunk: int) -> bytes:
        """Of one chunk."""
        return self.digests[chunk * DIGEST_BYTES : (chunk + 1) * DIGEST_BYTES]

    def span(self, chunk: int) -> tuple[int, int]:
        """(first byte, byte after the last) of one chunk."""
        return self.layout.span(chunk)

    def encode(self) -> bytes:
        """As bytes for the manifest region."""
        said = (self.name, self.generation, self.nbytes, self.chunk_bytes)
        return _encoder.encode(_Wire(_VERSION, *said, self.digests, self.parts, self.data_generation))

    @classmethod
    def decode(cls, data: Any, head: Head, name: str) -> Manifest:
        """From the network: it must be what the head said, and belong to the name. ProtocolError if not."""
        if digest_of(data) != head.manifest_digest:
            raise ProtocolError(f"the manifest of {name!r} does not have the digest that its head says")
        try:
            wire = _decoder.decode(data)
        except (msgspec.MsgspecError, ValueError) as error:  # ValueError: text that is no UTF-8
            raise ProtocolError(f"the manifest of {name!r} cannot be read: {error}") from error
        if wire.version != _VERSION:
            raise ProtocolError(f"the manifest of {name!r} has version {wire.version}, {_VERSION} is spoken here")
        said = (wire.name, wire.generation, wire.nbytes, wire.chunk_bytes)
        if said != (name, head.generation, head.nbytes, head.chunk_bytes):
            raise ProtocolError(f"the manifest of {name!r} is of something else than its head: {said!r}")
        _check_parts(wire)
        manifest = cls(*said, wire.digests, wire.parts, wire.data_generation)
        if len(wire.digests) != manifest.count * DIGEST_BYTES:
            raise ProtocolError(f"the manifest of {name!r} has {len(wire.digests)} bytes of digests")
        if manifest.root != head.root:
            raise ProtocolError(f"the manifest of {name!r} does not have the root that its head says")
        return manifest


def _check_parts(wire: _Wire) -> None:
    parts, most = wire.parts, wire.nbytes
    if len(parts) > PARTS_MAX or any(not 0 <= size <= most for size in parts) or sum(parts) != most:
        raise ProtocolError(f"the manifest of {wire.name!r} has {len(parts)} parts that are not its {most} bytes")
    if not 1 <= wire.data_generation <= GENERATION_MAX:
        raise ProtocolError(f"the manifest of {wire.name!r} has data of generation {wire.data_generation}")


@dataclass(slots=True, frozen=True)
class Head:
    """The fixed-size beginning of an offer: which generation, how much, and where the manifest is."""

    generation: int
    nbytes: int
    chunk_bytes: int
    manifest_bytes: int
    manifest_digest: bytes
    root: bytes

    @classmethod
    def of(cls, manifest: Manifest, encoded: bytes) -> Head:
        """That of a manifest and its encoding."""
        return cls(
            manifest.generation,
            manifest.nbytes,
            manifest.chunk_bytes,
            len(encoded),
            digest_of(encoded),
            manifest.root,
        )

    def encode(self) -> bytes:
        """As HEAD_BYTES for the head region."""
        packed = _HEAD.pack(
            _MAGIC,
            _VERSION,
            self.chunk_bytes,
            self.generation,
            self.nbytes,
            self.manifest_bytes,
            self.manifest_digest,
            self.root,
        )
        return packed + digest_of(packed)

    @classmethod
    def decode(cls, data: bytes) -> Head:
        """From the network. ProtocolError if it is no head, or one that no offer could have."""
        if len(data) != HEAD_BYTES:
            raise ProtocolError(f"a head has {HEAD_BYTES} bytes, not {len(data)}")
        packed = data[: _HEAD.size]
        if digest_of(packed) != data[_HEAD.size :]:
            raise ProtocolError("a head does not have its digest")
        magic, version, chunk_bytes, generation, nbytes, manifest_bytes, manifest_digest, root = _HEAD.unpack(packed)
        if magic != _MAGIC or version != _VERSION:
            raise ProtocolError(f"no head of version {_VERSION}: {magic!r}, {version}")
        if not 1 <= generation <= GENERATION_MAX or not _is_chunk_size(chunk_bytes):
            raise ProtocolError(f"a head of generation {generation} with chunks of {chunk_bytes} bytes")
        if nbytes > chunk_bytes * CHUNKS_MAX or not 0 < manifest_bytes <= MANIFEST_BYTES_MAX:
            raise ProtocolError(f"a head of {nbytes} bytes with a manifest of {manifest_bytes}")
        return cls(generation, nbytes, chunk_bytes, manifest_bytes, manifest_digest, root)
