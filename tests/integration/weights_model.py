"""weights_model.py - a small model with all bit patterns, and what an optimizer does to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import xxhash

from pccl.weights import MemoryShadow, Schema, ShardSpec, Tensor, base

SCHEMA = Schema(
    [
        Tensor("embed", (1500, 1000), "bfloat16"),
        Tensor("norm", (64,), "bfloat16"),
        Tensor("bias", (100, 3), "float32"),
        Tensor("codes", (70000,), "uint8"),
        Tensor("head", (5000, 1000), "bfloat16"),
    ]
)


def weights(seed: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    """All bit patterns, as integers: NaN, infinities, both zeros and denormals are among them."""
    rng = np.random.default_rng(seed)
    made = {}
    for tensor in SCHEMA.tensors:
        dtype = {"bfloat16": "uint16", "float32": "uint32", "uint8": "uint8"}[tensor.dtype]
        made[tensor.name] = rng.integers(0, np.iinfo(dtype).max + 1, tensor.shape, dtype)
    return made


def tensors(state: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    """The same as what a user has."""
    import ml_dtypes

    kinds = {"uint16": ml_dtypes.bfloat16, "uint32": np.float32, "uint8": np.uint8}
    return {name: array.view(kinds[str(array.dtype)]) for name, array in state.items()}


def step(state: dict[str, np.ndarray[Any, Any]], seed: int, share: float = 0.01) -> None:
    """What an optimizer does to it: a few elements, by a few units in the last place."""
    rng = np.random.default_rng(seed)
    for array in state.values():
        flat = array.reshape(-1)
        where = rng.choice(flat.size, max(1, int(flat.size * share)), replace=False)
        flat[where] += rng.choice(np.array([1, 2, 200], flat.dtype), where.size)


def equals(shadow: Any, state: dict[str, np.ndarray[Any, Any]]) -> bool:
    return all(shadow.tensor(name).tobytes() == array.tobytes() for name, array in state.items())


def loaded(state: dict[str, np.ndarray[Any, Any]]) -> MemoryShadow:
    shadow = MemoryShadow(SCHEMA)
    base.fill(shadow, tensors(state))
    return shadow


def digest_of(state: dict[str, Any]) -> str:
    """Of all bytes of all tensors."""
    return xxhash.xxh3_128_hexdigest(b"".join(array.tobytes() for array in state.values()))


RANKS = 3


def shards_of(whole: dict[str, Any], rank: int) -> list[tuple[Any, ...]]:
    """What a rank of RANKS has of the weights: rows of the large tensors, and some of the small ones whole."""
    made: list[tuple[Any, ...]] = []
    for number, (name, value) in enumerate(whole.items()):
        if name in ("embed", "head"):
            first, last = (len(value) * r // RANKS for r in (rank, rank + 1))
            made.append((name, value[first:last], ShardSpec(first)))
        elif number % RANKS == rank:
            made.append((name, value))
    return made
