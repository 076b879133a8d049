"""weights_reads.py - transfers without an engine, for streams of weights: reads are answered when a test says so."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from pccl.types import Status
from pccl.weights.layout import place, slots_for
from pccl.weights.stream import StreamOut

INDEX = {place(index)[0]: index for index in range(200)}


class Offered:
    """Transfers that offer a region and keep in mind what of it is there: (first byte, bytes)."""

    def __init__(self) -> None:
        self.offers = self
        self.extended: list[tuple[int, int]] = []

    def offer_region(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(gone=SimpleNamespace(wait=lambda _: True))

    def quietly(self, command: str, key: bytes, generation: int, *span: int) -> None:
        if command == "extend":
            self.extended.append((span[0], span[1]))


class Asked:
    """One read that waits for its answer."""

    def __init__(self, peer: bytes, index: int, memory: Any, done: Callable[[Status], None]) -> None:
        self.peer, self.index, self.memory, self.done = peer, index, memory, done

    def answer(self, slot: Any) -> None:
        self.memory[:] = slot
        self.done(Status.OK)


class Reads:
    """`waiting`: what was asked and is not answered. Cancelled reads end at once."""

    def __init__(self) -> None:
        self.waiting: list[Asked] = []
        self._cancelled: list[Asked] = []

    def read(self, peer: bytes, key: bytes, generation: int, offset: int, memory: Any, done: Any, **_: Any) -> Asked:
        asked = Asked(peer, INDEX[offset], memory, done)
        self.waiting.append(asked)
        return asked

    def cancel_read(self, asked: Asked) -> None:
        if asked in self.waiting:
            self.waiting.remove(asked)
            self._cancelled.append(asked)

    def settle(self) -> None:
        """What was cancelled is told."""
        while self._cancelled:
            self._cancelled.pop(0).done(Status.ECANCELLED)

    def take(self, peer: bytes | None = None, index: int | None = None) -> Asked:
        """The first that waits, of this peer and slot."""
        self.settle()
        asked = next(a for a in self.waiting if peer in (None, a.peer) and index in (None, a.index))
        self.waiting.remove(asked)
        return asked

    def asked(self) -> set[tuple[bytes, int]]:
        """(peer, slot) of all that wait."""
        self.settle()
        return {(one.peer, one.index) for one in self.waiting}


def slots_of(*data: bytes) -> dict[int, Any]:
    """What a source would serve of a payload that was written in these pieces, by number."""
    out = StreamOut(Offered(), "s", 1, slots_for(sum(map(len, data))))  # type: ignore[arg-type]
    for piece in data:
        out.write(piece)
    out.conclude()
    out.finish()
    memory = np.asarray(out._memory)
    return {INDEX[at]: memory[at : at + nbytes].copy() for at, nbytes in out._offers.extended}  # type: ignore[attr-defined]
