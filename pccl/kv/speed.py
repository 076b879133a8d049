"""speed.py - how fast this process encodes and decodes, measured once, when it is first asked."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import numpy as np

from pccl.kv.choice import usable
from pccl.kv.codecs import CODECS
from pccl.kv.layout import Group
from pccl.kv.memory import Array

__all__ = ["Speed", "speed", "speeds"]

_BYTES, _ROUNDS = 1 << 20, 3
_TOKENS, _HEADS, _UNIT = 16, 8, 256
Speed = tuple[float, float]


@functools.cache
def speed(name: str) -> Speed:
    """(encode, decode) of plain bytes a second by one thread. Blocks for some milliseconds, once in a process."""
    codec, slabs = CODECS[name], _slabs()
    back, found = np.empty_like(slabs), codec.encode(slabs, _GROUP)

    def best(step: Callable[[], object]) -> float:
        seconds = []
        for _ in range(_ROUNDS):
            begin = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begin)
        return slabs.size / max(min(seconds), 1e-9)

    return best(lambda: codec.encode(slabs, _GROUP)), best(lambda: codec.decode(found, back, _GROUP))


def speeds(codec_ok: Sequence[str], groups: Sequence[Group]) -> dict[str, Speed]:
    """Of those that are allowed, known, and of use to one of the groups."""
    coded = [name for name in codec_ok if name in CODECS and name != "raw"]
    return {name: speed(name) for name in coded if any(usable(name, group) for group in groups)}


def _slabs() -> Array:
    """Normally distributed values."""
    count = _BYTES // _GROUP.bytes_per_block_layer
    values = np.random.default_rng(0).standard_normal((count, _GROUP.bytes_per_block_layer // 2), np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


_GROUP = Group(
    name="speed",
    layers=("L",),
    block_tokens=_TOKENS,
    heads=(0, _HEADS, _HEADS),
    planes=2,
    bytes_per_block_layer=2 * _TOKENS * _HEADS * _UNIT,
)
