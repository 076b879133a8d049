"""surroundings.py - what a pool sees of its communicator: round trips, and when regions are gone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pccl.transfer.transfers import Transfers

__all__ = ["Surroundings"]

_LOOK_S = 1.0


class Surroundings:
    """The thread of transfers alone."""

    def __init__(self, transfers: Transfers) -> None:
        self._transfers = transfers
        self._rtts: dict[bytes, float] = {}
        self._looked_at = float("-inf")

    def rtt_s(self, peer: bytes) -> float:
        """Of the link to a peer; 0: not known."""
        now = time.monotonic()
        if now >= self._looked_at + _LOOK_S:
            self._looked_at = now
            self._rtts = self._transfers.rtts_s()
        return self._rtts.get(peer, 0.0)

    def when_gone(self, regions: list[Any], callback: Callable[[], None]) -> None:
        """Calls back, on any thread, once for each region that goes, or has gone."""
        self._transfers.offers.when_gone(regions, callback)
