"""What several publishers make together, without a network: the same as one that has all of it, or nothing."""

from __future__ import annotations

from itertools import chain as joined
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.weights_chain import POOL, SCHEMA, Chain

from pccl.weights import codec
from pccl.weights.codec import Codec
from pccl.weights.digests import quick
from pccl.weights.errors import DamageError, SchemaError
from pccl.weights.gather import Parts
from pccl.weights.joint import Together
from pccl.weights.pieces import Piece, part_of, piece_of, pieces_in, places
from pccl.weights.shadow import MemoryShadow

QUICKLY = settings(max_examples=60, suppress_health_check=list(HealthCheck))
PEERS = [b"p" * 16, b"q" * 16]


def shadow_at(chain: Chain, version: int) -> MemoryShadow:
    made = MemoryShadow(SCHEMA)
    chain.begin(made, version)
    return made


def shards(arena: Any, cuts: list[list[int]], leave_out: int | None = None) -> list[Parts]:
    """Three ranks' parts: of each tensor the elements up to the first cut, to the second, and the rest."""
    made = [Parts(SCHEMA) for _ in range(3)]
    for number, tensor in enumerate(SCHEMA.tensors):
        flat = SCHEMA.view(arena, number)
        ends = [0, *sorted(cut % (tensor.elements + 1) for cut in cuts[number]), tensor.elements]
        for rank, (first, last) in enumerate(pairwise(ends)):
            if leave_out != number or rank:
                made[rank].add(number, first, flat[first:last])
    return made


def sent(parts: Parts, old: Any, codecs: str = "auto") -> bytes:
    """A rank's part; `old`: the arena that it codes against, None: it sends all."""
    return part_of(
        piece_of(place, None if old is None else SCHEMA.block_view(old, SCHEMA.blocks[place[0]])[place[1] :][: place[2]], data, codecs)  # noqa: E501
        for place, data in places(SCHEMA, parts)
    )  # fmt: skip


cuts_of_all = st.lists(st.lists(st.integers(0, 2000), min_size=2, max_size=2), min_size=6, max_size=6)


@given(cuts_of_all, st.sampled_from([0.0, 0.03, 0.5]), st.lists(st.booleans(), min_size=2, max_size=2))
@QUICKLY
def test_ranks_make_together_what_one_would_make(cuts: list[list[int]], share: float, new: list[bool]) -> None:
    chain = Chain(3)
    chain.publish(share)
    baseline = shadow_at(chain, 0)
    own, *others = shards(chain.arenas[1], cuts)
    made = Together(SCHEMA, baseline, "auto", own, POOL)
    for peer, part, is_new in zip(PEERS, others, new, strict=True):
        made.add(peer, pieces_in(memoryview(sent(part, None if is_new else chain.arenas[0])), SCHEMA))
    made.check_whole()
    assert made.touched() == [block.number for block in SCHEMA.blocks]
    for block in SCHEMA.blocks:
        encoded, digest = made.ready(block.number)
        state = baseline.block(block.number).copy()
        codec.decode(encoded, state)
        right = SCHEMA.block_view(chain.arenas[1], block)
        assert np.array_equal(state, right) and digest == quick(right)
        assert len(encoded) <= len(codec.encode(baseline.block(block.number), right))


def test_a_block_that_one_rank_has_whole_goes_as_it_came() -> None:
    chain = Chain(3)
    chain.publish()
    own, one, _ = shards(chain.arenas[1], [[0, t.elements] for t in SCHEMA.tensors])
    made = Together(SCHEMA, shadow_at(chain, 0), "auto", own, POOL)
    pieces = pieces_in(memoryview(sent(one, chain.arenas[0], "fast")), SCHEMA)
    made.add(PEERS[0], pieces)
    coded = [piece for piece in pieces if codec.describe(piece.encoded).codec != Codec.RAW]
    assert len(pieces) == len(SCHEMA.blocks) and coded
    assert [made.ready(piece.block) for piece in coded] == [(piece.encoded, piece.digest) for piece in coded]


def test_an_element_that_nobody_gives_is_named() -> None:
    chain = Chain(3)
    own, *others = shards(chain.arenas[0], [[7, 9]] * 6, leave_out=SCHEMA.index["c"])
    made = Together(SCHEMA, shadow_at(chain, 0), "auto", own, POOL)
    for peer, part in zip(PEERS, others, strict=True):
        made.add(peer, pieces_in(memoryview(sent(part, chain.arenas[0])), SCHEMA))
    with pytest.raises(SchemaError, match="no rank gives element 0 of 'c'"):
        made.check_whole()


