"""verl.py - verl's checkpoint engine: trainers publish, rollouts follow, and come and go without a group made anew.

    actor_rollout_ref.rollout.checkpoint_engine.custom_backend_module: my_module_that_calls_register
    ...backend: pccl     ...engine_kwargs.pccl: {coordinator: ..., secret: ..., base: ..., log: ...}

verl prepares, builds a topology, begins, sends and receives, and finalizes in each step; here the first step makes what
all others use. Rank 0 of the trainer publishes what its generator gives, which the others drain, as their share of
gathering it. What rollouts get are whole tensors, of those that changed since what they have, whenever they joined.
verl is imported when it is registered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from functools import cache
from typing import Any

import pccl
from pccl.errors import ArgumentError
from pccl.weights import base as bases
from pccl.weights.adapters.engine import EngineError
from pccl.weights.adapters.following import Following, Settings
from pccl.weights.adapters.loader import changed_tensors
from pccl.weights.certificate import SigningKey
from pccl.weights.log import DeltaLog
from pccl.weights.publisher import Publisher
from pccl.weights.update import Update

__all__ = ["engine_class", "register"]


def register(name: str = "pccl") -> None:
    """Makes the backend known to this process's verl. ImportError without verl."""
    from verl.checkpoint_engine.base import CheckpointEngineRegistry

    CheckpointEngineRegistry.register(name)(engine_class())


class _Trainer:
    """What publishes: in rank 0 of the trainer."""

    def __init__(self, settings: Settings, log: str) -> None:
        self.key = SigningKey()
        self.comm = pccl.connect(
            settings.coordinator, secret=settings.secret, listen=settings.listen, timeout=settings.timeout_s
        )
        try:
            schema = bases.schema_of(settings.base)
            self.publisher = Publisher(
                self.comm, schema, base=settings.base, log=DeltaLog(log), sign=self.key, name=settings.name
            )
        except BaseException:
            self.comm.close()
            raise

    def close(self) -> None:
        self.publisher.close()
        self.comm.close()


class _Engine:
    """`bucket_size`, `is_master`: verl's. `log`: the trainer's directory of deltas. `shadow`: of a rollout, a file
    of its own. The rest: Settings.
    """

    def __init__(
        self,
        bucket_size: int = 0,
        is_master: bool = False,
        *,
        log: str = "",
        send_timeout_s: float = 600.0,
        **kwargs: Any,
    ) -> None:
        self._settings, self._log, self._timeout_s = Settings(**kwargs), log, send_timeout_s
        self._is_master = is_master
        self._trainer: _Trainer | None = None
        self._following: Following | None = None
        self._world_size = 1
        self._wanted: int | None = None

    def prepare(self) -> dict[str, Any]:
        """Of rank 0 of the trainer: where to follow, and which version comes next."""
        if not self._is_master:
            return {}
        if self._trainer is None:
            if not self._log:
                raise ArgumentError("log: the trainer needs a directory for its deltas")
            self._trainer = _Trainer(self._settings, self._log)
        trainer = self._trainer
        return {
            "source": trainer.comm.peer_id.hex(),
            "pubkey": trainer.key.public.hex(),
            "version": trainer.publisher.tip.version + 1,
        }

    @classmethod
    def build_topology(
        cls, trainer_world_size: int, rollout_world_size: int, metadata: list[dict[str, Any]]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """Everyone follows rank 0 of the trainer. EngineError if that has not prepared."""
        master = next((one for one in metadata if one), None)
        if master is None:
            raise EngineError("no rank of the trainer is the master: nobody publishes")

        def to_all(role: str, size: int) -> dict[str, list[Any]]:
            return {"role": [role] * size, "world_size": [size] * size, "master": [master] * size}

        return to_all("trainer", trainer_world_size), to_all("rollout", rollout_world_size)

    def init_process_group(self, role: str, world_size: int, master: dict[str, Any]) -> None:
        """Joins, the first time."""
        self._world_size = world_size
        if role == "rollout":
            self._wanted = master["version"]
            if self._following is None:
                found = {"source": master["source"], "pubkey": master["pubkey"]}
                self._following = Following(Settings(**(vars(self._settings) | found)))

    async def send_weights(self, weights: Iterable[tuple[Any, ...]]) -> None:
        """Publishes (name, tensor), or (name, local shard, ShardSpec) where the trainer is one rank; returns when
        the version is durable. Tensors on a device are copied.
        """
        if not self._is_master:
            for item in weights:
                self._refuse_shards(item)
            return
        trainer = self._trainer
        if trainer is None:
            raise EngineError("prepare has not been called")
        ticket = await asyncio.to_thread(lambda: trainer.publisher.publish(self._on_host(weights)))
        await asyncio.to_thread(ticket.wait, "durable", self._timeout_s)

    async def receive_weights(self) -> AsyncIterator[tuple[str, Any]]:
        """(name, tensor) of what changed; committed when all have been taken."""
        following = self._following
        if following is None or self._wanted is None:
            raise EngineError("init_process_group has not been called")
        while following.receiver.version < self._wanted:
            update: Update = await asyncio.to_thread(following.receiver.next, self._timeout_s)
            if update.version < self._wanted:
                continue
            with update.commit():
                for named in changed_tensors(update):
                    yield named

    def finalize(self) -> None:
        """Nothing: the next step needs it all."""

    def close(self) -> None:
        """Leaves. The log and the shadow's file stay."""
        for part in (self._trainer, self._following):
            if part is not None:
                part.close()
        self._trainer = self._following = None

    def _on_host(self, weights: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        for item in weights:
            self._refuse_shards(item)
            name, tensor, *place = item
            device = getattr(getattr(tensor, "device", None), "type", "cpu")
            yield name, tensor if device == "cpu" else tensor.detach().cpu(), *place

    def _refuse_shards(self, item: tuple[Any, ...]) -> None:
        if len(item) > 2 and self._world_size > 1:
            raise EngineError(
                f"{item[0]!r} came as a shard of one of {self._world_size} trainer ranks: "
                "only rank 0 publishes, give it whole tensors"
            )


@cache
def engine_class() -> Any:
    """The class for verl's registry."""
    from verl.checkpoint_engine.base import CheckpointEngine

    return type("PcclCheckpointEngine", (_Engine, CheckpointEngine), {})
