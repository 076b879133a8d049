"""Tensors of any kind as plain memory: the only module that knows what a tensor is.

`as_buffer` turns a torch CPU tensor, a numpy array, or anything that speaks DLPack or the buffer protocol into a
`Buffer` that the engine can work on without a copy. `byte_view` and `write_bytes` do the same for the raw bytes of any
dtype, for state that is compared and moved but not reduced. torch is never imported here: a torch tensor can only come
from a program that has imported it.

A `Buffer` does not copy; its `owner` keeps the memory alive. numpy arrays are held through the buffer protocol, which
also locks them against `resize`. torch tensors are held by an alias of their storage; a storage that is resized to
nothing while an op runs is lost, as it is with every library that works on tensors asynchronously.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pccl import _native
from pccl.errors import ArgumentError

__all__ = [
    "DTYPE_NAMES",
    "Buffer",
    "as_buffer",
    "byte_view",
    "describe",
    "describe_dtype",
    "empty_like",
    "flat_slice",
    "is_away",
    "is_tensor",
    "shares_memory",
    "was_written",
    "write_bytes",
]

#: Names of the engine's element types; the position is pccl_dtype.
DTYPE_NAMES = (
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
)
_CODES = {name: code for code, name in enumerate(DTYPE_NAMES)}
_NUMPY_CODES: dict[Any, int] = {np.dtype(name): code for name, code in _CODES.items() if name != "bfloat16"}
_NUMPY_DTYPES = {code: dtype for dtype, code in _NUMPY_CODES.items()}
_TORCH_CODES: dict[Any, int] = {}
_BFLOAT16 = _CODES["bfloat16"]
_KINDS = "a torch CPU tensor, a numpy array, or an object with DLPack or the buffer protocol"


@dataclass(slots=True)
class Buffer:
    """Memory that the engine may work on. Holds no copy; valid as long as `owner` lives.

    Not frozen only because one is made for every op and a frozen dataclass takes three times as long to make.
    """

    address: int
    nbytes: int
    dtype: int
    count: int
    shape: tuple[int, ...]
    owner: Any

    @property
    def dtype_name(self) -> str:
        """Name of the element type, such as "float32"."""
        return DTYPE_NAMES[self.dtype]

    def overlaps(self, other: Buffer) -> bool:
        """Whether the two share memory without being the very same memory."""
        if self.address == other.address and self.nbytes == other.nbytes:
            return False
        return self.address < other.address + other.nbytes and other.address < self.address + self.nbytes


def as_buffer(tensor: Any, *, writable: bool, what: str = "tensor") -> Buffer:
    """The memory of a tensor, without a copy.

    Takes torch CPU tensors (with or without requires_grad), numpy arrays, and objects with DLPack or the buffer
    protocol, C-contiguous, of the dtypes in `DTYPE_NAMES` (bfloat16 from torch or ml_dtypes). `writable` asks for
    memory that may be written; `what` names the argument in messages.

    Raises TypeError (no tensor, a device or dtype that is not supported) or ValueError (not contiguous, read-only; as
    the ArgumentError of pccl.errors).
    """
    if isinstance(tensor, np.ndarray):
        return _numpy_buffer(tensor, writable, what)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        return _torch_buffer(torch, tensor, writable, what)
    return _numpy_buffer(_foreign_array(tensor, what), writable, what)


def is_tensor(value: Any) -> bool:
    """Whether the value is tensor-like: an ndarray, a torch tensor, or an object with DLPack."""
    if isinstance(value, np.ndarray):
        return True
    return hasattr(value, "__dlpack__") and not isinstance(value, np.generic)


def _numpy_buffer(array: np.ndarray[Any, Any], writable: bool, what: str) -> Buffer:
    dtype = array.dtype
    code = _NUMPY_CODES.get(dtype)
    if code is None:
        code = _unusual_numpy_code(dtype, what)
        flat = array.view(np.uint16)
    else:
        flat = array
    flags = array.flags
    if not flags.c_contiguous:
        raise ArgumentError(f"{what}: the array is not C-contiguous; pass numpy.ascontiguousarray(...) of it")
    if writable and not flags.writeable:
        raise ArgumentError(
            f"{what}: the array is read-only, but the result is to be written into it; pass a copy or out="
        )
    address, hold = _native.pin(flat)
    return Buffer(address, array.nbytes, code, array.size, array.shape, (array, hold))


def _unusual_numpy_code(dtype: Any, what: str) -> int:
    if dtype.name == "bfloat16" and dtype.itemsize == 2:
        return _BFLOAT16
    if not dtype.isnative:
        raise TypeError(f"{what}: dtype {dtype.str} is not in this machine's byte order; pass it through astype")
    raise TypeError(_no_such_dtype(what, str(dtype)))


def _no_such_dtype(what: str, name: str) -> str:
    hint = "; pass a view of it as uint8" if "bool" in name else "; pass its real view" if "complex" in name else ""
    return f"{what}: dtype {name} is not supported (supported: {', '.join(DTYPE_NAMES)}){hint}"


def _torch_codes(torch: Any) -> dict[Any, int]:
    """torch dtype -> pccl_dtype, made once; unsigned types wider than a byte exist since torch 2.3."""
    for name, code in _CODES.items():
        dtype = getattr(torch, name, None)
        if dtype is not None:
            _TORCH_CODES[dtype] = code
    return _TORCH_CODES


def _check_torch(torch: Any, tensor: Any, what: str) -> None:
    if not tensor.is_cpu:
        raise TypeError(
            f"{what}: the tensor is on {tensor.device}, and only all_reduce, sync_state and pccl.torch take tensors of "
            f"devices; pass tensor.cpu()"
        )
    if tensor.layout is not torch.strided:
        raise TypeError(f"{what}: the tensor is sparse ({tensor.layout}); pass tensor.to_dense()")
    if tensor.is_neg() or tensor.is_conj():
        raise ArgumentError(
            f"{what}: the tensor is a lazy negation or conjugation; pass tensor.resolve_neg().resolve_conj()"
        )


def is_away(tensor: Any) -> bool:
    """Whether it is a torch tensor that does not lie in host memory, or a list with one."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    if isinstance(tensor, list | tuple):
        return any(isinstance(one, torch.Tensor) and not one.is_cpu for one in tensor)
    return isinstance(tensor, torch.Tensor) and not tensor.is_cpu


