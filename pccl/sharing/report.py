"""report.py - what a sync_state found and did: SyncReport, and where the peers differed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pccl.sharing.content import Share
from pccl.transfer.target import Bytes
from pccl.types import short_id

__all__ = ["Difference", "SyncReport", "differences_of", "flags_of"]

_NAMED_RANGES = 4


@dataclass(slots=True, frozen=True)
class Difference:
    """One entry of one peer that was not what was chosen. `chunks`: which of the entry's chunks, of `chunk_bytes` each;
    () for a scalar. `nbytes`: of the entry; 0 for a scalar.
    """

    peer: bytes
    entry: str
    chunks: tuple[int, ...]
    chunk_bytes: int
    nbytes: int

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """The (first byte, byte behind the last) that the chunks cover, neighbours as one."""
        found: list[tuple[int, int]] = []
        for chunk in self.chunks:
            first, end = chunk * self.chunk_bytes, min((chunk + 1) * self.chunk_bytes, self.nbytes)
            if found and found[-1][1] == first:
                found[-1] = (found[-1][0], end)
            else:
                found.append((first, end))
        return tuple(found)

    def __str__(self) -> str:
        if not self.chunks:
            return f"{self.entry!r} at peer {short_id(self.peer)}: the scalar differs"
        ranges = self.ranges
        named = ", ".join(f"{first}-{end - 1}" for first, end in ranges[:_NAMED_RANGES])
        more = f" and {len(ranges) - _NAMED_RANGES} more ranges" if len(ranges) > _NAMED_RANGES else ""
        of = -(-self.nbytes // self.chunk_bytes)
        return f"{self.entry!r} at peer {short_id(self.peer)}: {len(self.chunks)} of {of} chunks, bytes {named}{more}"


@dataclass(slots=True, frozen=True)
class SyncReport:
    """What a sync_state did, as seen by this peer.

    `received_bytes`, `sent_bytes`: content moved by this peer, lost rounds included. `entries_received`: names of the
    entries that were overwritten here, at least in part. `source`: id of the lowest-ranked peer whose content was
    chosen; None if all were equal. `digest`: of the content all peers hold now (entries in `allow_drift` left out), in
    hex. `rounds`: 1 unless peers were lost on the way. `differences`: what was not as chosen, on all peers, and was
    repaired; the same on every peer. `str(report)` says it in words.
    """

    received_bytes: int
    sent_bytes: int
    entries_received: tuple[str, ...]
    source: bytes | None
    digest: str
    rounds: int
    differences: tuple[Difference, ...] = ()

    def __str__(self) -> str:
        if self.source is None:
            return f"all peers held {self.digest[:12]}"
        lines = [f"the content {self.digest[:12]} of peer {short_id(self.source)} was chosen, and this repaired:"]
        return "\n".join([*lines, *(f"  {difference}" for difference in self.differences)])


def flags_of(share: Share, chunks: Iterable[int], scalars: Iterable[int]) -> Bytes:
    """One byte for each chunk of the tensors and for each scalar of a share: 1 if it differs."""
    flags = np.zeros(share.layout.count + len(share.names), np.uint8)
    flags[list(chunks)] = 1
    flags[[share.layout.count + scalar for scalar in scalars]] = 1
    return flags


def differences_of(peer: bytes, shares: Sequence[Share], flags: Bytes) -> list[Difference]:
    """What a peer's flags, of all shares one behind the other, say."""
    found = []
    for share in shares:
        layout = share.layout
        own, flags = flags[: layout.count + len(share.names)], flags[layout.count + len(share.names) :]
        wrong = np.flatnonzero(own)
        for part, tensor in enumerate(share.tensors):
            chunks = layout.chunks(part)
            inside = wrong[(wrong >= chunks.start) & (wrong < chunks.stop)] - chunks.start
            if inside.size:
                numbers = tuple(int(chunk) for chunk in inside)
                found.append(Difference(peer, tensor.name, numbers, layout.chunk_bytes, tensor.nbytes))
        found += [
            Difference(peer, share.names[i - layout.count], (), 0, 0) for i in map(int, wrong) if i >= layout.count
        ]
    return found
