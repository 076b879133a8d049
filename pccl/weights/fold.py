"""fold.py - payloads made of payloads: several deltas as one, the way back, and the same in its smallest form.

Blocks of several deltas become one block without any state, as long as each is coded by place (not by the old values):
that is what the log keeps. With the state at the end at hand a fold is coded anew, as small as a delta is. Works on
memory maps; threads over blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from functools import reduce
from typing import Any

import numpy as np

from pccl.weights import codec
from pccl.weights.certificate import Certificate
from pccl.weights.codec import Codec
from pccl.weights.manifest import Manifest, Prelude
from pccl.weights.payload import Payload, Writer
from pccl.weights.schema import Schema

__all__ = ["fold", "in_order", "made_of", "plain"]

Block = tuple[int, bytes]
After = Callable[[int], np.ndarray[Any, Any] | None]


def in_order(pool: Executor, work: Callable[..., Any], items: Iterable[Any], ahead: int = 8) -> Iterator[Any]:
    """Results in the order of the items, with at most `ahead` under way: memory stays bounded."""
    waiting: list[Any] = []
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= ahead:
            yield waiting.pop(0).result()
    for one in waiting:
        yield one.result()


def made_of(
    prelude: Prelude, blocks: Iterable[Block], digests: Sequence[bytes], certificate: Certificate, signature: bytes
) -> tuple[bytes, Manifest]:
    """A payload of blocks in order."""
    writer = Writer(prelude)
    parts = [writer.begin()]
    parts += [writer.add(block, encoded) for block, encoded in blocks]
    parts.append(writer.close_chunks())
    end, manifest = writer.end(digests, certificate, signature)
    return b"".join([*parts, end]), manifest


def fold(pieces: Sequence[Payload], pool: Executor, after: After | None = None) -> bytes:
    """One payload that does what all do, one after the other. `after`: gives a block's state at the end, or None.

    DamageError if a piece is damaged.
    """
    first, last = pieces[0].manifest, pieces[-1].manifest
    for piece in pieces:
        piece.check_chunks()
    places = [{record.block: record for record in piece.manifest.records} for piece in pieces]

    def one(number: int) -> Block:
        parts = [p.block(where[number]) for p, where in zip(pieces, places, strict=True) if number in where]
        folded = reduce(codec.fold, parts)
        state = None if after is None else after(number)
        return number, folded if state is None else smallest(folded, state)

    touched = sorted(set().union(*places))
    blocks = (b for b in in_order(pool, one, touched) if codec.describe(b[1]).codec != Codec.ZERO)
    prelude = Prelude(first.base, last.certificate.version, last.certificate.schema)
    return made_of(prelude, blocks, last.digests, last.certificate, last.signature)[0]


def smallest(block: bytes, after: np.ndarray[Any, Any]) -> bytes:
    """The block coded by the old values, if that is smaller; `after` is what it leads to."""
    if codec.describe(block).codec not in (Codec.DIFF_A, Codec.DENSE_ULP):
        return block
    before = after.copy()
    codec.decode(codec.invert(block), before)
    other = codec.encode(before, after)
    return min(block, other, key=len)


def plain(payload: Payload, schema: Schema, before: np.ndarray[Any, Any], pool: Executor) -> bytes | None:
    """The payload with no block coded by old values, so that it folds; None if it is so already. `before`: the arena
    where it begins.
    """
    manifest = payload.manifest
    if all(codec.describe(block).codec != Codec.DIFF_B for _, block in payload.blocks()):
        return None

    def one(item: Block) -> Block:
        number, block = item
        return number, codec.as_diff_a(block, schema.block_view(before, schema.blocks[number]))

    prelude = Prelude(manifest.base, manifest.certificate.version, manifest.certificate.schema)
    blocks = in_order(pool, one, payload.blocks())
    return made_of(prelude, blocks, manifest.digests, manifest.certificate, manifest.signature)[0]