def describe(tensor: Any, what: str) -> Buffer:
    """Dtype and shape of a torch tensor of any device, as a Buffer without an address. TypeError for other dtypes than
    those in `DTYPE_NAMES`.
    """
    code, count = _torch_code(sys.modules["torch"], tensor, what), tensor.numel()
    return Buffer(0, count * tensor.element_size(), code, count, tuple(tensor.shape), tensor)


def _torch_code(torch: Any, tensor: Any, what: str) -> int:
    code = (_TORCH_CODES or _torch_codes(torch)).get(tensor.dtype)
    if code is None:
        raise TypeError(_no_such_dtype(what, str(tensor.dtype).removeprefix("torch.")))
    return code


def _torch_buffer(torch: Any, tensor: Any, writable: bool, what: str) -> Buffer:
    _check_torch(torch, tensor, what)
    code = _torch_code(torch, tensor, what)
    if not tensor.is_contiguous():
        raise ArgumentError(f"{what}: the tensor is not contiguous; pass tensor.contiguous()")
    count = tensor.numel()
    alias = tensor.detach()  # holds the storage even if the user replaces the tensor's; also drops requires_grad
    address = alias.data_ptr()
    if address == 0 and count:
        raise TypeError(
            f"{what}: a {type(tensor).__name__} has no memory of its own; pass a plain tensor (to_local() of a DTensor)"
        )
    return Buffer(address, count * tensor.element_size(), code, count, tuple(tensor.shape), (tensor, alias))


def _foreign_array(value: Any, what: str) -> np.ndarray[Any, Any]:
    """A numpy view of an object that speaks DLPack or the buffer protocol."""
    if hasattr(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)
        except (RuntimeError, BufferError, TypeError, ValueError) as error:
            raise TypeError(f"{what}: numpy cannot view this {type(value).__name__} through DLPack: {error}") from error
    try:
        view = memoryview(value)
    except TypeError:
        raise TypeError(f"{what}: expected {_KINDS}, got {type(value).__name__}") from None
    if not view.c_contiguous:
        raise ArgumentError(f"{what}: the buffer is not C-contiguous; pass a copy of it")
    return np.asarray(view)


# -- making and slicing results of the same kind as the input ----------------------------------------------------


