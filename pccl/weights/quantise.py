"""quantise.py - weights as 8-bit floats with a scale per block, on the trainer's side, the same bits every time.

Rollout engines serve fp8: codes (e4m3, no infinities) and a scale for each block of 128 x 128. Quantise once, here, and
publish codes and scales; receivers never quantise again, so what they serve is what was published, bit for bit, and a
delta has what changed in the codes: far less than in the bf16 weights.

The result depends on nothing but the tensor: a block's scale is that of its largest finite magnitude, each step is one
operation that IEEE 754 rounds in one way (a maximum, a division, a conversion to nearest, ties to even), on any device,
in any thread, in any order. Scales of powers of two (ue8m0) move least from step to step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pccl.errors import ArgumentError
from pccl.weights.errors import SchemaError

if TYPE_CHECKING:
    import torch

__all__ = ["BLOCK", "E4M3_MAX", "Scales", "dequantise", "quantise", "quantised"]

BLOCK = 128
E4M3_MAX = 448.0
Scales = Literal["float32", "ue8m0"]
_SMALLEST = 2.0**-126  # of a scale: below it a division is at the mercy of whoever flushes subnormals
_NAN = 0x7F


def quantise(weight: Any, scales: Scales = "float32") -> tuple[torch.Tensor, torch.Tensor]:
    """(codes, scales) of a tensor of at least two dimensions, whose last two are cut into blocks of 128 x 128; those at
    the end are smaller. `weight`: torch, of float32, bfloat16 or float16, on any device; it is not changed.

    codes: uint8, of the tensor's shape: float8_e4m3fn bits. scales: one for each block, (..., rows / 128, columns /
    128) rounded up; float32, or for "ue8m0" uint8, the biased exponent of a power of two. A weight is about its code
    times the scale of its block. A block of zeros has scale 1. What is not finite becomes NaN, with its sign, and has
    no say in the scale. ArgumentError for another dtype or too few dimensions.
    """
    import torch

    if not isinstance(weight, torch.Tensor) or weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ArgumentError(f"a weight must be a torch tensor of float32, bfloat16 or float16, not {_kind(weight)}")
    if weight.ndim < 2:
        raise ArgumentError(
            f"a weight must have two dimensions or more to be cut into blocks, not shape {tuple(weight.shape)}"
        )
    if scales not in ("float32", "ue8m0"):
        raise ArgumentError(f"scales must be 'float32' or 'ue8m0', not {scales!r}")
    values = weight.detach().to(torch.float32)
    finite = values.isfinite()
    largest = _largest(torch.where(finite, values.abs(), 0.0))
    scale = torch.where(largest == 0, 1.0, (largest / E4M3_MAX).clamp_min(_SMALLEST))
    if scales == "ue8m0":
        exponents = (scale.view(torch.int32) + 0x7FFFFF) >> 23
        scale = (exponents << 23).view(torch.float32)
    quotient = (values / _spread(scale, values.shape)).clamp(-E4M3_MAX, E4M3_MAX)
    codes = quotient.to(torch.float8_e4m3fn).view(torch.uint8)
    broken = torch.where(values.signbit(), _NAN | 0x80, _NAN).to(torch.uint8)
    codes = torch.where(finite, codes, broken)
    return codes, (exponents.to(torch.uint8) if scales == "ue8m0" else scale)


def dequantise(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The float32 tensor that codes (uint8 or float8_e4m3fn) and scales (float32, or uint8 of ue8m0) stand for."""
    import torch

    if scales.dtype == torch.uint8:
        scales = (scales.to(torch.int32) << 23).view(torch.float32)
    return codes.view(torch.float8_e4m3fn).to(torch.float32) * _spread(scales, codes.shape)


def quantised(
    named: Mapping[str, Any] | Iterable[tuple[str, Any]],
    chosen: Callable[[str, Any], bool],
    *,
    scales: Scales = "float32",
    suffix: str = "_scale_inv",
) -> Iterator[tuple[str, Any]]:
    """(name, tensor) to be published: of every tensor that is `chosen(name, tensor)` its codes, as float8_e4m3fn, under
    its name, and its scales under `name + suffix`; all others as they are. One tensor at a time. SchemaError names a
    tensor whose scales would have the name of another; ArgumentError as `quantise`, naming the tensor.
    """
    import torch

    seen: set[str] = set()

    def once(name: str, value: Any) -> tuple[str, Any]:
        if name in seen:
            raise SchemaError(f"two tensors would have the name {name!r}")
        seen.add(name)
        return name, value

    for name, value in named.items() if isinstance(named, Mapping) else named:
        if not chosen(name, value):
            yield once(name, value)
            continue
        try:
            codes, scale = quantise(value, scales)
        except ArgumentError as error:
            raise ArgumentError(f"{name!r} cannot be quantised: {error}") from error
        yield once(name, codes.view(torch.float8_e4m3fn))
        yield once(name + suffix, scale)


def _kind(value: Any) -> str:
    return str(getattr(value, "dtype", type(value).__name__))


def _largest(magnitudes: torch.Tensor) -> torch.Tensor:
    """Of each block."""
    from torch.nn.functional import pad

    *lead, rows, columns = magnitudes.shape
    down, across = -(-rows // BLOCK), -(-columns // BLOCK)
    if magnitudes.numel() == 0:
        return magnitudes.new_zeros((*lead, down, across))
    if rows % BLOCK or columns % BLOCK:
        magnitudes = pad(magnitudes, (0, across * BLOCK - columns, 0, down * BLOCK - rows))
    return magnitudes.reshape(*lead, down, BLOCK, across, BLOCK).amax((-3, -1))


def _spread(scale: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A scale for each element."""
    wide = scale.repeat_interleave(BLOCK, -2)[..., : shape[-2], :]
    return wide.repeat_interleave(BLOCK, -1)[..., : shape[-1]]
