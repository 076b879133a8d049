"""others.py - what others would send of the same step: bytes and time of coding measured, time on the link computed.

    dense       all new values, as they are
    int32_bf16  places as int32, new values
    xor_zstd1   new xor old, all of it, by zstd level 1

Each is coded block by block by as many threads as a publisher has, on a part of the blocks, and taken to all of them.
The time is what `end_to_end.py` holds ours against, without its tenth: bytes / link + RTT/2, and of the coding what is
longer than the link is busy; so their decoding is taken to cost nothing, and neither are their stacks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import zstandard

__all__ = ["METHODS", "rows"]

BLOCKS_MAX = 32
State = np.ndarray[Any, Any]


def dense(old: State, new: State) -> int:
    """Sent from where they are."""
    return int(new.nbytes)


def int32_bf16(old: State, new: State) -> int:
    """Of a block."""
    places = np.flatnonzero(old != new)
    return int(places.astype(np.int32).nbytes + new[places].nbytes)


def xor_zstd1(old: State, new: State) -> int:
    """Of a block."""
    return len(zstandard.ZstdCompressor(1).compress((old ^ new).tobytes()))


METHODS: dict[str, Callable[[State, State], int]] = {
    "dense": dense,
    "int32_bf16": int32_bf16,
    "xor_zstd1": xor_zstd1,
}


def blocks_of(old: State, new: State, count: int) -> Iterator[tuple[State, State]]:
    """Blocks as those of worker.py: the same pair turned, so that each has memory of its own."""
    for number in range(count):
        yield np.roll(old, 97 * number), np.roll(new, 97 * number)


def rows(
    pair: tuple[State, State], blocks: int, rate_mbit: float, rtt_ms: float, threads: int
) -> dict[str, dict[str, float]]:
    """By method: bytes of so many blocks, seconds of coding by so many threads, and seconds until it is there."""
    tried = list(blocks_of(*pair, min(blocks, BLOCKS_MAX)))
    found = {}
    with ThreadPoolExecutor(threads) as pool:
        for name, method in METHODS.items():
            started = time.monotonic()
            nbytes = sum(pool.map(lambda both, method=method: method(*both), tried)) * blocks / len(tried)  # type: ignore[misc]
            encode_s = (time.monotonic() - started) * blocks / len(tried)
            link_s = nbytes * 8 / (rate_mbit * 1e6)
            all_s = link_s + rtt_ms / 2e3 + max(0.0, encode_s - link_s)
            found[name] = {"bytes": int(nbytes), "encode_s": round(encode_s, 3), "s": round(all_s, 3)}
    return found
