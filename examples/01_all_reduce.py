"""What an all-reduce is, and three ways to call one.

Every peer brings a tensor of the same shape; every peer leaves with the same sum (or mean, product, minimum, maximum)
of all of them, equal to the last bit.

    pccl launch -n 4 examples/01_all_reduce.py      four peers on this machine
    python examples/01_all_reduce.py                one peer, with a coordinator of its own
"""

from __future__ import annotations

import asyncio
import contextlib
import os

import numpy as np

import pccl
from pccl.coordinator.server import Coordinator


def main() -> None:
    """Joins the run that `pccl launch` put into the environment; without one, makes a run of one peer."""
    with contextlib.ExitStack() as stack:
        address = os.environ.get("PCCL_COORDINATOR") or stack.enter_context(Coordinator()).address
        comm = stack.enter_context(pccl.connect(address))
        print(f"rank {comm.rank} of {comm.world_size}")
        wait_for_it(comm)
        many_at_once(comm)
        asyncio.run(from_a_coroutine(comm))


def wait_for_it(comm: pccl.Communicator) -> None:
    """The simplest way: call it, and the tensor holds the sum. The result says how many peers are in it."""
    ones = np.ones(1_000_000, dtype=np.float32)
    result = comm.all_reduce(ones, op="sum")
    assert (ones == result.world_size).all()
    print(f"the sum of {result.world_size} ones is {ones[0]:g}")


def many_at_once(comm: pccl.Communicator) -> None:
    """Several in flight: a tag says which is which, so peers may call them in any order."""
    layers = {f"layer{number}": np.full(1000, number, dtype=np.float32) for number in range(4)}
    works = [comm.all_reduce(tensor, op="avg", tag=name, async_op=True) for name, tensor in layers.items()]
    for work in works:
        work.wait(timeout=30)
    print("the means are", [float(tensor[0]) for tensor in layers.values()])


async def from_a_coroutine(comm: pccl.Communicator) -> None:
    """Works are awaitable. The result's retries count how often a lost peer made it start again."""
    largest = np.array([comm.rank], dtype=np.int64)
    result = await comm.all_reduce(largest, op="max", async_op=True)
    print(f"the highest rank is {largest[0]} of {result.world_size}, {result.retries} retries")


if __name__ == "__main__":
    main()
