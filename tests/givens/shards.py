"""What docs/weights.md takes as given: two ranks that have half of the rows each."""

import tempfile

import numpy as np

import pccl
from pccl.weights import DeltaLog, Publisher, Schema, ShardPublisher, ShardSpec, SigningKey

comm = pccl.connect()
whole = {"head": np.ones((64, 512), np.float16)}
mine = [("head", whole["head"][32 * comm.rank : 32 * (comm.rank + 1)], ShardSpec(32 * comm.rank))]
schema, key, log = Schema.of(whole), SigningKey(), DeltaLog(tempfile.mkdtemp())
