"""A peer whose training loop is a trainer's: its double (trainer_double.py), or transformers.Trainer itself.

    PYTHONPATH=tests python tests/integration/trainer_peer.py

Every line of standard input is a Job in JSON. It tells {"gate": step} and waits for a line after the step `gate`, then
what came of the job (Outcome).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from integration.trainer_double import Arguments, Trainer
from torch import Tensor, nn
from torch.utils.data import IterableDataset

import pccl
from pccl.optim import DiLoCo, Nesterov, TrainerHooks

STEPS, SAVE_AT, PARTS, CLIP, WARM = 16, 6, 2, 1.0, 8
OUTER: dict[str, Any] = {"every": 4, "mode": "streaming", "fragments": 2, "overlap": 1, "merge": 0.5}
OP_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Job:
    """`place`: whose data. `seed`: of the model. `skipped`: the step whose gradients are infinite, for GradScaler;
    0: there is none. `resume`: a checkpoint's folder. `gate`: see the header. `real`: with transformers.Trainer."""

    address: str
    place: int
    folder: str
    seed: int = 0
    skipped: int = 0
    resume: str = ""
    gate: int = 0
    real: bool = False


@dataclass(frozen=True)
class Outcome:
    """`first`, `last`: steps of the trainer; `made`: by the inner optimizer; `counted`: by the outer one."""

    first: int
    last: int
    made: int
    counted: int
    rounds: int
    lr: float
    theta: list[float]


class Net(nn.Module):
    """Two layers in one vector each, and a loss."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return (self.two(self.one(x).tanh()) - x[:, :3]).square().mean()


def batches(place: int, skipped: int = 0) -> Iterator[Tensor]:
    """Without end; those of the step `skipped` are infinite."""
    numbers, number = torch.Generator().manual_seed(place), 0
    while True:
        x = torch.randn(4, 6, generator=numbers)
        yield x * torch.inf if number // PARTS + 1 == skipped else x
        number += 1


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """The inner optimizer."""
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Warms up, then stays."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM))


def tell(facts: dict[str, Any], to: Any = sys.stdout) -> None:
    """A line."""
    print(json.dumps(facts), file=to, flush=True)


class Outer(TrainerHooks):
    """Begins where the run is, waits at the gate."""

    first, gate = 0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self.first = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step == self.gate:
            tell({"gate": self.gate})
            sys.stdin.readline()


def double(job: Job, model: Net) -> tuple[Any, type[Outer]]:
    """Ours."""
    args = Arguments(job.folder, STEPS, SAVE_AT, PARTS, CLIP, bool(job.skipped))

    class Data:
        def __iter__(self) -> Iterator[Tensor]:
            return batches(job.place, job.skipped)

    return Trainer(model, args, Data(), adamw, schedule), Outer


def transformers_own(job: Job, model: Net) -> tuple[Any, type[Outer]]:
    """The real one, with the same options."""
    import transformers

    class Data(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            return ({"x": x} for x in batches(job.place))

    class Lossy(nn.Module):
        """Trainer wants it in a dict."""

        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"loss": self.net(x)}

    class Real(Outer, transformers.TrainerCallback):
        pass

    args = transformers.TrainingArguments(
        output_dir=job.folder, max_steps=STEPS, save_steps=SAVE_AT, gradient_accumulation_steps=PARTS,
        per_device_train_batch_size=1, max_grad_norm=CLIP, use_cpu=True, report_to=[], disable_tqdm=True,
        logging_strategy="no",
    )  # fmt: skip
    inner = adamw(model)
    trainer = transformers.Trainer(
        model=Lossy(), args=args, train_dataset=Data(), optimizers=(inner, schedule(inner)),
        data_collator=lambda rows: rows[0],
    )  # fmt: skip
    return trainer, Real


def work(job: Job) -> Outcome:
    """One job, one membership."""
    model = Net(job.seed)
    trainer, outer = (transformers_own if job.real else double)(job, model)
    inner = trainer.create_optimizer() or trainer.optimizer
    made = []
    inner.register_step_post_hook(lambda *_: made.append(1))
    with pccl.connect(job.address, listen="127.0.0.1:0", op_timeout=OP_TIMEOUT_S) as comm:
        with DiLoCo.attach(inner, model, comm, outer=Nesterov(0.7, 0.9), **OUTER) as sync:
            callback = outer(sync, job.resume or None)
            callback.gate = job.gate
            trainer.add_callback(callback)
            trainer.train(resume_from_checkpoint=job.resume or None)
        assert sync.param_groups is inner.param_groups
        assert sync.state is inner.state
        comm.barrier(tag="the end")
    theta = torch.cat([fragment.theta for fragment in sync._sync.fragments])
    lr = inner.param_groups[0]["lr"]
    return Outcome(
        callback.first, trainer.state.global_step, len(made), sync.global_step, sync.stats.rounds, lr, theta.tolist()
    )


def main() -> None:
    """See the header."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    sys.stdout = sys.stderr  # trainers print
    for line in sys.stdin:
        tell(asdict(work(Job(**json.loads(line)))))


if __name__ == "__main__":
    main()
