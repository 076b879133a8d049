"""averages.py - what a round's sums become: weighted mean or radial-directional average; which outer rate to take.

Pure, in place on flat fp32 tensors on the CPU. What all peers compute from the same sums and headers is the same bytes
on every machine: element by element, or in an order that is fixed here and not by the width of a machine's vectors.

The radial-directional average (arXiv 2604.21428) of the vectors v of a tensor with weights w is
(Σ w ‖v‖ / Σ w) · φ(Σ w φ(v)), φ(x) = x / ‖x‖: the mean length along the mean direction. A plain mean of vectors that
disagree is shorter than they are. Peers all-reduce w φ(v) (`directions`) and gather ‖v‖ (`norms`) and w.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from pccl.errors import ArgumentError

__all__ = ["Recommended", "Slice", "directions", "norms", "radial", "recommended", "weighted_mean"]

Slice = tuple[int, int]
"""(first, end) of a tensor in the flat one."""

_LANES: Final = 1 << 16
_CANCELLED: Final = 2.0**-16
"""A mean direction shorter than this is what rounding left of directions that cancel: it has no direction."""


def weighted_mean(summed: Tensor, total_weight: float) -> Tensor:
    """Σ w v -> Σ w v / Σ w, in place; returned. Zeros where the weights are 0 altogether: nobody moves anything.

    Raises ArgumentError for a total that is negative or not finite.
    """
    _check_weight("the total weight", total_weight)
    return summed.div_(_fp32(total_weight)) if total_weight else summed.zero_()


def norms(flat: Tensor, slices: Sequence[Slice]) -> list[float]:
    """The Euclidean length of every slice, summed in fp64 in an order that is the same on every machine."""
    return [_length(flat[first:end]) for first, end in slices]


def directions(flat: Tensor, slices: Sequence[Slice]) -> Tensor:
    """A new flat tensor with every slice divided by its length, zeros for length 0; what is in no slice is copied.

    What is in no slice (embeddings, say) thus takes part in the round as a plain mean.
    """
    units = flat.clone()
    for (first, end), length in zip(slices, norms(flat, slices), strict=True):
        _scale(units[first:end], 1.0, length)
    return units


def radial(
    summed: Tensor, slices: Sequence[Slice], lengths: Sequence[Sequence[float]], weights: Sequence[float]
) -> Tensor:
    """Σ w φ(v) -> the radial-directional average of every slice, in place; returned.

    `summed`: fp32 [numel], the sum over peers of weight · `directions`. `lengths`: per peer its `norms`, `weights`: per
    peer, both in the same order on all peers. A slice is zeros if all its vectors are, if the directions cancel (their
    mean is shorter than 2^-16), and if no peer has a weight. What is in no slice becomes the weighted mean.

    Raises ArgumentError if numbers of peers or of slices do not fit, and for a length or weight that is negative or
    not finite; nothing is changed then.
    """
    if len(lengths) != len(weights):
        raise ArgumentError(f"{len(weights)} weights need the lengths of as many peers, not of {len(lengths)}")
    for peer, (row, weight) in enumerate(zip(lengths, weights, strict=True)):
        if len(row) != len(slices):
            raise ArgumentError(f"peer {peer} must tell {len(slices)} lengths, not {len(row)}")
        _check_weight(f"the weight of peer {peer}", weight)
        for length in row:
            _check_weight(f"a length of peer {peer}", length)
    total = math.fsum(weights)
    weighted_mean(summed, total)
    for number, (first, end) in enumerate(slices):
        part = summed[first:end]
        length = _length(part)
        mean = math.fsum(weight * row[number] for row, weight in zip(lengths, weights, strict=True))
        _scale(part, mean / total if total else 0.0, length if length > _CANCELLED else 0.0)
    return summed


@dataclass(frozen=True, slots=True)
class Recommended:
    """Settings to begin with: inner steps per round, and those of the outer Nesterov optimizer."""

    every: int
    outer_lr: float
    momentum: float


def recommended(peers: int, every: int, overlap: bool = False) -> Recommended:
    """The outer rate that the scaling laws of DiLoCo (arXiv 2503.09799) found best for that many peers, momentum 0.9.

    0.6 for up to 2 peers, 0.7 for 4, 0.9 from 8 on, and between them along log2(peers); 0.4 if fragments land while the
    inner steps go on (`overlap`, arXiv 2501.18512). The best rate does not depend on the size of the model; they found
    it to grow a little with `every` too, too little to tabulate. Two cases need less momentum, whatever is said here:
    runs of less than a hundred rounds (rate 1.0, momentum 0.5), and rounds that land a whole round late (0 to 0.3).

    Raises ArgumentError for less than 1 peer or step.
    """
    if peers < 1:
        raise ArgumentError(f"peers must be 1 at least, not {peers}")
    if every < 1:
        raise ArgumentError(f"every must be 1 step at least, not {every}")
    if overlap:
        return Recommended(every, 0.4, 0.9)
    doublings = math.log2(min(max(peers, 2), 8)) - 1
    return Recommended(every, round(0.6 + 0.1 * min(doublings, 1) + 0.2 * max(doublings - 1, 0), 3), 0.9)


# -- pieces ----------------------------------------------------------------------------------------------------------


def _check_weight(what: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ArgumentError(f"{what} is {value}; it must be finite and not negative")


def _fp32(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def _scale(part: Tensor, length: float, before: float) -> None:
    """part <- part · length / before, zeros if it had no length. Divided in fp64: the length may be below fp32's."""
    if before:
        part.copy_(part.double() * (length / before))
    else:
        part.zero_()


def _length(part: Tensor) -> float:
    """Squares added to lanes one after the other, then halves of the lanes to each other: only elementwise sums."""
    lanes = part.new_zeros(_LANES if part.numel() > _LANES else part.numel(), dtype=torch.float64)
    for first in range(0, part.numel(), _LANES):
        block = part[first : first + _LANES]
        lanes[: block.numel()] += block.double().square()
    while lanes.numel() > 1:
        half = lanes.numel() // 2
        rest = lanes[2 * half :]
        lanes = lanes[:half] + lanes[half : 2 * half]
        lanes[: rest.numel()] += rest
    return math.sqrt(lanes.item()) if lanes.numel() else 0.0
