"""post.py - the correspondences of a pool, by peer: begun by who has something to say, or by who rings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pccl.kv.mail import Correspondence, Regions, bell_key
from pccl.kv.messages import Message
from pccl.transfer.task import Driven, ScatterAsks
from pccl.types import short_id

__all__ = ["Post"]


class Post:
    """`told(peer, message)`, `lost(peer, cause, text)`: on the thread of transfers, to which all of this belongs.
    `drive`: hands it a Task; `tell`: a step, from any thread.
    """

    def __init__(
        self,
        names: tuple[str, bytes],
        asks: ScatterAsks,
        regions: Regions,
        drive: Callable[[Driven], None],
        tell: Callable[[Callable[[], Any]], None],
        clock: Callable[[], float],
    ) -> None:
        self.told: Callable[[bytes, Message], None] = lambda _peer, _message: None
        self.lost: Callable[[bytes, str, str], None] = lambda _peer, _cause, _text: None
        self._pool, self._own = names
        self._asks, self._regions = asks, regions
        self._drive, self._tell, self._clock = drive, tell, clock
        self._with: dict[bytes, Correspondence] = {}
        self._bell: Any = None
        self._closed = False

    def open(self) -> None:
        """Whoever rings is answered from now on. Any thread."""
        bell = np.zeros(1, np.uint8)
        key = bell_key(self._pool)
        self._bell = self._regions.offer_region(key, 1, bell, None, whole=False, on_asked=self._on_rung)

    def to(self, peer: bytes) -> Correspondence:
        """The correspondence with a peer, begun if there is none."""
        known = self._with.get(peer)
        if known is None:
            names = (self._pool, self._own, peer)
            known = self._with[peer] = Correspondence(
                self._asks,
                self._regions,
                names,
                self._tell,
                lambda message: self.told(peer, message),
                lambda cause, text: self._on_lost(peer, cause, text),
                self._clock(),
            )
            if self._closed:
                known.close()
            else:
                self._drive(known)
                known.open()
        return known

    def leave(self, peer: bytes) -> None:
        """Its pool was closed: what is said to it from now on is for the next of that name."""
        if peer in self._with:
            self._with[peer].lose("gone", f"peer {short_id(peer)} has closed its pool")

    def close(self) -> Any:
        """Nobody is told anything any more; gives the bell's region, which is on its way out."""
        self._closed = True
        self._regions.quietly("withdraw", bell_key(self._pool), 1)
        for one in self._with.values():
            one.close()
            self._touch(one)
        self._with.clear()
        return self._bell

    def _on_rung(self, peer: bytes) -> None:
        def step() -> Correspondence | None:
            if self._closed:
                return None
            one = self.to(peer)
            one.read()
            return one

        self._tell(step)

    def _on_lost(self, peer: bytes, cause: str, text: str) -> None:
        one = self._with.pop(peer, None)
        if one is not None:
            self._touch(one)
        self.lost(peer, cause, text)

    def _touch(self, one: Correspondence) -> None:
        """Has it looked at: it may be over."""
        self._tell(lambda: one)
