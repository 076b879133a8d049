"""Manifests and heads: what was encoded comes back, and nothing hostile gets through."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pccl.errors import ArgumentError, ProtocolError
from pccl.transfer.manifest import (
    CHUNK_BYTES,
    CHUNKS_MAX,
    HEAD_BYTES,
    MANIFEST_BYTES_MAX,
    Head,
    Manifest,
    chunk_size,
    data_key,
    digest_of,
    head_key,
    manifest_key,
)


def manifest_of(nbytes: int, chunk_bytes: int = 1024, name: str = "weights") -> Manifest:
    data = np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8)
    return Manifest.of(name, 3, data, chunk_bytes)


@given(
    st.integers(0, 20_000),
    st.sampled_from([1024, 4096, 1 << 20]),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=100),
)
def test_what_is_encoded_comes_back(nbytes: int, chunk_bytes: int, name: str) -> None:
    manifest = manifest_of(nbytes, chunk_bytes, name)
    encoded = manifest.encode()
    head = Head.decode(Head.of(manifest, encoded).encode())
    assert Manifest.decode(encoded, head, name) == manifest
    assert head.root == manifest.root
    assert [manifest.span(i)[0] for i in range(manifest.count)] == list(range(0, nbytes, chunk_bytes))
    assert sum(end - start for start, end in map(manifest.span, range(manifest.count))) == nbytes


@given(st.integers(0, HEAD_BYTES - 1), st.integers(1, 255))
def test_no_changed_byte_of_a_head_goes_unseen(at: int, flip: int) -> None:
    manifest = manifest_of(5000)
    data = bytearray(Head.of(manifest, manifest.encode()).encode())
    data[at] ^= flip
    with pytest.raises(ProtocolError):
        Head.decode(bytes(data))


@given(st.binary(max_size=200))
def test_garbage_is_no_head(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Head.decode(data)


def test_heads_that_no_offer_has() -> None:
    manifest = manifest_of(5000)
    head = Head.of(manifest, manifest.encode())
    for change in (
        {"generation": 0},
        {"generation": 2**63},
        {"chunk_bytes": 1000},
        {"chunk_bytes": 512},
        {"chunk_bytes": 1 << 31},
        {"nbytes": 1024 * CHUNKS_MAX + 1},
        {"manifest_bytes": 0},
        {"manifest_bytes": MANIFEST_BYTES_MAX + 1},
    ):
        with pytest.raises(ProtocolError):
            Head.decode(dataclasses.replace(head, **change).encode())


def lying(manifest: Manifest, data: bytes, **change: object) -> None:
    """A head that vouches for `data`, which is not what it should be."""
    head = dataclasses.replace(
        Head.of(manifest, data), manifest_digest=digest_of(data), manifest_bytes=len(data), **change
    )
    with pytest.raises(ProtocolError):
        Manifest.decode(data, head, manifest.name)


@given(st.binary(max_size=300))
def test_garbage_is_no_manifest(data: bytes) -> None:
    lying(manifest_of(5000), data)


def test_manifests_of_something_else() -> None:
    manifest = manifest_of(5000)
    encoded = manifest.encode()
    with pytest.raises(ProtocolError):
        Manifest.decode(encoded[:-1], Head.of(manifest, encoded), "weights")
    lying(manifest, dataclasses.replace(manifest, name="others").encode())
    lying(manifest, dataclasses.replace(manifest, generation=4).encode())
    lying(manifest, dataclasses.replace(manifest, nbytes=5001).encode())
    lying(manifest, dataclasses.replace(manifest, digests=manifest.digests[:-16]).encode())
    lying(manifest, dataclasses.replace(manifest, digests=manifest.digests[::-1]).encode())
    said = ["weights", 3, 5000, 1024, manifest.digests]
    lying(manifest, msgspec.msgpack.encode([1, *said, [5000], 3]))
    lying(manifest, msgspec.msgpack.encode([2, *said, [5000], 3, 7]))
    lying(manifest, msgspec.msgpack.encode([2, *said, [5001], 3]))
    lying(manifest, msgspec.msgpack.encode([2, *said, [6000, -1000], 3]))
    lying(manifest, msgspec.msgpack.encode([2, *said, [2500, 2500], 3]))
    lying(manifest, msgspec.msgpack.encode([2, *said, [], 3]))
    lying(manifest, msgspec.msgpack.encode([2, *said, [5000], 0]))
    lying(manifest, encoded, root=bytes(16))


def test_keys_differ_by_kind_and_name() -> None:
    keys = {key(name) for key in (head_key, manifest_key, data_key) for name in ("a", "b", "a/b")}
    assert len(keys) == 9
    assert all(len(key) == 16 for key in keys)


def test_chunk_sizes_follow_the_data() -> None:
    assert chunk_size(0, None) == CHUNK_BYTES
    assert chunk_size(CHUNK_BYTES * CHUNKS_MAX, None) == CHUNK_BYTES
    assert chunk_size(CHUNK_BYTES * CHUNKS_MAX + 1, None) == 2 * CHUNK_BYTES
    assert chunk_size(1 << 20, 65536) == 65536
    for nbytes, chunk_bytes in ((0, 1000), (0, 512), (0, 1 << 31), (0, 1024.0), (1024 * CHUNKS_MAX + 1, 1024)):
        with pytest.raises(ArgumentError):
            chunk_size(nbytes, chunk_bytes)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError):
        chunk_size(2**47, None)


@pytest.mark.parametrize("name", ["", "x" * 513, b"bytes", None])
def test_what_is_no_name(name: object) -> None:
    with pytest.raises(ArgumentError):
        head_key(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("generation", [0, -1, 2**63, True, 1.0])
def test_what_is_no_generation(generation: object) -> None:
    with pytest.raises(ArgumentError):
        Manifest.of("a", generation, np.zeros(4, np.uint8))  # type: ignore[arg-type]
