"""A trainer that does what transformers.Trainer does around an optimizer, in the same order, for where that is missing.

It owns the optimizer and the schedule: the optimizer is wrapped (and its state loaded into itself) as accelerate does,
gradients are accumulated, unscaled and clipped, a GradScaler may skip the step and then so does the schedule; callbacks
come after; a checkpoint holds model, optimizer, schedule and the trainer's state, and is loaded by `train`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Arguments:
    """Names as in transformers.TrainingArguments; `scaled`: with a GradScaler."""

    output_dir: str
    max_steps: int
    save_steps: int
    gradient_accumulation_steps: int
    max_grad_norm: float
    scaled: bool = False


@dataclass
class State:
    global_step: int = 0
    max_steps: int = 0


@dataclass
class Control:
    should_save: bool = False
    should_training_stop: bool = False


class Wrapped(torch.optim.Optimizer):
    """accelerate's: no constructor of Optimizer was called, so it has no hooks of its own; all is passed on."""

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> None:
        self.optimizer, self.scaler, self.step_was_skipped = optimizer, scaler, False
        self._original = optimizer.step
        optimizer.load_state_dict(optimizer.state_dict())

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.optimizer.state

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state_dict)

    def step(self, closure: Any = None) -> None:
        if self.scaler is None:
            self.optimizer.step(closure)
            return
        self.step_was_skipped = True

        def told(*arguments: Any, **options: Any) -> Any:
            self.step_was_skipped = False
            return self._original(*arguments, **options)

        self.optimizer.step = told  # type: ignore[method-assign]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.step = self._original  # type: ignore[method-assign]


class Callbacks:
    """The trainer's own, as far as it has any: when to save and to stop."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None: ...
    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None: ...

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= state.max_steps
        control.should_save = control.should_training_stop or state.global_step % args.save_steps == 0


@dataclass
class Trainer:
    """`model(x)` is a loss. `scheduler` makes a schedule for the optimizer."""

    model: nn.Module
    args: Arguments
    train_dataset: Iterable[Tensor]
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    make_scheduler: Callable[[torch.optim.Optimizer], Any]
    callbacks: list[Any] = field(default_factory=lambda: [Callbacks()])
    optimizer: Any = None

    def create_optimizer(self) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = self.make_optimizer(self.model)
        return self.optimizer

    def add_callback(self, callback: Any) -> None:
        self.callbacks.append(callback)

    def train(self, resume_from_checkpoint: str | None = None) -> State:
        self.state, self.control = State(max_steps=self.args.max_steps), Control()
        if resume_from_checkpoint is not None:
            self.model.load_state_dict(torch.load(Path(resume_from_checkpoint) / "model.pt"))
            self.state = State(**json.loads((Path(resume_from_checkpoint) / "state.json").read_text()))
        self.scaler = torch.amp.GradScaler("cpu") if self.args.scaled else None
        self.optimizer = Wrapped(self.create_optimizer(), self.scaler)
        self.scheduler = self.make_scheduler(self.optimizer)
        if resume_from_checkpoint is not None:
            for name, one in self._saved():
                one.load_state_dict(torch.load(Path(resume_from_checkpoint) / f"{name}.pt", weights_only=True))
        seen = self.state.global_step * self.args.gradient_accumulation_steps
        batches = islice(iter(self.train_dataset), seen, None)
        self._call("on_train_begin")
        while not self.control.should_training_stop:
            self._update(batches)
        return self.state

    def _update(self, batches: Iterator[Tensor]) -> None:
        parts = self.args.gradient_accumulation_steps
        for batch in islice(batches, parts):
            loss = self.model(batch) / parts
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        if not self.optimizer.step_was_skipped:
            self.scheduler.step()
        self.model.zero_grad()
        self.state.global_step += 1
        self._call("on_step_end")
        if self.control.should_save:
            self._save()
            self._call("on_save")

    def _save(self) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        folder.mkdir(parents=True)
        torch.save(self.model.state_dict(), folder / "model.pt")
        for name, one in self._saved():
            torch.save(one.state_dict(), folder / f"{name}.pt")
        (folder / "state.json").write_text(json.dumps(asdict(self.state)))

    def _saved(self) -> list[tuple[str, Any]]:
        return [
            ("optimizer", self.optimizer),
            ("scheduler", self.scheduler),
            *([("scaler", self.scaler)] if self.scaler is not None else []),
        ]

    def _call(self, event: str) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self.args, self.state, self.control, lr_scheduler=self.scheduler)
