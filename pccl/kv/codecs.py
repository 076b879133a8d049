"""codecs.py - slabs in fewer bytes, and when that pays: as they are, bf16 without loss in 11 to 12 bits, or in 8 bits.

`bf16-exp` (csrc/exponents.c) keeps every bit. `int8-kc-vt` (csrc/eight_bits.c) does not: keys get a scale for each
channel of a block, values one for each token (KIVI, 2402.02750, section 3), and both sides must agree to that.
Recurrent state is never quantised: its errors add up. Which codec a group travels by is for choice.py. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pccl._codecs import Shape, from_eight_bits, from_exponents, to_eight_bits, to_exponents
from pccl.errors import ArgumentError, ProtocolError
from pccl.kv.layout import Group
from pccl.kv.memory import Array

__all__ = ["CODECS", "PAYS", "Codec", "pays"]

_BF16 = ("bf16", "bfloat16")
_FLOAT_BYTES = 4
_KEYS_AND_VALUES = 2  # planes
#: What a codec must gain to be worth its processors.
PAYS = 1.05


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


def _shape(group: Group) -> Shape:
    """(tokens, heads, channels, whether heads come first) of a plane."""
    return group.block_tokens or 1, group.head_count, group.unit_bytes // 2, group.rows == "heads"


def _to_int8(slabs: Array, group: Group) -> Array:
    return to_eight_bits(slabs, _shape(group))


def _from_int8(data: Array, slabs: Array, group: Group) -> None:
    if not from_eight_bits(data, slabs, _shape(group)):
        raise ProtocolError(f"{data.size} bytes are no {slabs.shape[0]} slabs in 8 bits")


def _is_bf16(group: Group) -> bool:
    return group.dtype in _BF16 and group.unit_bytes % 2 == 0


def _is_keys_and_values(group: Group) -> bool:
    """Whether it is, and small enough in 8 bits with all scales."""
    if not (_is_bf16(group) and group.planes == _KEYS_AND_VALUES and group.kind != "state"):
        return False
    tokens, heads, channels, _ = _shape(group)
    cells, scales = tokens * heads * channels, tokens + heads * channels
    return cells % _FLOAT_BYTES == 0 and scales * _FLOAT_BYTES < _KEYS_AND_VALUES * cells


CODECS = {
    codec.name: codec
    for codec in (
        Codec("raw", True, lambda group: True, _plain, _from_plain),
        Codec("bf16-exp", True, _is_bf16, _to_exponents, _from_exponents),
        Codec("int8-kc-vt", False, _is_keys_and_values, _to_int8, _from_int8),
    )
}
