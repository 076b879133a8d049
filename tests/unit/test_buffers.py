"""Tensors as memory: what is taken, what is refused and in which words, and what keeps the memory alive."""

from __future__ import annotations

import array
import gc
import subprocess
import sys
import weakref
from typing import Any

import numpy as np
import pytest

from pccl import buffers
from pccl.buffers import as_buffer
from pccl.errors import ArgumentError


def address_of(tensor: np.ndarray[Any, Any]) -> int:
    return int(tensor.__array_interface__["data"][0])


@pytest.mark.parametrize("name", [name for name in buffers.DTYPE_NAMES if name != "bfloat16"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3, 5)])
def test_numpy(name: str, shape: tuple[int, ...]) -> None:
    tensor = np.zeros(shape, name)
    buffer = as_buffer(tensor, writable=True)
    assert (buffer.dtype_name, buffer.shape, buffer.count) == (name, shape, tensor.size)
    assert (buffer.nbytes, buffer.address) == (tensor.nbytes, address_of(tensor))


def test_dtypes_are_numbered_as_in_the_engine() -> None:
    from pccl import _native

    for code, name in enumerate(buffers.DTYPE_NAMES):
        size = 2 if name == "bfloat16" else np.dtype(name).itemsize
        ones = bytes(size)
        out = bytearray(b"\xff" * (size + 1))
        _native.reduce(out, [ones], dtype=code, redop=_native.RedOp.SUM, count=1)
        assert out == bytes(size) + b"\xff", f"{name} has another size in the engine"


def test_bfloat16_of_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    buffer = as_buffer(np.zeros((2, 3), ml_dtypes.bfloat16), writable=True)
    assert (buffer.dtype_name, buffer.nbytes, buffer.shape) == ("bfloat16", 12, (2, 3))


def test_unaligned_memory_is_fine() -> None:
    tensor = np.zeros(17, np.uint8)[1:].view(np.float64)
    assert as_buffer(tensor, writable=True).address == address_of(tensor)


def test_torch() -> None:
    torch = pytest.importorskip("torch")
    for name in buffers.DTYPE_NAMES:
        if hasattr(torch, name):
            tensor = torch.zeros(2, 3, dtype=getattr(torch, name))
            buffer = as_buffer(tensor, writable=True)
            assert (buffer.dtype_name, buffer.shape, buffer.count) == (name, (2, 3), 6)
            assert (buffer.address, buffer.nbytes) == (tensor.data_ptr(), 6 * tensor.element_size())
    parameter = torch.nn.Parameter(torch.zeros(3))
    assert as_buffer(parameter, writable=True).address == parameter.data_ptr()
    part = torch.zeros(4, 5)[1:3]
    assert as_buffer(part, writable=True).address == part.data_ptr()
    assert as_buffer(torch.zeros(0), writable=True).count == 0


def test_the_buffer_keeps_a_torch_storage_that_its_tensor_gave_up() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.full((1000,), 7.0)
    buffer = as_buffer(tensor, writable=True)
    tensor.set_(torch.zeros(1))
    gc.collect()
    from pccl import _native

    held = _native.byte_array(buffer.address, buffer.nbytes).view(np.float32)
    assert (held == 7.0).all()


def test_other_kinds_of_memory() -> None:
    assert as_buffer(bytearray(5), writable=True).dtype_name == "uint8"
    assert as_buffer(b"12345", writable=False).count == 5
    assert as_buffer(array.array("f", [1, 2]), writable=True).dtype_name == "float32"
    assert as_buffer(memoryview(bytearray(8)).cast("i"), writable=True).dtype_name == "int32"
    assert as_buffer(np.float32(3), writable=False).shape == ()


def test_dlpack() -> None:
    class Foreign:
        """Speaks DLPack and nothing else."""

        def __init__(self) -> None:
            self.inner = np.arange(6, dtype=np.int16).reshape(2, 3)

        def __dlpack__(self, **options: Any) -> Any:
            return self.inner.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.inner.__dlpack_device__()

    foreign = Foreign()
    buffer = as_buffer(foreign, writable=False)
    assert (buffer.dtype_name, buffer.shape, buffer.address) == ("int16", (2, 3), address_of(foreign.inner))


