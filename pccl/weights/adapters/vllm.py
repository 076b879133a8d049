"""vllm.py - vLLM's weight transfer engine: updates come ahead of time, and are written when vLLM asks for them.

In every worker, as a plugin (entry point `vllm.general_plugins`) or before the engine is made:

    pccl.weights.adapters.vllm.register()                 # then WeightTransferConfig(backend="pccl")

and from the trainer, through any of vLLM's clients:

    client.init_weight_transfer_engine({"init_info": {"coordinator": ..., "secret": ..., "base": ..., ...}})   # once
    push(publisher, client, model.named_parameters())                                                      # every step

A model whose parameters are the tensors of the checkpoint is patched in place. One that fuses or cuts them loads whole
tensors, of those that changed, by `load_weights`. vllm is imported when it is registered.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from pccl.buffers import describe_dtype
from pccl.errors import ArgumentError
from pccl.weights.adapters.engine import Adapter, EngineError
from pccl.weights.adapters.following import Ahead, Following, Settings
from pccl.weights.adapters.loader import LoaderAdapter
from pccl.weights.adapters.module import ModuleAdapter, tensors_of
from pccl.weights.publisher import Publisher
from pccl.weights.schema import Schema

__all__ = ["adapter_for", "engine_class", "push", "register"]


def register(name: str = "pccl") -> None:
    """Makes the backend known to this process's vLLM. ImportError without vllm."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    WeightTransferEngineFactory.register_engine(name, engine_class())


def push(publisher: Publisher, client: Any, named: Any, timeout_s: float = 600.0) -> int:
    """Publishes tensors, and lets vLLM's workers take the version; gives it. The pause begins when it is durable, and
    blocks until all workers have it. `client`: vLLM's, with start_weight_update, update_weights, finish_weight_update.
    """
    ticket = publisher.publish(named)
    ticket.wait("durable", timeout_s)
    client.start_weight_update()
    client.update_weights({"version": ticket.version, "timeout_s": timeout_s})
    client.finish_weight_update()
    assert ticket.version is not None
    return ticket.version


def adapter_for(model: Any, schema: Schema) -> Adapter:
    """Patches in place if the model's tensors are those of the schema; `load_weights` otherwise."""
    targets = tensors_of(model)
    for tensor in schema.tensors:
        value = targets.get(tensor.name)
        if value is None or (tuple(value.shape), describe_dtype(value)) != (tensor.shape, tensor.dtype):
            return LoaderAdapter(model.load_weights)
    return ModuleAdapter(targets)


class _Worker:
    """One worker's receiver."""

    model: Any
    _following: Following | None = None
    _ahead: Ahead | None = None

    @property
    def version(self) -> int:
        """The committed one."""
        return self._followed().receiver.version

    def init_transfer_engine(self, init_info: Any) -> None:
        """Joins and follows. A worker that is told again keeps what it has."""
        if self._following is None:
            following = Following(Settings(**{f.name: getattr(init_info, f.name) for f in fields(Settings)}))
            self._following = following
            self._ahead = Ahead(following.receiver, adapter_for(self.model, following.shadow.schema))

    def start_weight_update(self) -> None:
        """Nothing: the work has been done before."""
        self._followed()

    def receive_weights(self, update_info: Any) -> None:
        """Writes the update, and commits it."""
        following, ahead = self._followed(), self._ahead
        assert ahead is not None
        if update_info.version is not None and following.receiver.version == update_info.version:
            return
        update, apply = ahead.take(update_info.version, update_info.timeout_s)
        with update.commit():
            apply()
        ahead.done(update)

    def finish_weight_update(self) -> None:
        """Nothing: what was written is whole."""
        self._followed()

    def shutdown(self) -> None:
        """Ends the following; the shadow's file stays."""
        if self._following is not None and self._ahead is not None:
            self._following.close()
            self._ahead.join()
            self._following = self._ahead = None

    @staticmethod
    def trainer_send_weights(iterator: Iterable[tuple[str, Any]], trainer_args: Any) -> None:
        """`trainer_args`: a Publisher, or a dict with one as "publisher"."""
        publisher = trainer_args["publisher"] if isinstance(trainer_args, dict) else trainer_args
        if not isinstance(publisher, Publisher):
            raise ArgumentError(f"trainer_args must be a Publisher, not {type(publisher).__name__}")
        publisher.publish(iterator).wait("durable")

    def _followed(self) -> Following:
        if self._following is None:
            raise EngineError("init_transfer_engine has not been called")
        return self._following


@cache
def engine_class() -> Any:
    """The class for vLLM's factory."""
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )

    @dataclass
    class PcclInitInfo(Settings, WeightTransferInitInfo):  # type: ignore[misc]
        """Of a worker; see Settings."""

    @dataclass
    class PcclUpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
        """`version`: None for the newest."""

        version: int | None = None
        timeout_s: float = 600.0

    infos = {"init_info_cls": PcclInitInfo, "update_info_cls": PcclUpdateInfo}
    return type("PcclWeightTransferEngine", (_Worker, WeightTransferEngine), infos)
