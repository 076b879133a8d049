"""share.py - what a receiver serves its neighbours: the deltas that it follows, slot by slot, and the last ones.

A slot is passed on when its digest is right, copied to memory that is written to once; that a whole delta is right,
signature and all, is what the tip says that is shown here. One that is refused is withdrawn: who was reading it finds
it gone, and would have refused it as well.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from pccl.transfer.transfers import Transfers
from pccl.weights.certificate import Version
from pccl.weights.line import Outbox
from pccl.weights.neighbours import SERVED_MAX
from pccl.weights.records import Tip, tip_line
from pccl.weights.stream import StreamOut

__all__ = ["Share"]


@dataclass(slots=True)
class _Served:
    name: str
    stream: StreamOut
    whole: bool = False


class Share:
    """`put` on the thread of transfers, the rest on that of the Follow; `close` when that has ended."""

    def __init__(self, transfers: Transfers, name: str, schema: bytes, at: Version) -> None:
        self._transfers, self._schema = transfers, schema
        self._lock = threading.Lock()  # of `_served`
        self._served: deque[_Served] = deque()
        self._line = Outbox(transfers, tip_line(name), self._tip(at))

    def open(self, name: str, generation: int, slots: int) -> None:
        """A delta is asked for: it will be served as it comes."""
        self.void()
        old = None
        if len(self._served) == SERVED_MAX:
            with self._lock:
                old = self._served.popleft()
        if old is not None:
            old.stream.close()
        made = _Served(name, StreamOut(self._transfers, name, generation, slots))
        with self._lock:
            self._served.append(made)

    def put(self, name: str, index: int, slot: np.ndarray[Any, Any]) -> None:
        """A slot that is right."""
        with self._lock:
            coming = self._served[-1] if self._served else None
            if coming is not None and coming.name == name and not coming.whole:
                coming.stream.put(index, slot)

    def whole(self, name: str, at: Version) -> None:
        """This side is at `at` now, verified; if that came by the delta that is served, all of it is right."""
        with self._lock:
            if self._served and self._served[-1].name == name:
                self._served[-1].whole = True
        self._line.post(self._tip(at))

    def void(self) -> None:
        """What is coming will not be completed."""
        with self._lock:
            coming = self._served.pop() if self._served and not self._served[-1].whole else None
        if coming is not None:
            coming.stream.close()

    def close(self) -> None:
        """Nothing is served any more, and no memory of it read."""
        self._line.close()
        with self._lock:
            served, self._served = list(self._served), deque()
        for one in served:
            one.stream.close()

    def _tip(self, at: Version) -> bytes:
        return Tip(at.version, at.lineage, b"", self._schema, 0, (0, 0)).encode()
