"""staging.py - how much memory the sends of a pool may convert into at a time, and who waits for it. Pure.

What a send takes it has until it is over: whoever does not fit waits, in the order of arrival, and is over when its
time is.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from pccl.errors import ArgumentError

__all__ = ["STAGING_BYTES", "Staging", "give_up_at"]

STAGING_BYTES = 1 << 30
#: Before the receiver's deadline, so that it hears why nothing came.
WORD_S = 0.5
WORD_SHARE = 0.2


def give_up_at(since: float, deadline_at: float) -> float:
    """Until when a send that began then may wait for room."""
    return deadline_at - min(WORD_S, WORD_SHARE * (deadline_at - since))


@dataclass(slots=True, frozen=True)
class _Waiting:
    nbytes: int
    until: float


class Staging:
    """`most_bytes`: that all sends hold together."""

    def __init__(self, most_bytes: int = STAGING_BYTES) -> None:
        if not isinstance(most_bytes, int) or most_bytes < 0:
            raise ArgumentError(f"staging_bytes_max must be a number of bytes, not {most_bytes!r}")
        self.most_bytes = most_bytes
        self._held: dict[bytes, int] = {}
        self._waiting: OrderedDict[bytes, _Waiting] = OrderedDict()

    @property
    def held_bytes(self) -> int:
        """By all."""
        return sum(self._held.values())

    def check(self, nbytes: int) -> None:
        """ArgumentError: a send that takes so much would wait for ever."""
        if nbytes > self.most_bytes:
            raise ArgumentError(f"{nbytes} bytes must be converted into, staging_bytes_max is {self.most_bytes}")

    def take(self, transfer: bytes, nbytes: int, until: float) -> bool:
        """Whether it has the memory now; else it waits until then."""
        if not nbytes:
            return True
        if not self._waiting and self.held_bytes + nbytes <= self.most_bytes:
            self._held[transfer] = nbytes
            return True
        self._waiting[transfer] = _Waiting(nbytes, until)
        return False

    def waits(self, transfer: bytes) -> bool:
        """Whether it has no memory yet."""
        return transfer in self._waiting

    def give_up(self, transfer: bytes) -> None:
        """It waits no more. Idempotent."""
        self._waiting.pop(transfer, None)

    def leave(self, transfer: bytes) -> None:
        """It is over: its memory is free. Idempotent."""
        self._held.pop(transfer, None)
        self.give_up(transfer)

    def admitted(self) -> list[bytes]:
        """Those that have waited, and have their memory now."""
        found = []
        while self._waiting:
            transfer, first = next(iter(self._waiting.items()))
            if self.held_bytes + first.nbytes > self.most_bytes:
                break
            del self._waiting[transfer]
            self._held[transfer] = first.nbytes
            found.append(transfer)
        return found

    def expired(self, now: float) -> list[bytes]:
        """Those that have waited for too long."""
        return [transfer for transfer, one in self._waiting.items() if now >= one.until]

    def deadline(self) -> float:
        """When the next of them has."""
        return min((one.until for one in self._waiting.values()), default=float("inf"))
