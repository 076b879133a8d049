"""markov.py - a language whose entropy is known, and a tiny GPT that learns it in 400 steps on one core.

The source is a Markov chain of order 1 over 64 symbols; rows of the transition matrix are proportional to the fourth
power of exponential variates, drawn with seed 1234. Its entropy rate is 1.980 nats: no loss can stay below, and none of
a sound run is far above. Everything is a function of seeds, so that two runs with the same seed see the same batches.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CONTEXT", "STEPS", "Batches", "Gpt", "adamw", "clip", "entropy_rate", "evaluate", "learning_rate"]

SYMBOLS = 64
CONTEXT = 32
TRAIN, EVAL = 1 << 19, 1 << 16  # tokens
WIDTH, HEADS, BLOCKS = 32, 2, 2

STEPS = 400
BATCH = 32  # sequences, of all replicas together
RATE, RATE_LAST, WARM_UP = 1e-2, 0.1, 40
CLIP = 1.0
_SOURCE_SEED = 1234


# -- the source --------------------------------------------------------------------------------------------------------


def _transitions() -> tuple[Tensor, torch.Generator]:
    chance = torch.Generator().manual_seed(_SOURCE_SEED)
    sizes = (-torch.log(torch.rand(SYMBOLS, SYMBOLS, generator=chance))) ** 4
    return (sizes / sizes.sum(dim=1, keepdim=True)).double(), chance


def entropy_rate() -> float:
    """Of the source, nats per symbol."""
    rows, _ = _transitions()
    visited = torch.linalg.matrix_power(rows, 1 << 10)[0]
    return float(-(visited @ torch.special.xlogy(rows, rows).sum(dim=1)))


@functools.cache
def tokens() -> tuple[Tensor, Tensor]:
    """(train, eval): int64 [TRAIN], [EVAL]."""
    rows, chance = _transitions()
    ladders = rows.cumsum(dim=1).tolist()
    draws = torch.rand(TRAIN + EVAL, generator=chance, dtype=torch.float64).tolist()
    symbol, drawn = 0, []
    for draw in draws:
        symbol = min(bisect.bisect_right(ladders[symbol], draw), SYMBOLS - 1)
        drawn.append(symbol)
    whole = torch.tensor(drawn)
    return whole[:TRAIN], whole[TRAIN:]


class Batches:
    """Endless batches of a replica. `places`: whose streams it reads (data parallel in one process reads several)."""

    def __init__(self, seed: int, places: Sequence[int], size: int) -> None:
        self._streams = [torch.Generator().manual_seed(1000 * seed + place) for place in places]
        self._size = size

    def next(self) -> Tensor:
        """int64 [places * size, CONTEXT + 1]."""
        train, _ = tokens()
        starts = [torch.randint(TRAIN - CONTEXT, (self._size,), generator=stream) for stream in self._streams]
        return train[torch.cat(starts).unsqueeze(1) + torch.arange(CONTEXT + 1)]


# -- the model ---------------------------------------------------------------------------------------------------------


class _Block(nn.Module):
    """Attention and MLP behind layer norms, without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Gpt(nn.Module):
    """29,856 parameters: 2 blocks of width 32, 2 heads, learned positions, a head of its own."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        chance = torch.Generator().manual_seed(seed)
        self.symbols, self.places = nn.Embedding(SYMBOLS, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(_Block() for _ in range(BLOCKS))
        self.norm, self.head = nn.LayerNorm(WIDTH, bias=False), nn.Linear(WIDTH, SYMBOLS, bias=False)
        with torch.no_grad():
            for parameter in itertools.filterfalse(lambda p: p.dim() < 2, self.parameters()):
                parameter.normal_(0.0, 0.02, generator=chance)

    def forward(self, sequences: Tensor) -> Tensor:
        """The mean loss over int64 [n, CONTEXT + 1], nats."""
        x = self.symbols(sequences[:, :-1]) + self.places.weight
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), sequences[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: Gpt) -> float:
    """The loss on the tokens kept apart, nats."""
    _, kept = tokens()
    whole = (EVAL - 1) // CONTEXT
    starts = torch.arange(whole).unsqueeze(1) * CONTEXT
    return float(model(kept[starts + torch.arange(CONTEXT + 1)]))


# -- how it is trained -------------------------------------------------------------------------------------------------


def adamw(model: nn.Module) -> torch.optim.AdamW:
    """The inner optimizer: weights of matrices decay."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95))


def learning_rate(step: int) -> float:
    """Of the inner step with that number, from 0: 40 steps of warm-up, then a cosine down to a tenth."""
    if step < WARM_UP:
        return RATE * (step + 1) / WARM_UP
    along = (step - WARM_UP) / (STEPS - WARM_UP)
    return RATE * (RATE_LAST + (1 - RATE_LAST) * (1 + math.cos(math.pi * along)) / 2)


def clip(model: nn.Module) -> None:
    """Gradients to a norm of at most 1."""
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
