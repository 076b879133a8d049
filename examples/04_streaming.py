"""Streaming DiLoCo: a third of the model at a time, four bits per value, on its way while the training goes on.

A fragment that is sent lands `overlap` steps later, so its journey costs nothing as long as it takes no longer; the
printed wait is what it did cost. Compare the bytes with those of example 03.

    pccl launch -n 4 examples/04_streaming.py
    python examples/04_streaming.py                  one peer, with a coordinator of its own
"""

from __future__ import annotations

import argparse
import time

import torch
from text import peer

from pccl.optim import DiLoCo, Nesterov


def main() -> None:
    """Trains until the run has made so many inner steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--every", type=int, default=30, help="inner steps between two journeys of a fragment")
    parser.add_argument("--overlap", type=int, default=5, help="inner steps that a journey may take")
    options = parser.parse_args()
    with peer() as (comm, task):
        inner = torch.optim.AdamW(task.model.parameters(), lr=3e-3)
        opt = DiLoCo(
            inner,
            task.model,
            comm,
            mode="streaming",
            every=options.every,
            fragments="strided:2",
            overlap=options.overlap,
            merge=0.5,
            codec="e3m0",
            outer=Nesterov(1.0, 0.5),
        )
        begun = time.monotonic()
        while opt.global_step < options.steps:
            task.loss().backward()
            opt.step()
            opt.zero_grad()
        seconds = time.monotonic() - begun
        opt.flush()
        with opt.outer_params():
            loss = task.validation_loss()
        stats = opt.stats
        sent = f"{stats.rounds} journeys, sent {stats.bytes_sent / 1e6:.2f} MB"
        print(f"done: loss {loss:.4f}, {sent}, state {stats.digest[:8]}")
        print(f"waited {stats.wait_s:.2f} s of {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
