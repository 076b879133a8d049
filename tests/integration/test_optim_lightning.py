"""LightningHooks under the real Lightning: skipped steps, checkpoints, validation, several replicas."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from pccl.errors import ArgumentError
from pccl.optim import LightningHooks, LocalComm, Nesterov

STEPS, SAVE_AT = 16, 6
OUTER: dict[str, Any] = {
    "every": 4, "mode": "streaming", "fragments": 2, "overlap": 1, "merge": 0.5, "outer": Nesterov(0.7, 0.9),
}  # fmt: skip


class Outer(LightningHooks, pl.Callback):
    pass


class Batches(IterableDataset[Tensor]):
    """Of one replica, from one on."""

    def __init__(self, place: int, first: int = 0) -> None:
        self.place, self.first = place, first

    def __iter__(self) -> Iterator[Tensor]:
        numbers = torch.Generator().manual_seed(self.place)
        for number in range(2 * STEPS):
            x = torch.randn(4, 6, generator=numbers)
            if number >= self.first:
                yield x


class Module(pl.LightningModule):
    def __init__(self, optimizers: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.automatic_optimization = optimizers == 1
        self._optimizers = optimizers
        self.seen: list[Tensor] = []

    def training_step(self, x: Tensor, number: int) -> Tensor:
        return (self.net(x) - x[:, :3]).square().mean()

    def validation_step(self, x: Tensor, number: int) -> None:
        self.seen.append(flat(self))

    def configure_optimizers(self) -> Any:
        made = [torch.optim.AdamW(self.parameters(), lr=1e-2) for _ in range(self._optimizers)]
        return made[0] if len(made) == 1 else made


def flat(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def trainer_of(folder: Path, *callbacks: Any, steps: int = STEPS, **options: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(
        max_steps=steps, callbacks=list(callbacks), accelerator="cpu", devices=1, default_root_dir=folder,
        enable_checkpointing=False, num_sanity_val_steps=0, **quiet | options,
    )  # fmt: skip


def fit(comm: Any, place: int, folder: Path, steps: int, first: int = 0, ckpt: Path | None = None) -> Module:
    """And a checkpoint at the end of it."""
    module, outer = Module(), Outer(comm, **OUTER)
    trainer = trainer_of(folder, outer, steps=steps)
    trainer.fit(module, DataLoader(Batches(place, first), batch_size=None), ckpt_path=ckpt)
    assert outer.sync is not None and outer.sync.global_step == steps
    return module


class Saves(pl.Callback):
    """A checkpoint after one step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == SAVE_AT:
            trainer.save_checkpoint(self.path)


def together(work: Any, n: int = 2) -> list[Any]:
    """One thread per replica."""
    comms, made, threads = LocalComm(n), [None] * n, []
    for place in range(n):

        def one(place: int = place) -> None:
            made[place] = work(comms[place], place)

        threads.append(threading.Thread(target=one))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert all(one is not None for one in made)
    return made


def test_a_run_that_is_resumed_goes_on_to_the_bit(tmp_path: Path) -> None:
    def whole(comm: Any, place: int) -> Tensor:
        module, outer = Module(), Outer(comm, **OUTER)
        trainer = trainer_of(tmp_path, outer, Saves(tmp_path / f"{place}.ckpt"))
        trainer.fit(module, DataLoader(Batches(place), batch_size=None))
        return flat(module)

    def resumed(comm: Any, place: int) -> Tensor:
        return flat(fit(comm, place, tmp_path, STEPS, SAVE_AT, tmp_path / f"{place}.ckpt"))

    uninterrupted, again = together(whole), together(resumed)
    assert all(torch.equal(a, b) for a, b in zip(uninterrupted, again, strict=True))
    assert not torch.equal(uninterrupted[0], uninterrupted[1])  # merge 0.5: only the outer parameters are equal


def test_validation_sees_the_outer_parameters(tmp_path: Path) -> None:
    def work(comm: Any, place: int) -> list[Tensor]:
        module, outer = Module(), Outer(comm, **OUTER)
        trainer = trainer_of(tmp_path, outer, val_check_interval=4, check_val_every_n_epoch=None)
        trainer.fit(
            module, DataLoader(Batches(place), batch_size=None), DataLoader(Batches(9, 2 * STEPS - 1), batch_size=None)
        )
        return [*module.seen, flat(module)]

    first, second = together(work)
    assert len(first) == STEPS // 4 + 1
    assert all(torch.equal(a, b) for a, b in zip(first[:-1], second[:-1], strict=True))
    assert not torch.equal(first[-1], second[-1])


def test_steps_that_make_no_step_count(tmp_path: Path) -> None:
    class Skips(pl.Callback):
        """As GradScaler does with infinite gradients."""

        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            skipped = trainer.global_step == 2
            optimizer.step = (lambda closure=None: closure()) if skipped else type(optimizer).step.__get__(optimizer)

    module, outer = Module(), Outer(None, every=4)
    trainer_of(tmp_path, outer, Skips()).fit(module, DataLoader(Batches(0), batch_size=None))
    assert outer.sync is not None and outer.sync.global_step == STEPS and outer.sync.stats.rounds == STEPS // 4


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    data = DataLoader(Batches(0), batch_size=None)
    with pytest.raises(ArgumentError, match="one optimizer, not 2"):
        trainer_of(tmp_path, Outer(None, every=4)).fit(Module(2), data)
    trainer_of(tmp_path, Saves(tmp_path / "bare.ckpt")).fit(Module(), data)
    with pytest.raises(ArgumentError, match="without LightningHooks"):
        trainer_of(tmp_path, Outer(None, every=4)).fit(Module(), data, ckpt_path=tmp_path / "bare.ckpt")
