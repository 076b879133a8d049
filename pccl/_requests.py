"""_requests.py - a fetch as the engine's struct: the way in, as _records.py is the way out."""

from __future__ import annotations

from typing import Any

import numpy as np

from pccl.errors import ArgumentError
from pccl.types import PEER_ID_BYTES, REGION_KEY_BYTES, FetchRequest

__all__ = ["exact", "fetch_request"]


def exact(value: bytes, length: int, what: str) -> bytes:
    """The value, if it has that length; else ArgumentError."""
    if len(value) != length:
        raise ArgumentError(f"{what} must be {length} bytes, got {len(value)}")
    return value


def fetch_request(ffi: Any, request: FetchRequest) -> tuple[Any, Any]:
    """(pccl_fetch_request, what must live until it has been handed over). `ffi`: the extension's."""
    raw = ffi.new("pccl_fetch_request *")
    raw.size = ffi.sizeof("pccl_fetch_request")
    ffi.buffer(raw.peer.bytes)[:] = exact(request.peer, PEER_ID_BYTES, "a peer id")
    ffi.buffer(raw.key)[:] = exact(request.key, REGION_KEY_BYTES, "a region's key")
    raw.generation, raw.priority = request.generation, request.priority
    hold, raw.runs = _runs(ffi, request.runs)
    raw.run_count = len(request.runs)
    raw.deadline_ns, raw.token = request.deadline_ns, request.token
    return raw, (hold, _parts(ffi, raw, request))


def _runs(ffi: Any, runs: Any) -> tuple[Any, Any]:
    """(what must live as long as the pointer, pointer): without a loop if they are an array."""
    table = np.ascontiguousarray(runs, np.uint64)
    if table.size and (table.ndim != 2 or table.shape[1] * 8 != ffi.sizeof("pccl_fetch_run")):
        raise ArgumentError(f"runs must be (offset, bytes, address) each, not an array of {table.shape}")
    hold = ffi.from_buffer(table) if table.size else ffi.new("pccl_fetch_run[1]")
    return hold, ffi.cast("pccl_fetch_run *", hold)


def _parts(ffi: Any, raw: Any, request: FetchRequest) -> Any:
    digests = request.digests
    if digests is None:
        return None
    if digests.seeds.size != digests.found.size or not digests.found.flags.c_contiguous:
        raise ArgumentError(f"{digests.seeds.size} seeds for {digests.found.size} digests, which must be one array")
    seeds = ffi.from_buffer(np.ascontiguousarray(digests.seeds, np.uint64))
    raw.part_count, raw.part_bytes, raw.bare = digests.found.size, digests.part_bytes, digests.bare
    raw.seeds = ffi.cast("uint64_t *", seeds)
    raw.digests = ffi.cast("uint64_t *", ffi.from_buffer(digests.found))
    return seeds
