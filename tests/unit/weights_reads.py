"""weights_reads.py - transfers without an engine, for streams of weights: reads are answered when a test says so."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from pccl.types import Status
from pccl.weights.stream import BODY_BYTES, SLOT_BYTES, StreamOut


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
        asked = Asked(peer, offset // SLOT_BYTES, memory, done)
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


def slots_of(data: bytes) -> list[Any]:
    """What a source would serve of a payload."""
    region = SimpleNamespace(gone=SimpleNamespace(wait=lambda _: True))
    offers = SimpleNamespace(offer_region=lambda *_, **__: region, quietly=lambda *_: None)
    count = max(1, -(-len(data) // BODY_BYTES))
    out = StreamOut(SimpleNamespace(offers=offers), "s", 1, count)
    out.write(data)
    if len(data) % BODY_BYTES or not data:
        out.finish()
    else:
        raise AssertionError("a payload that ends with its slot has one more")
    memory = np.asarray(out._memory)
    return [memory[i * SLOT_BYTES : (i + 1) * SLOT_BYTES].copy() for i in range(count)]
