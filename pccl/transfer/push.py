"""push.py - one push: the door of the peer that is to take it, its receipt, and the end.

The bytes are offered when this begins, and the other peer fetches them: nothing is ever written to memory that was not
prepared for it. Asking for the receipt is what tells that peer; the receipt comes when it has ended, well or not. Like
job.py: no thread, no clock, no network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pccl import _native
from pccl.errors import Cancelled, Closed, PcclError, PeerLost, ProtocolError, Timeout, TransferError
from pccl.transfer.fenced import Fenced
from pccl.transfer.manifest import Manifest
from pccl.transfer.offers import FENCE_S
from pccl.transfer.receipt import (
    DOOR_BYTES,
    DOOR_GENERATION,
    RECEIPT_BYTES,
    Door,
    Receipt,
    door_key,
    receipt_key,
)
from pccl.transfer.task import Asks
from pccl.types import Status, short_id
from pccl.work import Owner

__all__ = ["Push", "PushJob", "PushResult"]

AGAIN_S = 0.005
AGAIN_MAX_S = 0.25
_PRIORITY = 1  # pccl_priority HIGH: a few bytes


class Lent(Protocol):
    """The offer of what is pushed."""

    manifest: Manifest

    def withdraw_soon(self, then: Callable[[], None]) -> None:
        """Ends it; `then`, on any thread, when its memory is not read any more."""


@dataclass(slots=True, frozen=True)
class PushResult:
    """What was taken. `digest`: of the whole, as `Offer.digest`. `duration_s`: from the call to the receipt."""

    name: str
    generation: int
    nbytes: int
    digest: bytes
    duration_s: float


class PushJob:
    """See the header. `withdrawn`: makes of the end of the offer a call of `on_withdrawn`, on the right thread."""

    def __init__(
        self,
        port: Asks,
        name: str,
        to: bytes,
        offer: Lent,
        withdrawn: Callable[[PushJob], None],
        *,
        now: float,
        deadline_at: float,
    ) -> None:
        self.name = name
        self.deadline_at = deadline_at
        self.over = False
        self.error: PcclError | None = None
        self.manifest = offer.manifest
        self.duration_s = 0.0
        self._port = port
        self._to = to
        self._offer = offer
        self._withdrawn = withdrawn
        self._started = now
        self._again_at = now
        self._tries = 0
        self._out: int | None = None  # token of the ask that has not ended
        self._memory: Any = None
        self._ticket: int | None = None
        self._ending = False
        self._gone = False

    # -- what the driver calls --

    def pump(self, now: float) -> None:
        """See Task."""
        if not self._ending and now >= self.deadline_at:
            what = "does not accept" if self._ticket is None else "has not finished taking"
            self.fail(Timeout(f"{self._peer()} {what} {self.name!r}, and the time is over", op=self.describe()))
        if not self._ending and self._out is None and now >= self._again_at:
            self._knock()
        if self._ending and self._out is None and self._gone:
            self.over = True
            self.duration_s = now - self._started

    def deadline(self, now: float) -> float:
        """See Task."""
        if self._ending:
            return float("inf")
        return self.deadline_at if self._out is not None else min(self.deadline_at, self._again_at)

    def on_ended(self, token: int, status: int, now: float) -> None:
        """See Task."""
        self._out = None
        data, self._memory = self._memory[0].tobytes(), None
        if status == Status.ECLOSED:
            self.fail(Closed("the communicator was closed", op=self.describe()))
        elif status in (Status.EGONE, Status.ENOMEM) and self._ticket is None:
            self._again_at = now + min(AGAIN_S * 2.0**self._tries, AGAIN_MAX_S)
            self._tries = min(self._tries + 1, 16)
        elif status == Status.OK and not self._ending:
            try:
                self._told(data)
            except ProtocolError as error:
                self._refuse("protocol", error.message)
        elif status == Status.EGONE:
            self._refuse("gone", "has no receipt for it any more")
        elif status == Status.EPEER:
            self.fail(PeerLost(f"{self._peer()} is lost", peer=self._to, op=self.describe()))
        elif status == Status.ETIMEOUT:
            self._again_at = self.deadline_at
        else:
            self._refuse("memory", "or this peer has no memory for it")

    def on_withdrawn(self) -> None:
        """The offer is no more."""
        self._gone = True

    def cancel(self) -> None:
        """See Task."""
        self.fail(Cancelled("the push was cancelled", op=self.describe()))

    def fail(self, error: PcclError) -> None:
        """See Task."""
        if not self._ending:
            self.error = error
            self._end()

    def describe(self) -> str:
        """See Task."""
        return f"push {self.name!r} generation {self.manifest.generation} to {self._peer()}"

    # -- steps --

    def _peer(self) -> str:
        return f"peer {short_id(self._to)}"

    def _knock(self) -> None:
        """Asks for the door, or, once that is known, for the receipt."""
        if self._ticket is None:
            self._ask(door_key(self.name), DOOR_GENERATION, DOOR_BYTES)
        else:
            self._ask(receipt_key(self.name), self._ticket, RECEIPT_BYTES)

    def _ask(self, key: bytes, generation: int, nbytes: int) -> None:
        memory = np.empty(nbytes, np.uint8)
        address, hold = _native.pin(memory)
        self._memory = (memory, hold)
        self._out = self._port.ask(self, self._to, key, generation, (0, nbytes), address, _PRIORITY)

    def _told(self, data: bytes) -> None:
        if self._ticket is None:
            self._ticket = Door.decode(data).ticket
            return
        receipt = Receipt.decode(data)
        if receipt.cause:
            self._refuse(receipt.cause, f"did not take it: {receipt.text}")
        elif (receipt.generation, receipt.root) != (self.manifest.generation, self.manifest.root):
            self._refuse("digest", f"took other content, of generation {receipt.generation}")
        else:
            self._end()

    def _refuse(self, cause: str, why: str) -> None:
        text = f"{self.name!r} was not pushed: {self._peer()} {why}"
        self.fail(TransferError(text, peer=self._to, op=self.describe(), name=self.name, cause=cause))

    def _end(self) -> None:
        self._ending = True
        if self._out is not None:
            self._port.cancel(self._out)
        self._offer.withdraw_soon(lambda: self._withdrawn(self))


class Push(Fenced[PushResult]):
    """A push under way. Its memory must not be written to until it is done; after that, well or not, it is not read.

    `wait(timeout)` and `await` give the PushResult when the other peer has everything, verified, or raise: Timeout
    (nobody accepted it, or not all of it was taken, by the push's deadline), PeerLost, TransferError (`cause` "size":
    the memory over there has another size; "timeout", "cancelled" or another cause: that is how the other side's
    `accept` ended; "digest": that took other content), Cancelled, Closed, ForkError.
    """

    __slots__ = ("_job",)

    def __init__(self, owner: Owner, token: int, job: PushJob) -> None:
        super().__init__(owner, token)
        self._job = job

    def cancel(self, timeout: float = FENCE_S) -> bool:
        """Ends the push, and returns when its memory is not read any more: within milliseconds. The other side's
        `accept` ends with TransferError, cause "gone", if it had begun to take this and nobody else pushes it. Blocks.

        False if it had ended already, or ended well meanwhile. HungError if the engine does not answer within `timeout`
        seconds: then the memory stays borrowed.
        """
        return self._cancel("push", timeout)
