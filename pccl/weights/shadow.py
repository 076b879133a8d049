"""shadow.py - a receiver's copy of the canonical state: an arena that goes from one version to the next at once.

What is staged is absolute: indices and new values. So writing it again changes nothing, and a journal of it needs no
record of how far it was written. `FileShadow` keeps three files: PATH, the arena; PATH.meta, the version that it is at
with the digests of its blocks; PATH.next, the journal of a commit that has begun. The rename that makes PATH.next valid
is the commit: a crash before it leaves the version before, one after it is completed by the next `open`.

A MemoryShadow with a pool is at the new version when `commit` returns, and its memory is written to behind that: who
reads `arena` or `block` waits for what he reads.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import xxhash

from pccl.weights.certificate import Version
from pccl.weights.digests import QUICK_BYTES, quick
from pccl.weights.errors import DamageError, SchemaError
from pccl.weights.files import mapped, publish, remove, stage, write_whole
from pccl.weights.schema import ALIGN, Schema, uint_of
from pccl.weights.write import write

__all__ = ["FileShadow", "MemoryShadow", "Shadow", "Staged"]

Array = np.ndarray[Any, Any]
WRITES = 8  # parts that a commit is written in


@dataclass(frozen=True, slots=True)
class Staged:
    """What takes a shadow from any version between `base` and `at` to `at`: of each block that changes, (indices, new
    values). `digests`: of all blocks at `at`; of blocks that this receiver does not own they are of no meaning.
    """

    base: Version
    at: Version
    patches: Mapping[int, tuple[Array, Array]]
    digests: Sequence[bytes]

    @property
    def changed(self) -> int:
        """Elements."""
        return sum(len(indices) for indices, _ in self.patches.values())


class Shadow:
    """An arena with a version. `begin` or `open` comes first."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.at: Version | None = None
        self.digests: tuple[bytes, ...] = ()
        self.arena = np.empty(0, np.uint8)
        self.pool: Executor | None = None  # writes blocks side by side, if there is one; nothing that reads runs there

    @property
    def arena(self) -> Array:
        """All blocks as they are committed, in memory. Waits until they are written."""
        self.written()
        return self._arena

    @arena.setter
    def arena(self, memory: Array) -> None:
        self._arena = memory
        self._writing: Mapping[int, Future[None]] = {}

    def written(self) -> None:
        """Returns when memory holds what is committed."""
        for future in self._writing.values():
            future.result()

    def tensor(self, name: str) -> Array:
        """A tensor's elements at the committed version, as unsigned integers in its shape where the width allows it."""
        return self.schema.view(self.arena, self.schema.index[name])

    def block(self, number: int) -> Array:
        """A block's elements."""
        writing = self._writing.get(number)
        if writing is not None:
            writing.result()
        return self.schema.block_view(self._arena, self.schema.blocks[number])

    def digest_blocks(self) -> tuple[bytes, ...]:
        """Of all blocks, as they are now. Reads all of it."""
        return tuple(quick(self.block(number)) for number in range(len(self.schema.blocks)))

    def check(self, owned: frozenset[int] | None = None) -> None:
        """Reads all of it. DamageError naming tensors if a block is not what was committed."""
        for number, digest in enumerate(self.digests):
            if (owned is None or number in owned) and quick(self.block(number)) != digest:
                raise damaged(self.schema, number)

    def begin(self, at: Version, digests: Sequence[bytes]) -> None:
        """The arena holds this version now: it was loaded from a base."""
        self.at, self.digests = at, tuple(digests)

    def prepare(self, staged: Staged) -> None:
        """Does what can be done of the commit beforehand. The committed state is not touched."""

    def commit(self, staged: Staged) -> None:
        """The state is that of `staged.at`, at once. See the header."""
        self.written()

        def some(blocks: Sequence[int]) -> None:
            for number in blocks:
                write(self.schema.block_view(self._arena, self.schema.blocks[number]), *staged.patches[number])

        changed = list(staged.patches)
        if self.pool is None:
            some(changed)
        else:
            parts = [changed[part::WRITES] for part in range(WRITES)]
            futures = [self.pool.submit(some, part) for part in parts]
            self._writing = {number: future for part, future in zip(parts, futures, strict=True) for number in part}
        self.at, self.digests = staged.at, tuple(staged.digests)

    def close(self) -> None:
        """Gives the memory back."""
        self.arena = np.empty(0, np.uint8)


class MemoryShadow(Shadow):
    """In this process's memory; ends with it."""

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema)
        self.arena = aligned_empty(schema.arena_bytes)


