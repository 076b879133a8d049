"""bytes.py - how many bytes do deltas of weights take, beside what others send and beside the entropy?

    python -m stress.weights.bytes [--traces build/traces] [--count 16777216] [--json]

Bits for each changed element, framing included, of synthetic steps (synthetic.py) and of real ones (traces.py, which
is run first if it was not). Every row is verified: the blocks are decoded, and compare equal. Columns:

    iid         entropy of places and of steps, if every element is as likely to change as any other: H(p) / p + H(step)
    context     the same, given the exponent of the old value
    A, B        blocks of codec.BLOCK_ELEMENTS elements, by Codec.DIFF_A and Codec.DIFF_B
    raw         int32 places and new bfloat16 values
    gap16       16-bit gaps (0xffff: go on), new xor old, zstd level 1, each by itself
    xor         new xor old, all of it, zstd level 1

Exit code 1 when a bound is not kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from pccl.weights import codec
from pccl.weights.codec import BLOCK_ELEMENTS, Codec
from stress.weights import synthetic, traces

__all__ = ["broken", "row"]

DENSITIES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
State = np.ndarray[Any, Any]


def entropy(counts: State) -> float:
    """Bits of all the things counted, together."""
    counts = counts[counts > 0].astype(float)
    return float((counts * np.log2(counts.sum() / counts)).sum())


def limits(old: State, new: State) -> tuple[float, float]:
    """(iid, context) in bits, all together."""
    changed = old != new
    exponents, steps = old >> 7 & 255, (new - old)[changed]
    iid = entropy(np.bincount(changed, minlength=2)) + entropy(np.bincount(steps, minlength=1 << 16))
    context = 0.0
    for exponent in np.unique(exponents):
        of_it = exponents == exponent
        context += entropy(np.bincount(changed[of_it], minlength=2))
        context += entropy(np.bincount(steps[exponents[changed] == exponent], minlength=1 << 16))
    return iid, context


def ours(old: State, new: State, one: Codec) -> int:
    """Bits of blocks, which are decoded as well."""
    nbytes = 0
    for at in range(0, len(old), BLOCK_ELEMENTS):
        span = slice(at, at + BLOCK_ELEMENTS)
        block, state = codec.encode(old[span], new[span], one), old[span].copy()
        codec.decode(block, state)
        if not np.array_equal(state, new[span]):
            raise AssertionError(f"a block of {one.name} does not lead from old to new")
        nbytes += len(block)
    return 8 * nbytes


def gaps16(places: State) -> State:
    """How many elements lie between changes; what is 0xffff or more goes on in the next item."""
    gaps = np.diff(places, prepend=-1) - 1
    jumps = gaps // 0xFFFF
    out = np.full(len(gaps) + int(jumps.sum()), 0xFFFF, np.uint16)
    out[np.arange(len(gaps)) + np.cumsum(jumps)] = gaps % 0xFFFF
    return out


def gap16(old: State, new: State) -> int:
    """Bits of gaps and xors, as NeMo-RL's kind of refit sends them."""
    places = np.flatnonzero(old != new)
    return zstd(gaps16(places)) + zstd((old ^ new)[places])


def zstd(data: State) -> int:
    """Bits at level 1."""
    return 8 * len(zstandard.ZstdCompressor(1).compress(data.tobytes()))


def row(name: str, old: State, new: State) -> dict[str, Any]:
    """One line of the table."""
    changed = int(np.count_nonzero(old != new))
    iid, context = limits(old, new)
    bits = {
        "iid": iid,
        "context": context,
        "A": ours(old, new, Codec.DIFF_A),
        "B": ours(old, new, Codec.DIFF_B),
        "raw": 48 * changed,
        "gap16": gap16(old, new),
        "xor": zstd(old ^ new),
    }
    found: dict[str, Any] = {
        "data": name,
        "density": changed / len(old),
        "bits": {k: v / changed for k, v in bits.items()},
    }
    found["a_over_iid"], found["b_of_iid"] = bits["A"] / iid, bits["B"] / iid
    found["below_xor"], found["below_gap16"] = bits["xor"] / bits["B"], bits["gap16"] / bits["B"]
    found["below_dense"] = 16 * len(old) / bits["B"]
    return found


def steps(directory: Path, count: int) -> Iterator[tuple[str, State, State]]:
    """Every pair of states that is looked at."""
    for density in DENSITIES:
        yield "synthetic", *synthetic.pair(count, density)
    traces.make(directory)
    for name, states in traces.load(directory):
        yield name, np.array(states[-2]), np.array(states[-1])


def broken(found: dict[str, Any]) -> list[str]:
    """The bounds that a row does not keep, in words."""
    is_real = found["data"] != "synthetic"
    bounds = [
        (found["a_over_iid"] <= 1.02, f"A is {found['a_over_iid']:.3f} of the iid limit"),
        (not is_real or found["b_of_iid"] <= 0.75, f"B is {found['b_of_iid']:.3f} of the iid limit"),
        (found["below_xor"] >= 2, f"B is only {found['below_xor']:.2f} times below xor"),
        (found["below_gap16"] >= 1.4, f"B is only {found['below_gap16']:.2f} times below gap16"),
        (
            not is_real or found["density"] > 0.009 or found["below_dense"] >= 250,
            f"B is only {found['below_dense']:.0f} times below dense",
        ),
    ]
    return [f"{found['data']}, {found['density']:.2%}: {text}" for is_kept, text in bounds if not is_kept]


def show(found: dict[str, Any]) -> None:
    """The row, for people."""
    bits = " ".join(f"{value:>7.2f}" for value in found["bits"].values())
    print(
        f"{found['data']:<16} {found['density']:>7.2%} {bits} {found['a_over_iid']:>6.3f} {found['b_of_iid']:>6.3f} "
        f"{found['below_gap16']:>6.2f} {found['below_xor']:>6.2f} {found['below_dense']:>6.0f}",
        flush=True,
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, default=Path("build/traces"))
    parser.add_argument("--count", type=int, default=1 << 24)
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    arguments = parser.parse_args()
    rows = []
    if not arguments.json:
        print("bits for each changed element; A and B as parts of iid; gap16, xor and dense as multiples of B\n")
        names = ("iid", "context", "A", "B", "raw", "gap16", "xor")
        print(f"{'data':<16} {'changed':>7} {' '.join(f'{n:>7}' for n in names)}  A/iid  B/iid  gap16    xor  dense")
    for name, old, new in steps(arguments.traces, arguments.count):
        rows.append(row(name, old, new))
        if arguments.json:
            print(json.dumps(rows[-1]), flush=True)
        else:
            show(rows[-1])
    wrong = [line for found in rows for line in broken(found)]
    for line in wrong:
        print(f"BROKEN {line}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