def _is_torch(tensor: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(tensor, torch.Tensor)


def empty_like(tensor: Any, shape: Sequence[int]) -> Any:
    """An uninitialised tensor of the same library and dtype, of another shape; a numpy array for foreign objects."""
    if _is_torch(tensor):
        return sys.modules["torch"].empty(tuple(shape), dtype=tensor.dtype)
    if isinstance(tensor, np.ndarray):
        return np.empty(tuple(shape), tensor.dtype)
    return np.empty(tuple(shape), _foreign_array(tensor, "tensor").dtype)


def flat_slice(tensor: Any, offset: int, count: int) -> Any:
    """A flat view of `count` elements of a contiguous tensor or array, from element `offset` on."""
    if _is_torch(tensor):
        return tensor.detach().view(-1)[offset : offset + count]
    if isinstance(tensor, np.ndarray):
        return tensor.reshape(-1)[offset : offset + count]
    return _foreign_array(tensor, "tensor").reshape(-1)[offset : offset + count]


# -- raw bytes of any dtype, for state ---------------------------------------------------------------------------


def describe_dtype(tensor: Any) -> str:
    """The dtype in words that are equal for equal layouts on every peer, whichever library holds the tensor."""
    if _is_torch(tensor):
        return str(tensor.dtype).removeprefix("torch.")
    dtype = (tensor if isinstance(tensor, np.ndarray) else _foreign_array(tensor, "tensor")).dtype
    return (
        str(dtype.name)
        if dtype.isnative and dtype.names is None
        else str(dtype.str if dtype.names is None else dtype.descr)
    )


def byte_view(
    tensor: Any, *, writable: bool, what: str = "tensor"
) -> tuple[np.ndarray[Any, Any], tuple[int, ...], Any]:
    """(bytes as a flat uint8 array, shape, owner) of a tensor of any plain dtype and any layout.

    A view where the tensor is contiguous, a copy where it is not; keep `owner` as long as the view. `writable` only
    checks that `write_bytes` will work later. Raises TypeError (device, object dtype) or ValueError (read-only,
    elements that overlap).
    """
    if _is_torch(tensor):
        torch = sys.modules["torch"]
        _check_torch(torch, tensor, what)
        if writable and any(
            stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
        ):
            raise ArgumentError(
                f"{what}: elements of the tensor share memory (it was expanded); pass tensor.contiguous()"
            )
        flat = tensor.detach().contiguous()
        nbytes = flat.numel() * flat.element_size()
        return _native.byte_array(flat.data_ptr(), nbytes), tuple(tensor.shape), flat
    array = tensor if isinstance(tensor, np.ndarray) else _foreign_array(tensor, what)
    if array.dtype.hasobject:
        raise TypeError(f"{what}: dtype {array.dtype} holds Python objects, which cannot be sent")
    if writable and not array.flags.writeable:
        raise ArgumentError(f"{what}: the array is read-only; it could not receive the state of others")
    contiguous = np.ascontiguousarray(array)
    return contiguous.reshape(-1).view(np.uint8), array.shape, contiguous


def shares_memory(tensor: Any, owner: Any) -> bool:
    """Whether the owner that `byte_view` gave of a tensor is the tensor's own memory, and not a copy of it."""
    if _is_torch(tensor):
        return bool(owner.data_ptr() == tensor.data_ptr())
    array = tensor if isinstance(tensor, np.ndarray) else _foreign_array(tensor, "tensor")
    return bool(np.may_share_memory(array, owner))


def was_written(tensor: Any) -> None:
    """Tells whoever keeps count (torch's autograd) that the memory of a tensor has been written to past it."""
    if _is_torch(tensor):
        tensor.detach().reshape(-1)[:0].zero_()


def write_bytes(tensor: Any, data: np.ndarray[Any, Any]) -> None:
    """Overwrites a tensor that passed `byte_view(writable=True)` with raw bytes of its dtype and shape."""
    if data.size == 0:
        return
    if _is_torch(tensor):
        torch = sys.modules["torch"]
        with torch.no_grad():
            tensor.detach().copy_(torch.frombuffer(data, dtype=tensor.dtype).view(tensor.shape))
        return
    array = tensor if isinstance(tensor, np.ndarray) else _foreign_array(tensor, "tensor")
    array[...] = data.view(array.dtype).reshape(array.shape)
