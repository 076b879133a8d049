"""accept.py - the regions by which this peer tells others that it accepts a name: its door and its receipt.

The door closes when the acceptance ends; the receipt gets its bytes then, and stays for those that ask late, until
RECEIPTS_MAX newer ones have ended. Any thread.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from pccl.errors import ArgumentError, Cancelled, PcclError, Timeout, TransferError
from pccl.transfer.offers import Offers
from pccl.transfer.receipt import DOOR_GENERATION, RECEIPT_BYTES, Door, Receipt, door_key, receipt_key

__all__ = ["Acceptance", "Acceptances", "receipt_of"]

RECEIPTS_MAX = 256


class Acceptance:
    """One name that is accepted now."""

    __slots__ = ("name", "receipt", "ticket")

    def __init__(self, name: str, ticket: int) -> None:
        self.name = name
        self.ticket = ticket
        self.receipt: np.ndarray[Any, Any] = np.zeros(RECEIPT_BYTES, np.uint8)


def _ticket() -> int:
    return secrets.randbits(62) + 1


class Acceptances:
    """Those of one communicator. `ticket`: gives a number that was never given before, and that nobody guesses."""

    def __init__(self, offers: Offers, ticket: Callable[[], int] = _ticket) -> None:
        self._offers = offers
        self._ticket = ticket
        self._names: set[str] = set()
        self._receipts: deque[Acceptance] = deque()
        self._lock = threading.Lock()

    @property
    def receipts(self) -> int:
        """How many are kept of what has ended."""
        return len(self._receipts)

    def open(self, name: str, on_pusher: Callable[[bytes], None]) -> Acceptance:
        """Offers door and receipt; `on_pusher` is called, on the control thread, with each peer that begins to push.

        ArgumentError if the name is being accepted already; Closed, ResourceError.
        """
        with self._lock:
            if name in self._names:
                raise ArgumentError(f"{name!r} is being accepted already")
            self._names.add(name)
        made = Acceptance(name, self._ticket())
        door = np.frombuffer(Door(made.ticket).encode(), np.uint8)
        try:
            key = receipt_key(name)
            self._offers.offer_region(key, made.ticket, made.receipt, None, whole=False, on_asked=on_pusher)
            self._offers.offer_region(door_key(name), DOOR_GENERATION, door, None, whole=True)
        except BaseException:
            self._close(made)
            raise
        return made

    def end(self, acceptance: Acceptance, receipt: Receipt) -> None:
        """Nobody is let in any more, and who has pushed is told."""
        acceptance.receipt[:] = np.frombuffer(receipt.encode(), np.uint8)
        self._offers.quietly("extend", receipt_key(acceptance.name), acceptance.ticket, 0, RECEIPT_BYTES)
        self._close(acceptance)

    def _close(self, acceptance: Acceptance) -> None:
        self._offers.quietly("withdraw", door_key(acceptance.name), DOOR_GENERATION)
        with self._lock:
            self._names.discard(acceptance.name)
            self._receipts.append(acceptance)
            old = self._receipts.popleft() if len(self._receipts) > RECEIPTS_MAX else None
        if old is not None:
            self._offers.quietly("withdraw", receipt_key(old.name), old.ticket)


def receipt_of(generation: int, root: bytes, error: PcclError | None) -> Receipt:
    """How a fetch of what was pushed has ended."""
    if error is None:
        return Receipt(generation, root, "", "")
    if isinstance(error, TransferError):
        cause = error.cause
    else:
        cause = {Timeout: "timeout", Cancelled: "cancelled"}.get(type(error), "lost")
    return Receipt(0, bytes(len(root)), cause, error.message)
