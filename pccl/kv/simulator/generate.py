"""generate.py - traces made up to have the published statistics of four real ones, which are not shipped.

Marginals are exact: the quantiles of input lengths and of uncached lengths are those of the table below, linear in the
logarithm between its points. Every input is paired with an uncached part that fits into it, at random; what is cached
is the beginning of an earlier request of the trace. Arrivals: requests are dealt to seconds of very different weight
(gamma), so that seconds have as much of a burst as in the original. Lengths of outputs are made up from the means
alone; nothing here depends on them. The same seed makes the same trace.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pccl.errors import ArgumentError
from pccl.kv.model.profile import Floats
from pccl.kv.numbers import count
from pccl.kv.simulator.trace import MOONCAKE_BLOCK_TOKENS, Trace

__all__ = ["STATISTICS", "Statistics", "generated"]

Ints = NDArray[np.int64]
Quantiles = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Statistics:
    """`tokens`, `uncached`: (part of the requests, at most so many tokens). `burst`: shape of the gamma distribution
    of a second's weight: the smaller, the more of a burst. `output_mean`: tokens.
    """

    requests: int
    duration_s: float
    burst: float
    tokens: Quantiles
    uncached: Quantiles
    output_mean: float


STATISTICS = {
    "conversation": Statistics(
        12031,
        3537,
        1.1,
        ((0, 900), (0.5, 6900), (0.75, 12700), (0.9, 27400), (0.99, 85400), (1, 126000)),
        ((0, 100), (0.5, 2500), (0.57, 4000), (0.73, 8000), (0.9, 19000), (0.96, 32000), (0.99, 71900), (1, 126000)),
        343,
    ),
    "synthetic": Statistics(
        3993,
        1022,
        1.5,
        ((0, 600), (0.5, 11600), (0.75, 18500), (0.9, 38600), (0.99, 66500), (1, 191000)),
        ((0, 30), (0.5, 400), (0.78, 4000), (0.79, 8000), (0.9, 19200), (0.96, 32000), (0.99, 49800), (1, 66500)),
        149,
    ),
    "azure-code": Statistics(8819, 3436, 2.0, ((0, 5), (0.5, 1500), (0.9, 5200), (0.99, 7400), (1, 7437)), (), 28),
    "azure-conv": Statistics(19366, 3502, 4.0, ((0, 5), (0.5, 1000), (0.9, 2700), (0.99, 4100), (1, 14050)), (), 211),
}


def generated(name: str, seed: int = 0, requests: int | None = None) -> Trace:
    """A trace like `name`; with `requests` only so many of them, at the same rate. ArgumentError for a name that is
    not one of STATISTICS.
    """
    if name not in STATISTICS:
        raise ArgumentError(f"no generated trace is called {name!r}; there are {', '.join(STATISTICS)}")
    count("seed", seed)
    like = STATISTICS[name]
    wanted = like.requests if requests is None else count("requests", requests, 1)
    rng = np.random.default_rng([seed, list(STATISTICS).index(name)])
    tokens = _drawn(like.tokens, wanted)
    outputs = np.maximum(1, rng.exponential(like.output_mean, wanted)).astype(np.int64)
    arrival = _arrivals(rng, wanted, like.duration_s * wanted / like.requests, like.burst)
    if like.uncached:
        tokens, blocks = _with_prefixes(rng, tokens, _drawn(like.uncached, wanted))
    else:
        tokens, blocks = rng.permutation(tokens), ((),) * wanted
    return Trace(f"{name} (generated, seed {seed})", arrival, tokens, outputs, blocks)


def _drawn(quantiles: Quantiles, wanted: int) -> Ints:
    """So many lengths, sorted: the middles of equal parts of the distribution."""
    parts, tokens = np.array(quantiles, np.float64).T
    middles = (np.arange(wanted) + 0.5) / wanted
    drawn: Ints = np.maximum(1, np.rint(np.exp(np.interp(middles, parts, np.log(tokens))))).astype(np.int64)
    return drawn


def _arrivals(rng: np.random.Generator, wanted: int, duration_s: float, burst: float) -> Floats:
    """Seconds of arrival, sorted, the first within the first second."""
    weights = rng.gamma(burst, size=max(1, round(duration_s)))
    per_second = rng.multinomial(wanted, weights / weights.sum())
    within = np.repeat(np.arange(len(weights)), per_second) + rng.random(wanted)
    arrival: Floats = np.sort(within)
    arrival -= np.floor(arrival[0])
    return arrival


def _with_prefixes(rng: np.random.Generator, tokens: Ints, uncached: Ints) -> tuple[Ints, tuple[tuple[int, ...], ...]]:
    """(tokens, blocks) in an order in which every prefix has been there before."""
    pairs = _paired(rng, tokens, uncached)
    rng.shuffle(pairs)
    waiting = [(total, _whole_blocks(total, new)) for total, new in pairs]
    heads = _Heads()
    ordered: list[int] = []
    blocks: list[tuple[int, ...]] = []
    deferred: list[tuple[int, int]] = []  # (blocks of the prefix, tokens): sorted, for those with no such prefix yet
    for total, cached in waiting:
        insort(deferred, (cached, total))
        while deferred and deferred[0][0] <= heads.longest:
            cached, total = deferred.pop(0)
            ordered.append(total)
            blocks.append(heads.extended(rng, cached, -(-total // MOONCAKE_BLOCK_TOKENS)))
    for cached, total in deferred:
        ordered.append(total)
        blocks.append(heads.extended(rng, min(cached, heads.longest), -(-total // MOONCAKE_BLOCK_TOKENS)))
    return np.array(ordered, np.int64), tuple(blocks)


def _whole_blocks(total: int, uncached: int) -> int:
    """Blocks of the prefix, so that about so much is not cached; something never is."""
    return min(round((total - uncached) / MOONCAKE_BLOCK_TOKENS), (total - 1) // MOONCAKE_BLOCK_TOKENS)


def _paired(rng: np.random.Generator, tokens: Ints, uncached: Ints) -> list[tuple[int, int]]:
    """Each input with an uncached part that is not longer: the longest parts choose first, at random."""
    totals = tokens[::-1]
    pool: list[int] = []
    pairs: list[tuple[int, int]] = []
    taken = 0
    picks = rng.random(len(tokens))
    for part, pick in zip(uncached[::-1], picks, strict=True):
        while taken < len(totals) and (totals[taken] >= part or not pool):
            pool.append(int(totals[taken]))
            taken += 1
        place = int(pick * len(pool))
        pool[place], pool[-1] = pool[-1], pool[place]
        total = pool.pop()
        pairs.append((total, min(int(part), total)))
    return pairs


class _Heads:
    """Requests so far, sorted by length: any prefix of one can be the beginning of another."""

    def __init__(self) -> None:
        self._known: list[tuple[int, int]] = []  # (blocks, number of the request)
        self._blocks: list[tuple[int, ...]] = []
        self._next = 0

    @property
    def longest(self) -> int:
        return self._known[-1][0] if self._known else 0

    def extended(self, rng: np.random.Generator, cached: int, blocks: int) -> tuple[int, ...]:
        """A new request: `cached` blocks of an earlier one that is hardly longer, the rest new."""
        head: tuple[int, ...] = ()
        if cached:
            first = bisect_left(self._known, (cached, -1))
            near = min(len(self._known), first + 16)
            head = self._blocks[self._known[int(rng.integers(first, near))][1]][:cached]
        new = tuple(range(self._next, self._next + blocks - cached))
        self._next += blocks - cached
        insort(self._known, (blocks, len(self._blocks)))
        self._blocks.append(head + new)
        return head + new
