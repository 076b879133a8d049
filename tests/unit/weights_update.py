"""Updates without a network: real payloads staged on real shadows, committed as a receiver does it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from unit.weights_chain import KEY, POOL, SCHEMA, Chain

from pccl.weights.arrays import as_torch
from pccl.weights.payload import Payload
from pccl.weights.shadow import MemoryShadow, Shadow
from pccl.weights.stage import Stage
from pccl.weights.update import Update, UpdateStats, refuse_old

__all__ = ["Follower", "holds"]


class Follower:
    """A shadow at version 0 of a chain, and the updates of it."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.shadow = MemoryShadow(SCHEMA)
        chain.begin(self.shadow)

    def update(self, payload: bytes | None = None) -> Update:
        """To the end of the payload; None: of the delta after what is committed."""
        assert self.shadow.at is not None
        data = self.chain.payloads[self.shadow.at.version] if payload is None else payload
        staged = Stage(self.shadow, POOL, None, None).finish(Payload(data), KEY.public)
        return Update(self.shadow, staged, UpdateStats(), None, self._committing)

    @contextmanager
    def _committing(self, update: Update) -> Iterator[None]:
        refuse_old(update)
        yield
        self.shadow.commit(update._staged)

    def engine(self) -> dict[str, Any]:
        """Torch tensors at what is committed, with memory of their own."""
        return {
            t.name: as_torch(SCHEMA.view(self.shadow.arena, n).copy(), t.dtype, t.shape)
            for n, t in enumerate(SCHEMA.tensors)
        }


def holds(engine: dict[str, Any], shadow: Shadow) -> bool:
    """Whether the engine's tensors are the shadow's, bit for bit."""
    return all(
        np.array_equal(bits(engine[t.name]), SCHEMA.view(shadow.arena, n).view(np.uint8))
        for n, t in enumerate(SCHEMA.tensors)
    )


def bits(tensor: Any) -> np.ndarray[Any, Any]:
    """The bytes of a torch tensor."""
    import torch

    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
