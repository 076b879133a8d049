"""content.py - what a peer holds: its entries as bytes, in the order of their names, and the digests of their chunks.

A content is two shares: what must be equal everywhere, and what may drift. A share is a list of parts: the memory of
each tensor, and at the end all scalars as one. Digests make a tree: chunks, parts, the root. A tensor of a device is
read for its digests where it is; what is sent or received of it lies in a copy in host memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from pccl import buffers
from pccl.errors import ArgumentError
from pccl.sharing import scalars
from pccl.sharing.chunks import digests_of, layout_of
from pccl.transfer.layout import Layout
from pccl.transfer.manifest import DIGEST_BYTES, Manifest, digest_of
from pccl.transfer.target import Bytes

if TYPE_CHECKING:
    from pccl.device.contents import Contents
    from pccl.device.pipeline import Stager

__all__ = ["DATA_GENERATION", "Content", "Share", "Tensor"]

#: Of the data of every offer: the memory stays, what is in it changes.
DATA_GENERATION = 1


@dataclass(slots=True)
class Tensor:
    """One entry with memory. `away`: its bytes on a device."""

    name: str
    value: Any
    label: str  # dtype and shape
    memory: Bytes | None
    owner: Any
    writable: bool
    is_view: bool
    away: Contents | None = None

    @property
    def data(self) -> Bytes:
        """Its bytes in host memory; a copy of them if it is not contiguous, and, made when it is first asked for, if it
        is on a device.
        """
        if self.memory is None:
            assert self.away is not None
            self.memory = self.away.read()
        return self.memory

    @property
    def nbytes(self) -> int:
        """How many they are."""
        return int(self.memory.size) if self.away is None else self.away.nbytes  # type: ignore[union-attr]

    def digests(self, chunk_bytes: int) -> bytes:
        """Of its chunks."""
        if self.memory is None and self.away is not None:
            return self.away.digests(chunk_bytes)
        return digests_of([self.data], chunk_bytes)


class Share:
    """Some of the entries of this peer. `digests` are those of the last `read`."""

    def __init__(self, tensors: Sequence[Tensor], names: Sequence[str], encoded: Sequence[bytes]) -> None:
        self.tensors = list(tensors)
        self.names = list(names)  # of the scalars
        #: How the tensors are cut: the same on every peer. Scalars come behind.
        self.layout: Layout = layout_of([tensor.nbytes for tensor in self.tensors])
        self.set_scalars(scalars.pack(encoded))
        self.digests = b""

    @property
    def parts(self) -> list[Bytes]:
        """The memory of each part, that of the scalars last."""
        return [*(tensor.data for tensor in self.tensors), self.blob]

    def set_scalars(self, packed: bytes) -> None:
        """These instead of those before."""
        self.blob: Bytes = np.frombuffer(packed, np.uint8)

    @property
    def is_away(self) -> bool:
        """Whether some of it is on a device."""
        return any(tensor.away is not None for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Of all parts."""
        return sum(self.layout.parts) + self.blob.size

    def read(self) -> None:
        """Takes the digests of everything."""
        size = self.layout.chunk_bytes
        if self.is_away:
            self.digests = b"".join([*(t.digests(size) for t in self.tensors), digests_of([self.blob], size)])
        else:
            self.digests = digests_of(self.parts, size)

    def forget(self) -> None:
        """No digests but those of the scalars: all zeros, which no digest is."""
        self.digests = bytes(self.layout.count * DIGEST_BYTES) + digests_of([self.blob], self.layout.chunk_bytes)

    def read_some(self, chunks: Iterable[int]) -> None:
        """Takes the digests of some chunks of tensors."""
        digests = bytearray(self.digests)
        for chunk in chunks:
            part, offset = self.layout.place(chunk)
            data = self.tensors[part].data[offset : offset + self.layout.chunk_bytes]
            digests[chunk * DIGEST_BYTES : (chunk + 1) * DIGEST_BYTES] = digest_of(data)
        self.digests = bytes(digests)

    def digest(self, chunk: int) -> bytes:
        """Of one chunk."""
        return self.digests[chunk * DIGEST_BYTES : (chunk + 1) * DIGEST_BYTES]

    def manifest(self, name: str, generation: int) -> Manifest:
        """As an offer."""
        sizes = (*self.layout.parts, self.blob.size)
        return Manifest(name, generation, sum(sizes), self.layout.chunk_bytes, self.digests, sizes, DATA_GENERATION)

    def fits(self, manifest: Manifest) -> bool:
        """Whether it is of tensors of these sizes, cut in the same way."""
        return manifest.parts[:-1] == self.layout.parts and manifest.chunk_bytes == self.layout.chunk_bytes

    def values(self) -> list[bytes]:
        """The scalars, encoded."""
        return scalars.unpack(self.blob, len(self.names))


