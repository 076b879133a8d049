"""Weights as fp8 with scales of blocks: right by an independent definition, and the same bits whatever is around."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pccl.errors import ArgumentError
from pccl.weights import Schema, SchemaError, codec
from pccl.weights.quantise import BLOCK, E4M3_MAX, dequantise, quantise, quantised

Array = np.ndarray[Any, Any]
SCALES = ("float32", "ue8m0")
QUICKLY = settings(max_examples=60)


def by_definition(weight: Array, scales: str) -> tuple[Array, Array]:
    """Block by block, in numpy, rounded by ml_dtypes."""
    rows, columns = weight.shape
    codes = np.zeros(weight.shape, np.uint8)
    found = np.zeros((-(-rows // BLOCK), -(-columns // BLOCK)), np.float32)
    for i, j in np.ndindex(found.shape):
        place = np.s_[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK]
        block = weight[place]
        finite = np.isfinite(block)
        largest = np.abs(block[finite]).max(initial=np.float32(0))
        scale = np.float32(1) if largest == 0 else max(largest / np.float32(E4M3_MAX), np.float32(2.0**-126))
        if scales == "ue8m0":
            mantissa, exponent = np.frexp(scale)
            scale = np.float32(np.ldexp(1.0, exponent - 1 if mantissa == 0.5 else exponent))
        quotient = np.clip(np.where(finite, block, 0) / scale, -E4M3_MAX, E4M3_MAX).astype(np.float32)
        bits = quotient.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
        codes[place] = np.where(finite, bits, np.where(np.signbit(block), 0xFF, 0x7F))
        found[i, j] = scale
    return codes, found


def as_float(scale: torch.Tensor) -> Array:
    return (scale.to(torch.int32) << 23).view(torch.float32).numpy() if scale.dtype == torch.uint8 else scale.numpy()


def same(weight: torch.Tensor, scales: str) -> None:
    codes, scale = quantise(weight, scales)
    wanted_codes, wanted_scale = by_definition(weight.to(torch.float32).numpy(), scales)
    assert codes.dtype == torch.uint8 and codes.shape == weight.shape
    assert as_float(scale).tobytes() == wanted_scale.tobytes()
    assert codes.numpy().tobytes() == wanted_codes.tobytes()


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (128, 128), (129, 127), (300, 5), (1, 1000), (256, 384)])
def test_it_is_what_the_definition_says(shape: tuple[int, int], dtype: torch.dtype, scales: str) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.02
    same(weight.to(dtype), scales)


@pytest.mark.parametrize("scales", SCALES)
@given(data=st.data())
@QUICKLY
def test_any_bits(data: st.DataObject, scales: str) -> None:
    shape = data.draw(st.tuples(st.integers(1, 140), st.integers(1, 12)))
    bits = data.draw(npst.arrays(np.uint32, shape, elements=st.integers(0, 2**32 - 1), fill=st.just(0)))
    same(torch.from_numpy(bits.view(np.float32).copy()), scales)


@pytest.mark.parametrize("scales", SCALES)
def test_all_bfloat16_and_all_codes(scales: str) -> None:
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).reshape(256, 256)
    same(every, scales)
    codes = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    back = dequantise(codes, torch.ones(1, 1))
    again, scale = quantise(back, scales)
    finite = back.isfinite()
    assert as_float(scale).item() == 1.0
    assert torch.equal(again[finite], codes[finite])


def test_what_is_not_finite_is_seen_and_has_no_say() -> None:
    weight = torch.full((130, 130), 2.0)
    weight[0, :4] = torch.tensor([float("nan"), float("inf"), float("-inf"), -0.0])
    codes, scale = quantise(weight)
    assert torch.equal(scale, torch.full((2, 2), 2.0 / 448))
    assert codes[0, :4].tolist() == [0x7F, 0x7F, 0xFF, 0x80]
    assert (codes[1:] == 0x7E).all()
    codes, scale = quantise(torch.full((3, 3), float("nan")))
    assert scale.item() == 1.0 and (codes == 0x7F).all()


@pytest.mark.parametrize("scales", SCALES)
def test_a_block_of_zeros_and_the_smallest_numbers(scales: str) -> None:
    codes, scale = quantise(torch.zeros(128, 128), scales)
    assert as_float(scale).item() == 1.0 and not codes.any()
    tiny = torch.full((2, 2), 2.0**-149)
    codes, scale = quantise(tiny, scales)
    assert as_float(scale).item() == 2.0**-126 and not codes.any()
    huge = torch.full((2, 2), 1e38)
    assert torch.allclose(dequantise(*quantise(huge, scales)), huge, rtol=1 / 16)


def test_the_error_is_that_of_the_format() -> None:
    weight = torch.randn(512, 384, generator=torch.Generator().manual_seed(2))
    for scales in SCALES:
        codes, scale = quantise(weight, scales)
        error = (dequantise(codes, scale) - weight).abs()
        step = torch.maximum(
            weight.abs() / 16, scale_of(scale).repeat_interleave(128, 0).repeat_interleave(128, 1) / 1024
        )
        assert (error <= step * (1 + 1e-6)).all()


def scale_of(scale: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(as_float(scale))


def test_threads_and_order_and_company_change_nothing() -> None:
    rng = np.random.default_rng(3)
    tensors = [torch.from_numpy(rng.standard_normal((70 + 60 * i, 200), np.float32)) for i in range(12)]
    alone = [tuple(part.numpy().tobytes() for part in quantise(t)) for t in tensors]
    order = list(range(12))
    for seed in range(3):
        random.Random(seed).shuffle(order)
        torch.set_num_threads(1 + seed)
        with ThreadPoolExecutor(4) as pool:
            made = dict(zip(order, pool.map(lambda i: quantise(tensors[i]), order), strict=True))
        assert [tuple(part.numpy().tobytes() for part in made[i]) for i in range(12)] == alone
    torch.set_num_threads(2)
    stack = torch.stack([tensors[0], -tensors[0], 2 * tensors[0]])
    codes, scale = quantise(stack)
    for i in range(3):
        one = quantise(stack[i])
        assert torch.equal(codes[i], one[0]) and torch.equal(scale[i], one[1])
    across = tensors[5].t()
    assert torch.equal(quantise(across)[0], quantise(across.contiguous())[0])


def test_what_is_published_is_codes_and_scales_and_changes_less() -> None:
    generator = torch.Generator().manual_seed(4)
    masters = torch.randn(512, 512, generator=generator) * 0.02
    step = torch.randn(512, 512, generator=generator) * 1e-6

    def published(weight: torch.Tensor) -> dict[str, torch.Tensor]:
        named = {"w": weight.to(torch.bfloat16), "norm": torch.ones(512)}
        return dict(quantised(named, lambda _, t: t.ndim == 2, scales="ue8m0"))

    before, after = published(masters), published(masters + step)
    assert list(before) == ["w", "w_scale_inv", "norm"]
    schema = Schema.of(before)
    assert [(t.dtype, t.shape) for t in schema.tensors] == [
        ("float8_e4m3fn", (512, 512)), ("uint8", (4, 4)), ("float32", (512,))
    ]  # fmt: skip
    flat = [[schema.flat(0, named["w"]).copy() for named in (before, after)]]
    info = codec.describe(codec.encode(*flat[0]))
    bf16 = [weight.to(torch.bfloat16).view(torch.int16).numpy().reshape(-1) for weight in (masters, masters + step)]
    assert 0 < info.changed < (bf16[0] != bf16[1]).sum() / 2
    state = flat[0][0]
    codec.decode(codec.encode(*flat[0]), state)
    assert state.tobytes() == schema.flat(0, after["w"]).tobytes()


def test_wrong_input_is_named() -> None:
    with pytest.raises(ArgumentError, match="int32"):
        quantise(torch.zeros(2, 2, dtype=torch.int32))
    with pytest.raises(ArgumentError, match="two dimensions"):
        quantise(torch.zeros(5))
    with pytest.raises(ArgumentError, match="fp4"):
        quantise(torch.zeros(5, 5), "fp4")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="'norm'"):
        list(quantised({"norm": torch.zeros(5)}, lambda *_: True))
    with pytest.raises(SchemaError, match="w_scale_inv"):
        list(quantised({"w_scale_inv": torch.zeros(5), "w": torch.zeros(5, 5)}, lambda name, _: name == "w"))
    codes, scale = quantise(torch.zeros(0, 7))
    assert codes.shape == (0, 7) and scale.shape == (0, 1)
