"""stage.py - one payload against one shadow: patches of what changes, and the proof that the result is right.

Blocks are taken as they come, before the end is there. Each is decoded against the shadow (and what is staged on it),
and what comes of it digested tile by tile; nothing of the shadow is written to. `finish` compares with the
manifest, looks at every block that is not to change, and gives a Staged, or raises. Threads over blocks, and whoever
waits for them takes part.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Executor, Future, wait
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np

from pccl.errors import ArgumentError, PcclError
from pccl.weights import codec
from pccl.weights.codec import DeltaError
from pccl.weights.digests import quick
from pccl.weights.errors import DamageError
from pccl.weights.manifest import Manifest
from pccl.weights.payload import Chunks, Payload, Reader
from pccl.weights.shadow import Shadow, Staged, damaged

__all__ = ["Stage"]

Array = np.ndarray[Any, Any]
Patch = tuple[Array, Array]


class _Scratch(threading.local):
    """A thread's memory for a block."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def copy(self, block: Array) -> Array:
        """The block, here."""
        if len(self._memory) < block.nbytes:
            self._memory = np.empty(block.nbytes, np.uint8)
        made = self._memory[: block.nbytes].view(block.dtype)
        np.copyto(made, block)
        return made


_scratch = _Scratch()


class Stage:
    """`owned`: blocks that matter here; None: all. `onto`: what is staged already and comes first."""

    def __init__(self, shadow: Shadow, pool: Executor, onto: Staged | None, owned: frozenset[int] | None) -> None:
        assert shadow.at is not None
        self.base = shadow.at if onto is None else onto.at
        self._shadow = shadow
        self._pool = pool
        self._onto = onto
        self._owned = owned
        self._fed: dict[int, Future[tuple[Patch, bytes]]] = {}
        self._waiting: deque[tuple[int, bytes]] = deque()  # fed, and not begun
        self._foreseen: tuple[Manifest, Staged] | None = None

    def wants(self, block: int) -> bool:
        """Whether a block matters here."""
        return self._owned is None or block in self._owned

    def feed(self, block: int, encoded: bytes) -> None:
        """An encoded block has come. Returns at once; what is wrong with it is said by `finish`."""
        if self.wants(block) and block not in self._fed:
            self._fed[block] = Future()
            self._waiting.append((block, encoded))
            self._pool.submit(self._decode_next)

    def foresee(self, reader: Reader, nbytes: int, public: bytes | None) -> None:
        """So many bytes are there, of which all blocks were fed. If only the end of the payload lacks, this does what
        `finish` would; what is wrong is said by that.
        """
        with suppress(PcclError):
            payload = reader.foretold(nbytes)
            if payload is not None:
                self._foreseen = (payload.manifest, self._finish(payload, public, reader.chunks))

    def finish(self, payload: Payload, public: bytes | None, fed: Chunks | None = None) -> Staged:
        """All of the payload is there. DamageError, SchemaError, DeltaError: nothing is staged. Of a filtered receiver
        the payload may lack chunks that it does not want. `fed`: chunks of which `feed` got every block.
        """
        if self._foreseen is not None and self._foreseen[0] == payload.manifest:
            return self._foreseen[1]
        return self._finish(payload, public, fed)

    def _finish(self, payload: Payload, public: bytes | None, fed: Chunks | None) -> Staged:
        manifest = payload.manifest
        if payload.base != self.base:
            raise DamageError(f"a payload from {payload.base} came for {self.base}")
        schema = self._shadow.schema
        manifest.check(schema, public, fed.root if fed and tuple(fed.leaves) == manifest.leaves else None)
        places = {record.block: record for record in manifest.records}
        seen = {} if fed is None else dict(zip(pairwise([0, *fed.ends]), fed.leaves, strict=True))
        for chunk in self._chunks(manifest):
            if seen.get(manifest.span(chunk)) != manifest.leaves[chunk]:
                payload.check_chunk(chunk)
        for block, record in places.items():
            if block in self._fed:
                payload.check_heading(record)
            elif self.wants(block):
                self.feed(block, payload.block(record))
        if not places.keys() >= self._fed.keys():
            raise DamageError(f"version {manifest.certificate.version} came with blocks that its manifest lacks")
        patches = self._take(manifest)
        still = [b for b in range(len(schema.blocks)) if b not in places and self.wants(b)]
        for block, digest in zip(still, self._pool.map(self._digest_still, still), strict=True):
            if digest != manifest.digests[block]:
                raise self._blame(block, manifest)
        if self._onto is not None:
            patches = {**{b: p for b, p in self._onto.patches.items() if b not in patches}, **patches}
        assert self._shadow.at is not None
        return Staged(self._shadow.at, manifest.at, patches, manifest.digests)

    def cancel(self) -> None:
        """Nothing of the shadow is read any more when this returns."""
        while self._waiting:
            with suppress(IndexError):
                self._fed[self._waiting.popleft()[0]].cancel()
        wait(future for future in self._fed.values() if not future.cancelled())

    def _chunks(self, manifest: Manifest) -> list[int]:
        if self._owned is None:
            return list(range(len(manifest.ends)))
        return sorted({manifest.chunk_of(record.offset) for record in manifest.records if self.wants(record.block)})

    def _take(self, manifest: Manifest) -> dict[int, Patch]:
        while self._decode_next():
            pass
        patches = {}
        for block, future in self._fed.items():
            try:
                patch, digest = future.result()
            except (DeltaError, ArgumentError) as error:  # the second: a block of another shape
                raise self._blame(block, manifest) from error
            if digest != manifest.digests[block]:
                raise self._blame(block, manifest)
            patches[block] = patch
        return patches

    def _blame(self, block: int, manifest: Manifest) -> DamageError:
        """The result is not what was signed: is it the shadow, or what came?"""
        if quick(self._shadow.block(block)) != self._shadow.digests[block]:
            return damaged(self._shadow.schema, block)
        return DamageError(f"block {block} of version {manifest.certificate.version} does not lead where it should")

    def _before(self, block: int) -> Array:
        """The block that the payload was made on; of one that is staged already a copy."""
        state = self._shadow.block(block)
        patch = None if self._onto is None else self._onto.patches.get(block)
        if patch is None:
            return state
        made = _scratch.copy(state)
        made[patch[0]] = patch[1]
        return made

    def _decode_next(self) -> bool:
        """The first block that nobody has begun; False if there is none."""
        try:
            block, encoded = self._waiting.popleft()
        except IndexError:
            return False
        try:
            self._fed[block].set_result(self._decode(block, encoded))
        except Exception as error:  # noqa: BLE001 - told by who asks for the result
            self._fed[block].set_exception(error)
        return True

    def _decode(self, block: int, encoded: bytes) -> tuple[Patch, bytes]:
        before = self._before(block)
        digest = bytearray(codec.HASH_BYTES)
        indices, values = codec.patch(encoded, before, hashed=digest)
        earlier = None if self._onto is None else self._onto.patches.get(block)
        if earlier is not None:
            before[indices] = values
            indices = np.union1d(indices, earlier[0])
            values = before[indices]
        return (indices, values), bytes(digest)

    def _digest_still(self, block: int) -> bytes:
        return quick(self._before(block))
