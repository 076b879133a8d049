"""target.py - where the bytes of a fetch go, and which chunks of it are wanted at all.

`Into` is the user's memory, or memory made for him. Others (pccl/sharing) want some chunks only, or put them aside.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

from pccl.errors import TransferError
from pccl.transfer.layout import Layout
from pccl.transfer.manifest import Head, Manifest, digest_of
from pccl.transfer.schedule import chunks_of

__all__ = ["Ahead", "Bytes", "Into", "Target", "split"]

Bytes = np.ndarray[Any, Any]


@dataclass(slots=True, frozen=True)
class Ahead:
    """Chunks that are wanted whatever the manifest says, each asked for once before it is here. `layout`: how the
    target is cut. `generation`: under which the data is offered.
    """

    chunks: Sequence[int]
    layout: Layout
    generation: int


class Target(Protocol):
    """What a fetch needs of its target. Called on the thread of the fetches: `ahead` once or twice, then `begin`.
    `manifest`: that of the last `begin`; a fetch of the same offer begins with it, and reads no other.
    """

    manifest: Manifest | None

    def ahead(self, head: Head | None) -> Ahead | None:
        """What to ask for at once: before anything is known of the offer, and, if that was nothing, when its head is.
        Then `place` is called for these before `begin`, and `begin` does not give them.
        """

    def begin(self, manifest: Manifest) -> Iterable[int] | None:
        """What is offered is known: gives the chunks that are not to be fetched; None if that is not known yet: it is
        called again, at the latest when the fetch is told to go on. A PcclError ends the fetch.
        """

    def place(self, first: int, count: int) -> Bytes:
        """Where consecutive chunks of one part go: flat uint8 of their size, the same memory every time."""


class Into:
    """Memory of the offer's size: flat uint8 for each of its parts, or one for all of them; None: made when it is known
    how much. `have`: bitmap of chunks that are said to be there; they are verified.
    """

    def __init__(self, memory: Sequence[Bytes] | None, have: bytes | None = None) -> None:
        self._given = memory
        self._have = have
        self.manifest: Manifest | None = None
        self.there: list[int] = []
        self.parts: list[Bytes] = []

    def ahead(self, head: Head | None) -> None:
        """See Target. Where anything goes is not known before the manifest."""

    def begin(self, manifest: Manifest) -> Iterable[int]:
        """See Target."""
        self.manifest = manifest
        try:
            self.parts = self._split(manifest)
            claimed = [] if self._have is None else chunks_of(self._have, manifest.count)
        except (ValueError, MemoryError) as error:
            raise TransferError(f"{manifest.name!r}: {error}", name=manifest.name, cause="size") from None
        self.there = [chunk for chunk in claimed if digest_of(self.place(chunk, 1)) == manifest.digest(chunk)]
        return self.there

    def place(self, first: int, count: int) -> Bytes:
        """See Target."""
        assert self.manifest is not None
        layout = self.manifest.layout
        part, offset = layout.place(first)
        return self.parts[part][offset : offset + layout.start(first + count) - layout.start(first)]

    def _split(self, manifest: Manifest) -> list[Bytes]:
        given = [np.empty(manifest.nbytes, np.uint8)] if self._given is None else list(self._given)
        self.whole = given[0] if given else np.empty(0, np.uint8)
        sizes = tuple(part.size for part in given)
        if sizes == manifest.parts:
            return given
        if len(given) == 1 and sizes[0] == manifest.nbytes:
            return split(given[0], manifest.parts)
        if len(given) == 1 and len(manifest.parts) == 1:
            raise ValueError(f"it has {manifest.nbytes} bytes, the target {sizes[0]}")
        raise ValueError(f"it has parts of {manifest.parts} bytes, the target {sizes}")


def split(memory: Bytes, sizes: Sequence[int]) -> list[Bytes]:
    """Views of consecutive parts of these sizes."""
    ends = list(accumulate(sizes))
    return [memory[end - size : end] for end, size in zip(ends, sizes, strict=True)]
