"""`python -m stress.weights.pause`: how long does an engine stand still for a commit?

A publisher and a receiver in one process, 18,000 small tensors, 2 GiB. The engine double holds its tensors, of torch,
in an arena of its own and is locked while `install` brings it to a version. Beside it, by turns: the time to write the
same changed elements to memory of the same size, block by block, with the same code, when the shadow is written. Exit
code 1: the pause is more than 1.5 times that, or the engine ends with other bytes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from typing import Any

import numpy as np
import torch

import pccl
from pccl.coordinator.server import Coordinator
from pccl.weights import DeltaLog, MemoryShadow, Publisher, Receiver, Schema, Tensor, base
from pccl.weights.adapters.engine import install
from pccl.weights.adapters.module import ModuleAdapter
from pccl.weights.write import write
from stress.weights import synthetic

SECRET, WAIT_S, BOUND = "stress", 300.0, 1.5


class Engine:
    """Tensors as views of one arena, and a lock that stands for its scheduler."""

    def __init__(self, schema: Schema, arena: np.ndarray[Any, Any]) -> None:
        self.arena = arena.copy()
        views = [schema.view(self.arena, number).view(np.int16) for number in range(len(schema.tensors))]
        tensors = [torch.from_numpy(view).view(torch.bfloat16) for view in views]
        self._adapter = ModuleAdapter({t.name: tensor for t, tensor in zip(schema.tensors, tensors, strict=True)})
        self._lock = threading.Lock()

    def take(self, update: Any) -> float:
        """Seconds that it stood still."""
        return install(update, self._adapter, paused=lambda: self._lock).pause_s


def touch(schema: Schema, arena: np.ndarray[Any, Any], update: Any) -> float:
    """Seconds to write the changed elements, a block at a time."""
    blocks = [
        (schema.block_view(arena, schema.blocks[number]), indices, values)
        for number, (indices, values) in update._staged.patches.items()
    ]
    began = time.perf_counter()
    for view, indices, values in blocks:
        write(view, indices, values)
    return time.perf_counter() - began


def states(schema: Schema, density: float) -> tuple[list[Any], list[Any]]:
    """Two states of all tensors: slices of one tile, so that nothing is held twice."""
    import ml_dtypes

    elements = schema.tensors[0].elements
    old, new = (tile.view(ml_dtypes.bfloat16) for tile in synthetic.pair(elements * 64, density))
    return tuple(
        [(t.name, tile[(n % 64) * elements : (n % 64 + 1) * elements]) for n, t in enumerate(schema.tensors)]
        for tile in (old, new)
    )  # type: ignore[return-value]


def measured(trainer: Any, worker: Any, schema: Schema, density: float, rounds: int) -> dict[str, Any]:
    """The row."""
    pauses, touches, commits, changed = [], [], [], 0
    both = states(schema, density)
    shadow = MemoryShadow(schema)
    base.fill(shadow, both[0])
    engine, other = Engine(schema, shadow.arena), shadow.arena.copy()
    with tempfile.TemporaryDirectory() as scratch:
        with Publisher(trainer, schema, base=both[0], log=DeltaLog(scratch, keep_bytes=1 << 28)) as pub:
            with Receiver(worker, shadow, upstream=[trainer.peer_id]) as rx:
                for number in range(1, rounds + 2):
                    pub.publish(both[number % 2])
                    update = rx.next(WAIT_S)
                    pauses.append(engine.take(update))
                    shadow.written()
                    touches.append(touch(schema, other, update))
                    commits.append(update.stats.commit_s)
                    changed = update.changed
                right = np.array_equal(engine.arena, shadow.arena)
    pause, least = statistics.median(pauses[1:]), statistics.median(touches[1:])
    return {
        "op": "weights_pause", "tensors": len(schema.tensors), "bytes": schema.nbytes, "changed": changed,
        "pause_s": round(pause, 4), "touch_s": round(least, 4), "of_touch": round(pause / least, 2), "wanted": BOUND,
        "shadow_s": round(statistics.median(commits[1:]), 4), "ok": right and pause <= BOUND * least,
    }  # fmt: skip


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tensors", type=int, default=18_000)
    parser.add_argument("--mib", type=int, default=2048)
    parser.add_argument("--density", type=float, default=0.008)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    elements = options.mib * (1 << 20) // 2 // options.tensors
    schema = Schema(Tensor(f"t{number}", (elements,), "bfloat16") for number in range(options.tensors))
    coordinator = Coordinator(min_peers=1, secret=SECRET)
    coordinator.start()
    settings = {"secret": SECRET, "listen": "127.0.0.1:0", "timeout": 60}
    with pccl.connect(coordinator.address, **settings) as trainer:
        with pccl.connect(coordinator.address, enter=False, **settings) as worker:
            row = measured(trainer, worker, schema, options.density, options.rounds)
    coordinator.close()
    print(json.dumps(row) if options.json else "  ".join(f"{key} {value}" for key, value in row.items()))
    sys.exit(not row["ok"])


if __name__ == "__main__":
    main()
