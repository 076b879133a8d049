"""One of two ranks that train the same under Lightning on gloo and on pccl; started by test_torch.py as by torchrun.

    PYTHONPATH=tests python tests/integration/lightning_peer.py FOLDER RANK SIZE PORT ...

Prints, as JSON, what each strategy saw: losses, parameters at the end, what was logged. It takes a port for each.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from integration.torch_peer import quiet
from torch import Tensor
from torch.utils.data import DataLoader

import pccl.torch
from pccl.torch.lightning import PcclStrategy

STRATEGIES: dict[str, Callable[[], Any]] = {
    "gloo": lambda: "ddp",
    "pccl": PcclStrategy,
    "name": lambda: "pccl",
    "bf16": lambda: PcclStrategy(ddp_comm_hook=pccl.torch.hooks.bf16),
}


class Module(pl.LightningModule):
    """Notes its losses, and logs them as a mean over the ranks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        self.losses: list[float] = []

    def training_step(self, x: Tensor, number: int) -> Tensor:
        loss = (self.net(x) - x[:, :3]).square().mean()
        self.losses.append(float(loss.detach()))
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def train(strategy: Any) -> dict[str, Any]:
    """Two epochs, each rank on its half."""
    rows = torch.randn(48, 6, generator=torch.Generator().manual_seed(3))
    module = Module()
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", devices=2, strategy=strategy, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(rows, batch_size=4))
    whole = torch.tensor([dist.get_rank(), 4])
    return {
        "backend": dist.get_backend(),
        "losses": module.losses,
        "parameters": torch.cat([p.detach().flatten() for p in module.parameters()]).tolist(),
        "logged": float(trainer.callback_metrics["loss"]),
        "mean of integers": trainer.strategy.reduce(whole, reduce_op="mean").tolist(),
        "told": trainer.strategy.broadcast({"rank": dist.get_rank()}),
    }


def main() -> None:
    """One rank."""
    rank, size, ports = sys.argv[2], sys.argv[3], sys.argv[4:]
    quiet()
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": "0", "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test"}
    found = {}
    for (name, strategy), port in zip(STRATEGIES.items(), ports, strict=True):
        os.environ["MASTER_PORT"] = port
        found[name] = train(strategy())
        dist.destroy_process_group()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
