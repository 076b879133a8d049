"""lightning.py - Lightning's callbacks around DiLoCo: LightningHooks.

Lightning makes the optimizer itself when training begins, counts steps that GradScaler skipped, validates between two
steps and writes one file per checkpoint. From its callbacks follow: when to attach, equal counts on all replicas,
validation of the outer parameters, the outer part inside the checkpoint.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from pccl.errors import ArgumentError
from pccl.optim.diloco import DiLoCo
from pccl.optim.line import Comm

__all__ = ["LightningHooks"]

KEY = "pccl"


class LightningHooks:
    """Callbacks for a Trainer of `pytorch_lightning` or `lightning.pytorch`; to be mixed in:

        class Outer(LightningHooks, pl.Callback): ...

        trainer = pl.Trainer(max_steps=10_000, callbacks=[Outer(comm, every=500)])

    Options are those of DiLoCo. The module has one optimizer, and each replica a Trainer of its own: `devices=1`, or
    what FSDP2 needs inside. `max_steps` counts the steps of the run: a newcomer takes parameters and step from it and
    ends with the others. Validation sees the outer parameters. Before a checkpoint, and at the end, what is in flight
    is landed: these steps block, so let all replicas save at the same steps. `ckpt_path=` of `fit` resumes, to the bit
    if all replicas do so from checkpoints of the same step. ArgumentError: several optimizers.
    """

    def __init__(self, comm: Comm | None, **options: Any) -> None:
        super().__init__()
        self._comm, self._options = comm, options
        self._attached, self._outside = ExitStack(), ExitStack()
        self._loaded: dict[str, Any] | None = None
        self._ahead = 0  # steps of the run that this Trainer has not made
        #: The DiLoCo of the fit that is under way; its `stats` stay afterwards.
        self.sync: DiLoCo | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Optimizers are there, and a checkpoint, if there is one, has been loaded."""
        if len(trainer.optimizers) != 1:
            raise ArgumentError(f"the module must have one optimizer, not {len(trainer.optimizers)}")
        attached = DiLoCo.attach(trainer.optimizers[0], pl_module, self._comm, **self._options)
        self.sync = self._attached.enter_context(attached)
        if self.sync.global_step:
            self.sync.restart_from_outer()
        elif self._loaded is not None:
            self.sync.load_state_dict(self._loaded)
        self._ahead = self.sync.global_step - trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """The optimizer has made a step, skipped one, or gathers gradients still."""
        assert self.sync is not None
        while self.sync.global_step < trainer.global_step + self._ahead:
            self.sync.skip_step()
        if 0 < trainer.max_steps <= self.sync.global_step:
            trainer.should_stop = True

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Of the outer parameters, unless it is the check before training."""
        if self.sync is not None:
            self._outside.enter_context(self.sync.outer_params())

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """The replica's own parameters are back."""
        self._outside.close()

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """What is in flight lands first, and moves the parameters."""
        if self.sync is None:
            return
        self.sync.flush()
        saved = self.sync.state_dict()
        del saved["inner"]  # the Trainer's
        checkpoint[KEY] = saved
        checkpoint["state_dict"] = trainer.strategy.lightning_module_state_dict()

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """For the start. ArgumentError: it was written without these hooks."""
        if KEY not in checkpoint:
            raise ArgumentError("the checkpoint has no outer part: it was written without LightningHooks")
        self._loaded = checkpoint[KEY]

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """What is in flight lands."""
        self._attached.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Nothing is waited for any more."""
        self._outside.close()
        self._attached.__exit__(type(exception), exception, exception.__traceback__)
