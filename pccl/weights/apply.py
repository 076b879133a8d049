"""apply.py - a payload written to an arena that nobody else reads: a publisher's or a relay's own copy.

Nothing survives the process there, so nothing is journaled; what must not be wrong is checked by the digests after it.
"""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import numpy as np

from pccl.weights import codec
from pccl.weights.digests import quick
from pccl.weights.errors import DamageError
from pccl.weights.payload import Payload
from pccl.weights.schema import Schema

__all__ = ["apply"]


def apply(payload: Payload, schema: Schema, arena: np.ndarray[Any, Any], pool: Executor, check: bool) -> None:
    """Takes the arena from the payload's base to its target. `check`: its chunks and the base before, and all blocks
    after. DamageError, DeltaError: the arena is of no use any more.
    """
    if check:
        payload.check_chunks()

    def one(item: tuple[int, bytes]) -> None:
        codec.decode(item[1], schema.block_view(arena, schema.blocks[item[0]]), known=not check)

    for _ in pool.map(one, payload.blocks()):
        pass
    if check:
        found = pool.map(lambda block: quick(schema.block_view(arena, block)), schema.blocks)
        for block, (digest, wanted) in enumerate(zip(found, payload.manifest.digests, strict=True)):
            if digest != wanted:
                raise DamageError(f"block {block} is not what version {payload.manifest.certificate.version} says")