@pytest.mark.parametrize(
    ("tensor", "writable", "error", "words"),
    [
        (np.zeros((3, 4)).T, False, ArgumentError, "ascontiguousarray"),
        (np.zeros(10)[::2], False, ArgumentError, "ascontiguousarray"),
        (np.zeros(3, bool), False, TypeError, "bool is not supported"),
        (np.zeros(3, complex), False, TypeError, "complex128 is not supported"),
        (np.zeros(3, ">f4"), False, TypeError, "byte order"),
        (np.array(["a"]), False, TypeError, "not supported"),
        (np.array([None]), False, TypeError, "not supported"),
        (np.broadcast_to(np.zeros(1), (1,)), True, ArgumentError, "read-only"),
        (b"123", True, ArgumentError, "read-only"),
        (memoryview(b"123456")[::2], False, ArgumentError, "contiguous"),
        ([1, 2], False, TypeError, "got list"),
        (None, False, TypeError, "got NoneType"),
        (5, False, TypeError, "got int"),
    ],
)
def test_refusals(tensor: Any, writable: bool, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        as_buffer(tensor, writable=writable, what="gradients")
    assert str(caught.value).startswith("gradients: ")


def test_torch_refusals() -> None:
    torch = pytest.importorskip("torch")
    for tensor, words in [
        (torch.zeros(3, 4).t(), r"\.contiguous\(\)"),
        (torch.zeros(1).expand(4), r"\.contiguous\(\)"),
        (torch.zeros(3, dtype=torch.bool), "bool is not supported"),
        (torch.zeros(3, dtype=torch.complex64), "complex64 is not supported"),
        (torch.zeros(3).to_sparse(), "sparse"),
        (torch.empty(3, device="meta"), "only all_reduce, sync_state and pccl.torch take tensors of devices"),
        (torch.zeros(3, dtype=torch.complex64).conj().imag, "resolve"),
    ]:
        with pytest.raises((TypeError, ValueError), match=words):
            as_buffer(tensor, writable=False)


def test_a_numpy_array_is_locked_and_kept() -> None:
    tensor = np.zeros(100)
    gone = weakref.ref(tensor)
    buffer = as_buffer(tensor, writable=True)
    with pytest.raises(ValueError, match="cannot resize"):
        tensor.resize(200)
    del tensor
    gc.collect()
    assert gone() is not None
    del buffer
    gc.collect()
    assert gone() is None


def test_overlap() -> None:
    memory = np.zeros(100, np.uint8)
    whole = as_buffer(memory, writable=True)
    assert not whole.overlaps(as_buffer(memory, writable=True))
    assert whole.overlaps(as_buffer(memory[10:20], writable=True))
    assert not as_buffer(memory[:50], writable=True).overlaps(as_buffer(memory[50:], writable=True))


@pytest.mark.parametrize(
    "make", [lambda: np.arange(24.0).reshape(2, 3, 4).T, lambda: np.array(5.0), lambda: np.empty(0)]
)
def test_bytes_go_round(make: Any) -> None:
    source, target = make(), np.zeros_like(make())
    data, shape, _owner = buffers.byte_view(source, writable=True)
    assert (data.dtype, shape, data.size) == (np.uint8, source.shape, source.nbytes)
    buffers.write_bytes(target, data.copy())
    assert np.array_equal(source, target)


def test_torch_bytes_go_round() -> None:
    torch = pytest.importorskip("torch")
    for dtype in (torch.bfloat16, torch.bool, torch.complex64, torch.float32, torch.int16):
        for source in (torch.ones(3, 4, dtype=dtype), torch.ones(4, 3, dtype=dtype).t(), torch.tensor(1).to(dtype)):
            data, shape, _owner = buffers.byte_view(source, writable=True)
            assert shape == tuple(source.shape)
            target = torch.zeros_like(source)
            buffers.write_bytes(target, data.copy())
            assert torch.equal(source, target)
    with pytest.raises(ArgumentError, match="expanded"):
        buffers.byte_view(torch.zeros(1).expand(4), writable=True)


def test_importing_pccl_loads_neither_torch_nor_the_engine() -> None:
    program = "import sys, pccl, pccl.buffers, pccl.sharing; assert 'torch' not in sys.modules; print(len(sys.modules))"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd="/")
    program = "import sys, pccl; assert not {'torch', 'numpy', 'zmq', 'pccl._core'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd="/")
