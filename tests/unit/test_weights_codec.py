"""Blocks of weight deltas: every codec takes old to new bit for bit, sizes keep their promises, and what is wrong is
refused untouched.
"""

from __future__ import annotations

import itertools
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pccl.errors import ArgumentError
from pccl.weights import codec
from pccl.weights.codec import Codec, DeltaError, WrongBaseError

ISAS = ("scalar", "avx2", "avx512")
DIFFS = (Codec.DIFF_A, Codec.DIFF_B, Codec.DENSE_ULP)
ALWAYS = tuple(c for c in Codec if c != Codec.ZERO)
State = np.ndarray[Any, Any]


def bf16(count: int, seed: int = 0) -> State:
    """Weights as they are: normal, of 0.02, in bfloat16."""
    values = np.random.default_rng(seed).normal(0, 0.02, count).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def step(old: State, chance: float, seed: int = 1) -> State:
    """A step whose changes double with each exponent that a weight is smaller by; mostly one up or down."""
    rng = np.random.default_rng(seed)
    exponent = (old >> 7 & 255).astype(np.int64)
    likely = chance * 2.0 ** (121 - exponent)
    hit = rng.random(len(old)) < likely
    size = np.where(rng.random(len(old)) < 0.9, 1, rng.integers(2, 9, len(old)))
    sign = np.where(rng.random(len(old)) < 0.5, -1, 1)
    return np.where(hit, old + (size * sign).astype(np.uint16), old).astype(np.uint16)


@st.composite
def pairs(draw: st.DrawFn, count: int = 2) -> tuple[State, ...]:
    """States of one shape, any bits, each alike the one before in some elements."""
    dtype = draw(st.sampled_from(("u1", "u2", "u4")))
    elements = draw(st.integers(0, 300))
    states = [draw(npst.arrays(dtype, elements))]
    for _ in range(count - 1):
        other = draw(npst.arrays(dtype, elements))
        kept = draw(npst.arrays(np.bool_, elements))
        states.append(np.where(kept, states[-1], other).astype(dtype))
    return tuple(states)


def applied(block: bytes, state: State, isa: str | None = None) -> State:
    after = state.copy()
    codec.decode(block, after, isa=isa)
    return after


@given(pairs())
@example((np.array([0x0000, 0x8000, 0x7F81], "u2"), np.array([0x8000, 0x0000, 0x7FC1], "u2")))
def test_every_codec_is_lossless_and_goes_back(states: tuple[State, ...]) -> None:
    old, new = states
    for one in ALWAYS:
        block = codec.encode(old, new, one)
        info = codec.describe(block)
        assert (info.codec, info.elements, info.width) == (one, len(old), old.itemsize)
        assert info.changed == np.count_nonzero(old != new)
        assert np.array_equal(applied(block, old), new)
        indices, values = codec.patch(block, old)
        patched = old.copy()
        patched[indices] = values
        assert np.array_equal(patched, new)
        assert np.array_equal(applied(codec.invert(block, old), new), old)
        assert np.array_equal(applied(codec.as_diff_a(block, old), old), new)


@given(pairs())
@example(tuple(np.arange(n, dtype="u2") + k for n in (121,) for k in (0, 1)))
def test_hashes_are_those_of_the_new_state(states: tuple[State, ...]) -> None:
    old, new = states
    check_hashes(old, new)


@pytest.mark.parametrize("count", [120, 121, 512, 513, 2047, 2048, 2049, 2080, 4096, 4127, 10_007])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_hashes_of_any_length(count: int, dtype: str) -> None:
    rng = np.random.default_rng(count)
    old = rng.integers(0, 255, count).astype(dtype)
    check_hashes(old, np.where(rng.random(count) < 0.02, old + 1, old).astype(dtype))


def check_hashes(old: State, new: State) -> None:
    """Of every codec by every instruction set."""
    wanted = xxhash.xxh3_128_digest(new.tobytes())
    for one, isa in itertools.product(ALWAYS, (None, *ISAS)):
        found, patched = bytearray(codec.HASH_BYTES), bytearray(codec.HASH_BYTES)
        try:
            block = codec.encode(old, new, one, hashed=found, isa=isa)
        except ArgumentError as error:
            assert "no such kernels" in str(error)
            continue
        codec.patch(block, old, hashed=patched, isa=isa)
        assert (bytes(found), bytes(patched)) == (wanted, wanted)


