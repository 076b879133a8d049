"""What docs/weights_adapters.md takes as given: a model, a Receiver with one update, an engine that can pause."""

import contextlib
import tempfile
import types

import torch

import pccl
from pccl.coordinator.server import Coordinator
from pccl.weights import DeltaLog, MemoryShadow, Publisher, Receiver, Schema, SigningKey, base
from pccl.weights.adapters.engine import install
from pccl.weights.adapters.module import ModuleAdapter

model = torch.nn.Linear(64, 64).bfloat16()
begins = {name: tensor.clone() for name, tensor in model.state_dict().items()}
coordinator = Coordinator(min_peers=1, secret="a secret of one page")
coordinator.start()
comms = [
    pccl.connect(coordinator.address, secret="a secret of one page", listen="127.0.0.1:0", group=group)
    for group in (0, 1)
]
schema, key = Schema.of(begins), SigningKey()
publisher = Publisher(comms[0], schema, base=begins, log=DeltaLog(tempfile.mkdtemp()), sign=key)
shadow = MemoryShadow(schema)
base.fill(shadow, begins)
receiver = Receiver(comms[1], shadow, upstream=[comms[0].peer_id], pubkey=key.public)
publisher.publish(begins | {"bias": begins["bias"] + 1}).wait("durable", 30.0)


def updates():
    yield receiver.next(30.0)
    assert torch.equal(model.bias, begins["bias"] + 1)
    for one in (receiver, publisher, *comms, coordinator):
        one.close()


rx = types.SimpleNamespace(updates=updates)
engine = types.SimpleNamespace(paused=contextlib.nullcontext)
