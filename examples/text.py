"""What examples 03 to 05 train: the demo's byte-level GPT, made small, on the sources of Python's standard library."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from demo.data import load_windows
from demo.model import ModelConfig, build_model, loss_of
from torch import Tensor, nn

import pccl
from pccl.coordinator.server import Coordinator

CONTEXT, BATCH = 64, 8


class Task:
    """A model, and batches that no two peers share for long: every peer begins at a place of its own."""

    def __init__(self, place: int) -> None:
        torch.set_num_threads(1)
        self.model: nn.Module = build_model(ModelConfig(layers=2, width=64, context=CONTEXT), seed=1)
        self._train, self._validation = load_windows(CONTEXT, seed=1)
        self._next = place % len(self._train.starts)

    def loss(self) -> Tensor:
        """Of the next batch; backward is the caller's."""
        windows = self._train.take(self._next, BATCH)
        self._next += BATCH
        return loss_of(self.model, windows)

    @torch.no_grad()
    def validation_loss(self) -> float:
        """In nats per byte, on text that nobody trains on."""
        return float(loss_of(self.model, self._validation.take(0, 64)))


@contextlib.contextmanager
def peer() -> Iterator[tuple[pccl.Communicator, Task]]:
    """Joins the run that `pccl launch` put into the environment; without one, makes a run of one peer. The task is made
    first: from the moment a peer has joined the others count on it."""
    place = int.from_bytes(os.urandom(4), "little")
    task = Task(place)
    with contextlib.ExitStack() as stack:
        address = os.environ.get("PCCL_COORDINATOR") or stack.enter_context(Coordinator()).address
        yield stack.enter_context(pccl.connect(address)), task
