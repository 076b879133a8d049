"""Parts of a payload without a network: what is wanted comes, right, and nothing else."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.weights_chain import KEY, POOL, Chain
from unit.weights_reads import Offered

from pccl.types import Status
from pccl.weights import codec
from pccl.weights.certificate import Certificate, state_digest
from pccl.weights.digests import merkle_root, quick
from pccl.weights.errors import DamageError
from pccl.weights.fold import made_of
from pccl.weights.layout import HEAD_BYTES, SPECIAL, parts_of, payload_bytes_max, runs_of, slots_for, start_of
from pccl.weights.manifest import PRELUDE_BYTES, Prelude
from pccl.weights.parts import PartsIn, spans_of
from pccl.weights.payload import CHUNK_BYTES, Payload
from pccl.weights.schema import PACK_BELOW, Schema, Tensor
from pccl.weights.shadow import MemoryShadow
from pccl.weights.stage import Stage
from pccl.weights.stream import STRIKES, StreamOut

RELAY, TRAINER = b"relay", b"trainer"
BLOCKS = 12
SCHEMA = Schema(Tensor(f"t{n}", (PACK_BELOW,), "uint8") for n in range(BLOCKS))


def payload_of(sizes: list[int]) -> tuple[bytes, MemoryShadow, Any]:
    """One in which block n changes in so many elements; with a shadow of its base, and the state after it."""
    rng = np.random.default_rng(3)
    shadow = MemoryShadow(SCHEMA)
    shadow.arena[:] = rng.integers(0, 256, shadow.arena.size, np.uint8)
    before = Chain().tip
    after = shadow.arena.copy()
    blocks = []
    for block, size in zip(SCHEMA.blocks, sizes, strict=True):
        view = SCHEMA.block_view(after, block)
        view[rng.choice(view.size, size, replace=False)] += 7
        encoded = codec.encode(shadow.block(block.number), view)
        if size:
            blocks.append((block.number, encoded))
    shadow.begin(before, shadow.digest_blocks())
    digests = [quick(SCHEMA.block_view(after, block)) for block in SCHEMA.blocks]
    prelude = Prelude(before, 1, SCHEMA.hash)

    def made(root: bytes) -> bytes:
        state = state_digest(SCHEMA.hash, digests)
        certificate = Certificate(bytes(32), 1, 1, before.lineage, SCHEMA.hash, state, root)
        return made_of(prelude, blocks, digests, certificate, KEY.sign(certificate))[0]

    root = merkle_root(Payload(made(bytes(32))).manifest.leaves)
    return made(root), shadow, after


DATA, SHADOW, AFTER = payload_of([60_000, 0, 100, 9_000, 9_000, 400_000, 10, 10, 10, 30_000, 0, 900_000])


class Served:
    """A region that holds a payload; `hurt` is asked whether an answer is damaged."""

    def __init__(self, data: bytes) -> None:
        self.slots = slots_for(len(data))
        out = StreamOut(Offered(), "s", 1, self.slots)  # type: ignore[arg-type]
        out.write(data)
        out.conclude()
        out.finish()
        self.memory = out._memory
        self.waiting: list[Any] = []
        self.spans: list[tuple[int, int]] = []

    def read(self, peer: bytes, key: bytes, gen: int, offset: int, memory: Any, done: Any, **_: Any) -> Any:
        asked = SimpleNamespace(peer=peer, offset=offset, memory=memory, done=done)
        self.waiting.append(asked)
        return asked

    def cancel_read(self, asked: Any) -> None:
        if asked in self.waiting:
            self.waiting.remove(asked)
            asked.done(Status.ECANCELLED)

    def answer(self, number: int = 0, hurt: int | None = None) -> None:
        asked = self.waiting.pop(number % len(self.waiting))
        asked.memory[:] = self.memory[asked.offset : asked.offset + asked.memory.size]
        self.spans.append((asked.offset, asked.offset + asked.memory.size))
        if hurt is not None:
            asked.memory[hurt % asked.memory.size] ^= 1
        asked.done(Status.OK)


class In:
    """Parts that are fetched, and what was said of them."""

    def __init__(self, wanted: set[int], data: bytes = DATA) -> None:
        self.served = Served(data)
        self.grown, self.failed = 0, []
        sizes = Payload(data).sizes
        self.parts = PartsIn(
            self.served, "s", 1, self.served.slots, sizes, [RELAY, TRAINER], wanted.__contains__,  # type: ignore[arg-type]
            on_grown=lambda parts: setattr(self, "grown", self.grown + 1),
            on_failed=lambda parts, why: self.failed.append(why),
        )  # fmt: skip

    def payload(self) -> Payload:
        return Payload(self.parts.memory.data[: self.parts.total])


@given(st.integers(0, len(DATA)), st.data())
@settings(max_examples=60)
def test_a_part_of_the_payload_is_where_it_is_said_to_be(total: int, data: Any) -> None:
    served = Served(DATA[:total])
    start = data.draw(st.integers(0, total))
    end = data.draw(st.integers(start, total))
    runs = list(runs_of(total, start, end))
    parts = [part for run in runs for part in run.parts]
    assert parts == list(parts_of(total, start, end)) and all(a.end == b.start for a, b in pairwise(parts))
    found = b"".join(served.memory[part.at : part.at + part.end - part.start].tobytes() for part in parts)
    assert found == DATA[start:end]
    for run in runs:
        assert run.at <= min(part.at for part in run.parts)
        assert max(part.at + part.end - part.start for part in run.parts) == run.at + run.nbytes
    assert sum(run.nbytes for run in runs) <= end - start + HEAD_BYTES * len(parts)


@given(st.integers(0, 1 << 40))
def test_so_many_slots_are_enough_and_no_fewer(total: int) -> None:
    slots = slots_for(total)
    assert total <= payload_bytes_max(slots) and (slots == SPECIAL or total > payload_bytes_max(slots - 1))
    assert slots_for(payload_bytes_max(slots)) == slots and start_of(slots) <= total


@given(st.sets(st.integers(0, BLOCKS - 1)), st.data())
@settings(max_examples=30)
def test_what_is_wanted_comes_in_any_order_with_any_damage_and_little_else(wanted: set[int], data: Any) -> None:
    one = In(wanted)
    damages = data.draw(st.lists(st.integers(0, 10_000), max_size=2))
    while one.served.waiting:
        hurt = damages.pop() if damages and data.draw(st.booleans()) else None
        one.served.answer(data.draw(st.integers(0, 5)), hurt)
    assert one.parts.complete and one.grown == 1 and not one.failed
    payload = one.payload()
    shadow = SHADOW
    staged = Stage(shadow, POOL, None, frozenset(wanted)).finish(payload, KEY.public)
    assert set(staged.patches) == {r.block for r in payload.manifest.records} & wanted
    for block, (index, values) in staged.patches.items():
        right = SCHEMA.block_view(AFTER, SCHEMA.blocks[block])
        made = shadow.block(block).copy()
        made[index] = values
        assert np.array_equal(made, right)


@given(st.sets(st.integers(0, BLOCKS - 1)))
@settings(max_examples=30)
def test_no_more_is_read_than_the_chunks_of_what_is_wanted(wanted: set[int]) -> None:
    one = In(wanted)
    while one.served.waiting:
        one.served.answer()
    whole = Payload(DATA)
    records = [record for record in whole.manifest.records if record.block in wanted]
    ends = PRELUDE_BYTES + whole.sizes[1]
    bound = ends + sum(record.nbytes + CHUNK_BYTES for record in records)
    heads = HEAD_BYTES * (one.served.slots + len(one.served.spans))
    assert one.parts.received_bytes <= bound + heads
    large = [record for record in records if record.nbytes >= CHUNK_BYTES]
    if len(large) == len(records):
        assert one.parts.received_bytes <= ends + sum(record.nbytes + 8 for record in records) + heads


def test_spans_of_chunks_are_read_at_once() -> None:
    manifest = Payload(DATA).manifest
    spans = spans_of(manifest, lambda block: True)
    assert sum(len(chunks) for _, chunks in spans) == len(manifest.ends) - 1
    assert all(a[1] <= b[0] for (a, _), (b, _) in pairwise(spans))


def test_who_sends_damage_is_left_and_nobody_left_is_a_failure() -> None:
    one = In({5})
    answers, runs = 0, len(one.served.waiting)
    while RELAY in {asked.peer for asked in one.served.waiting}:
        one.served.answer(0, hurt=0)
        answers += 1
    assert STRIKES <= answers <= runs * STRIKES and {asked.peer for asked in one.served.waiting} == {TRAINER}
    while one.served.waiting:
        asked = one.served.waiting.pop(0)
        asked.done(Status.EPEER)
    assert one.failed and not one.grown


def test_sizes_that_cannot_be_are_refused() -> None:
    for sizes in [(100, 10), (1000, 0), (1000, 1000), (1 << 20, 100)]:
        with pytest.raises(DamageError, match="cannot have"):
            PartsIn(
                Served(DATA), "s", 1, SPECIAL + 1, sizes, [RELAY], lambda block: True,  # type: ignore[arg-type]
                on_grown=lambda parts: None, on_failed=lambda parts, why: None,
            )  # fmt: skip
