"""DiLoCo under Lightning: the module and the Trainer stay as they are, a callback meets the other replicas.

pccl launch -n 2 examples/10_lightning.py
python examples/10_lightning.py                  one peer, with a coordinator of its own
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from text import Task, peer
from torch.utils.data import DataLoader, IterableDataset

from pccl.optim import LightningHooks, Nesterov


class Outer(LightningHooks, pl.Callback):
    """Lightning's side of it."""


class Module(pl.LightningModule):
    """The examples' model. Nothing in it knows of other machines."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self._task = task

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        """The task has its own batches."""
        return self._task.loss()

    def validation_step(self, batch: Any, number: int) -> None:
        """Of what is published: the outer parameters."""
        self.log("validation", self._task.validation_loss())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The inner one."""
        return torch.optim.AdamW(self.model.parameters(), lr=3e-3)


class Numbers(IterableDataset[int]):
    """So many batches."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))


def main() -> None:
    """Trains until the run has made so many inner steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--every", type=int, default=20, help="inner steps between two meetings")
    options = parser.parse_args()
    quiet()
    with peer() as (comm, task):
        outer = Outer(comm, every=options.every, outer=Nesterov(1.0, 0.5))
        trainer = pl.Trainer(
            max_steps=options.steps, callbacks=[outer], accelerator="cpu", devices=1, val_check_interval=options.every,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Module(task), DataLoader(Numbers(options.steps)), DataLoader(Numbers(1)))
        loss = trainer.callback_metrics["validation"]
        print(f"done: loss {loss:.4f}, {outer.sync.stats.rounds} rounds, state {outer.sync.stats.digest[:8]}")


def quiet() -> None:
    """Lightning has much to say."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")


if __name__ == "__main__":
    main()
