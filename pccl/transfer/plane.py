"""plane.py - the engine's transfer calls in Python's words. Decides nothing; see csrc/include/pccl_api.h.

No call blocks. Addresses must stay valid until the region's WITHDRAWN or the fetch's FETCH event; keeping the memory
alive is the caller's duty.
"""

from __future__ import annotations

import logging

from pccl._native import Engine, ffi, lib

__all__ = ["cancel", "extend", "fetch", "limit", "log", "offer", "withdraw"]

log = logging.getLogger("pccl.transfer")


def offer(engine: Engine, token: int, key: bytes, generation: int, address: int, nbytes: int, whole: bool) -> None:
    """Offers a region (at least one byte), or reserves it for `extend`. A WITHDRAWN event follows exactly once."""
    region = ffi.new("pccl_region *")
    region.size = ffi.sizeof("pccl_region")
    region.key = key
    region.generation = generation
    region.data = ffi.cast("void *", address)
    region.bytes = nbytes
    region.token = token
    engine.call("offer", lib.pccl_engine_offer, region, whole)


def extend(engine: Engine, key: bytes, generation: int, offset: int, nbytes: int) -> None:
    """This part may be served from now on."""
    engine.call("extend", lib.pccl_engine_extend, key, generation, offset, nbytes)


def withdraw(engine: Engine, key: bytes, generation: int) -> None:
    """Ends an offer; its WITHDRAWN event is the fence."""
    engine.call("withdraw", lib.pccl_engine_withdraw, key, generation)


def fetch(
    engine: Engine,
    token: int,
    peer: bytes,
    key: bytes,
    generation: int,
    span: tuple[int, int],
    address: int,
    priority: int,
    deadline_ns: int,
) -> None:
    """Fetches span = (offset, bytes) of a region of a peer to an address. A FETCH event follows exactly once."""
    run = ffi.new("pccl_fetch_run *")
    run.offset, run.bytes = span
    run.target = ffi.cast("void *", address)
    request = ffi.new("pccl_fetch_request *")
    request.size = ffi.sizeof("pccl_fetch_request")
    ffi.buffer(request.peer.bytes)[:] = peer
    request.key = key
    request.generation = generation
    request.priority = priority
    request.run_count, request.runs = 1, run
    request.deadline_ns = deadline_ns
    request.token = token
    engine.call("fetch", lib.pccl_engine_fetch, request)


def cancel(engine: Engine, token: int) -> None:
    """Ends a fetch; its FETCH event is the fence."""
    engine.call("cancel", lib.pccl_engine_cancel_fetch, token)


def limit(engine: Engine, priority: int, bytes_per_s: int) -> None:
    """Caps what this peer sends of fetches of a priority; 0: no cap."""
    engine.call("limit", lib.pccl_engine_limit, priority, bytes_per_s)
