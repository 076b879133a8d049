"""codec.py - one block of weights: what changed between two states of it, as bytes, and back.

Elements are unsigned integers of 1, 2 or 4 bytes, whatever they stand for; csrc/delta.h says how blocks are made,
docs/delta.md has every byte. A block is self-describing, decodes alone, and carries digests of the whole block before
and after (except in the forms that need no base), so that a wrong base is refused before anything is written.

All functions are pure and release the interpreter's lock: threads over blocks scale. States are one-dimensional
contiguous arrays, or other buffers of an itemsize of 1, 2 or 4; an array of bfloat16 is such a buffer by way of
`.view(np.uint16)`. Each thread keeps the working memory of the largest block it has seen; of that only pages that
changes have touched exist.

Errors: `ArgumentError` for arguments that fit nothing; `DeltaError` for a malformed block; `WrongBaseError` for a block
that was made on another state. After any error states are as they were.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from pccl._native import ffi, lib
from pccl.errors import ArgumentError, ProtocolError
from pccl.types import Status

__all__ = [
    "BLOCK_ELEMENTS",
    "ELEMENTS_MAX",
    "HASH_BYTES",
    "BlockInfo",
    "Codec",
    "DeltaError",
    "WrongBaseError",
    "as_diff_a",
    "decode",
    "describe",
    "digest",
    "encode",
    "fold",
    "invert",
    "patch",
]

BLOCK_ELEMENTS: Final = 1 << 22  # what a tensor is cut into: headers weigh little, and threads have enough to share
ELEMENTS_MAX: Final = int(lib.pccl_delta_elements_max())
HASH_BYTES: Final = int(lib.PCCL_DELTA_HASH_BYTES)


class Codec(IntEnum):
    """How a block says what changed (pccl_delta_form)."""

    ZERO = lib.PCCL_DELTA_ZERO  # nothing did
    RAW = lib.PCCL_DELTA_RAW  # all new values
    ABS = lib.PCCL_DELTA_ABS  # places and new values: needs no base
    DIFF_A = lib.PCCL_DELTA_DIFF_A  # places and steps
    DIFF_B = lib.PCCL_DELTA_DIFF_B  # the same by class of the old values' exponents
    DENSE_ULP = lib.PCCL_DELTA_DENSE_ULP  # the steps of all elements


class DeltaError(ProtocolError):
    """A block is malformed. States are as they were."""


class WrongBaseError(DeltaError):
    """A block was made on another state than the one at hand. That is as it was."""


_GROUPS: Final = {
    "auto": (Codec.ZERO, Codec.RAW, Codec.DIFF_A, Codec.DIFF_B, Codec.DENSE_ULP),
    "fast": (Codec.ZERO, Codec.RAW, Codec.DIFF_A, Codec.DENSE_ULP),
    "absolute": (Codec.ZERO, Codec.RAW, Codec.ABS),
}


@dataclass(frozen=True, slots=True)
class BlockInfo:
    """What a block says of itself. The digests are 0 where it needs no base."""

    codec: Codec
    width: int  # bytes of an element: 1, 2 or 4
    elements: int
    changed: int
    nbytes: int
    before: int = 0
    after: int = 0


# -- border ------------------------------------------------------------------------------------------------------


class _Memory(threading.local):
    """A thread's working memory."""

    def __init__(self) -> None:
        self._work = np.empty(0, np.uint64)
        self._block = np.empty(0, np.uint8)

    def work(self, elements: int, width: int) -> Any:
        """Memory for blocks of such a size."""
        words = (int(lib.pccl_delta_work(elements, width)) + 7) // 8
        if words > len(self._work):
            self._work = np.empty(words, np.uint64)
        return ffi.from_buffer(self._work)

    def block(self, elements: int, width: int) -> Any:
        """Room for one block of such a size."""
        nbytes = int(lib.pccl_delta_bound(elements, width))
        if nbytes > len(self._block):
            self._block = np.empty(nbytes, np.uint8)
        return ffi.from_buffer(self._block, require_writable=True)


_memory = _Memory()


