"""What docs/optim.md takes as given: a trainer with callbacks (the double that tests use), and a run."""

import types

import torch
from trainer_double import Arguments, Callbacks, Trainer

import pccl
import pccl.optim
from pccl.optim import DiLoCo


def adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def constant(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


class Loss(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (super().forward(x) - x.sum(1, keepdim=True)).square().mean()


comm = pccl.connect()
transformers = types.SimpleNamespace(TrainerCallback=Callbacks)
model = Loss(8, 1)
trainer = Trainer(
    model,
    Arguments(f"checkpoints-{comm.rank}", 1000, 2000, 1, 1.0),
    (torch.randn(4, 8) for _ in range(2000)),
    adamw,
    constant,
)
