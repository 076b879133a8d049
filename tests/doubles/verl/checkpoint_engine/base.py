"""verl's checkpoint engines, and what its manager does with them in a step, without ray."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Any


class CheckpointEngineRegistry:
    """Engines by the name of their backend."""

    _registry: dict[str, type] = {}

    def register(backend: str) -> Any:
        def wrapper(cls: type) -> type:
            CheckpointEngineRegistry._registry[backend] = cls
            return cls

        return wrapper

    @classmethod
    def get(cls, backend: str) -> Any:
        return cls._registry[backend]

    @classmethod
    def new(cls, backend: str, *args: Any, **kwargs: Any) -> Any:
        if backend not in cls._registry:
            raise ValueError(f"Checkpoint engine {backend} not registered")
        return cls._registry[backend](*args, **kwargs)


class CheckpointEngine(ABC):
    """One in each worker of trainer and rollouts."""

    @abstractmethod
    def prepare(self) -> dict[str, Any]: ...

    @classmethod
    @abstractmethod
    def build_topology(cls, trainer_world_size: int, rollout_world_size: int, metadata: list[dict]) -> Any: ...

    @abstractmethod
    def init_process_group(self, **kwargs: Any) -> None: ...

    @abstractmethod
    def finalize(self) -> None: ...

    @abstractmethod
    async def send_weights(self, weights: Any) -> None: ...

    @abstractmethod
    async def receive_weights(self) -> Any: ...


async def update_weights(
    backend: str, trainer: list[Any], rollout: list[Any], weights: Any, servers: list[Any]
) -> None:
    """A step of the manager: all prepare, the topology, all begin, send and receive at once, all finalize.

    `weights()` gives a trainer rank its generator; `servers`: of each rollout, what takes the tensors.
    """
    everyone = [*trainer, *rollout]
    metadata = [engine.prepare() for engine in everyone]
    kwargs = CheckpointEngineRegistry.get(backend).build_topology(len(trainer), len(rollout), metadata)
    for group, arguments in zip((trainer, rollout), kwargs, strict=True):
        for rank, engine in enumerate(group):
            engine.init_process_group(**{key: value[rank] for key, value in arguments.items()})

    async def receive(engine: Any, server: Any) -> None:
        async for name, tensor in engine.receive_weights():
            server(name, tensor)

    await asyncio.gather(
        *(engine.send_weights(weights()) for engine in trainer),
        *(receive(engine, server) for engine, server in zip(rollout, servers, strict=True)),
    )
    for engine in everyone:
        engine.finalize()
