"""What the peers of a chaos run call at each boundary, what they bring, and what must come of it.

Everything is a function of the run's seed, the boundary, the op's number and the peer's id, so that each peer can check
every element of every result against `result.peers`, whoever that is. Contributions are whole numbers small enough for
the dtype to hold any sum of them exactly, in any order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

Array = np.ndarray[Any, Any]

PERIOD = 8191
STATE_ELEMENTS = 1 << 15
SYNC_EVERY = 3
#: Largest contribution by dtype: sums of 16 peers are exact.
PEAKS = {"float32": 1000, "float64": 100000, "float16": 60, "int32": 100000, "int64": 1 << 40, "uint8": 255}
SIZES = (64, 4 << 10, 64 << 10, 256 << 10, 1 << 20)
LARGE_BYTES = 8 << 20
#: What a value may be off when it went through a codec, by the peak of what was encoded: csrc/codec.h.
CODEC_ERRORS = {"int8": 1 / 253, "bf16": 1 / 128, "fp16": 1 / 1024}
OTHERS = ("all_gather", "reduce_scatter", "broadcast", "barrier")


@dataclass(frozen=True, slots=True)
class Op:
    """One call. `seq` is its number within the boundary; `tagged` ones are matched by name."""

    seq: int
    kind: str
    nbytes: int = 0
    dtype: str = "float32"
    redop: str = "sum"
    codec: str = ""
    in_place: bool = True
    tagged: bool = False

    @property
    def count(self) -> int:
        """Elements of a contribution."""
        return self.nbytes // np.dtype(self.dtype).itemsize


def ops_of(seed: int, boundary: int) -> list[Op]:
    """All-reduces that are in flight together, and now and then another collective after them."""
    chance = random.Random(f"ops {seed} {boundary}")
    ops = [_all_reduce(chance, seq) for seq in range(chance.randint(2, 4))]
    if chance.random() < 0.5:
        kind = chance.choice(OTHERS)
        nbytes = chance.choice(SIZES[:3])
        ops.append(Op(len(ops), kind, nbytes, chance.choice(list(PEAKS)), in_place=False))
    return ops


def _all_reduce(chance: random.Random, seq: int) -> Op:
    nbytes = LARGE_BYTES if chance.random() < 1 / 40 else chance.choice(SIZES)
    codec = chance.choice(list(CODEC_ERRORS)) if chance.random() < 0.15 else ""
    dtype = "float32" if codec else chance.choice(list(PEAKS))
    redop = "sum" if codec else chance.choice(("sum", "sum", "sum", "min", "max"))
    if dtype in ("float32", "float64") and not codec and chance.random() < 0.2:
        redop = "avg"
    return Op(seq, "all_reduce", nbytes, dtype, redop, codec, chance.random() < 0.7, chance.random() < 0.3)


# -- what a peer brings ----------------------------------------------------------------------------------------------


def _table(peak: int, dtype: str) -> Array:
    low = 0 if dtype == "uint8" else -peak
    return np.random.default_rng(peak).integers(low, peak + 1, PERIOD, dtype=np.int64)


_TABLES = {dtype: _table(peak, dtype) for dtype, peak in PEAKS.items()}


def contribution(peer: bytes, boundary: int, op: Op) -> Array:
    """A peer's input of an op."""
    shift = xxhash.xxh64_intdigest(peer + f"{boundary}.{op.seq}".encode()) % PERIOD
    return np.resize(np.roll(_TABLES[op.dtype], shift).astype(op.dtype), op.count)


def _exact(op: Op, peers: Sequence[bytes], boundary: int) -> Array:
    """The reduction in the widest type."""
    period = Op(op.seq, op.kind, PERIOD * np.dtype(op.dtype).itemsize, op.dtype)
    wide = "int64" if op.dtype.startswith(("int", "uint")) else "float64"
    rows = np.stack([contribution(peer, boundary, period).astype(wide) for peer in peers])
    found = {"min": rows.min, "max": rows.max}.get(op.redop, rows.sum)(axis=0)
    return found / len(peers) if op.redop == "avg" else found


def wrong_reduction(op: Op, peers: Sequence[bytes], boundary: int, got: Array, offset: int = 0) -> str:
    """What is wrong with (a span of) the reduced data; empty when nothing is."""
    exact = _exact(op, peers, boundary)
    wanted = np.roll(np.resize(exact, PERIOD), -(offset % PERIOD))
    wanted = np.resize(wanted, got.size)
    if op.codec or op.redop == "avg":
        off = np.abs(got.astype("float64") - wanted)
        allowed = _allowed(op, len(peers)) if op.codec else 1e-6 * np.maximum(1, np.abs(wanted))
        bad = np.flatnonzero(~(off <= allowed))
    else:
        wanted = wanted.astype(op.dtype)  # of uint8: modulo 256, as the engine adds
        bad = np.flatnonzero(got != wanted)
    if not bad.size:
        return ""
    first = int(bad[0])
    where = f"{bad.size} of {got.size} elements, the first at {offset + first}"
    return f"{where}: {got[first]!r} where {wanted[first]!r} is right"


def _allowed(op: Op, peers: int) -> float:
    """Each contribution is encoded once, and the sum once."""
    each = CODEC_ERRORS[op.codec]
    peak = peers * PEAKS[op.dtype]
    return peak * each + peak * (1 + each) * each


def wrong_rows(op: Op, peers: Sequence[bytes], boundary: int, got: Array) -> str:
    """What is wrong with gathered rows."""
    for number, peer in enumerate(peers):
        if got[number].tobytes() != contribution(peer, boundary, op).tobytes():
            return f"row {number}, that of peer {peer.hex()[:8]}, differs from what it brought"
    return ""


# -- the state that is kept equal --------------------------------------------------------------------------------------


def state_at(boundary: int) -> Array:
    """What the model is at a boundary, if nobody drifts."""
    state = np.zeros(STATE_ELEMENTS, np.int64)
    for step in range(1, boundary + 1):
        grow(state, step)
    return state


def grow(state: Array, step: int) -> None:
    """The step to this boundary."""
    shift = step * 131 % PERIOD
    state += np.resize(np.roll(_TABLES["int32"], shift), STATE_ELEMENTS)
