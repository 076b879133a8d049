"""Pools of tests: small caches with known content, what their blocks hold, and two communicators to have them in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import pccl
import pccl.kv as kv

LAYERS = ("L0", "L1", "L2")
BLOCK_BYTES = 16384
UNIT = 64  # bytes of one head of one token
SOON_S = 20.0  # as good as never


def until(what: Callable[[], bool]) -> None:
    """Soon it is so."""
    end = time.monotonic() + SOON_S
    while not what():
        assert time.monotonic() < end


def layout(layers: tuple[str, ...] = LAYERS, block_bytes: int = BLOCK_BYTES, order: Any = "layer_first") -> kv.Layout:
    """One group of full attention."""
    group = kv.Group(name="full", layers=layers, bytes_per_block_layer=block_bytes, block_tokens=16, order=order)
    return kv.Layout(model_id="test/1", groups=(group,))


def attention(block_tokens: int, heads: tuple[int, int, int]) -> kv.Layout:
    """One group, some of its heads."""
    size = block_tokens * (heads[1] - heads[0]) * UNIT
    group = kv.Group(
        name="full", layers=LAYERS, bytes_per_block_layer=size, block_tokens=block_tokens, heads=heads, rows="tokens"
    )
    return kv.Layout(model_id="test/heads", groups=(group,))


def hybrid() -> kv.Layout:
    """Full attention and a recurrent state."""
    full = kv.Group(name="full", layers=("F0", "F1"), bytes_per_block_layer=BLOCK_BYTES, block_tokens=16)
    state = kv.Group(name="state", kind="state", layers=("S0", "S1", "S2"), bytes_per_block_layer=1000)
    return kv.Layout(model_id="test/hybrid", groups=(full, state))


def buffers(of: kv.Layout, blocks: int, seed: int | None) -> dict[str, Any]:
    """Random bytes, or zeros."""
    chance = None if seed is None else np.random.default_rng(seed)

    def made(nbytes: int) -> Any:
        return np.zeros(nbytes, np.uint8) if chance is None else chance.integers(0, 256, nbytes, np.uint8)

    found: dict[str, Any] = {}
    for group in of.groups:
        nbytes = group.bytes_per_block_layer * blocks
        if group.order == "block_first":
            found[group.name] = made(nbytes * len(group.layers))
        else:
            found[group.name] = [made(nbytes) for _ in group.layers]
    return found


def slab(of: kv.Layout, memory: dict[str, Any], group: str, layer: int, block: int) -> Any:
    """What a layer has in a block."""
    this = of.groups[of.group_index[group]]
    size = this.bytes_per_block_layer
    if this.order == "block_first":
        begin = (block * len(this.layers) + layer) * size
        return memory[group][begin : begin + size]
    return memory[group][layer][block * size : (block + 1) * size]


@contextmanager
def two(cluster: Any, **options: Any) -> Iterator[tuple[pccl.Communicator, pccl.Communicator]]:
    """Two communicators of one group, in this process."""
    coordinator = cluster.coordinator(1, form_peers=2)
    joined: list[pccl.Communicator] = []
    options = {"transport": "tcp"} | options
    threads = [
        threading.Thread(target=lambda: joined.append(cluster.connect(coordinator, **options))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with joined[0], joined[1]:
        yield joined[0], joined[1]
