"""The codecs of the wire in Python's words: codec.h, exponents.h, eight_bits.c on numpy memory, without an engine."""

from __future__ import annotations

from typing import Any

import numpy as np

from pccl._core import ffi, lib
from pccl._native import err_name
from pccl.errors import error_of
from pccl.types import Status

__all__ = ["Shape", "encoded_bytes", "from_eight_bits", "from_exponents", "quantized", "to_eight_bits", "to_exponents"]

_FLOAT_BYTES = 4
#: (tokens, heads, channels, whether heads come first): pccl_slab.
Shape = tuple[int, int, int, bool]


def encoded_bytes(codec: int, count: int) -> int:
    """What `count` float32 values take on the wire; 0 for an unknown codec."""
    return int(lib.pccl_codec_bytes(codec, count))


def quantized(codec: int, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Float32 values, given as contiguous bytes, as they are after a journey: encoded and decoded again, as new bytes.
    Raises ArgumentError for an unknown codec."""
    count = values.size // _FLOAT_BYTES
    encoded = np.empty(encoded_bytes(codec, count), np.uint8)
    decoded = np.empty_like(values)
    source, wire, target = (ffi.from_buffer(memory) for memory in (values, encoded, decoded))
    status = lib.pccl_codec_encode(ffi.NULL, codec, source, count, wire)
    if status == Status.OK:
        status = lib.pccl_codec_decode(ffi.NULL, codec, wire, encoded.size, target, count)
    if status != Status.OK:
        raise error_of(status, f"codec {codec}: {err_name(status)}")
    return decoded


def to_exponents(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Contiguous bf16 values, as bytes, in fewer bits, as new bytes."""
    count = values.nbytes // 2
    encoded = np.empty(lib.pccl_exponents_bound(count), np.uint8)
    size = ffi.new("uint64_t *")
    lib.pccl_exponents_encode(ffi.from_buffer(values), count, ffi.from_buffer(encoded), size)
    return encoded[: size[0]]


def from_exponents(encoded: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> bool:
    """The reverse, into `values`; False, and those are undefined, if the bytes are no encoding of so many."""
    source, target = ffi.from_buffer(encoded), ffi.from_buffer(values)
    return bool(lib.pccl_exponents_decode(source, encoded.nbytes, target, values.nbytes // 2) == Status.OK)


def to_eight_bits(slabs: np.ndarray[Any, Any], shape: Shape) -> np.ndarray[Any, Any]:
    """Contiguous slabs of keys and values in bf16, as [n, bytes], in 8 bits and scales, as new bytes. Raises
    ArgumentError for a shape that cannot be.
    """
    slab = ffi.new("pccl_slab *", shape)
    encoded = np.empty(lib.pccl_eight_bytes(slab, slabs.shape[0]), np.uint8)
    status = lib.pccl_eight_encode(ffi.from_buffer(slabs), slab, slabs.shape[0], ffi.from_buffer(encoded))
    if status != Status.OK:
        raise error_of(status, f"keys of shape {shape}: {err_name(status)}")
    return encoded


def from_eight_bits(encoded: np.ndarray[Any, Any], slabs: np.ndarray[Any, Any], shape: Shape) -> bool:
    """The reverse, into `slabs`; False if there are not as many bytes as there must be."""
    slab = ffi.new("pccl_slab *", shape)
    source, target = ffi.from_buffer(encoded), ffi.from_buffer(slabs)
    return bool(lib.pccl_eight_decode(source, encoded.nbytes, slab, slabs.shape[0], target) == Status.OK)
