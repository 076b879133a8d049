"""A payload that is there but for its end: all is decoded and verified, and nothing is staged before that has come."""

from __future__ import annotations

from typing import Any

import pytest
from unit.weights_chain import KEY, POOL, SCHEMA, Chain

from pccl.errors import PcclError
from pccl.weights.errors import DamageError
from pccl.weights.layout import END_ROOM
from pccl.weights.manifest import END_BYTES
from pccl.weights.payload import Payload, Reader
from pccl.weights.shadow import MemoryShadow, Staged
from pccl.weights.stage import Stage

PUBLIC = KEY.public


def shadow_of(chain: Chain) -> MemoryShadow:
    shadow = MemoryShadow(SCHEMA)
    chain.begin(shadow)
    return shadow


def one_of(codecs: str = "auto") -> tuple[Chain, bytes]:
    chain = Chain()
    chain.publish(codecs=codecs)
    return chain, chain.payloads[0]


class Coming:
    """A payload that comes in portions, and a stage that takes it as a receiver does."""

    def __init__(self, shadow: MemoryShadow, nbytes: int, public: bytes | None = PUBLIC) -> None:
        self.memory = bytearray(nbytes)
        self.reader, self.stage, self.public = Reader(self.memory), Stage(shadow, POOL, None, None), public

    def grow(self, data: bytes, to: int) -> None:
        self.memory[:to] = data[:to]
        for block, encoded in self.reader.grow(to, len(SCHEMA.blocks)):
            self.stage.feed(block, encoded)
        if to < len(data):
            self.stage.foresee(self.reader, to, self.public)

    def finish(self) -> Staged:
        return self.stage.finish(Payload(self.memory), self.public, self.reader.chunks)


def same(one: Staged, other: Staged) -> bool:
    return (one.at, one.digests) == (other.at, other.digests) and all(
        all((a == b).all() for a, b in zip(one.patches[block], other.patches[block], strict=True))
        for block in one.patches.keys() | other.patches.keys()
    )


def test_the_end_that_is_held_back_is_what_is_the_same_in_all_payloads() -> None:
    assert END_ROOM == END_BYTES and len({one_of(codecs)[1][-END_BYTES:] for codecs in ("auto", "absolute")}) == 1


@pytest.mark.parametrize("step", [1, 7, 64, 1 << 20])
def test_what_is_foreseen_is_what_the_whole_payload_leads_to(step: int) -> None:
    chain, data = one_of()
    coming = Coming(shadow_of(chain), len(data))
    early = len(data) - END_BYTES
    for to in range(0, early, step):
        coming.grow(data, to)
        assert coming.stage._foreseen is None, f"{len(data) - to} bytes lack"
    coming.grow(data, early)
    assert coming.stage._foreseen is not None
    coming.grow(data, len(data))
    assert coming.finish() is coming.stage._foreseen[1]
    assert same(coming.finish(), Stage(shadow_of(chain), POOL, None, None).finish(Payload(data), PUBLIC))


def test_any_bit_that_flips_is_found_whether_or_not_it_was_foreseen() -> None:
    chain, right = one_of()
    shadow = shadow_of(chain)
    for place in range(len(right)):
        data = bytearray(right)
        data[place] ^= 1 << (place % 8)
        coming = Coming(shadow, len(data))
        with pytest.raises(PcclError):
            coming.grow(bytes(data), len(data) - END_BYTES)
            assert (coming.stage._foreseen is not None) == (place >= len(data) - END_BYTES), place
            coming.grow(bytes(data), len(data))
            coming.finish()


def test_one_that_is_not_signed_is_refused_when_it_is_whole() -> None:
    chain, data = one_of()
    coming = Coming(shadow_of(chain), len(data), public=bytes(32))
    coming.grow(data, len(data) - END_BYTES)
    assert coming.stage._foreseen is None
    coming.grow(data, len(data))
    with pytest.raises(DamageError, match="not signed"):
        coming.finish()


def test_chunks_are_hashed_as_they_were_fed() -> None:
    """So what is decoded is what is signed, also if the memory said something else a moment later."""
    chain, data = one_of()
    coming = Coming(shadow_of(chain), len(data))
    records = Payload(data).manifest_at
    coming.grow(data, records)
    coming.reader.chunks.close()
    manifest: Any = Payload(data).manifest
    assert (tuple(coming.reader.chunks.ends), tuple(coming.reader.chunks.leaves)) == (manifest.ends, manifest.leaves)
    wrong = bytearray(data)
    wrong[records - 3] ^= 1
    other = Coming(shadow_of(chain), len(data))
    other.grow(bytes(wrong), records)
    other.grow(data, len(data))
    with pytest.raises(DamageError):
        other.finish()
