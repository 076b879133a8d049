"""lengths.py - how long the uncached part of prompts is: a distribution as weighted samples, sorted once.

A threshold t cuts it in two: those above go to the remote cluster. `Cuts` holds, for every cut that makes a
difference, the share above (p) and the mean of each side: all that the throughput model asks of a distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pccl.errors import ArgumentError
from pccl.kv.model.profile import Floats
from pccl.kv.numbers import count, positive

__all__ = ["Cuts", "Lengths"]


@dataclass(frozen=True)
class Cuts:
    """Entry k: threshold `t[k]`; L > t has the share `p[k]` and the mean `long[k]`, L <= t the mean `short[k]`. A side
    that is empty has mean 0.
    """

    t: Floats
    p: Floats
    long: Floats
    short: Floats


@dataclass(frozen=True)
class Lengths:
    """`tokens`, sorted, each with its `weight`; weights add up to 1. Make it by `of`, `weighted` or `log_normal`."""

    tokens: Floats
    weight: Floats

    @classmethod
    def of(cls, samples: Sequence[float] | Floats) -> Lengths:
        """From lengths that were seen. ArgumentError names `lengths` if there are none, or one is no length."""
        return cls.weighted(samples, np.ones(len(samples)))

    @classmethod
    def weighted(cls, tokens: Sequence[float] | Floats, weight: Sequence[float] | Floats) -> Lengths:
        """From lengths and how often each was seen."""
        values, weights = np.asarray(tokens, np.float64), np.asarray(weight, np.float64)
        if not values.size:
            raise ArgumentError("lengths is empty")
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise ArgumentError("lengths must be finite numbers of at least 0")
        if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
            raise ArgumentError("weight must be finite numbers of at least 0, not all 0")
        order = np.argsort(values, kind="stable")
        return cls(values[order], weights[order] / weights.sum())

    @classmethod
    def log_normal(cls, mu: float, sigma: float, low: float, high: float, samples: int = 2000) -> Lengths:
        """A log-normal cut off at `low` and `high`, by the middles of `samples` equal parts: no random numbers."""
        from scipy.special import ndtr, ndtri

        positive("sigma", sigma)
        positive("low", low)
        count("samples", samples, 1)
        if not high > low:
            raise ArgumentError(f"high must be above low, not {high!r}")
        begin, end = ndtr((math.log(low) - mu) / sigma), ndtr((math.log(high) - mu) / sigma)
        middles = begin + (end - begin) * (np.arange(samples) + 0.5) / samples
        return cls.of(np.exp(mu + sigma * ndtri(middles)))

    @property
    def mean(self) -> float:
        """Mean length in tokens."""
        return float(self.tokens @ self.weight)

    @cached_property
    def cuts(self) -> Cuts:
        """Every threshold that makes a difference: 0 (all that has a length is above) and each distinct length."""
        t = np.unique(np.concatenate(([0.0], self.tokens)))
        upto = np.searchsorted(self.tokens, t, side="right")
        share = np.concatenate(([0.0], np.cumsum(self.weight)))
        mass = np.concatenate(([0.0], np.cumsum(self.weight * self.tokens)))
        p = np.maximum(0.0, 1.0 - share[upto])
        p[upto == len(self.tokens)] = 0.0
        long = np.divide(mass[-1] - mass[upto], p, out=np.zeros_like(p), where=p > 0)
        short = np.divide(mass[upto], 1.0 - p, out=np.zeros_like(p), where=p < 1)
        return Cuts(t, p, long, short)

    def cut(self, t: float) -> Cuts:
        """The one cut at t."""
        place = max(int(np.searchsorted(self.cuts.t, t, side="right")) - 1, 0)
        cuts = self.cuts
        return Cuts(np.array([float(t)]), *(part[place : place + 1] for part in (cuts.p, cuts.long, cuts.short)))
