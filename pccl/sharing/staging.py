"""staging.py - where what is fetched of a share goes: aside, until all peers have everything; or right into place.

Both are targets of a fetch (pccl/transfer/target.py): they want the chunks whose digests are not those held here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pccl.errors import TransferError
from pccl.sharing import scalars
from pccl.sharing.content import DATA_GENERATION, Share
from pccl.transfer.layout import Layout
from pccl.transfer.manifest import DIGEST_BYTES, Head, Manifest
from pccl.transfer.schedule import chunks_of
from pccl.transfer.target import Ahead, Bytes

__all__ = ["InPlace", "Staging", "differing"]

#: Of a content so many bytes, but only a small part of it, may be fetched although they are here.
AHEAD_BYTES_MAX = 8 << 20
AHEAD_PART = 64
#: So many chunks, or somewhat more, say whether a joiner holds some of a content already.
READ_FIRST = 256
#: Scalars of so many bytes are asked for with the manifest, whether they differ or not.
SCALARS_AHEAD_MAX = 256 << 10


def differing(share: Share, manifest: Manifest) -> list[int]:
    """The chunks of the share's tensors that are not as the manifest says. TransferError if it is of something else."""
    if not share.fits(manifest):
        text = f"{manifest.name!r} has parts of {manifest.parts[:-1]} bytes, here they have {share.layout.parts}"
        raise TransferError(text, name=manifest.name, cause="size")
    count = share.layout.count
    theirs = np.frombuffer(manifest.digests, np.uint8).reshape(-1, DIGEST_BYTES)[:count]
    ours = np.frombuffer(share.digests, np.uint8).reshape(-1, DIGEST_BYTES)[:count]
    return [int(chunk) for chunk in np.flatnonzero((theirs != ours).any(axis=1))]


class Staging:
    """Memory for what differs. What has been verified is kept when a fetch fails, and not fetched by the next."""

    def __init__(self, share: Share) -> None:
        self.share = share
        self.manifest: Manifest | None = None
        self.is_ready = True  # digests of the share are known
        self.wrong: list[int] = []  # chunks of tensors that differ here
        self.read_only = False  # one of them cannot be written to
        self._done: set[int] = set()
        self._at: dict[int, int] = {}  # chunk -> its first byte in the memory
        self._memory: Bytes = np.empty(0, np.uint8)
        self._scalars: Bytes = np.empty(0, np.uint8)  # asked for before the manifest was here,
        self._ahead = range(0)  # and their chunks

    def ahead(self, head: Head | None) -> Ahead | None:
        """See Target. Of the tensors only what differs is wanted; the scalars are few, and come with the manifest."""
        if head is None:
            return None
        ours = self.share.layout
        nbytes = head.nbytes - ours.nbytes
        fits = head.chunk_bytes == ours.chunk_bytes and 0 < nbytes <= SCALARS_AHEAD_MAX
        if self.manifest is not None or not self.share.names or not fits:
            return None
        layout = Layout(ours.chunk_bytes, (*ours.parts, nbytes))
        self._scalars, self._ahead = np.empty(nbytes, np.uint8), layout.chunks(len(ours.parts))
        return Ahead(self._ahead, layout, DATA_GENERATION)

    def begin(self, manifest: Manifest) -> Iterable[int] | None:
        """See Target."""
        if not self.is_ready:
            return None
        if self.manifest is None or self.manifest.root != manifest.root or not self.covers:
            self._prepare(manifest)
        self.manifest = manifest
        return [chunk for chunk in range(manifest.count) if chunk not in self._at or chunk in self._done]

    def place(self, first: int, count: int) -> Bytes:
        """See Target."""
        if first in self._ahead:
            at = (first - self._ahead.start) * self.share.layout.chunk_bytes
            return self._scalars[at : at + count * self.share.layout.chunk_bytes]
        assert self.manifest is not None
        layout, at = self.manifest.layout, self._at[first]
        return self._memory[at : at + layout.start(first + count) - layout.start(first)]

    def keep(self, have: bytes) -> None:
        """A fetch has ended, with these chunks in their places."""
        if self.manifest is not None and have:
            self._done.update(chunk for chunk in chunks_of(have, self.manifest.count) if chunk in self._at)

    @property
    def complete(self) -> bool:
        """Whether everything is there that was wanted, and nothing else differs by now."""
        return self.manifest is not None and len(self._done) == len(self._at) and self.covers

    @property
    def covers(self) -> bool:
        """Whether all chunks that differ are wanted, if that was decided: by now it may be more, see InPlace.expect."""
        return self.manifest is None or all(chunk in self._at for chunk in differing(self.share, self.manifest))

    def pieces(self) -> Iterator[tuple[int, Bytes]]:
        """What was wanted of the tensors: (chunk, bytes)."""
        return ((chunk, self.place(chunk, 1)) for chunk in self.wrong)

    def packed(self) -> bytes:
        """The scalars."""
        assert self.manifest is not None
        chunks = self.manifest.layout.chunks(len(self.manifest.parts) - 1)
        if chunks.start not in self._at:
            return self.share.blob.tobytes()
        return self.place(chunks.start, len(chunks)).tobytes()

    def wrong_scalars(self) -> list[int]:
        """Which of the scalars differ here, as far as they have come."""
        if not self.complete or not self.share.names:
            return []
        theirs = scalars.unpack(self.packed(), len(self.share.names))
        return [i for i, (a, b) in enumerate(zip(theirs, self.share.values(), strict=True)) if a != b]

    def _prepare(self, manifest: Manifest) -> None:
        share, layout = self.share, manifest.layout
        self.wrong = differing(share, manifest)
        if self.manifest is not None:  # what was asked for ahead was of that
            self._ahead = range(0)
        tensors = {layout.part_of(chunk) for chunk in self.wrong}
        self.read_only = not all(share.tensors[part].writable for part in tensors)
        last = len(manifest.parts) - 1
        here = share.digests[share.layout.count * DIGEST_BYTES :]
        there = manifest.digests[layout.firsts[last] * DIGEST_BYTES :]
        wanted = [*self.wrong, *(layout.chunks(last) if here != there or self._ahead else ())]
        self._at, self._done, end = {}, set(), 0
        for chunk in wanted:
            self._at[chunk] = end
            end += layout.start(chunk + 1) - layout.start(chunk)
        self._memory = np.empty(end, np.uint8)


