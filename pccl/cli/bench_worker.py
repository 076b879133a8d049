"""One peer of ``pccl bench``: times one op again and again, ours and gloo's in turn, and prints the samples as JSON.

Both sides run in the same processes on the same data, A B B A B A A B ..., each behind a barrier, so that whatever else
the machine does meets both alike. Every result is checked: a sample of its elements after each iteration, all of them
after the first. The data is small whole numbers, whose sums are exact in every type.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

PERIOD = 7  # element i of peer p holds i % PERIOD + p
TILE = PERIOD << 14  # elements filled or checked at a time
SAMPLE_STRIDE = PERIOD * 977 + 1


@dataclass(slots=True, frozen=True)
class Job:
    """What the parent asks for (the JSON object in argv[1])."""

    peers: int
    sizes: list[int]
    dtype: str
    in_place: bool
    in_flight: int
    fused: bool  # the same batch as one call with a list, too
    iterations: int  # 0: by size
    gloo_store: str  # path of gloo's rendezvous file; "" without gloo
    congestion: str
    transport: str


def iterations_for(size: int, in_flight: int) -> int:
    """The same on every peer without asking: fewer for larger sizes."""
    for limit, count in ((64 << 10, 200), (1 << 20, 100), (16 << 20, 30), (64 << 20, 15)):
        if size * in_flight <= limit:
            return count
    return 7


class Arrays(Protocol):
    """Makes and checks the data; numpy, or torch when gloo or bfloat16 needs it."""

    def empty(self, count: int) -> Any:
        """Memory for count elements."""

    def tile(self, scale: int, shift: int) -> Any:
        """TILE elements of (i % PERIOD) * scale + shift."""

    def equal(self, a: Any, b: Any) -> bool:
        """Same values everywhere."""

    def bytes_per_element(self) -> int:
        """Of the dtype."""


class NumpyArrays:
    """See Arrays."""

    def __init__(self, dtype: str) -> None:
        import numpy as np

        self.np, self.dtype = np, np.dtype(dtype)

    def empty(self, count: int) -> Any:
        return self.np.empty(count, self.dtype)

    def tile(self, scale: int, shift: int) -> Any:
        return (self.np.arange(TILE) % PERIOD * scale + shift).astype(self.dtype)

    def equal(self, a: Any, b: Any) -> bool:
        return bool(self.np.array_equal(a, b))

    def bytes_per_element(self) -> int:
        return int(self.dtype.itemsize)


class TorchArrays:
    """See Arrays."""

    def __init__(self, dtype: str) -> None:
        import torch

        self.torch, self.dtype = torch, getattr(torch, dtype)

    def empty(self, count: int) -> Any:
        return self.torch.empty(count, dtype=self.dtype)

    def tile(self, scale: int, shift: int) -> Any:
        return (self.torch.arange(TILE) % PERIOD * scale + shift).to(self.dtype)

    def equal(self, a: Any, b: Any) -> bool:
        return bool(self.torch.equal(a, b))

    def bytes_per_element(self) -> int:
        return int(self.dtype.itemsize)


class Pattern:
    """Fills inputs and checks sums, tile by tile, so that no second copy of the data is held."""

    def __init__(self, arrays: Arrays, peers: int, index: int) -> None:
        self.arrays = arrays
        self.input = arrays.tile(1, index)
        self.sum = arrays.tile(peers, peers * (peers - 1) // 2)

    def fill(self, array: Any) -> None:
        for start in range(0, len(array), TILE):
            part = array[start : start + TILE]
            part[:] = self.input[: len(part)]

    def check(self, array: Any, whole: bool, what: str) -> None:
        for start in range(0, len(array), TILE if whole else max(TILE, len(array) // 8)):
            part = array[start - start % PERIOD :][:TILE]
            expected = self.sum[: len(part)]
            if not whole:
                part, expected = part[::SAMPLE_STRIDE], expected[::SAMPLE_STRIDE]
            if not self.arrays.equal(part, expected):
                raise SystemExit(f"wrong sum from {what}, near element {start}")


Batch = Callable[[list[Any], list[Any]], None]  # reduces every input; the results are in the outputs


def check_results(comm: Any, results: list[Any]) -> None:
    world_size = len(comm.peers)
    for result in results:
        if result.world_size != world_size or result.retries:
            raise SystemExit(f"a peer was lost during the benchmark: {result}")


def ours(comm: Any, in_place: bool, in_flight: int) -> Batch:
    """All-reduce of a batch by pccl, one op for each array."""

    def one(inputs: list[Any], outputs: list[Any]) -> None:
        check_results(comm, [comm.all_reduce(inputs[0], op="sum", out=None if in_place else outputs[0])])

    def many(inputs: list[Any], outputs: list[Any]) -> None:
        pairs = zip(inputs, outputs, strict=True)
        works = [comm.all_reduce(i, op="sum", out=None if in_place else o, async_op=True) for i, o in pairs]
        check_results(comm, [work.wait() for work in works])

    return one if in_flight == 1 else many


def fused(comm: Any, in_place: bool) -> Batch:
    """All-reduce of a batch by pccl, as one call."""

    def batch(inputs: list[Any], outputs: list[Any]) -> None:
        check_results(comm, [comm.all_reduce(inputs, op="sum", out=None if in_place else outputs)])

    return batch


def gloo(job: Job, index: int) -> Batch:
    """All-reduce of a batch by torch.distributed over gloo: always in place."""
    import datetime

    import torch.distributed as dist

    dist.init_process_group(
        "gloo",
        init_method=f"file://{job.gloo_store}",
        rank=index,
        world_size=job.peers,
        timeout=datetime.timedelta(seconds=120),
    )

    def one(inputs: list[Any], outputs: list[Any]) -> None:
        dist.all_reduce(inputs[0])

    def many(inputs: list[Any], outputs: list[Any]) -> None:
        for work in [dist.all_reduce(array, async_op=True) for array in inputs]:
            work.wait()

    return one if job.in_flight == 1 else many


class Bench:
    """The loop over sizes and iterations."""

    def __init__(self, job: Job, index: int, comm: Any) -> None:
        self.job, self.comm = job, comm
        needs_torch = bool(job.gloo_store) or job.dtype == "bfloat16"
        self.arrays: Arrays = TorchArrays(job.dtype) if needs_torch else NumpyArrays(job.dtype)
        self.pattern = Pattern(self.arrays, job.peers, index)
        self.sides = {"ours": (ours(comm, job.in_place, job.in_flight), job.in_place)}
        if job.fused:
            self.sides["fused"] = (fused(comm, job.in_place), job.in_place)
        if job.gloo_store:
            self.sides["gloo"] = (gloo(job, index), True)

    def timed(self, side: str, inputs: list[Any], outputs: list[Any], whole: bool) -> float:
        """Milliseconds per op of one checked batch."""
        batch, in_place = self.sides[side]
        for array in {id(array): array for array in (*inputs, *outputs)}.values():
            self.pattern.fill(array)  # outputs too: yesterday's right sum must not pass for today's
        self.comm.barrier()
        start = time.perf_counter_ns()
        batch(inputs, outputs)
        duration_ns = time.perf_counter_ns() - start
        for array in inputs if in_place else outputs:
            self.pattern.check(array, whole, side)
        return duration_ns / 1e6 / len(inputs)

    def samples(self, size: int) -> dict[str, list[float]]:
        """Times of every iteration by side, warm-up left out."""
        job = self.job
        count = max(1, size // self.arrays.bytes_per_element())
        inputs = [self.arrays.empty(count) for _ in range(job.in_flight)]
        outputs = [] if job.in_place else [self.arrays.empty(count) for _ in range(job.in_flight)]
        found: dict[str, list[float]] = {side: [] for side in self.sides}
        order = list(self.sides)
        for warm_up in (True, False, False):
            for side in order:
                self.timed(side, inputs, outputs or inputs, whole=warm_up)
        for iteration in range(job.iterations or iterations_for(size, job.in_flight)):
            for side in order if bin(iteration).count("1") % 2 == 0 else reversed(order):
                found[side].append(self.timed(side, inputs, outputs or inputs, whole=False))
        return found

    def close(self) -> None:
        """Ends gloo in order: its threads abort the process when another peer vanishes first."""
        if self.job.gloo_store:
            import torch.distributed as dist

            dist.barrier()
            dist.destroy_process_group()


def main() -> None:
    """Joins the run named by the environment, measures, prints a JSON line per size."""
    import pccl

    job = Job(**json.loads(sys.argv[1]))
    with pccl.connect(congestion=job.congestion or None, transport=job.transport, timeout=60) as comm:
        bench = Bench(job, int(os.environ["PCCL_LAUNCH_INDEX"]), comm)
        for size in job.sizes:
            print(json.dumps({"bytes": size, "samples": bench.samples(size)}), flush=True)
        comm.barrier()
        bench.close()
