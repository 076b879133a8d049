"""trainer.py - what a trainer with callbacks must be told besides `DiLoCo.attach`: TrainerHooks.

Transformers' Trainer calls its callbacks at the start, after every step (also one whose gradients were infinite, which
its optimizer never saw), before and after it writes a checkpoint. From these follow: equal counts on all replicas, no
fragment in flight in a checkpoint, the outer part beside the inner one, a newcomer's place in the run.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pccl.optim.diloco import DiLoCo

__all__ = ["TrainerHooks"]

FILE = "outer.pt"


class TrainerHooks:
    """Callbacks for transformers.Trainer, or any trainer that calls the same ones; to be mixed in:

        class Outer(TrainerHooks, transformers.TrainerCallback): ...

        trainer.create_optimizer()
        with DiLoCo.attach(trainer.optimizer, model, comm, every=500) as sync:
            trainer.add_callback(Outer(sync))
            trainer.train()

    A step that GradScaler skipped counts as one in which nothing changed, so all replicas end and save at the same
    steps; let them have the same `max_steps` and `save_steps`. Before a checkpoint, and at the end, what is in flight
    is landed: these steps block. `outer.pt` in the checkpoint's folder holds the outer part and the replica's own.

    `resume_from_checkpoint`: the folder that `train` is given; None: that of the step in `output_dir`. If all replicas
    resume together, from checkpoints of the same step, the run goes on to the bit. A replica that comes into a run that
    is under way, with a checkpoint or without, takes parameters, step and learning rate from the run; the checkpoint's
    inner optimizer stays.
    """

    def __init__(self, sync: DiLoCo, resume_from_checkpoint: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        self._sync, self._checkpoint = sync, resume_from_checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The checkpoint, if there is one, has been loaded. FileNotFoundError if it has no outer part."""
        if self._sync.global_step:
            self._sync.restart_from_outer()
            _wind(kwargs.get("lr_scheduler"), self._sync.global_step - state.global_step)
            state.global_step = self._sync.global_step
        elif state.global_step:
            file = _file(args, state) if self._checkpoint is None else Path(self._checkpoint) / FILE
            self._sync.load_state_dict(torch.load(file, weights_only=True))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The step may have been skipped, and be the last, or the one before a checkpoint."""
        while self._sync.global_step < state.global_step:
            self._sync.skip_step()
        if control.should_save or control.should_training_stop:
            self._sync.flush()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint may follow here too."""
        if control.should_save:
            self._sync.flush()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The trainer has written the rest of the checkpoint."""
        saved = self._sync.state_dict()
        del saved["inner"]  # the trainer's
        torch.save(saved, _file(args, state))


def _file(args: Any, state: Any) -> Path:
    return Path(os.fspath(args.output_dir)) / f"checkpoint-{state.global_step}" / FILE


def _wind(scheduler: Any, steps: int) -> None:
    """A schedule goes on where the run is; one that follows a metric has no place to go to."""
    if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no step of the optimizer came before these
        for _ in range(steps):
            scheduler.step()
