"""payload.py - a payload being made, and one being read: prelude, records in chunks, manifest, trailer. Pure.

`Writer` gives the bytes as they come to be, so that they can be sent before there is an end; `Reader` takes them in any
portions and gives whole chunks, before it can know whether they are right: the manifest at the end says that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pccl.weights.certificate import Certificate, Version
from pccl.weights.digests import Tree, leaf
from pccl.weights.errors import DamageError
from pccl.weights.manifest import END_BYTES, PRELUDE_BYTES, RECORD, Manifest, Prelude, Record, Trailer

__all__ = ["CHUNK_BYTES", "Payload", "Reader", "Writer"]

CHUNK_BYTES = 1 << 14  # so little that who wants one block gets little else; so much that hashes weigh 0.3 % at most


class Chunks:
    """Prelude and records, cut into chunks: where these end, and their hashes. `at`: behind the last byte."""

    def __init__(self) -> None:
        self.ends: list[int] = []
        self.leaves: list[bytes] = []
        self._tree = Tree()
        self.at = 0
        self._open: list[bytes] = []
        self._open_bytes = 0

    def begin(self, prelude: bytes) -> bytes:
        """First. What the calls give is what is whole: nothing, a chunk, or two."""
        self._add(prelude)
        return self.close()

    def add(self, block: int, encoded: bytes) -> bytes:
        """One more block, in their order."""
        out = b""
        if self._open_bytes + RECORD.size + len(encoded) > CHUNK_BYTES:
            out = self.close()
        self._add(RECORD.pack(block, len(encoded)))
        self._add(encoded)
        return out + self.close() if self._open_bytes >= CHUNK_BYTES else out

    def close(self) -> bytes:
        """No more blocks."""
        if not self._open_bytes:
            return b""
        data = b"".join(self._open)
        self.ends.append(self.at)
        self.leaves.append(leaf(data))
        self._tree.add(self.leaves[-1])
        self._open, self._open_bytes = [], 0
        return data

    @property
    def root(self) -> bytes:
        """Of those that are whole."""
        return self._tree.root

    def _add(self, data: bytes) -> None:
        self._open.append(data)
        self._open_bytes += len(data)
        self.at += len(data)


class Writer:
    """Makes a payload. What the calls give, in order, is its bytes."""

    def __init__(self, prelude: Prelude) -> None:
        self.prelude = prelude
        self._chunks = Chunks()
        self._records: list[Record] = []

    def begin(self) -> bytes:
        """First."""
        return self._chunks.begin(self.prelude.encode())

    def add(self, block: int, encoded: bytes) -> bytes:
        """One more block, in their order. Gives what can go: nothing, a chunk, or two."""
        self._records.append(Record(block, self._chunks.at + RECORD.size, len(encoded)))
        return self._chunks.add(block, encoded)

    def close_chunks(self) -> bytes:
        """No more blocks."""
        return self._chunks.close()

    @property
    def root(self) -> bytes:
        """Of the chunks that are closed."""
        return self._chunks.root

    def end(self, digests: Sequence[bytes], certificate: Certificate, signature: bytes) -> tuple[bytes, Manifest]:
        """The last bytes."""
        manifest = Manifest(
            self.prelude.base, tuple(self._chunks.ends), tuple(self._records), tuple(self._chunks.leaves),
            tuple(digests), certificate, signature,
        )  # fmt: skip
        encoded = manifest.encode()
        return encoded + Trailer.encode(encoded), manifest


class Payload:
    """A whole payload in memory (bytes, memoryview, memory map), with its manifest. DamageError if it is none; what the
    chunks hold is checked by `check_chunk` or `check_chunks`.
    """

    def __init__(self, data: Any, foretold: bool = False) -> None:
        """`foretold`: the last END_BYTES have not come yet, whatever stands there."""
        self.data = memoryview(data)
        self.manifest_at, self.manifest = Trailer.manifest_of(self.data, foretold)

    @classmethod
    def made(cls, data: Any, manifest: Manifest) -> Payload:
        """Of bytes that a Writer has just given, with that manifest."""
        payload = cls.__new__(cls)
        payload.data, payload.manifest_at, payload.manifest = memoryview(data), manifest.ends[-1], manifest
        return payload

    @property
    def nbytes(self) -> int:
        """Of all of it."""
        return len(self.data)

    @property
    def sizes(self) -> tuple[int, int]:
        """(bytes, those from the manifest on)."""
        return len(self.data), len(self.data) - self.manifest_at

    @property
    def base(self) -> Version:
        """Where it applies."""
        return self.manifest.base

    def check_chunk(self, chunk: int) -> None:
        """DamageError if a chunk is not what the manifest says."""
        start, end = self.manifest.span(chunk)
        if leaf(self.data[start:end]) != self.manifest.leaves[chunk]:
            raise DamageError(f"chunk {chunk} of version {self.manifest.certificate.version} is damaged")

    def check_chunks(self) -> None:
        """All of them."""
        for chunk in range(len(self.manifest.ends)):
            self.check_chunk(chunk)

    def check_heading(self, record: Record) -> None:
        """DamageError if what stands before a block is not its heading."""
        heading = bytes(self.data[record.offset - RECORD.size : record.offset])
        if RECORD.unpack(heading) != (record.block, record.nbytes):
            raise DamageError(f"block {record.block} is not where the manifest says")

    def block(self, record: Record) -> bytes:
        """An encoded block, with its heading before it."""
        self.check_heading(record)
        return bytes(self.data[record.offset : record.offset + record.nbytes])

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        """(number, encoded) of every record."""
        for record in self.manifest.records:
            yield record.block, self.block(record)


class Reader:
    """Finds records in a payload that is still coming. The memory must hold what `grow` says, from its beginning, and
    that must not change. `chunks`: what has been given by `grow`.
    """

    def __init__(self, memory: Any) -> None:
        self._memory = memoryview(memory)
        self._last = -1
        self._read: dict[int, int] = {}  # beginnings and ends of records, one after the other, that `beyond` has given
        self.chunks = Chunks()
        self.prelude: Prelude | None = None

    def grow(self, nbytes: int, blocks: int) -> Iterator[tuple[int, bytes]]:
        """So many bytes are there: gives the records that are whole and new. What is no record of one of `blocks`
        blocks, in order, is the manifest, or damage: the end says which.
        """
        if self.prelude is None:
            if nbytes < PRELUDE_BYTES:
                return
            first = bytes(self._memory[:PRELUDE_BYTES])
            self.prelude = Prelude.decode(first)
            self.chunks.begin(first)
        while (record := self._record(self.chunks.at, nbytes)) is not None and self._last < record[0] < blocks:
            self._last = record[0]
            self.chunks.add(*record)
            yield record

    def beyond(self, islands: Iterable[tuple[int, int]], blocks: int) -> Iterator[tuple[int, bytes]]:
        """Whole records of such parts of the payload, each once: (where one begins, end) of what is there with a gap
        before it. `grow` gives them again. Where records begin is not verified, so these may be none.
        """
        for first, end in islands:
            at, last = self._read.pop(first, first), -1
            while (record := self._record(at, end)) is not None and last < record[0] < blocks:
                last = record[0]
                yield record
                at += RECORD.size + len(record[1])
                at = self._read.pop(at, at)
            self._read[first] = at

    def _record(self, at: int, end: int) -> tuple[int, bytes] | None:
        """(block, encoded) of what may be a record there; None if it is not whole before `end`."""
        start = at + RECORD.size
        if start > end:
            return None
        block, size = RECORD.unpack(self._memory[at:start])
        return (block, bytes(self._memory[start : start + size])) if start + size <= end else None

    def foretold(self, nbytes: int) -> Payload | None:
        """The payload, if these are all its bytes but for the last END_BYTES, which are the same in all. DamageError:
        they are, and it is no good.
        """
        if not Trailer.ends_so(self._memory[self.chunks.at : nbytes]):
            return None
        self.chunks.close()
        return Payload(self._memory[: nbytes + END_BYTES], foretold=True)
