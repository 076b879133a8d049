"""chunks.py - the digests of chunks: how memory is cut, and how it is read by several threads.

Chunks have CHUNK_BYTES, more only where a content would have more than 65,536 of them: a function of the sizes, which
are the same on every peer. 256 KiB is one segment on the wire: a smaller chunk would save no frame, and cost a digest
of 16 bytes each (64 KiB for a GiB); a larger one moves more for one byte that differs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from pccl.transfer.layout import Layout
from pccl.transfer.manifest import chunk_size, digest_of
from pccl.transfer.target import Bytes

__all__ = ["CHUNK_BYTES", "digests_of", "layout_of"]

CHUNK_BYTES = 256 << 10
_THREADS_MAX = 8
_THREAD_BYTES = 8 << 20  # worth another thread


def layout_of(sizes: Sequence[int]) -> Layout:
    """How parts of these sizes are cut. ArgumentError if they are too many."""
    return Layout(chunk_size(sum(sizes), None, sizes, CHUNK_BYTES), sizes)


def digests_of(parts: Sequence[Bytes], chunk_bytes: int) -> bytes:
    """16 bytes for each chunk of the parts, in order. Reads everything, with several threads if it is much."""
    nbytes = sum(part.size for part in parts)
    threads = min(_THREADS_MAX, os.cpu_count() or 1, 1 + nbytes // _THREAD_BYTES)
    if threads < 2:
        return _digests(parts, chunk_bytes)
    stretches = _stretches(parts, chunk_bytes, -(-nbytes // threads))
    return b"".join(_pool().map(lambda stretch: _digests(stretch, chunk_bytes), stretches))


def _digests(parts: Sequence[Bytes], chunk_bytes: int) -> bytes:
    return b"".join(
        digest_of(part[start : start + chunk_bytes]) for part in parts for start in range(0, part.size, chunk_bytes)
    )


def _stretches(parts: Sequence[Bytes], chunk_bytes: int, nbytes: int) -> list[list[Bytes]]:
    """The parts, cut between chunks into stretches of about so many bytes."""
    whole = -(-nbytes // chunk_bytes) * chunk_bytes
    stretches: list[list[Bytes]] = [[]]
    room = whole
    for part in parts:
        start = 0
        while start < part.size:
            if room < min(chunk_bytes, part.size - start):
                stretches.append([])
                room = whole
            end = min(part.size, start + max(room // chunk_bytes * chunk_bytes, chunk_bytes))
            stretches[-1].append(part[start:end])
            room -= end - start
            start = end
    return stretches


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS_MAX, thread_name_prefix="pccl-hash")


os.register_at_fork(after_in_child=_pool.cache_clear)
