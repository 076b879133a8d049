"""depot.py - what a peer keeps ready of its state for others, and how it gets theirs: over `comm.transfers`.

What was synchronised last stays on offer, for joiners that fetch it while this peer goes on. Nothing is copied: the
offer is the entries' own memory, which is written to meanwhile. Frames are copied as they are sent, so that no
connection suffers, and a chunk that has changed is recognised by its digest. Regions stay as long as the memory does;
a new content replaces head and manifest only.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from pccl.sharing.content import DATA_GENERATION
from pccl.transfer import Transfers
from pccl.transfer.fetch import Progress
from pccl.transfer.job import TransferReport
from pccl.transfer.manifest import HEAD_GENERATION, Head, Manifest, data_key, head_key, manifest_key
from pccl.transfer.target import Bytes, Target
from pccl.transfer.transfers import Wish

__all__ = ["Depot", "Pull", "Stock"]

_NAMES_MAX = 16  # further ones take the place of the oldest


class Pull(Protocol):
    """A fetch under way."""

    @property
    def report(self) -> TransferReport:
        """What has happened so far."""

    def wait(self, timeout: float | None = None) -> Any:
        """Its end; raises what went wrong."""

    def progress(self) -> Progress:
        """How far it is."""

    def go_on(self) -> None:
        """Its target, which was not ready to begin, is."""

    def have(self) -> bytes:
        """Bitmap of the chunks that are there, verified."""

    def cancel(self) -> bool:
        """Ends it; then nothing is written to its target any more."""


class Stock(Protocol):
    """What sync_state needs of a depot."""

    generation: int
    mixed: set[str]

    def show(self, manifest: Manifest, parts: Sequence[Bytes], holds: Sequence[Any]) -> None:
        """Offers these parts to all, in place of what was offered under the name."""

    def hide(self, name: str) -> None:
        """Offers nothing under the name any more."""

    def pull(self, name: str, target: Target, sources: Sequence[bytes], wish: Wish, seconds: float) -> Pull:
        """Fetches from several at once."""


class _Shown:
    """One name: what is said of it, and the memory of each part."""

    def __init__(self) -> None:
        self.manifest: Manifest | None = None
        self.memory: dict[int, tuple[int, int]] = {}  # part -> (address, bytes)


class Depot:
    """That of a communicator. `generation`: the newest that was offered. `mixed`: names whose entries here are what a
    prefetch has left: until a sync_state they may be a mixture of contents, and are nobody's to receive.
    """

    def __init__(self, transfers: Transfers) -> None:
        self.generation = 0
        self.mixed: set[str] = set()
        self._transfers = transfers
        self._shown: OrderedDict[str, _Shown] = OrderedDict()
        self._lock = threading.Lock()

    def show(self, manifest: Manifest, parts: Sequence[Bytes], holds: Sequence[Any]) -> None:
        """See Stock. Does not block: the engine takes the commands in their order."""
        with self._lock:
            name = manifest.name
            shown = self._shown.setdefault(name, _Shown())
            self._shown.move_to_end(name)
            memory = {i: (part.ctypes.data, part.size) for i, part in enumerate(parts) if part.size}
            self.generation = max(self.generation, manifest.generation)
            self._unsay(shown)
            self._place(shown, name, memory, parts, holds)
            self._say(shown, manifest)
            while len(self._shown) > _NAMES_MAX:
                self._withdraw(*self._shown.popitem(last=False))

    def hide(self, name: str) -> None:
        """See Stock."""
        with self._lock:
            if name in self._shown:
                self._withdraw(name, self._shown.pop(name))

    def pull(self, name: str, target: Target, sources: Sequence[bytes], wish: Wish, seconds: float) -> Pull:
        """See Stock."""
        return self._transfers.begin(name, target, sources, wish, seconds)

    def _place(
        self, shown: _Shown, name: str, memory: dict[int, tuple[int, int]], parts: Sequence[Bytes], holds: Sequence[Any]
    ) -> None:
        """Regions for memory that is new, none for memory that is gone."""
        offers = self._transfers.offers
        for part in [part for part, where in shown.memory.items() if memory.get(part) != where]:
            offers.quietly("withdraw", data_key(name, part), DATA_GENERATION)
            del shown.memory[part]
        for part in memory.keys() - shown.memory.keys():
            hold = holds[part] if part < len(holds) else None
            offers.offer_region(data_key(name, part), DATA_GENERATION, parts[part], hold, True, changes=True)
            shown.memory[part] = memory[part]

    def _say(self, shown: _Shown, manifest: Manifest) -> None:
        """The head last, so that who has read it finds the rest."""
        offers, name = self._transfers.offers, manifest.name
        encoded = manifest.encode()
        head = np.frombuffer(Head.of(manifest, encoded).encode(), np.uint8)
        shown.manifest = manifest
        offers.offer_region(manifest_key(name), manifest.generation, np.frombuffer(encoded, np.uint8), None, True)
        offers.offer_region(head_key(name), HEAD_GENERATION, head, None, True)

    def _unsay(self, shown: _Shown) -> None:
        offers, manifest = self._transfers.offers, shown.manifest
        if manifest is not None:
            offers.quietly("withdraw", head_key(manifest.name), HEAD_GENERATION)
            offers.quietly("withdraw", manifest_key(manifest.name), manifest.generation)
            shown.manifest = None

    def _withdraw(self, name: str, shown: _Shown) -> None:
        self._unsay(shown)
        for part in shown.memory:
            self._transfers.offers.quietly("withdraw", data_key(name, part), DATA_GENERATION)