class FileShadow(Shadow):
    """In a file, perhaps in /dev/shm, that survives the process. `durable`: also a power cut (fsync)."""

    def __init__(self, path: str | Path, schema: Schema, durable: bool = True) -> None:
        super().__init__(schema)
        self.path = Path(path)
        self.durable = durable
        self._meta = self.path.with_name(self.path.name + ".meta")
        self._journal = self.path.with_name(self.path.name + ".next")
        self._prepared: Staged | None = None
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(handle).st_size != schema.arena_bytes:
                remove(self._meta)
                os.ftruncate(handle, schema.arena_bytes)
            self._map = mmap.mmap(handle, max(1, schema.arena_bytes)) if schema.arena_bytes else None
        finally:
            os.close(handle)
        if self._map is not None:
            self.arena = np.frombuffer(self._map, np.uint8)
        self._recover()

    def begin(self, at: Version, digests: Sequence[bytes]) -> None:
        """See Shadow."""
        remove(self._journal)
        self._flush()
        super().begin(at, digests)
        self._write_meta()

    def prepare(self, staged: Staged) -> None:
        """Writes the journal, beside its name."""
        if self._prepared is not staged:
            stage(self._journal, _journal_of(self.schema, staged), self.durable)
            self._prepared = staged

    def commit(self, staged: Staged) -> None:
        """See the header."""
        self.prepare(staged)
        publish(self._journal, self.durable)
        self._prepared = None
        super().commit(staged)
        self._finish()

    def close(self) -> None:
        """The files stay."""
        super().close()
        if self._map is not None:
            try:
                self._map.close()
            except BufferError:  # a view of a tensor is still held by somebody; the map goes with it
                self._map = None

    def _finish(self) -> None:
        self.written()
        self._flush()
        self._write_meta()
        remove(self._journal)

    def _flush(self) -> None:
        if self.durable and self._map is not None:
            self._map.flush()

    def _write_meta(self) -> None:
        assert self.at is not None
        data = _sealed([self.schema.hash, self.at.version, self.at.lineage, b"".join(self.digests)])
        write_whole(self._meta, [data], self.durable)

    def _recover(self) -> None:
        remove(self._journal.with_name(self._journal.name + ".tmp"))
        if not self._meta.exists():
            remove(self._journal)
            return
        self._take_meta()
        if self._journal.exists():
            staged = _journal_in(self.schema, mapped(self._journal))
            super().commit(staged)
            self._finish()

    def _take_meta(self) -> None:
        schema, version, lineage, digests = _unsealed(mapped(self._meta), str(self._meta))
        if schema != self.schema.hash:
            raise SchemaError(f"{self.path} holds weights of another schema")
        pieces = tuple(digests[at : at + QUICK_BYTES] for at in range(0, len(digests), QUICK_BYTES))
        super().begin(Version(version, lineage), pieces)


def damaged(schema: Schema, block: int) -> DamageError:
    """A block of a shadow is not what was committed."""
    names = schema.names_in(block)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return DamageError(f"the shadow is damaged in block {block}: {', '.join(names[:3])}{more}; load the base again")


def aligned_empty(nbytes: int) -> Array:
    """Memory that begins at a multiple of ALIGN."""
    memory = np.empty(nbytes + ALIGN, np.uint8)
    shift = -memory.ctypes.data % ALIGN
    return memory[shift : shift + nbytes]


def _sealed(fields: list[Any]) -> bytes:
    data = msgspec.msgpack.encode(fields)
    return quick(data) + data


def _unsealed(data: memoryview, what: str) -> tuple[Any, ...]:
    body = bytes(data[QUICK_BYTES:])
    if quick(body) != bytes(data[:QUICK_BYTES]):
        raise DamageError(f"{what} is damaged: load the base again")
    return tuple(msgspec.msgpack.decode(body))


def _journal_of(schema: Schema, staged: Staged) -> list[Any]:
    """Its parts: a digest, a head that says what follows, and indices and values of each block."""
    arrays: list[Any] = []
    blocks = []
    for number, (indices, values) in staged.patches.items():
        blocks.append([number, len(indices)])
        arrays += [indices.astype(np.uint32, copy=False).data.cast("B"), values.data.cast("B")] if len(indices) else []
    at = [staged.base.version, staged.base.lineage, staged.at.version, staged.at.lineage]
    head = msgspec.msgpack.encode([*at, b"".join(staged.digests), blocks])
    body = [len(head).to_bytes(8, "little"), head, *arrays]
    return [_digest(body), *body]


def _digest(parts: Sequence[Any]) -> bytes:
    state = xxhash.xxh3_128()
    for part in parts:
        state.update(part)
    return bytes(state.digest())


def _journal_in(schema: Schema, data: memoryview) -> Staged:
    if _digest([data[QUICK_BYTES:]]) != bytes(data[:QUICK_BYTES]):
        raise DamageError("the journal of a shadow is damaged: load the base again")
    at = QUICK_BYTES + 8 + int.from_bytes(data[QUICK_BYTES : QUICK_BYTES + 8], "little")
    base, base_lineage, version, lineage, digests, blocks = msgspec.msgpack.decode(bytes(data[QUICK_BYTES + 8 : at]))
    patches = {}
    for number, count in blocks:
        width = schema.blocks[number].width
        indices = np.frombuffer(bytes(data[at : at + 4 * count]), np.uint32)
        at += 4 * count
        values = np.frombuffer(bytes(data[at : at + count * width]), uint_of(width))
        at += count * width
        patches[number] = (indices, values)
    pieces = tuple(digests[i : i + QUICK_BYTES] for i in range(0, len(digests), QUICK_BYTES))
    return Staged(Version(base, base_lineage), Version(version, lineage), patches, pieces)
