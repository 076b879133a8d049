"""Lists of tensors as few ops: which travel together, and that packing and writing back lose and mix nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pccl import _native
from pccl.buffers import DTYPE_NAMES, Buffer
from pccl.errors import ArgumentError
from pccl.fused import Fused, Part, layout

F4, I8 = DTYPE_NAMES.index("float32"), DTYPE_NAMES.index("int64")
NUMPY = [name for name in DTYPE_NAMES if name != "bfloat16"]

sizes = st.lists(st.tuples(st.sampled_from([F4, I8]), st.integers(0, 40).map(lambda n: 8 * n)), max_size=30)
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
tensors = st.lists(st.tuples(st.sampled_from(NUMPY), shapes), max_size=12)


@given(sizes, st.integers(1, 400))
def test_every_tensor_is_in_one_part(sizes: list[tuple[int, int]], bucket_bytes: int) -> None:
    parts = layout(tuple(sizes), bucket_bytes)
    assert parts == layout(tuple(sizes), bucket_bytes) and len(parts) >= 1
    of_bytes = [index for index, (_, nbytes) in enumerate(sizes) if nbytes]
    assert sorted(index for part in parts for index in part.members) == of_bytes
    for part in parts:
        end = 0
        for index, offset in zip(part.members, part.offsets, strict=True):
            assert sizes[index][0] == part.dtype and offset == end
            end += sizes[index][1]
        assert end == part.nbytes
        assert part.nbytes <= bucket_bytes or len(part.members) == 1
        assert part.nbytes or not of_bytes
        assert list(part.members) == sorted(part.members)


def test_few_ops() -> None:
    assert layout(((F4, 4096),) * 200) == (Part(F4, tuple(range(200)), tuple(range(0, 819200, 4096)), 819200),)
    assert [part.members for part in layout(((F4, 8), (I8, 8), (F4, 8)), 8)] == [(0,), (1,), (2,)]
    assert [part.members for part in layout(((F4, 8), (I8, 8), (F4, 8)), 16)] == [(0, 2), (1,)]
    assert layout(()) == layout(((I8, 0),)) == (Part(F4, (), (), 0),), "an op too: the others may have something"


def values(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)


def memory(buffer: Buffer) -> np.ndarray[Any, Any]:
    return _native.byte_array(buffer.address, buffer.nbytes)


@given(tensors, st.booleans(), st.integers(1, 300))
def test_results_come_back_where_they_belong(
    described: list[tuple[str, tuple[int, ...]]], in_place: bool, bucket_bytes: int
) -> None:
    """The ops are played by hand: each writes its input, with every byte one larger."""
    ours = [values(dtype, shape, seed) for seed, (dtype, shape) in enumerate(described)]
    before = [tensor.tobytes() for tensor in ours]
    out = None if in_place else [np.empty_like(tensor) for tensor in ours]
    call = Fused(ours, out, "sum", "auto", None, bucket_bytes)
    single = len(call.ops) == 1
    for op in call.ops:
        source, target = op.buffers
        assert (op.request.input, op.request.output, op.request.count) == (source.address, target.address, source.count)
        memory(target)[:] = memory(source) + np.uint8(1)
    if not (single and in_place):
        assert [tensor.tobytes() for tensor in ours] == before, "an input was touched before all ops had ended"
    call.write_back()
    for tensor, old in zip(ours if out is None else out, before, strict=True):
        assert (np.frombuffer(tensor.tobytes(), np.uint8) == np.frombuffer(old, np.uint8) + np.uint8(1)).all()
    if out is not None:
        assert [tensor.tobytes() for tensor in ours] == before


@given(tensors, tensors)
def test_peers_with_other_lists_say_so(ours: Any, theirs: Any) -> None:
    def shape_of(described: Any) -> int:
        return (
            Fused([np.zeros(shape, dtype) for dtype, shape in described], None, "sum", "auto", None, 64)
            .ops[0]
            .request.shape
        )

    assert (shape_of(ours) == shape_of(theirs)) == (ours == theirs)


def test_parts_of_a_call_are_told_apart() -> None:
    ops = Fused([np.zeros(4, "f4"), np.zeros(4, "f4")], None, "sum", "auto", None, 16).ops
    assert len(ops) == 2 and ops[0].request.shape != ops[1].request.shape


def test_a_tensor_alone_is_read_where_it_lies() -> None:
    large, small, out = np.zeros(100, "f4"), np.zeros(3, "i8"), [np.zeros(100, "f4"), np.zeros(3, "i8")]
    single = Fused([large], None, "sum", "auto", None, 64).ops[0].buffers
    assert single[0].address == single[1].address == large.ctypes.data
    source, target = Fused([large, small], None, "sum", "auto", None, 64).ops[0].buffers
    assert source.address == large.ctypes.data != target.address, "another op may fail: its input must stay"
    source, target = Fused([large, small], out, "sum", "auto", None, 64).ops[0].buffers
    assert (source.address, target.address) == (large.ctypes.data, out[0].ctypes.data)


def test_what_is_refused() -> None:
    a, b, whole = np.zeros(4, "f4"), np.zeros(4, "f4"), np.zeros(8, "f4")
    integers, read_only = np.zeros(4, "i4"), np.frombuffer(bytes(16), "f4")

    def refused(words: str, tensors: Any, out: Any = None, op: str = "sum", codec: str | None = None) -> None:
        with pytest.raises(ArgumentError, match=words):
            Fused(tensors, out, op, "auto", codec, 64)

    refused("no exact mean", [a, integers], op="avg")
    refused("for float32", [a, integers], codec="int8")
    refused(r"tensor\[1\]: the array is read-only", [a, read_only])
    refused("list of 2 tensors, one for each input, not ndarray", [a, b], whole)
    refused("list of 2 tensors, one for each input, not one of 1", [a, b], [whole])
    refused(r"out\[1\] must hold 4 elements of float32, not 8", [a, b], [np.zeros(4, "f4"), whole])
    refused("tensors 0 and 2 of the result share memory", [a, b, a])
    refused("tensors 0 and 1 of the result share memory", [whole[:5], whole[4:]])
    refused(r"out\[0\] shares memory with tensor\[1\]", [a, b], [b, np.zeros(4, "f4")])
    refused(r"out\[1\] overlaps", [a, whole[:4]], [np.zeros(4, "f4"), whole[2:6]])
    with pytest.raises(TypeError, match=r"tensor\[1\].*got float"):
        Fused([a, 1.0], None, "sum", "auto", None, 64)
    Fused([a, read_only, read_only], [a, np.zeros(4, "f4"), np.zeros(4, "f4")], "sum", "auto", None, 64)


def test_its_name_tells_lists_apart() -> None:
    def words(*tensors: Any) -> str:
        return Fused(list(tensors), None, "max", "mesh", None, 64).ops[0].label

    four = [np.zeros((2, 3), "f4"), np.zeros(1, "i8"), np.zeros(0, "u1"), np.zeros(5, "f8")]
    assert words(*four).startswith("all_reduce max mesh of 4 tensors ")
    assert "float32[2, 3], int64[1], uint8[0], ...;" in words(*four)
    assert words(*four) != words(*four[:3], np.zeros(6, "f8")), "by a number, where the difference is not shown"
