"""scatter.py - patches for many tensors, made ready so that writing them is one call.

In host memory that call is csrc/scatter.c: 18,000 small tensors cost what their changed elements cost. On a device all
tensors that share one allocation, such as the experts of a layer, are one index operation; places and values are there
beforehand. Targets are written to in place, as integers: addresses stay, and so do bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pccl._native import ffi, lib
from pccl.types import Status
from pccl.weights.adapters.engine import Apply, EngineError

__all__ = ["Piece", "scatter"]

_PART = np.dtype(
    [
        ("to", "u8"),
        ("places", "u8"),
        ("values", "u8"),
        ("count", "u8"),
        ("elements", "u8"),
        ("width", "u4"),
        ("place_width", "u4"),
    ]
)
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Piece:
    """`target`: a torch tensor, contiguous. `index`: int64, ascending, each once; `values`: unsigned integers of 1, 2
    or 4 bytes; elements of 8 bytes are two.
    """

    name: str
    target: Any
    index: Array
    values: Array


def scatter(pieces: Iterable[Piece]) -> Apply:
    """Checks all pieces, and gives the call that writes them; it keeps places, values and targets alive. EngineError
    names the tensor whose target is not contiguous, or has not the elements that the places are of.
    """
    host: list[Piece] = []
    device: list[Piece] = []
    for piece in pieces:
        if not piece.target.is_contiguous():
            raise EngineError(f"{piece.name!r} is not contiguous in the engine, so it cannot be patched in place")
        (host if piece.target.device.type == "cpu" else device).append(piece)
    calls = ([_on_host(host)] if host else []) + ([_on_device(device)] if device else [])

    def apply() -> None:
        for call in calls:
            call()

    return apply


def _on_host(pieces: Sequence[Piece]) -> Apply:
    """One call for all."""
    parts = np.zeros(len(pieces), _PART)
    counts = np.array([len(p.index) for p in pieces], np.uint64)
    widths = np.array([p.values.itemsize for p in pieces], np.uint32)
    places = np.concatenate([p.index for p in pieces], dtype=np.int64)
    padded = -(-counts * widths // 8) * 8
    starts = np.cumsum(padded) - padded
    values = np.empty(int(padded.sum()), np.uint8)
    for start, piece in zip(starts.tolist(), pieces, strict=True):
        values[start : start + piece.values.nbytes] = piece.values.view(np.uint8)
    parts["to"] = [p.target.data_ptr() for p in pieces]
    parts["elements"] = [p.target.numel() * p.target.element_size() // p.values.itemsize for p in pieces]
    parts["places"] = places.ctypes.data + 8 * (np.cumsum(counts) - counts)
    parts["values"] = values.ctypes.data + starts
    parts["count"], parts["width"], parts["place_width"] = counts, widths, 8
    memory, bad = ffi.from_buffer("pccl_scatter *", parts), ffi.new("uint64_t *")
    if lib.pccl_scatter_check(memory, len(parts), bad) != Status.OK:
        why = bytes(ffi.string(lib.pccl_last_error())).decode(errors="replace")
        raise EngineError(f"{pieces[bad[0]].name!r} cannot be patched: {why}")
    held = (parts, places, values, [p.target for p in pieces])

    def apply() -> None:
        lib.pccl_scatter_run(memory, len(held[0]))

    return apply


def _on_device(pieces: Sequence[Piece]) -> Apply:
    """One index operation for each allocation and width."""
    import torch

    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    groups: dict[tuple[int, int], list[Piece]] = {}
    for piece in pieces:
        elements = piece.target.numel() * piece.target.element_size() // piece.values.itemsize
        if len(piece.index) and not (piece.index[0] >= 0 and piece.index[-1] < elements):
            raise EngineError(f"{piece.name!r} cannot be patched: places must be below {elements}")
        storage = piece.target.untyped_storage().data_ptr()
        groups.setdefault((storage, piece.values.itemsize), []).append(piece)
    ready = []
    for (storage, width), group in groups.items():
        device = group[0].target.device
        flat = torch.empty(0, dtype=integers[width], device=device).set_(group[0].target.untyped_storage())
        shifts = [(p.target.data_ptr() - storage) // width for p in group]
        index = np.concatenate([p.index + shift for p, shift in zip(group, shifts, strict=True)])
        values = np.concatenate([p.values for p in group]).view(_signed(width))
        ready.append((flat, torch.from_numpy(index).to(device), torch.from_numpy(values).to(device)))

    def apply() -> None:
        for flat, index, values in ready:
            flat.index_copy_(0, index, values)

    return apply


def _signed(width: int) -> str:
    """torch's integers of this width."""
    return {1: "u1", 2: "i2", 4: "i4"}[width]