class InPlace:
    """The tensors themselves: what is there may be written over, and nobody minds a mixture. Scalars are left out.
    `read_s`: how long it takes to read everything, by what has been read.
    """

    def __init__(self, share: Share) -> None:
        self.share = share
        self.read_s = 0.0
        self._ahead: Sequence[int] = ()
        self.manifest: Manifest | None = None
        self.wanted: list[int] = []
        self.is_new = True  # what the last fetch was of

    def ahead(self, head: Head | None) -> Ahead | None:
        """See Target. The first time a little, which fills the links while head and manifest are on their way: the name
        says how everything is cut.
        """
        layout = self.share.layout
        if self.manifest is not None or head is not None or not all(t.writable for t in self.share.tensors):
            return None
        self._ahead = range(min(layout.count // AHEAD_PART, AHEAD_BYTES_MAX // layout.chunk_bytes))
        return Ahead(self._ahead, layout, DATA_GENERATION)

    def begin(self, manifest: Manifest) -> Iterable[int]:
        """See Target. The generation that was seen last is not looked at again: it cannot give more."""
        if self.manifest is None:
            self._look(manifest)
        self.is_new = self.manifest is None or manifest.generation > self.manifest.generation
        self.wanted = sorted({*differing(self.share, manifest), *self._ahead}) if self.is_new else []
        self._ahead = ()
        if not all(self.share.tensors[part].writable for part in {manifest.layout.part_of(c) for c in self.wanted}):
            raise TransferError(f"{manifest.name!r}: entries are read-only", name=manifest.name, cause="memory")
        self.manifest = manifest
        wanted = set(self.wanted)
        return [chunk for chunk in range(manifest.count) if chunk not in wanted]

    def place(self, first: int, count: int) -> Bytes:
        """See Target."""
        layout = self.share.layout
        part, offset = layout.place(first)
        return self.share.tensors[part].data[offset : offset + layout.start(first + count) - layout.start(first)]

    def _look(self, manifest: Manifest) -> None:
        """Takes the digests of what is here: of a part, and of everything only if some of that is as it should be. Most
        joiners hold nothing yet, and need not read it to know that.
        """
        share, count = self.share, self.share.layout.count
        share.forget()
        if not share.fits(manifest):
            return
        part = range(len(self._ahead), count, max(1, count // READ_FIRST))  # what was asked for may be here already
        begun = time.monotonic()
        share.read_some(part)
        self.read_s = (time.monotonic() - begun) * count / max(1, len(part))
        if part.step > 1 and any(share.digest(chunk) == manifest.digest(chunk) for chunk in part):
            share.read()

    def expect(self, changed: Iterable[int]) -> None:
        """A fetch is under way: the share has the digests that it will have in the end if these chunks only are not
        what they should be.
        """
        self._take(set(self.wanted) - set(changed))

    def keep(self, have: bytes) -> list[int]:
        """A fetch has ended, with these chunks in their places; gives those that were wanted and are not."""
        assert self.manifest is not None
        there = set(chunks_of(have, self.manifest.count)) if have else set()
        self._take(there)
        return [chunk for chunk in self.wanted if chunk not in there]

    def _take(self, there: set[int]) -> None:
        """The digests of what was wanted: of these chunks those that they should have, of the others none."""
        assert self.manifest is not None
        digests = bytearray(self.share.digests)
        for chunk in self.wanted:
            at = slice(chunk * DIGEST_BYTES, (chunk + 1) * DIGEST_BYTES)
            digests[at] = self.manifest.digest(chunk) if chunk in there else bytes(DIGEST_BYTES)
        self.share.digests = bytes(digests)