def test_a_hash_needs_its_room_and_the_right_base() -> None:
    old = bf16(5000)
    new = step(old, 0.01)
    with pytest.raises(ArgumentError, match="16 bytes"):
        codec.encode(old, new, hashed=bytearray(15))
    for one in DIFFS:
        block, hashed = codec.encode(old, new, one), bytearray(codec.HASH_BYTES)
        with pytest.raises(WrongBaseError):
            codec.patch(block, new, hashed=hashed)
    with pytest.raises(ArgumentError, match="old values"):
        codec.patch(codec.encode(old, new, Codec.ABS), None, hashed=hashed)


def test_a_state_that_is_known_is_moved_alike() -> None:
    old = bf16(5000)
    new = step(old, 0.01)
    for one in ALWAYS:
        state = old.copy()
        codec.decode(codec.encode(old, new, one), state, known=True)
        assert np.array_equal(state, new)


@given(pairs())
def test_bytes_and_results_are_those_of_every_instruction_set(states: tuple[State, ...]) -> None:
    old, new = states
    for one in ALWAYS:
        block = codec.encode(old, new, one)
        for isa in ISAS:
            try:
                assert codec.encode(old, new, one, isa=isa) == block
            except ArgumentError as error:
                assert "no such kernels" in str(error)
                continue
            assert np.array_equal(applied(block, old, isa), new)


@given(pairs(4))
def test_folding_is_associative_and_equals_encoding_at_once(states: tuple[State, ...]) -> None:
    a, b, c = (codec.encode(x, y, (Codec.ZERO, Codec.DIFF_A, Codec.DENSE_ULP)) for x, y in itertools.pairwise(states))
    left, right = codec.fold(codec.fold(a, b), c), codec.fold(a, codec.fold(b, c))
    assert np.array_equal(applied(left, states[0]), states[-1])
    assert np.array_equal(applied(right, states[0]), states[-1])
    if all(codec.describe(block).codec != Codec.ZERO for block in (a, b, c)):
        direct = codec.encode(states[0], states[-1], (Codec.ZERO, Codec.DIFF_A, Codec.DENSE_ULP))
        assert left == right == direct


@given(pairs())
def test_no_block_is_much_longer_than_the_new_values(states: tuple[State, ...]) -> None:
    old, new = states
    assert len(codec.encode(old, new)) <= new.nbytes * 1.001 + 5
    assert len(codec.encode(old, new, "absolute")) <= new.nbytes * 1.001 + 5


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_adversarial_states_cost_no_more_than_themselves(dtype: str) -> None:
    rng = np.random.default_rng(3)
    count = 100_000
    top = np.iinfo(dtype).max
    noise = rng.integers(0, top, count, dtype, endpoint=True)
    for old in (np.zeros(count, dtype), np.full(count, top, dtype), noise):
        for new in (old ^ np.dtype(dtype).type(1 << 7), rng.integers(0, top, count, dtype, endpoint=True), noise):
            assert len(codec.encode(old, new)) <= new.nbytes * 1.001


@given(pairs(), st.data())
def test_another_base_is_refused_and_left_alone(states: tuple[State, ...], data: st.DataObject) -> None:
    old, new = states
    if len(old) == 0:
        return
    wrong = old.copy()
    wrong[data.draw(st.integers(0, len(old) - 1))] ^= 1 << data.draw(st.integers(0, 8 * old.itemsize - 1))
    for one in DIFFS:
        block, state = codec.encode(old, new, one), wrong.copy()
        with pytest.raises(WrongBaseError):
            codec.decode(block, state)
        with pytest.raises(WrongBaseError):
            codec.patch(block, wrong)
        assert np.array_equal(state, wrong)