def _check(code: int) -> None:
    if code == Status.OK:
        return
    text = bytes(ffi.string(lib.pccl_last_error())).decode(errors="replace")
    kinds: dict[int, type[DeltaError]] = {Status.EPROTO: DeltaError, Status.EMISMATCH: WrongBaseError}
    raise kinds.get(code, ArgumentError)(text)


def _state(value: Any, what: str, writable: bool = False) -> tuple[Any, int, int]:
    """(memory, elements, width) of a state."""
    view = memoryview(value)
    if view.ndim != 1 or not view.c_contiguous or view.itemsize not in (1, 2, 4):
        raise ArgumentError(f"{what} must be one-dimensional and contiguous, of elements of 1, 2 or 4 bytes")
    if len(view) > ELEMENTS_MAX:
        raise ArgumentError(f"{what} has {len(view)} elements; a block has at most {ELEMENTS_MAX}")
    if writable and view.readonly:
        raise ArgumentError(f"{what} is read-only")
    return ffi.from_buffer(view), len(view), view.itemsize


def _isa(isa: str | None) -> Any:
    return ffi.NULL if isa is None else isa.encode()


def _state_like(info: BlockInfo, state: Any) -> Any:
    """The memory of a state that has the block's elements; NULL for none."""
    if state is None:
        return ffi.NULL
    memory, elements, width = _state(state, "state")
    if (elements, width) != (info.elements, info.width):
        raise ArgumentError(
            f"state has {elements} elements of {width} bytes, the block {info.elements} of {info.width}"
        )
    return memory


def _hash_of(hashed: bytearray | None, nbytes: int) -> Any:
    """Where a hash goes; NULL for none, and for states that are so short that C has no hash of them."""
    if hashed is None:
        return ffi.NULL
    if len(hashed) != HASH_BYTES:
        raise ArgumentError(f"a hash has {HASH_BYTES} bytes, not {len(hashed)}")
    return ffi.NULL if nbytes < lib.PCCL_DELTA_HASH_FROM else ffi.from_buffer(hashed, require_writable=True)


def _bytes(block: Any, nbytes: Any) -> bytes:
    return bytes(ffi.buffer(block, nbytes[0]))


# -- blocks --------------------------------------------------------------------------------------------------------


def encode(
    old: Any,
    new: Any,
    codecs: str | Codec | Iterable[Codec] = "auto",
    *,
    hashed: bytearray | None = None,
    isa: str | None = None,
) -> bytes:
    """What takes `old` to `new`: the smallest block of the codecs allowed.

    `codecs`: "auto" (all but ABS), "fast" (nor DIFF_B), "absolute" (no base needed: ZERO, ABS, RAW), one codec, or
    several; ZERO is possible only where nothing changed. `hashed`: HASH_BYTES bytes that take the xxh3-128 of `new`.
    `isa` names the instruction set, for tests: the bytes are the same.
    """
    old_memory, elements, width = _state(old, "old")
    new_memory, *shape = _state(new, "new")
    if shape != [elements, width]:
        raise ArgumentError(f"old has {elements} elements of {width} bytes, new {shape[0]} of {shape[1]}")
    if isinstance(codecs, str):
        if codecs not in _GROUPS:
            raise ArgumentError(f"codecs must be one of {', '.join(_GROUPS)}, or codecs, not {codecs!r}")
        codecs = _GROUPS[codecs]
    allowed = [codecs] if isinstance(codecs, Codec) else list(codecs)
    mask = sum(1 << codec for codec in set(allowed))
    block, nbytes = _memory.block(elements, width), ffi.new("uint64_t *")
    work = _memory.work(elements, width)
    hash_ = _hash_of(hashed, elements * width)
    _check(lib.pccl_delta_encode(_isa(isa), old_memory, new_memory, elements, width, mask, work, block, nbytes, hash_))
    if hashed is not None and hash_ == ffi.NULL:
        hashed[:] = xxhash.xxh3_128_digest(new)
    return _bytes(block, nbytes)


def describe(block: Any) -> BlockInfo:
    """What the header says, which alone is looked at."""
    info = ffi.new("pccl_delta_info *")
    info.size = ffi.sizeof("pccl_delta_info")
    hold = ffi.from_buffer(block)
    _check(lib.pccl_delta_describe(hold, len(hold), info))
    return BlockInfo(
        Codec(info.form), info.width, info.elements, info.changed, len(hold), int(info.before), int(info.after)
    )


