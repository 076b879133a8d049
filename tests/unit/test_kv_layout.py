"""Layouts of KV caches: what is refused, by which name; where pieces are; and what conversion makes of them."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pccl.errors import ArgumentError, ProtocolError
from pccl.kv.convert import match
from pccl.kv.errors import LayoutMismatch
from pccl.kv.layout import Group, Layout
from pccl.kv.memory import Memory, coalesce, digests

UNIT = 4


def group(**changes: Any) -> Group:
    """Two planes of 4 heads and 8 tokens."""
    facts: dict[str, Any] = {
        "name": "full",
        "layers": ("L0", "L1"),
        "block_tokens": 8,
        "heads": (0, 4, 4),
        "planes": 2,
        "rows": "tokens",
    } | changes
    if "bytes_per_block_layer" not in facts:
        heads = facts["heads"][1] - facts["heads"][0] if facts["heads"] else 1
        facts["bytes_per_block_layer"] = facts["planes"] * (facts["block_tokens"] or 1) * heads * UNIT
    return Group(**facts)


def layout(*groups: Group, **changes: Any) -> Layout:
    return Layout(**({"model_id": "m@1", "groups": groups or (group(),)} | changes))


STATE = Group(name="state", kind="state", layers=("S",), bytes_per_block_layer=100)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("name", {"name": ""}),
        ("kind", {"kind": "paged"}),
        ("order", {"order": "c"}),
        ("rows", {"rows": "NHD"}),
        ("layers", {"layers": ()}),
        ("bytes_per_block_layer", {"bytes_per_block_layer": 0}),
        ("bytes_per_block_layer", {"bytes_per_block_layer": 257}),
        ("planes", {"planes": 0, "bytes_per_block_layer": 256}),
        ("block_tokens", {"block_tokens": None, "bytes_per_block_layer": 256}),
        ("block_tokens", {"kind": "state"}),
        ("window", {"window": 4}),
        ("window", {"kind": "swa"}),
        ("heads", {"heads": (2, 2, 4), "bytes_per_block_layer": 256}),
        ("heads", {"heads": (0, 5, 4), "bytes_per_block_layer": 320}),
        ("dtype", {"dtype": ""}),
    ],
)
def test_a_wrong_field_is_named(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=field):
        group(**changes)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("model_id", {"model_id": ""}),
        ("groups", {"groups": ()}),
        ("full", {"groups": (group(), group(layers=("L9",)))}),
        ("L1", {"groups": (group(), group(name="other", layers=("L1",)))}),
        ("codec_ok", {"codec_ok": ("bf16-exp",)}),
        ("codec_ok", {"codec_ok": ("raw", "raw")}),
    ],
)
def test_a_wrong_layout_is_refused_by_name(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=field):
        layout(**changes)


def test_a_layout_travels_and_its_fingerprint_is_that_of_its_fields() -> None:
    ours = layout(group(), STATE)
    again = Layout.decode(ours.encode())
    assert again == ours
    assert again.fingerprint == ours.fingerprint
    assert len(ours.fingerprint) == 16
    assert layout(group(rows="heads"), STATE).fingerprint != ours.fingerprint
    assert ours.layer_index == {"L0": (0, 0), "L1": (0, 1), "S": (1, 0)}


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"x", lambda d: b"\x93" + d[1:], lambda d: b""])
def test_what_is_no_layout_is_a_protocol_error(change: Any) -> None:
    with pytest.raises(ProtocolError):
        Layout.decode(change(layout().encode()))


@given(st.binary(max_size=200), st.integers(0, 150))
def test_any_bytes_are_a_layout_or_a_protocol_error(noise: bytes, at: int) -> None:
    data = layout().encode()
    for wrong in (noise, data[:at] + noise[:1] + data[at + 1 :]):
        try:
            Layout.decode(wrong)
        except ProtocolError as error:
            assert str(error)


# -- memory --


def blocks(count: int, of: Group) -> list[np.ndarray[Any, Any]]:
    return [np.zeros((count, of.bytes_per_block_layer), np.uint8) for _ in of.layers]


SHARED = np.zeros(256, np.uint8)


def test_pieces_of_both_orders() -> None:
    first = group(order="block_first", name="b", layers=("B0", "B1", "B2"))
    both = layout(group(), first)
    array = np.arange(5 * 3 * 256, dtype=np.uint32).astype(np.uint8).reshape(5, 3, 256)
    memory = Memory(both, {"full": blocks(4, group()), "b": array})
    assert [memory.block_count(0), memory.block_count(1)] == [4, 5]
    one = memory.pieces(0, 1, np.array([3, 0]))
    assert (one.buffer, one.offsets.tolist(), one.nbytes) == (1, [768, 0], 256)
    two = memory.pieces(1, 2, np.array([0, 4]))
    assert (two.buffer, two.offsets.tolist(), two.nbytes) == (2, [512, 4 * 768 + 512], 256)
    for block, at in zip([0, 4], two.offsets.tolist(), strict=True):
        assert (memory.views[2][at : at + 256] == array[block, 2]).all()
        assert (memory.slabs(1, 2)[block] == array[block, 2]).all()


@pytest.mark.parametrize(
    ("what", "buffers"),
    [
        ("group 'full'", {}),
        ("'other'", {"full": blocks(2, group()), "other": []}),
        ("list of 2", {"full": blocks(2, group())[:1]}),
        ("'L1' has 3 blocks", {"full": [np.zeros(512, np.uint8), np.zeros(768, np.uint8)]}),
        ("no blocks of 256", {"full": [np.zeros(300, np.uint8), np.zeros(300, np.uint8)]}),
        ("no blocks of 256", {"full": [np.zeros(0, np.uint8)] * 2}),
        ("'L1'", {"full": {"L0": np.zeros(256, np.uint8), "L2": np.zeros(256, np.uint8)}}),
        ("overlap", {"full": [SHARED, SHARED]}),
    ],
)
def test_wrong_buffers_are_refused_by_name(what: str, buffers: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=what):
        Memory(layout(), buffers)


def test_memory_that_cannot_be_written_or_is_not_contiguous_is_refused_with_its_layer() -> None:
    fixed = np.zeros(256, np.uint8)
    fixed.flags.writeable = False
    wide = np.zeros((2, 512), np.uint8)[:, ::2]
    for wrong in (fixed, wide):
        with pytest.raises((ArgumentError, TypeError), match="L1"):
            Memory(layout(), {"full": [np.zeros(wrong.size, np.uint8), wrong]})
    for dtype in (np.float16, np.float32):
        with pytest.raises(TypeError, match=r"'L1' is of float.*, the layout says 'bf16'"):
            Memory(layout(), {"full": [np.zeros(256, np.uint8), np.zeros(256 // dtype().itemsize, dtype)]})


@pytest.mark.parametrize(
    ("ids", "what"),
    [
        ([0, 4], r"blocks\[1\]"),
        ([-1], r"blocks\[0\]"),
        ([2, 1, 2], r"blocks\[2\].*twice"),
        ([1.5], "integers"),
        ([[1]], "flat"),
    ],
)
def test_wrong_block_ids_are_refused_by_their_place(ids: Any, what: str) -> None:
    memory = Memory(layout(), {"full": blocks(4, group())})
    with pytest.raises(ArgumentError, match=what):
        memory.check(0, ids)


def test_no_blocks_are_blocks() -> None:
    memory = Memory(layout(), {"full": blocks(4, group())})
    assert memory.check(0, []).size == 0
    offsets, sizes = coalesce(memory.pieces(0, 0, memory.check(0, [])).offsets, 256)
    assert offsets.size == sizes.size == 0


@given(st.lists(st.integers(0, 40), unique=True))
def test_coalesced_runs_are_maximal_and_cover_the_pieces_in_order(ids: list[int]) -> None:
    offsets, sizes = coalesce(np.array(ids, np.uint64) * np.uint64(8), 8)
    cover = [at + step for at, size in zip(offsets.tolist(), sizes.tolist(), strict=True) for step in range(0, size, 8)]
    assert cover == [8 * one for one in ids]
    ends = (offsets + sizes).tolist()
    assert all(end != begin for end, begin in zip(ends, offsets.tolist()[1:], strict=False))


def test_digests_are_bound_to_seed_and_bytes() -> None:
    data = np.arange(64, dtype=np.uint8)
    at, seeds = np.array([0, 32], np.uint64), np.array([1, 1 << 63], np.uint64)
    found = digests(data, at, 32, seeds)
    assert found.dtype == np.uint64
    assert (digests(data, at, 32, seeds) == found).all()
    assert (digests(data, at, 32, seeds + np.uint64(1)) != found).all()
    data[5] ^= 1
    assert (digests(data, at, 32, seeds) != found).tolist() == [True, False]


# -- matching --


@pytest.mark.parametrize(
    ("field", "theirs"),
    [
        ("model_id", layout(model_id="m@2")),
        ("hash_scheme", layout(hash_scheme="sha256/7")),
        ("groups[full].layers", layout(group(layers=("L0", "L7")))),
        ("groups[full].kind", layout(group(kind="swa", window=16))),
        ("groups[full].planes", layout(group(planes=1))),
        ("groups[full].rows", layout(group(rows="heads"))),
        ("groups[full].dtype", layout(group(dtype="fp8"))),
        ("groups[full].unit_bytes", layout(group(bytes_per_block_layer=512))),
        ("groups[full].heads", layout(group(heads=(0, 2, 4)))),
        ("groups[full].block_tokens", layout(group(block_tokens=16))),
    ],
)
def test_a_mismatch_names_the_field(field: str, theirs: Layout) -> None:
    with pytest.raises(LayoutMismatch) as caught:
        match(layout(), theirs)
    assert caught.value.field == field
    assert caught.value.ours != caught.value.theirs
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.field, str(again)) == (field, str(caught.value))


@pytest.mark.parametrize(
    ("field", "ours", "theirs"),
    [
        ("heads", group(heads=(0, 2, 4)), group(heads=(0, 4, 4))),
        ("heads", group(heads=(0, 4, 8)), group(heads=(2, 6, 8))),
        ("heads", group(heads=(0, 4, 4)), group(heads=(0, 2, 8))),
        ("heads", group(heads=None), group(heads=(0, 1, 1))),
        ("block_tokens", group(block_tokens=8), group(block_tokens=12)),
    ],
)
def test_what_is_not_exact_is_refused_even_if_conversion_is_welcome(field: str, ours: Group, theirs: Group) -> None:
    with pytest.raises(LayoutMismatch) as caught:
        match(layout(ours), layout(theirs), convert=True)
    assert caught.value.field == f"groups[full].{field}"


def test_layers_meet_by_name_wherever_they_are() -> None:
    ours = layout(group(layers=("L0", "L1", "L2")), STATE)
    theirs = layout(STATE, group(layers=("L2", "L0"), name="mine", order="block_first"), codec_ok=("int8-kc-vt", "raw"))
    found = match(ours, theirs)
    assert found.plain
    assert found.codecs == ("raw",)
    assert [(one.group, one.layers) for one in found.groups] == [(1, (0,)), (0, (2, 0))]


@pytest.mark.parametrize("rows", ["tokens", "heads"])
@pytest.mark.parametrize(("ours", "theirs"), [(8, 8), (8, 16), (8, 4), (4, 16)])
@pytest.mark.parametrize("heads", [(0, 4, 4), (1, 3, 4)])
def test_conversion_keeps_every_cell(rows: Any, ours: int, theirs: int, heads: tuple[int, int, int]) -> None:
    """Each cell (plane, token, head) carries its own name; they are where the receiver's layout says."""
    source = group(block_tokens=ours, rows=rows)
    target = group(block_tokens=theirs, rows=rows, heads=heads)
    count = 6
    memory = Memory(layout(source), {"full": blocks(count, source)})
    cells = np.arange(2 * count * ours * 4, dtype=np.uint32).reshape(2, count * ours, 4)  # plane, token, head
    order = np.array([4, 1, 5, 0, 2, 3])
    for place, block in enumerate(order):
        part = cells[:, place * ours : (place + 1) * ours]
        lie = part if rows == "tokens" else part.transpose(0, 2, 1)
        memory.slabs(0, 1)[block] = np.ascontiguousarray(lie).reshape(-1).view(np.uint8)
    wanted = -(-count * ours // theirs)
    found = match(layout(source), layout(target), convert=True).groups[0]
    assert found.plain == (ours == theirs and heads == (0, 4, 4))
    assert found.blocks_needed(wanted) >= count
    slabs = found.stage(memory, 1, order, wanted)
    assert slabs.shape == (wanted, target.bytes_per_block_layer)
    assert slabs.flags.c_contiguous
    shape = (theirs, heads[1] - heads[0])
    got = [slab.view(np.uint32).reshape(2, *(shape if rows == "tokens" else shape[::-1])) for slab in slabs]
    tokens = np.concatenate([one if rows == "tokens" else one.transpose(0, 2, 1) for one in got], axis=1)
    assert (tokens[:, : count * ours] == cells[:, :, heads[0] : heads[1]]).all()
    assert not tokens[:, count * ours :].any()


def test_more_blocks_than_the_receiver_has_room_for_are_refused() -> None:
    found = match(layout(), layout(group(block_tokens=16)), convert=True).groups[0]
    memory = Memory(layout(), {"full": blocks(4, group())})
    assert found.blocks_needed(1) == 2
    with pytest.raises(ArgumentError, match="3 blocks"):
        found.stage(memory, 0, np.arange(3), 1)
