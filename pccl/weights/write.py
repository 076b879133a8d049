"""write.py - new values to their places in a block, by one call that runs without the interpreter's lock.

csrc/scatter.c asks for lines of memory before it writes to them; numpy's own indexing takes several times as long.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pccl._native import ffi, lib
from pccl.errors import ArgumentError
from pccl.types import Status

__all__ = ["write"]

Array = np.ndarray[Any, Any]


def write(target: Array, places: Array, values: Array) -> None:
    """`target[places] = values`. `places`: uint32 or int64, ascending, each once; `values`: of the target's elements,
    of 1, 2 or 4 bytes. ArgumentError if they do not fit; nothing is written then.
    """
    if len(places) != len(values) or target.itemsize != values.itemsize:
        raise ArgumentError(f"{len(places)} places, {len(values)} values of {values.itemsize} bytes for {target.dtype}")
    part = ffi.new("pccl_scatter *")
    part.to, part.elements, part.width = target.ctypes.data, len(target), target.itemsize
    part.places, part.place_width, part.count = places.ctypes.data, places.itemsize, len(places)
    part.values = values.ctypes.data
    if lib.pccl_scatter_check(part, 1, ffi.new("uint64_t *")) != Status.OK:
        raise ArgumentError(bytes(ffi.string(lib.pccl_last_error())).decode(errors="replace"))
    lib.pccl_scatter_run(part, 1)
