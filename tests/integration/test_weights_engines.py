"""vLLM and verl over real peers: their own calls, in their order, bring published weights into an engine."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from integration.conftest import SECRET
from integration.weights_model import SCHEMA, step, weights

from pccl.errors import Timeout
from pccl.weights import DeltaLog, Publisher, SigningKey, base
from pccl.weights.adapters import EngineError
from pccl.weights.adapters.safetensors import Entry, write_tensors

DOUBLES = Path(__file__).parent.parent / "doubles"
WAIT_S = 60.0
State = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(autouse=True)
def engines(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The doubles can be imported, and are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(DOUBLES))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in ("vllm", "verl")]:
        del sys.modules[name]
    for name in ("vllm", "verl"):
        module = sys.modules.get(f"pccl.weights.adapters.{name}")
        if module is not None:
            module.engine_class.cache_clear()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Version 0, as a directory of safetensors."""
    directory = tmp_path / "base"
    directory.mkdir()
    entries = [Entry(t.name, t.dtype, t.shape, t.nbytes) for t in SCHEMA.tensors]
    state = weights()
    write_tensors(directory / "model.safetensors", entries, [state[e.name].tobytes() for e in entries], {}, False)
    return directory


def as_torch(state: State) -> dict[str, torch.Tensor]:
    kinds = {"bfloat16": ("i2", torch.bfloat16), "float32": ("i4", torch.float32), "uint8": ("u1", torch.uint8)}
    made = {}
    for tensor in SCHEMA.tensors:
        integer, dtype = kinds[tensor.dtype]
        made[tensor.name] = torch.from_numpy(state[tensor.name].copy().view(integer)).view(dtype)
    return made


class Model(torch.nn.Module):
    """`fused`: embed and norm are rows of one parameter, which only `load_weights` knows."""

    def __init__(self, state: State, fused: bool = False) -> None:
        super().__init__()
        self.named = as_torch(state)
        if fused:
            both = torch.cat([self.named["embed"].reshape(-1), self.named["norm"]])
            self.named["embed"] = both[:-64].view(1500, 1000)
            self.named["norm"] = both[-64:]
            self.register_buffer("both", both)
        for name, tensor in self.named.items():
            if not (fused and name in ("embed", "norm")):
                self.register_buffer(name, tensor)
        self.loads = 0

    def load_weights(self, weights: Any) -> set[str]:
        self.loads += 1
        names = set()
        for name, tensor in weights:
            self.named[name].copy_(tensor)
            names.add("both" if name in ("embed", "norm") else name)
        return names

    def holds(self, state: State) -> bool:
        integers = {2: torch.int16, 4: torch.int32, 1: torch.uint8}
        return all(
            tensor.view(integers[tensor.element_size()]).numpy().tobytes() == state[name].tobytes()
            for name, tensor in self.named.items()
        )


class Client:
    """vLLM's four calls, to workers one after the other."""

    def __init__(self, workers: list[Any]) -> None:
        self.workers = workers

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        for worker in self.workers:
            worker.init_transfer_engine(worker.parse_init_info(init_info["init_info"]))

    def start_weight_update(self) -> None:
        for worker in self.workers:
            worker.start_weight_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        for worker in self.workers:
            worker.update_weights(update_info)

    def finish_weight_update(self) -> None:
        for worker in self.workers:
            worker.finish_weight_update()


def trainer(cluster: Any, tmp_path: Path, checkpoint: Path, key: SigningKey) -> tuple[Any, Any, Any]:
    coordinator = cluster.coordinator(1)
    comm = cluster.connect(coordinator, transport="tcp")
    return (
        coordinator,
        comm,
        Publisher(comm, base.schema_of(checkpoint), base=checkpoint, log=DeltaLog(tmp_path / "log"), sign=key),
    )


