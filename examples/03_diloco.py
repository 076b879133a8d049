"""DiLoCo: peers train alone, and meet only every 20 steps. Kill one, start another: the others notice and go on.

Nothing in the loop knows of the others but the optimizer. When a peer dies, the round that it leaves unfinished is
finished by the survivors, with their same changes; a newcomer receives the outer parameters, the outer momentum and the
place in the schedule at the next boundary.

    pccl launch -n 4 --kill-at 4 --join-at 7 --lease 1 examples/03_diloco.py
    python -m stress.wan run stress/wan/topologies/four_continents.yaml -- python examples/03_diloco.py      (as root)
    python examples/03_diloco.py                     one peer, with a coordinator of its own
"""

from __future__ import annotations

import argparse

import torch
from text import peer

from pccl.optim import DiLoCo, Nesterov, Round


def main() -> None:
    """Trains until the run has made so many inner steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--every", type=int, default=20, help="inner steps between two meetings")
    options = parser.parse_args()
    with peer() as (comm, task):
        inner = torch.optim.AdamW(task.model.parameters(), lr=3e-3)
        opt = DiLoCo(inner, task.model, comm, every=options.every, outer=Nesterov(1.0, 0.5))
        opt.add_round_hook(report)
        while opt.global_step < options.steps:
            task.loss().backward()
            opt.step()
            opt.zero_grad()
        with opt.outer_params():
            loss = task.validation_loss()
        sent = opt.stats.bytes_sent / 1e6
        print(
            f"done: loss {loss:.4f}, sent {sent:.2f} MB, waited {opt.stats.wait_s:.1f} s, state {opt.stats.digest[:8]}"
        )


def report(done: Round) -> None:
    """One line per meeting."""
    print(
        f"step {done.step}: {len(done.peers)} peers, |change| {done.delta_norm:.3f}, "
        f"along the mean {done.cosine:+.2f}, {done.bytes_sent / 1e6:.2f} MB",
        flush=True,
    )


if __name__ == "__main__":
    main()