@pytest.mark.parametrize("cuts", [[[0, t.elements] for t in SCHEMA.tensors], [[7, 9]] * 6])
def test_who_codes_against_another_state_is_named(cuts: list[list[int]]) -> None:
    chain = Chain(3)
    chain.publish(0.05)
    chain.publish(0.05)
    own, *others = shards(chain.arenas[2], cuts)
    made = Together(SCHEMA, shadow_at(chain, 1), "auto", own, POOL)
    for peer, part in zip(PEERS, others, strict=True):
        made.add(peer, pieces_in(memoryview(sent(part, chain.arenas[0], "fast")), SCHEMA))

    def is_wrong(piece: Piece) -> bool:
        block = SCHEMA.blocks[piece.block]
        states = [SCHEMA.block_view(arena, block)[piece.at :][: piece.elements] for arena in chain.arenas[:2]]
        return codec.describe(piece.encoded).codec != Codec.RAW and not np.array_equal(*states)

    wrong = {piece.block for _, piece in joined.from_iterable(made._given.values()) if is_wrong(piece)}
    assert wrong
    for number in wrong:
        with pytest.raises(DamageError, match=r"another state|cannot be decoded") as found:
            made.ready(number)
        assert found.value.peer in PEERS


def test_where_several_give_an_element_the_lead_counts_and_then_the_first() -> None:
    chain = Chain(3)
    chain.publish(0.5)
    chain.publish(0.5)
    all_of = [t.elements for t in SCHEMA.tensors]
    whole = [shards(arena, [[n, n] for n in all_of])[0] for arena in chain.arenas]
    some = Parts(SCHEMA)
    some.add(SCHEMA.index["c"], 3, SCHEMA.view(chain.arenas[0], SCHEMA.index["c"])[3:20])
    made = Together(SCHEMA, shadow_at(chain, 0), "auto", some, POOL)
    made.add(PEERS[0], pieces_in(memoryview(sent(whole[1], chain.arenas[0])), SCHEMA))
    made.add(PEERS[1], pieces_in(memoryview(sent(whole[2], chain.arenas[0])), SCHEMA))
    found = shadow_at(chain, 0)
    for block in SCHEMA.blocks:
        codec.decode(made.ready(block.number)[0], found.block(block.number))
    right = chain.arenas[1].copy()
    c = SCHEMA.index["c"]
    SCHEMA.view(right, c)[3:20] = SCHEMA.view(chain.arenas[0], c)[3:20]
    for number in range(len(SCHEMA.tensors)):
        assert np.array_equal(SCHEMA.view(found.arena, number), SCHEMA.view(right, number))


@given(st.integers(0, 1 << 20), st.integers(1, 255))
@QUICKLY
def test_a_part_that_is_damaged_or_cut_short_is_refused_or_found_when_it_is_used(place: int, flip: int) -> None:
    chain = Chain(3)
    chain.publish(0.05)
    own, one, _ = shards(chain.arenas[1], [[20, 5000]] * 6)
    data = bytearray(sent(one, chain.arenas[0]))
    with pytest.raises(DamageError):
        pieces_in(memoryview(bytes(data[: place % len(data)])), SCHEMA)
    data[place % len(data)] ^= flip
    made = Together(SCHEMA, shadow_at(chain, 0), "auto", own, POOL)
    try:
        made.add(PEERS[0], pieces_in(memoryview(bytes(data)), SCHEMA))
        made.check_whole()
        blocks = [made.ready(block.number) for block in SCHEMA.blocks]
    except (DamageError, SchemaError):
        return
    for block, (encoded, digest) in zip(SCHEMA.blocks, blocks, strict=True):
        state = shadow_at(chain, 0).block(block.number).copy()
        codec.decode(encoded, state)
        assert quick(state) == digest


def test_all_of_a_piece_is_sent_by_who_has_no_copy() -> None:
    data = np.arange(40, dtype=np.uint16)
    piece = piece_of((0, 3, 40), None, data, "auto")
    assert codec.describe(piece.encoded).codec == Codec.RAW
