"""speed.py - how fast are deltas of weights made and applied, beside memcpy in the same run?

    python -m stress.weights.speed [--mib 256] [--density 0.01] [--rounds 7] [--json]

Dense bytes of bfloat16 weights per second: what a trainer has, not what is sent. Synthetic steps (synthetic.py), in
blocks of BLOCK_ELEMENTS, by one thread and by two. The best of `rounds`, which take turns, so that all see the same
machine. Decoding goes on from the old state every time. Exit code 1 when a bound is not kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from pccl import _native
from pccl.weights import codec
from pccl.weights.codec import BLOCK_ELEMENTS, Codec
from stress.weights.synthetic import pair

__all__ = ["BOUNDS", "measure"]

State = np.ndarray[Any, Any]
# What is wanted: GB/s where that is stated, or this part of memcpy.
BOUNDS = {
    "A encode": (None, 0.35),
    "A decode": (None, 0.35),
    "B encode": (2.5, 0.15),
    "B decode": (4.5, 0.28),
}
SPEEDUP = 1.8


class Case:
    """One thing to measure: `run(i)` does block i, `reset` makes it possible again."""

    def __init__(self, run: Callable[[int], object], reset: Callable[[], object] = lambda: None) -> None:
        self.run, self.reset = run, reset
        self.best_s: dict[int, float] = {}

    def measure(self, pool: ThreadPoolExecutor, threads: int, blocks: int) -> None:
        """Keeps the best time of so many threads."""
        self.reset()
        start = time.perf_counter()
        parts = [range(i, blocks, threads) for i in range(threads)]
        list(pool.map(lambda part: [self.run(i) for i in part], parts))
        self.best_s[threads] = min(self.best_s.get(threads, np.inf), time.perf_counter() - start)


def cases(old: State, new: State) -> dict[str, Case]:
    """By name; all work on the same states."""
    spans = [slice(at, at + BLOCK_ELEMENTS) for at in range(0, len(old), BLOCK_ELEMENTS)]
    state = old.copy()

    def reset() -> None:
        np.copyto(state, old)

    found = {"memcpy": Case(lambda i: np.copyto(state[spans[i]], new[spans[i]]), reset)}
    for name, one in (("A", Codec.DIFF_A), ("B", Codec.DIFF_B)):
        blocks = [codec.encode(old[span], new[span], one) for span in spans]
        found[f"{name} encode"] = Case(lambda i, one=one: codec.encode(old[spans[i]], new[spans[i]], one))  # type: ignore[misc]
        found[f"{name} decode"] = Case(lambda i, blocks=blocks: codec.decode(blocks[i], state[spans[i]]), reset)  # type: ignore[misc]
        found[f"{name} patch"] = Case(lambda i, blocks=blocks: codec.patch(blocks[i], old[spans[i]]))  # type: ignore[misc]
    found["auto encode"] = Case(lambda i: codec.encode(old[spans[i]], new[spans[i]]))
    return found


def measure(mib: int, density: float, rounds: int) -> dict[str, dict[str, float]]:
    """By name: GB/s of one thread and of two, and the first as a part of memcpy's."""
    count = max(1, (mib << 19) // BLOCK_ELEMENTS) * BLOCK_ELEMENTS
    old, new = pair(count, density)
    found = cases(old, new)
    with ThreadPoolExecutor(2) as pool:
        for threads in (1, 2):
            for _ in range(rounds):
                for case in found.values():
                    case.measure(pool, threads, count // BLOCK_ELEMENTS)
    rates = {name: {n: old.nbytes / case.best_s[n] / 1e9 for n in (1, 2)} for name, case in found.items()}
    return {
        name: {
            "gb_per_s": rate[1],
            "of_memcpy": rate[1] / rates["memcpy"][1],
            "gb_per_s_2_threads": rate[2],
            "speedup": rate[2] / rate[1],
        }
        for name, rate in rates.items()
    }


def broken(rows: dict[str, dict[str, float]]) -> list[str]:
    """The bounds that were not kept, in words."""
    found = []
    for name, (rate, part) in BOUNDS.items():
        row = rows[name]
        if row["of_memcpy"] < part and (rate is None or row["gb_per_s"] < rate):
            found.append(f"{name}: {row['gb_per_s']:.2f} GB/s, {row['of_memcpy']:.2f} of memcpy")
        if row["speedup"] < SPEEDUP:
            found.append(f"{name}: two threads are only {row['speedup']:.2f} times as fast")
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = measure(arguments.mib, arguments.density, arguments.rounds)
    wrong = broken(rows)
    if arguments.json:
        known = {"isa": _native.kernels(), "density": arguments.density, "mib": arguments.mib}
        for name, row in rows.items():
            print(json.dumps({"op": "weights_speed", "kernel": name, **known, **row}))
    else:
        print(f"kernels {_native.kernels()}, {arguments.density:.2%} change, GB/s of dense bytes\n")
        print(f"{'':<12} {'1 thread':>9} {'of memcpy':>10} {'2 threads':>10} {'speed-up':>9}")
        for name, row in rows.items():
            print(
                f"{name:<12} {row['gb_per_s']:>9.2f} {row['of_memcpy']:>10.2f} {row['gb_per_s_2_threads']:>10.2f} "
                f"{row['speedup']:>9.2f}"
            )
    for line in wrong:
        print(f"BROKEN {line}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