def decode(block: Any, state: Any, *, known: bool = False, isa: str | None = None) -> None:
    """Takes the state from old to new, in place. `known`: the state is the one that the block was made on, and need not
    be read to find that out.
    """
    memory, elements, width = _state(state, "state", writable=True)
    hold = ffi.from_buffer(block)
    work = _memory.work(elements, width)
    function = lib.pccl_delta_move if known else lib.pccl_delta_decode
    _check(function(_isa(isa), hold, len(hold), memory, elements, width, work))


def patch(
    block: Any, state: Any, *, hashed: bytearray | None = None, isa: str | None = None
) -> tuple[NDArray[np.uint32], NDArray[Any]]:
    """(indices, values) of what changes, indices ascending; of RAW all elements.

    The state is only read; of ZERO, RAW and ABS it may be None. `hashed`: HASH_BYTES bytes that take the xxh3-128 of
    the state with that; it must not be None then.
    """
    info = describe(block)
    hold, memory = ffi.from_buffer(block), _state_like(info, state)
    count = info.elements if info.codec == Codec.RAW else info.changed
    indices = np.empty(count, np.uint32)
    values = np.empty(count, f"u{info.width}")
    out = ffi.from_buffer("uint32_t[]", indices, require_writable=True), ffi.from_buffer(values, require_writable=True)
    work = _memory.work(info.elements, info.width)
    hash_ = _hash_of(hashed, info.elements * info.width)
    _check(lib.pccl_delta_patch(_isa(isa), hold, len(hold), memory, info.elements, info.width, work, *out, hash_))
    if hashed is not None and hash_ == ffi.NULL:
        after = np.array(state)
        after[indices] = values
        hashed[:] = xxhash.xxh3_128_digest(after.data)
    return indices, values


def fold(first: Any, second: Any, *, isa: str | None = None) -> bytes:
    """One block that does what first and then second do; needs no state.

    Of ZERO, DIFF_A and DENSE_ULP among themselves (the bytes are those of encoding both steps at once); of ABS on ABS;
    of RAW on anything, and anything on RAW. `ArgumentError` for other pairs (of DIFF_B: `as_diff_a` first);
    `WrongBaseError` if second was not made on the state that first leads to.
    """
    info = describe(first)
    a, b, nbytes = ffi.from_buffer(first), ffi.from_buffer(second), ffi.new("uint64_t *")
    block, work = _memory.block(info.elements, info.width), _memory.work(info.elements, info.width)
    _check(lib.pccl_delta_fold(_isa(isa), a, len(a), b, len(b), work, block, nbytes))
    return _bytes(block, nbytes)


def invert(block: Any, state: Any = None, *, isa: str | None = None) -> bytes:
    """The way back. DIFF_B, RAW and ABS need `state`, the one before; the inverse of DIFF_B is by place."""
    return _remade(lib.pccl_delta_invert, block, state, isa)


def as_diff_a(block: Any, state: Any, *, isa: str | None = None) -> bytes:
    """A DIFF_B block as DIFF_A, by the state before; blocks of other codecs as they are."""
    return _remade(lib.pccl_delta_as_a, block, state, isa)


def _remade(function: Any, block: Any, state: Any, isa: str | None) -> bytes:
    info = describe(block)
    hold, memory, nbytes = ffi.from_buffer(block), _state_like(info, state), ffi.new("uint64_t *")
    out, work = _memory.block(info.elements, info.width), _memory.work(info.elements, info.width)
    _check(function(_isa(isa), hold, len(hold), memory, work, out, nbytes))
    return _bytes(out, nbytes)


def digest(state: Any, *, isa: str | None = None) -> int:
    """The digest of a state, as `BlockInfo.before` and `after` are. Against mistakes, not against forgers."""
    memory, elements, width = _state(state, "state")
    value = ffi.new("uint64_t *")
    _check(lib.pccl_delta_digest(_isa(isa), memory, elements, width, value))
    return int(value[0])