def test_vllm_workers_follow(cluster: Any, tmp_path: Path, checkpoint: Path) -> None:
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    from pccl.weights.adapters import vllm

    WeightTransferEngineFactory._registry.clear()
    vllm.register()
    key = SigningKey()
    coordinator, comm, pub = trainer(cluster, tmp_path, checkpoint, key)
    state = weights()
    models = [Model(state), Model(state, fused=True)]
    config = SimpleNamespace(backend="pccl")
    workers = [WeightTransferEngineFactory.create_engine(config, None, torch.device("cpu"), m) for m in models]
    client = Client(workers)
    with pytest.raises(EngineError, match="init_transfer_engine"):
        client.start_weight_update()
    with pytest.raises(ValueError, match="adress"):
        client.init_weight_transfer_engine({"init_info": {"adress": "x"}})
    info = {"coordinator": coordinator.address, "secret": SECRET, "base": str(checkpoint), "listen": "127.0.0.1:0"}
    info |= {"source": comm.peer_id.hex(), "pubkey": key.public.hex()}
    client.init_weight_transfer_engine({"init_info": info})
    where = [tensor.data_ptr() for model in models for tensor in model.named.values()]
    for number in range(1, 4):
        step(state, number)
        assert vllm.push(pub, client, as_torch(state).items(), WAIT_S) == number
        assert all(model.holds(state) for model in models)
        assert [worker.version for worker in workers] == [number, number]
    assert [model.loads for model in models] == [0, 3]
    assert [tensor.data_ptr() for model in models for tensor in model.named.values()] == where
    client.update_weights({"version": 3})
    with pytest.raises(Timeout, match="version 4"):
        client.update_weights({"version": 4, "timeout_s": 0.01})
    step(state, 4)
    type(workers[0]).trainer_send_weights(iter(as_torch(state).items()), {"publisher": pub})
    client.update_weights({"timeout_s": WAIT_S})
    assert [worker.version for worker in workers] == [4, 4]
    assert all(model.holds(state) for model in models)
    for worker in workers:
        worker.shutdown()
        worker.shutdown()
    pub.close()
    comm.close()


def taker(model: Model) -> Any:
    return lambda name, tensor: model.named[name].copy_(tensor)


def test_verl_rollouts_follow_and_join_late(cluster: Any, tmp_path: Path, checkpoint: Path) -> None:
    from verl.checkpoint_engine.base import CheckpointEngineRegistry, update_weights

    from pccl.weights.adapters import verl

    verl.register()
    coordinator = cluster.coordinator(1)
    settings = {"coordinator": coordinator.address, "secret": SECRET, "base": str(checkpoint), "listen": "127.0.0.1:0"}

    def new(**more: Any) -> Any:
        return CheckpointEngineRegistry.new("pccl", bucket_size=1 << 20, **settings, **more)

    trainers = [new(is_master=True, log=str(tmp_path / "log")), new(is_master=False)]
    state = weights()
    models = [Model(state), Model(state)]
    rollouts = [new(shadow=str(tmp_path / "shadow"))]
    for number in range(1, 5):
        if number == 3:
            rollouts.append(new())
        step(state, number)
        servers = [taker(model) for model in models[: len(rollouts)]]
        given = as_torch(state)
        asyncio.run(update_weights("pccl", trainers, rollouts, lambda given=given: iter(given.items()), servers))
        assert all(model.holds(state) for model in models[: len(rollouts)])

    def breaks(name: str, tensor: Any) -> None:
        raise RuntimeError("the server fell over")

    step(state, 5)
    given = as_torch(state)
    with pytest.raises(RuntimeError, match="fell over"):
        asyncio.run(update_weights("pccl", trainers, rollouts[:1], lambda: iter(given.items()), [breaks]))
    assert rollouts[0]._following.receiver.version == 4
    for engine in [*rollouts, *trainers]:
        engine.close()


def test_verl_says_what_is_wrong(checkpoint: Path) -> None:
    from pccl.errors import ArgumentError
    from pccl.weights import ShardSpec
    from pccl.weights.adapters import verl

    made = verl.engine_class()
    settings = {"coordinator": "127.0.0.1:1", "secret": SECRET, "base": str(checkpoint)}
    with pytest.raises(ArgumentError, match="log"):
        made(is_master=True, **settings).prepare()
    with pytest.raises(EngineError, match="master"):
        made.build_topology(2, 2, [{}, {}, {}, {}])
    with pytest.raises(TypeError, match="adress"):
        made(adress="x", **settings)
    other = made(**settings)
    other.init_process_group(role="trainer", world_size=2, master={})
    with pytest.raises(EngineError, match="'embed' came as a shard of one of 2"):
        asyncio.run(other.send_weights([("embed", torch.zeros(1), ShardSpec(0))]))
    with pytest.raises(EngineError, match="prepare"):
        asyncio.run(made(is_master=True, **settings).send_weights([]))
