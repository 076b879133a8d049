"""state_peer.py - one peer of state_bench.py, member or joiner: trains, and tells what it saw in lines of JSON."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

import pccl

CHUNK_BYTES = 256 << 10


def say(**fact: Any) -> None:
    """One line."""
    print(json.dumps(fact), flush=True)


def state_of(job: dict[str, Any], seed: int) -> dict[str, Any]:
    """Four tensors of weights, their momenta, and a scalar."""
    chance = np.random.default_rng(seed)
    size = int(job["nbytes"]) // 8 // 4
    return {f"{kind}{i}": chance.random(size, np.float32) for kind in "wm" for i in range(4)} | {"step": 0}


def step(comm: pccl.Communicator, job: dict[str, Any], state: dict[str, Any], gradient: Any) -> None:
    """A pause in place of computing, an all-reduce, and the optimizer's step on what the gradient is of: the weights
    in turn, a gradient's worth each time.
    """
    time.sleep(job["compute_s"])
    comm.all_reduce(gradient, op="avg")
    if job["trains"]:
        number, per_tensor = state["step"], state["w0"].size // gradient.size
        tensor, first = number // per_tensor % 4, number % per_tensor * gradient.size
        weights = state[f"w{tensor}"][first : first + gradient.size]
        momenta = state[f"m{tensor}"][first : first + gradient.size]
        momenta *= 0.9
        momenta += gradient
        weights -= 0.01 * momenta
    state["step"] += 1


def sync(comm: pccl.Communicator, state: dict[str, Any], what: str) -> pccl.SyncReport:
    """Tells how long it took and what it moved."""
    begun = time.monotonic()
    report = comm.sync_state(state)
    took = time.monotonic() - begun
    say(
        sync=what,
        at=begun,
        s=took,
        received=report.received_bytes,
        digest=report.digest,
    )
    return report


def one_percent(comm: pccl.Communicator, state: dict[str, Any], spoil: bool) -> None:
    """One of a hundred chunks is wrong at one peer, and repaired."""
    if spoil:
        for number, name in enumerate(sorted(name for name in state if name != "step")):
            data = state[name].view(np.uint8)
            for chunk in range(number, data.size // CHUNK_BYTES, 100):
                data[chunk * CHUNK_BYTES] ^= 255
    sync(comm, state, "one percent")


def go_on(comm: pccl.Communicator, job: dict[str, Any], state: dict[str, Any], world: int) -> None:
    """Steps until the joiner has been here for a while."""
    gradient = np.full(job["gradient_bytes"] // 4, comm.rank, np.float32)
    left = job["after"] if world > job["members"] else -1
    number = 0
    while left:
        begun = time.monotonic()
        step(comm, job, state, gradient)
        comm.advance()
        say(step=number, at=begun, s=time.monotonic() - begun, world=comm.world_size)
        number += 1
        left -= left > 0
        if comm.world_size != world:
            world = comm.world_size
            sync(comm, state, "join")
            left = job["after"] if world > job["members"] else left
    one_percent(comm, state, job["spoils"])


def member(comm: pccl.Communicator, job: dict[str, Any]) -> None:
    """One of those who are there from the beginning."""
    state = state_of(job, 1)
    comm.transfers.limit("low", job["cap_bytes_per_s"])
    while comm.world_size < job["members"]:
        comm.barrier()
        comm.advance()
    sync(comm, state, "begin")
    go_on(comm, job, state, comm.world_size)


def main() -> None:
    """The job is the first argument."""
    job = json.loads(sys.argv[1])
    joins = job["role"] == "joiner"
    state = state_of(job, 2) if joins else {}
    connect = pccl.connect  # loads the package: what Python takes for that is no part of a join
    if joins:
        say(ready=True)
        sys.stdin.readline()
    begun = time.monotonic()
    with connect(job["coordinator"], listen=job["listen"], insecure=True, enter=not joins, timeout=60) as comm:
        if joins:
            connected = time.monotonic()
            prefetch, synced = comm.join_state(state)
            say(joined=time.monotonic() - begun, connect=begun, connected=connected)
            say(prefetch=str(prefetch), s=prefetch.duration_s, received=prefetch.received_bytes)
            say(sync="join", s=0.0, received=synced.received_bytes, digest=synced.digest)
            go_on(comm, job, state, comm.world_size)
        else:
            member(comm, job)
        comm.barrier(tag="end")


if __name__ == "__main__":
    main()