class Content:
    """The entries of one call, and the dict that they are in."""

    def __init__(
        self,
        entries: dict[str, Any],
        drift: frozenset[str],
        read_only: bool,
        stager: Callable[[], Stager] | None = None,
    ) -> None:
        """`stager`: through which entries on devices go; without it they are refused. Raises TypeError and
        ArgumentError, which name the entry.
        """
        for name in entries:
            if not isinstance(name, str):
                raise TypeError(f"sync_state: keys must be str, got {name!r}")
        if unknown := drift - entries.keys():
            raise ArgumentError(f"sync_state: allow_drift names {sorted(unknown)}, which are no entries")
        self.target = entries
        labels: dict[str, str] = {}
        shares = []
        for names in (sorted(entries.keys() - drift), sorted(drift)):
            plain = [name for name in names if not buffers.is_tensor(entries[name])]
            tensors = [
                _tensor(name, entries[name], read_only, stager) for name in names if buffers.is_tensor(entries[name])
            ]
            shares.append(Share(tensors, plain, [scalars.encode(entries[name], _what(name)) for name in plain]))
            labels |= dict.fromkeys(plain, "scalar") | {tensor.name: tensor.label for tensor in tensors}
        #: What must be equal, and what may drift.
        self.fixed, self.loose = shares
        schema = {name: labels[name] + (" (may drift)" if name in drift else "") for name in sorted(labels)}
        self.schema = json.dumps(schema).encode()
        self.schema_digest: bytes = xxhash.xxh3_128_digest(self.schema)

    @property
    def shares(self) -> tuple[Share, ...]:
        """Those that have something in them."""
        return (self.fixed, self.loose) if self.loose.tensors or self.loose.names else (self.fixed,)

    def name(self, share: Share) -> str:
        """Under which a share is offered: the same on all peers whose entries are alike."""
        return f"pccl.state/{self.schema_digest.hex()}" + ("/loose" if share is self.loose else "")

    def write(self, share: Share, manifest: Manifest, pieces: Iterable[tuple[int, Bytes]], packed: bytes) -> None:
        """Overwrites chunks of a share with what was received and verified, and its scalars."""
        touched: dict[int, list[tuple[int, Bytes]]] = {}
        for chunk, data in pieces:
            part, offset = manifest.layout.place(chunk)
            touched.setdefault(part, []).append((offset, data))
        for part, placed in touched.items():
            self._place(share.tensors[part], placed)
        share.set_scalars(packed)
        for name, encoded in zip(share.names, share.values(), strict=True):
            if encoded != scalars.encode(self.target[name], _what(name)):
                self.target[name] = scalars.decode(encoded)
        share.digests = manifest.digests

    def _place(self, tensor: Tensor, pieces: Sequence[tuple[int, Bytes]]) -> None:
        if tensor.away is not None:
            tensor.away.write(pieces)
            tensor.memory = None
            return
        for offset, data in pieces:
            tensor.data[offset : offset + data.size] = data
        self.finish(tensor)

    def finish(self, tensor: Tensor) -> None:
        """What was written to `data` becomes that of the tensor."""
        if tensor.away is not None:
            tensor.away.write([(0, tensor.data)])
        elif tensor.is_view:
            buffers.was_written(tensor.value)
        else:
            buffers.write_bytes(tensor.value, tensor.data)


def _what(name: str) -> str:
    return f"sync_state entry {name!r}"


def _tensor(name: str, value: Any, read_only: bool, stager: Callable[[], Stager] | None) -> Tensor:
    what = _what(name)
    if stager is not None and buffers.is_away(value):
        from pccl.device.contents import Contents

        contents = Contents(value, stager(), not read_only, what)
        return Tensor(name, value, _label(value, value.shape), None, None, not read_only, False, contents)
    writable = True
    try:
        data, shape, owner = buffers.byte_view(value, writable=True, what=what)
    except ArgumentError:
        if not read_only:
            raise
        data, shape, owner = buffers.byte_view(value, writable=False, what=what)
        writable = False
    return Tensor(name, value, _label(value, shape), data, owner, writable, buffers.shares_memory(value, owner))


def _label(value: Any, shape: Sequence[int]) -> str:
    return f"{buffers.describe_dtype(value)}{list(shape)}"
