"""DiLoCo beside accelerate: `attach` finds the optimizer inside its own, and counts the steps that it passes on.

pccl launch -n 2 examples/11_accelerate.py
python examples/11_accelerate.py                 one peer, with a coordinator of its own
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from text import peer

from pccl.optim import DiLoCo, Nesterov


def main() -> None:
    """Trains until the run has made so many inner steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--every", type=int, default=20, help="inner steps between two meetings")
    options = parser.parse_args()
    with peer() as (comm, task):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model, inner = accelerator.prepare(task.model, torch.optim.AdamW(task.model.parameters(), lr=3e-3))
        with DiLoCo.attach(inner, model, comm, every=options.every, outer=Nesterov(1.0, 0.5)) as sync:
            while sync.global_step < options.steps:
                with accelerator.accumulate(model):
                    accelerator.backward(task.loss())
                    inner.step()
                    inner.zero_grad()
        with sync.outer_params():
            loss = task.validation_loss()
        print(f"done: loss {loss:.4f}, {sync.stats.rounds} rounds, state {sync.stats.digest[:8]}")


if __name__ == "__main__":
    main()
