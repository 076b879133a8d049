"""synthetic.py - pairs of states like those of an AdamW step, of any size and density, without training.

Weights are normal, of 0.02, in bfloat16. A weight changes with a chance that doubles with every exponent that it is
smaller by, because AdamW moves all weights by about the same; nine in ten changes are by one, as in real traces.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["pair"]

_PIECE = 1 << 22
State = np.ndarray[Any, Any]


def _scale(density: float) -> float:
    """The chance at the exponent of 1 with which `density` of all weights change."""
    sample = _weights(np.random.default_rng(0), 1 << 20)
    lo, hi = 0.0, 1.0
    for _ in range(60):
        middle = (lo + hi) / 2
        lo, hi = (middle, hi) if _chances(sample, middle).mean() < density else (lo, middle)
    return lo


def _weights(rng: np.random.Generator, count: int) -> State:
    values = rng.standard_normal(count, np.float32) * np.float32(0.02)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def _chances(weights: State, scale: float) -> State:
    return np.minimum(scale * np.exp2(127 - (weights >> 7 & 255).astype(np.float32)), 0.95)


def _steps(rng: np.random.Generator, count: int) -> State:
    """Mostly one; two; more, by a law of powers; up or down."""
    kind = rng.random(count)
    many = np.minimum(2 + rng.pareto(1.0, count) * 2, 1 << 14).astype(np.int32)
    size = np.where(kind < 0.9, 1, np.where(kind < 0.94, 2, many))
    return np.where(rng.random(count) < 0.5, size, -size).astype(np.int16).view(np.uint16)


def pair(count: int, density: float, seed: int = 0) -> tuple[State, State]:
    """(old, new) of `count` weights, as uint16."""
    rng = np.random.default_rng(seed)
    scale = _scale(density)
    old, new = np.empty(count, np.uint16), np.empty(count, np.uint16)
    for at in range(0, count, _PIECE):
        piece = slice(at, min(count, at + _PIECE))
        old[piece] = weights = _weights(rng, piece.stop - at)
        hits = np.flatnonzero(rng.random(len(weights), np.float32) < _chances(weights, scale))
        weights[hits] += _steps(rng, len(hits))
        new[piece] = weights
    return old, new