@given(pairs(), st.data())
def test_damaged_blocks_never_leave_half_a_step(states: tuple[State, ...], data: st.DataObject) -> None:
    old, new = states
    for one in ALWAYS:
        block = bytearray(codec.encode(old, new, one))
        bit = data.draw(st.integers(0, 8 * len(block) - 1))
        block[bit // 8] ^= 1 << bit % 8
        del block[data.draw(st.integers(0, len(block))) :]
        state = old.copy()
        try:
            codec.decode(block, state)
        except (DeltaError, ArgumentError):
            assert np.array_equal(state, old)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_block_or_refused(data: bytes) -> None:
    try:
        info = codec.describe(data)
    except DeltaError:
        return
    if info.elements > 1 << 16:
        return
    state = np.zeros(info.elements, f"u{info.width}")
    for call in (codec.decode, codec.patch, codec.invert, codec.as_diff_a):
        try:
            call(data, state.copy())
        except (DeltaError, ArgumentError):
            continue


def test_sizes_are_near_the_limits() -> None:
    """A against the entropy of places and steps that are independent; B below it where small weights change more."""
    old = bf16(1 << 20)
    new = step(old, 0.004)
    changed = new != old
    p = changed.mean()
    steps = np.unique((new - old)[changed], return_counts=True)[1]
    chances = steps / steps.sum()
    limit = (len(old) * -(p * np.log2(p) + (1 - p) * np.log2(1 - p)) - (steps * np.log2(chances)).sum()) / 8
    assert len(codec.encode(old, new, Codec.DIFF_A)) < 1.02 * limit
    assert len(codec.encode(old, new, Codec.DIFF_B)) < 0.75 * limit


def test_the_smallest_form_is_chosen() -> None:
    old = bf16(100_000)
    rng = np.random.default_rng(5)
    cases = {
        Codec.ZERO: old.copy(),
        Codec.DIFF_B: step(old, 0.004),
        Codec.RAW: rng.integers(0, 1 << 16, len(old), np.uint16),
    }
    for expected, new in cases.items():
        block = codec.encode(old, new)
        assert codec.describe(block).codec == expected
        assert len(block) <= min(len(codec.encode(old, new, one)) for one in ALWAYS if one != Codec.ABS)
    assert codec.describe(codec.encode(old, cases[Codec.DIFF_B], "fast")).codec == Codec.DIFF_A
    assert codec.describe(codec.encode(old, cases[Codec.DIFF_B], "absolute")).codec == Codec.ABS


def test_a_block_that_needs_no_base_applies_to_any() -> None:
    old = bf16(10_000)
    new = step(old, 0.004)
    for codecs in ("absolute", Codec.RAW):
        block = codec.encode(old, new, codecs)
        indices, values = codec.patch(block, None)
        assert np.array_equal(new[indices], values)
        assert np.array_equal(applied(block, applied(block, old)), new)


def test_digests_tell_where_a_block_leads() -> None:
    old = bf16(4099)
    new = step(old, 0.01)
    info = codec.describe(codec.encode(old, new, Codec.DIFF_B))
    assert (info.before, info.after) == (codec.digest(old), codec.digest(new))
    words = struct.unpack("<2Q", np.array([1, 2, 3, 4, 5], "u2").tobytes() + bytes(6))
    expected = 0
    for i, word in enumerate(words):
        mixed = word ^ ((i + 1) * 0x9E3779B97F4A7C15 & (1 << 64) - 1)
        expected += (mixed & 0xFFFFFFFF) * (mixed >> 32) + (word >> 32 | (word & 0xFFFFFFFF) << 32)
    assert codec.digest(np.array([1, 2, 3, 4, 5], "u2")) == expected % (1 << 64)


def test_threads_find_the_same_bytes() -> None:
    old = bf16(1 << 18)
    new = step(old, 0.004)
    parts = [slice(at, at + 10_007) for at in range(0, len(old), 10_007)]
    alone = [codec.encode(old[part], new[part]) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda part: codec.encode(old[part], new[part]), parts))
    assert together == alone


def test_wrong_arguments_are_named() -> None:
    old = bf16(100)
    with pytest.raises(ArgumentError, match="old has 100 elements"):
        codec.encode(old, old[:99])
    with pytest.raises(ArgumentError, match="one-dimensional"):
        codec.encode(old.reshape(10, 10), old.reshape(10, 10))
    with pytest.raises(ArgumentError, match="contiguous"):
        codec.encode(old[::2], old[::2])
    with pytest.raises(ArgumentError, match="codecs must be"):
        codec.encode(old, old, "best")
    with pytest.raises(ArgumentError, match="none of the forms"):
        codec.encode(old, old + 1, Codec.ZERO)
    block = codec.encode(old, step(old, 0.5), Codec.DIFF_B)
    with pytest.raises(ArgumentError, match="state has 99 elements"):
        codec.patch(block, old[:99])
    with pytest.raises(ArgumentError, match="needs the old values"):
        codec.invert(block)
    with pytest.raises(ArgumentError, match="cannot be folded"):
        codec.fold(block, block)
    frozen = old.copy()
    frozen.flags.writeable = False
    with pytest.raises(ArgumentError, match="read-only"):
        codec.decode(block, frozen)
    with pytest.raises(DeltaError, match="malformed"):
        codec.describe(b"")


@settings(max_examples=20)
@given(st.integers(1, 60_000), st.floats(0, 0.5), st.integers(0, 1 << 30))
def test_weights_of_any_length_and_density(count: int, chance: float, seed: int) -> None:
    old = bf16(count, seed)
    new = step(old, chance, seed)
    for one in ALWAYS:
        block = codec.encode(old, new, one)
        assert np.array_equal(applied(block, old), new)
        assert block == codec.encode(old, new, one, isa="scalar")
