"""NoLoCo: no meeting of all at all. Every 20 steps each peer swaps its change with one other, drawn anew each time.

Peers stay near each other and are never equal; in the end `consensus` makes them so. A slow peer holds up nobody but
the one that it is paired with.

    pccl launch -n 4 examples/05_noloco.py
    python examples/05_noloco.py                     one peer, with a coordinator of its own
"""

from __future__ import annotations

import argparse

import torch
from text import peer

from pccl.optim import DiLoCo, Mixing


def main() -> None:
    """Trains until the run has made so many inner steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--every", type=int, default=20, help="inner steps between two swaps")
    options = parser.parse_args()
    with peer() as (comm, task):
        inner = torch.optim.AdamW(task.model.parameters(), lr=3e-3)
        mixing = Mixing(alpha=0.5, beta=0.7, gamma=0.7)
        opt = DiLoCo(inner, task.model, comm, mode="gossip", every=options.every, mixing=mixing)
        opt.add_round_hook(
            lambda done: print(f"step {done.step}: with {' '.join(p.hex()[:4] for p in done.peers)}", flush=True)
        )
        while opt.global_step < options.steps:
            task.loss().backward()
            opt.step()
            opt.zero_grad()
        with opt.outer_params():
            own = task.validation_loss()
        opt.consensus()
        print(f"done: loss {own:.4f} before and {task.validation_loss():.4f} after the consensus", flush=True)


if __name__ == "__main__":
    main()
