"""codecs.py - slabs in fewer bytes, and when that pays: as they are, bf16 without loss in 11 to 12 bits, or in 8 bits.

`bf16-exp` (csrc/exponents.c) keeps every bit. `int8-kc-vt` does not: keys get a scale for each channel of a block,
values one for each token (KIVI, 2402.02750, section 3), and both sides must agree to that. Recurrent state is never
quantised: its errors add up. Which codec a group travels by is for choice.py. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pccl._codecs import from_exponents, to_exponents
from pccl.errors import ArgumentError, ProtocolError
from pccl.kv.layout import Group
from pccl.kv.memory import Array

__all__ = ["CODECS", "PAYS", "Codec", "pays"]

_BF16 = ("bf16", "bfloat16")
_FLOAT_BYTES = 4
_LEVELS = 127
#: What a codec must gain to be worth its processors.
PAYS = 1.05

Bits = np.ndarray[Any, np.dtype[np.uint16]]


@dataclass(frozen=True, slots=True)
class Codec:
    """One way. `encode` takes slabs, [n, slab] and contiguous; `decode` fills such, or raises ProtocolError: then they
    are undefined. `takes`: whether a group's slabs can travel so.
    """

    name: str
    lossless: bool
    takes: Callable[[Group], bool]
    encode: Callable[[Array, Group], Array]
    decode: Callable[[Array, Array, Group], None]


def pays(link_bytes_per_s: float, codec_bytes_per_s: float, ratio: float) -> bool:
    """Whether a codec that takes `codec_bytes_per_s` of plain bytes, and makes them `ratio` times fewer, makes a
    pipelined transfer faster: the slower of codec and link must be faster than the link alone by a twentieth.
    """
    for name, value in (("link", link_bytes_per_s), ("codec", codec_bytes_per_s), ("ratio", ratio)):
        if not (math.isfinite(value) and value > 0):
            raise ArgumentError(f"{name} must be a finite number above 0, not {value!r}")
    return min(codec_bytes_per_s, ratio * link_bytes_per_s) >= PAYS * link_bytes_per_s


# -- as they are --


def _plain(slabs: Array, group: Group) -> Array:
    return slabs.reshape(-1)


def _from_plain(data: Array, slabs: Array, group: Group) -> None:
    if data.size != slabs.size:
        raise ProtocolError(f"{data.size} bytes are no {slabs.shape[0]} slabs of {slabs.shape[1]}")
    slabs[:] = data.reshape(slabs.shape)


# -- exponents --


def _to_exponents(slabs: Array, group: Group) -> Array:
    return to_exponents(slabs)


def _from_exponents(data: Array, slabs: Array, group: Group) -> None:
    if not from_exponents(data, slabs):
        raise ProtocolError(f"{data.size} bytes are no {slabs.shape[0]} slabs of {slabs.shape[1]} by their exponents")


# -- eight bits --


def _cells(slabs: Array, group: Group) -> Bits:
    """The bits of bf16 values as [slabs, plane, tokens, heads, channels], or with the heads before the tokens."""
    tokens, heads = group.block_tokens or 1, group.head_count
    lie = (tokens, heads) if group.rows == "tokens" else (heads, tokens)
    cells: Bits = slabs.view(np.uint16).reshape(slabs.shape[0], group.planes, *lie, group.unit_bytes // 2)
    return cells


def _axes(group: Group) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Along which axes of a plane keys, then values, have one scale."""
    return ((1,), (2, 3)) if group.rows == "tokens" else ((2,), (1, 3))


def _to_int8(slabs: Array, group: Group) -> Array:
    parts = []
    values = (_cells(slabs, group).astype(np.uint32) << 16).view(np.float32)
    for plane, axes in enumerate(_axes(group)):
        this = values[:, plane]
        scale = np.abs(this).max(axis=axes, keepdims=True) / np.float32(_LEVELS)
        with np.errstate(invalid="ignore", divide="ignore"):
            codes = np.rint(this / np.where(scale > 0, scale, np.float32(1)))
            codes = np.where(np.isfinite(codes) & np.isfinite(scale), codes, 0).astype(np.int8)
        scale = np.where(np.isfinite(scale), scale, np.float32(np.nan))
        parts += [scale.astype(np.float32).reshape(-1).view(np.uint8), codes.reshape(-1).view(np.uint8)]
    return np.concatenate(parts)


def _from_int8(data: Array, slabs: Array, group: Group) -> None:
    cells = _cells(slabs, group)
    at = 0
    for plane, axes in enumerate(_axes(group)):
        this = cells[:, plane]
        shape = tuple(1 if axis in axes else size for axis, size in enumerate(this.shape))
        scale_bytes = math.prod(shape) * _FLOAT_BYTES
        if at + scale_bytes + this.size > data.size:
            raise ProtocolError(f"{data.size} bytes are no {slabs.shape[0]} slabs in 8 bits: too few")
        scale = data[at : at + scale_bytes].copy().view(np.float32).reshape(shape)
        at += scale_bytes
        codes = data[at : at + this.size].view(np.int8).reshape(this.shape)
        at += this.size
        with np.errstate(all="ignore"):  # scales from elsewhere
            this[:] = _bf16(codes * scale)
    if at != data.size:
        raise ProtocolError(f"{data.size} bytes are no {slabs.shape[0]} slabs in 8 bits: too many")


def _bf16(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Bits:
    """To the nearest, ties to even; NaN becomes the quiet one."""
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    near: Bits = np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
    return near


def _is_bf16(group: Group) -> bool:
    return group.dtype in _BF16 and group.unit_bytes % 2 == 0


def _is_keys_and_values(group: Group) -> bool:
    if not (_is_bf16(group) and group.planes == len(_axes(group)) and group.kind != "state"):
        return False
    tokens, channels = group.block_tokens or 1, group.head_count * group.unit_bytes // 2
    scales = tokens + channels
    return group.bytes_per_block_layer // 2 + scales * _FLOAT_BYTES < group.bytes_per_block_layer


CODECS = {
    codec.name: codec
    for codec in (
        Codec("raw", True, lambda group: True, _plain, _from_plain),
        Codec("bf16-exp", True, _is_bf16, _to_exponents, _from_exponents),
        Codec("int8-kc-vt", False, _is_keys_and_values, _to_int8, _from_int8),
    )
}
