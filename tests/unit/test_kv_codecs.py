"""Codecs of KV caches: what comes back, how exact, how small; what is refused; when one pays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pccl.errors import ArgumentError, ProtocolError
from pccl.kv.codecs import CODECS, pays
from pccl.kv.layout import Group

TOKENS, HEADS, UNIT = 16, 4, 64


def group(**changes: Any) -> Group:
    facts: dict[str, Any] = {
        "name": "full",
        "layers": ("L0",),
        "block_tokens": TOKENS,
        "heads": (0, HEADS, HEADS),
        "planes": 2,
        "bytes_per_block_layer": 2 * TOKENS * HEADS * UNIT * 2,
    }
    return Group(**(facts | changes))


def values(count: int, of: Group, seed: int = 1) -> np.ndarray[Any, Any]:
    """Slabs of normally distributed values, of which every channel has a spread of its own."""
    chance = np.random.default_rng(seed)
    wide = chance.standard_normal((count, of.bytes_per_block_layer // 2), np.float32)
    wide *= np.exp(chance.standard_normal(UNIT, np.float32)).repeat(1)[np.arange(wide.shape[1]) % UNIT]
    return (wide.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


def floats(slabs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (slabs.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def travelled(name: str, slabs: np.ndarray[Any, Any], of: Group) -> tuple[np.ndarray[Any, Any], int]:
    data = CODECS[name].encode(slabs, of)
    back = np.full_like(slabs, 0xA5)
    CODECS[name].decode(data, back, of)
    return back, data.size


@pytest.mark.parametrize("name", ["raw", "bf16-exp"])
def test_a_lossless_codec_keeps_every_bit(name: str) -> None:
    slabs = values(5, group())
    slabs[1] = np.random.default_rng(2).integers(0, 256, slabs.shape[1], np.uint8)  # NaN payloads, subnormals, all
    slabs[2] = 0
    back, size = travelled(name, slabs, group())
    assert (back == slabs).all()
    assert size == slabs.size if name == "raw" else size < slabs.size


def test_normal_values_take_less_than_three_quarters() -> None:
    slabs = values(64, group())
    assert travelled("bf16-exp", slabs, group())[1] < 0.75 * slabs.size


@settings(max_examples=30)
@given(st.binary(min_size=0, max_size=4096))
def test_any_bytes_survive(data: bytes) -> None:
    of = Group(name="s", kind="state", layers=("S",), bytes_per_block_layer=2)
    slabs = np.frombuffer(data[: len(data) // 2 * 2], np.uint8).reshape(-1, 2).copy()
    assert (travelled("bf16-exp", slabs, of)[0] == slabs).all()


@pytest.mark.parametrize("rows", ["tokens", "heads"])
def test_eight_bits_are_within_half_a_step_of_their_scale(rows: Any) -> None:
    of = group(rows=rows)
    slabs = values(3, of)
    back, size = travelled("int8-kc-vt", slabs, of)
    assert size < 0.6 * slabs.size
    lie = (TOKENS, HEADS) if rows == "tokens" else (HEADS, TOKENS)
    was, now = (floats(one).reshape(3, 2, *lie, UNIT) for one in (slabs, back))
    for plane, axes in enumerate(((1,), (2, 3)) if rows == "tokens" else ((2,), (1, 3))):
        step = np.abs(was[:, plane]).max(axis=axes, keepdims=True) / 127
        error = np.abs(was[:, plane] - now[:, plane])
        assert (error <= step / 2 + np.abs(was[:, plane]) / 256 + 1e-30).all()


def test_what_is_not_finite_is_never_hidden() -> None:
    of = group()
    slabs = values(1, of)
    slabs.view(np.uint16)[0, 7] = 0x7F80  # infinity, token 0, head 0, channel 7 of the keys
    back, _ = travelled("int8-kc-vt", slabs, of)
    keys = floats(back).reshape(2, TOKENS, HEADS, UNIT)[0]
    assert np.isnan(keys[:, 0, 7]).all()
    assert np.isnan(keys).sum() == TOKENS


def test_zeros_stay_zeros() -> None:
    slabs = np.zeros((2, group().bytes_per_block_layer), np.uint8)
    assert not travelled("int8-kc-vt", slabs, group())[0].any()


@pytest.mark.parametrize("name", list(CODECS))
def test_bytes_that_do_not_fit_are_refused(name: str) -> None:
    slabs = values(2, group())
    data = CODECS[name].encode(slabs, group())
    for wrong in (data[:-1], data[:0], np.concatenate([data, data[:1]])):
        with pytest.raises(ProtocolError):
            CODECS[name].decode(np.ascontiguousarray(wrong), np.empty_like(slabs), group())


def test_a_codec_pays_while_it_is_faster_than_the_link() -> None:
    assert pays(1e9, 2e9, 1.4)
    assert pays(1e9, 1.1e9, 1.4)
    assert not pays(1e9, 1.0e9, 1.4)
    assert not pays(1e9, 1e12, 1.04)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ArgumentError, match="link"):
            pays(wrong, 1.0, 1.0)
