"""traces.py - bfloat16 weights of a small GPT, step by step, as a trainer would publish them.

    python -m stress.weights.traces [--out build/traces] [--side 384] [--steps 60]

The model learns the source of Python's standard library, byte by byte: first for a while at a usual rate, so that its
weights are no longer noise; then, for every rate of RATES, a fresh AdamW with float32 masters takes `steps` steps on
single pieces of text, whose gradients are mostly noise, as those of reinforcement learning are, and the last STATES
states are kept: all parameters, one after the other, as the bits of bfloat16. Nothing is downloaded. Files that are
there already are left alone.
"""

from __future__ import annotations

import argparse
import sysconfig
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["RATES", "load", "make"]

RATES = (6e-7, 2e-6, 6.5e-6)
STATES = 4
CONTEXT = 128
WARM_BATCH = 2
LAYERS = 6
WARM_STEPS = 60
WARM_RATE = 1e-3


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(side), nn.LayerNorm(side)
        self.qkv, self.out = nn.Linear(side, 3 * side), nn.Linear(side, side)
        self.up, self.down = nn.Linear(side, 4 * side), nn.Linear(4 * side, side)
        self.heads = side // 64

    def forward(self, x: Tensor) -> Tensor:
        """(batch, context, side), and the same out."""
        batch, context, side = x.shape
        split = self.qkv(self.norm(x)).view(batch, context, 3, self.heads, 64).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(split[0], split[1], split[2], is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, context, side))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Gpt(nn.Module):
    """Bytes in, logits of the next byte out."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(256, side), nn.Embedding(CONTEXT, side)
        self.blocks = nn.Sequential(*(Block(side) for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(side), nn.Linear(side, 256, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, 0.0, 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, context) of bytes."""
        x = self.token(tokens) + self.place.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))  # type: ignore[no-any-return]


def text() -> Tensor:
    """The standard library's own modules, in the order of their names."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in files)), dtype=torch.uint8)


def batches(data: Tensor, batch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Places of the text, drawn at random: inputs, and the byte after each."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(data) - CONTEXT - 1, (batch,), generator=generator)
        rows = torch.stack([data[start : start + CONTEXT + 1] for start in starts]).long()
        yield rows[:, :-1], rows[:, 1:]


def train(model: Gpt, data: Tensor, rate: float, steps: int, batch: int, seed: int) -> Iterator[float]:
    """A fresh AdamW; the loss after every step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    for _, (inputs, targets) in zip(range(steps), batches(data, batch, seed), strict=False):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(inputs)
        loss = functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield float(loss.detach())


def bits(model: Gpt) -> np.ndarray[Any, Any]:
    """All parameters as the bits of bfloat16."""
    flat = torch.cat([parameter.detach().bfloat16().flatten() for parameter in model.parameters()])
    return flat.view(torch.int16).numpy().view(np.uint16)


def file_of(directory: Path, rate: float) -> Path:
    """Where the states of a rate are."""
    return directory / f"adamw-{rate:.1e}.npy"


def make(directory: Path, side: int = 384, steps: int = 60) -> None:
    """Writes the files that are not there."""
    missing = [rate for rate in RATES if not file_of(directory, rate).exists()]
    if not missing:
        return
    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    data, model = text(), Gpt(side)
    losses = list(train(model, data, WARM_RATE, WARM_STEPS, WARM_BATCH, seed=1))
    print(f"{len(bits(model))} parameters, loss {losses[0]:.3f} -> {losses[-1]:.3f}", flush=True)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for rate in missing:
        model.load_state_dict(start)
        states = deque((bits(model) for _ in train(model, data, rate, steps, 1, seed=2)), STATES)
        np.save(file_of(directory, rate), np.stack(states))
        print(f"rate {rate:.1e}: {np.mean(states[-1] != states[-2]):.2%} change in the last step", flush=True)


def load(directory: Path) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """(name, states as rows) of every rate."""
    for rate in RATES:
        yield f"AdamW lr {rate:.1e}", np.load(file_of(directory, rate), mmap_mode="r")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/traces"))
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    make(arguments.out, arguments.side, arguments.steps)


if __name__ == "__main__":
    main()
