"""A training loop that outlives its peers: kill any of them, start more, at any time.

Four things make a loop elastic:

* `sync_state` at the top of the step: a newcomer receives what the others have; for those it costs a comparison.
* `all_reduce`: if a peer dies in the middle, it starts again among the survivors.
* updates that follow from reduced values alone, so that all peers stay equal;
* `advance` at the end of the step: the point where newcomers enter.

The "model" here is a vector that every peer pulls towards a random target of its own; their mean is 1.

    pccl launch -n 4 --kill-at 40 --join-at 80 --lease 1 examples/02_elastic.py
    python examples/02_elastic.py                one peer, with a coordinator of its own
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time

import numpy as np

import pccl
from pccl.coordinator.server import Coordinator

RATE = 0.05


def main() -> None:
    """Joins the run that `pccl launch` put into the environment; without one, makes a run of one peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--pause", type=float, default=0.03, help="seconds per step that stand for the real work")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        address = os.environ.get("PCCL_COORDINATOR") or stack.enter_context(Coordinator()).address
        train(stack.enter_context(pccl.connect(address)), options.steps, options.pause)


def train(comm: pccl.Communicator, steps: int, pause: float) -> None:
    """The loop. Peers that join late begin at the step that the others have reached."""
    me = int.from_bytes(comm.peer_id[:8], "little")
    weights, step = np.zeros(10_000, np.float32), np.zeros(1, np.int64)
    peers: tuple[bytes, ...] = ()
    while True:
        comm.sync_state({"weights": weights, "step": step})
        if step[0] >= steps:
            break
        target = np.random.default_rng((me, int(step[0]))).normal(1.0, 1.0, weights.shape)
        gradient = (weights - target).astype(np.float32)
        time.sleep(pause)
        result = comm.all_reduce(gradient, op="avg")
        peers = report(result, peers, int(step[0]))
        weights -= RATE * gradient
        step += 1
        comm.advance()
    print(f"done after {step[0]} steps with {len(peers)} peers: error {abs(weights.mean() - 1):.4f}", flush=True)


def report(result: pccl.Result, before: tuple[bytes, ...], step: int) -> tuple[bytes, ...]:
    """Prints who came and who went."""
    came, went = names(result.peers, before), names(before, result.peers)
    if came or went:
        changes = f"{f' +{came}' if came else ''}{f' -{went}' if went else ''}"
        print(f"step {step}: {result.world_size} peers:{changes} (epoch {result.epoch})", flush=True)
    return result.peers


def names(peers: tuple[bytes, ...], without: tuple[bytes, ...]) -> str:
    """Short names of the peers of one list that are not in the other."""
    return ",".join(peer.hex()[:4] for peer in peers if peer not in without)


if __name__ == "__main__":
    main()
