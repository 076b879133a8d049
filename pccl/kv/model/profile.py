"""profile.py - what a prefill of l tokens costs: T_prefill(l) in seconds and S_kv(l) in bytes, as measured points.

Linear between two points. Before the first the line of the first two goes on, never below 0; beyond the last the line
of the last two: that is a guess, and whoever decides by it says so (`extrapolated`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pccl.errors import ArgumentError
from pccl.kv.numbers import at_least_zero, some

__all__ = ["Curve", "Profile"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curve:
    """A measured function of a number of tokens. `points`: (tokens, value), at least two, tokens rising, values of at
    least 0. ArgumentError names `name` otherwise.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    longest: float = field(init=False, repr=False, compare=False)
    _knots: tuple[float, ...] = field(init=False, repr=False, compare=False)
    _lines: tuple[tuple[float, float], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        points = tuple((float(tokens), float(value)) for tokens, value in self.points)
        some(self.name, points, 2)
        for tokens, value in points:
            at_least_zero(f"{self.name}: tokens", tokens)
            at_least_zero(f"{self.name}: the value at {tokens:g} tokens", value)
        lines = []
        for (x0, y0), (x1, y1) in pairwise(points):
            if x1 <= x0:
                raise ArgumentError(f"{self.name}: tokens must rise, {x1:g} follows {x0:g}")
            slope = (y1 - y0) / (x1 - x0)
            lines.append((y0 - x0 * slope, slope))
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "longest", points[-1][0])
        object.__setattr__(self, "_knots", tuple(tokens for tokens, _ in points[1:-1]))
        object.__setattr__(self, "_lines", tuple(lines))

    def at(self, tokens: float) -> float:
        """The value for one length."""
        base, slope = self._lines[bisect_right(self._knots, tokens)]
        value = base + tokens * slope
        return value if value > 0.0 else 0.0

    def many(self, tokens: Floats) -> Floats:
        """`at` of every length of an array."""
        base, slope = np.array(self._lines)[np.searchsorted(self._knots, tokens, side="right")].T
        result: Floats = np.maximum(0.0, base + tokens * slope)
        return result


@dataclass(frozen=True, slots=True)
class Profile:
    """One prefill instance with one model: seconds of a prefill, bytes of KV cache, by the tokens prefilled."""

    name: str
    prefill_s: Curve
    kv_bytes: Curve
    longest: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "longest", min(self.prefill_s.longest, self.kv_bytes.longest))

    @classmethod
    def of(
        cls, name: str, prefill_s: Iterable[tuple[float, float]], kv_bytes: Iterable[tuple[float, float]]
    ) -> Profile:
        """From points. ArgumentError names what is wrong with them."""
        return cls(name, Curve(f"{name}.prefill_s", tuple(prefill_s)), Curve(f"{name}.kv_bytes", tuple(kv_bytes)))

    def extrapolated(self, tokens: float) -> bool:
        """Whether a prefill of so many tokens is longer than what was measured."""
        return tokens > self.longest

    @classmethod
    def from_dict(cls, name: str, found: Any) -> Profile:
        """{"prefill_s": [[tokens, s], ...], "kv_bytes": [[tokens, bytes], ...]}, as in a JSON file."""
        curves = {}
        for key in ("prefill_s", "kv_bytes"):
            try:
                curves[key] = [(float(tokens), float(value)) for tokens, value in found[key]]
            except (KeyError, TypeError, ValueError) as error:
                raise ArgumentError(f"{name}.{key} must be a list of [tokens, value]: {error}") from None
        return cls.of(name, curves["prefill_s"], curves["kv_bytes"])
