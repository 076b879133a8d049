"""surroundings.py - what a pool sees of its communicator: links, and when regions are gone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pccl.transfer.transfers import Transfers

__all__ = ["Surroundings"]

_LOOK_S = 1.0


class Surroundings:
    """Any thread: what is known is replaced as a whole."""

    def __init__(self, transfers: Transfers) -> None:
        self._transfers = transfers
        self._links: dict[bytes, tuple[float, float]] = {}
        self._looked_at = float("-inf")

    def rtt_s(self, peer: bytes) -> float:
        """Of the link to a peer; 0: not known."""
        return self._link(peer)[0]

    def sends_bytes_per_s(self, peer: bytes) -> float:
        """What the link to a peer carried of anything that this one sent; 0: not known."""
        return self._link(peer)[1]

    def _link(self, peer: bytes) -> tuple[float, float]:
        now = time.monotonic()
        if now >= self._looked_at + _LOOK_S:
            self._looked_at = now
            self._links = self._transfers.links()
        return self._links.get(peer, (0.0, 0.0))

    def when_gone(self, regions: list[Any], callback: Callable[[], None]) -> None:
        """Calls back, on any thread, once for each region that goes, or has gone."""
        self._transfers.offers.when_gone(regions, callback)
