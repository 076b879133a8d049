"""Weights that change a little in every step, sent as what changed: lossless, bit for bit. docs/weights.md says how.

pub = Publisher(comm, schema, base=model.state_dict(), log=DeltaLog("deltas"))
pub.publish(model.state_dict()).wait("encoded")

rx = Receiver(comm, shadow, upstream=[trainer])
for update in rx.updates():
    with update.commit():
        for patch in update.patches(): ...
"""

from __future__ import annotations

from pccl.weights.arrays import as_torch
from pccl.weights.certificate import SigningKey, Version
from pccl.weights.codec import Codec, DeltaError, WrongBaseError
from pccl.weights.errors import DamageError, LineageError, LogError, SchemaError, WeightsError
from pccl.weights.gather import ShardSpec
from pccl.weights.log import DeltaLog
from pccl.weights.publisher import Publisher
from pccl.weights.receiver import Receiver
from pccl.weights.relay import Relay
from pccl.weights.schema import Schema, Tensor
from pccl.weights.shadow import FileShadow, MemoryShadow, Shadow
from pccl.weights.shards import ShardPublisher
from pccl.weights.ticket import PublishStats, Ticket
from pccl.weights.update import Patch, Update, UpdateStats

__all__ = [
    "Codec",
    "DamageError",
    "DeltaError",
    "DeltaLog",
    "FileShadow",
    "LineageError",
    "LogError",
    "MemoryShadow",
    "Patch",
    "PublishStats",
    "Publisher",
    "Receiver",
    "Relay",
    "Schema",
    "SchemaError",
    "Shadow",
    "ShardPublisher",
    "ShardSpec",
    "SigningKey",
    "Tensor",
    "Ticket",
    "Update",
    "UpdateStats",
    "Version",
    "WeightsError",
    "WrongBaseError",
    "as_torch",
]
