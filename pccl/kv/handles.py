"""handles.py - what users hold: a Receive, a Send, an Offered; and what a Receive gives. Any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pccl.errors import HungError, Timeout
from pccl.kv.ends import End, State
from pccl.kv.memory import Ids
from pccl.kv.send import SendUnit
from pccl.transfer.offers import FENCE_S
from pccl.work import Owner, Pending

__all__ = ["Offered", "Receive", "Received", "Send", "Sent"]


@dataclass(slots=True, frozen=True)
class Received:
    """How a receive ended. `meta`: what the sender's `finish` gave. `nbytes`: that were fetched. `recompute`: positions
    of each group that the receiver must compute itself: with `on_failure="fail"` always none, for then it raises.
    `end`: of the transfer; of a hedged one that goes on it is State.STREAMING. `wire_bytes`: that came for the `nbytes`
    of blocks: fewer, where a codec was used.
    """

    meta: bytes
    nbytes: int
    duration_s: float
    end: End
    recompute: Mapping[str, Ids]
    wire_bytes: int

    @property
    def committed(self) -> bool:
        """Whether every block is there, verified."""
        return self.end.state is State.COMMITTED


@dataclass(slots=True, frozen=True)
class Sent:
    """The receiver has everything, verified. `wire_bytes`: what the `nbytes` of blocks were sent as."""

    nbytes: int
    duration_s: float
    wire_bytes: int


class Orders(Owner, Protocol):
    """What handles need of their pool."""

    def stop(self, transfer: bytes, state: State, cause: str) -> None:
        """Ends a transfer, if it has not ended."""

    def announce(self, transfer: bytes, unit: SendUnit, positions: Ids) -> None:
        """These of a layer are ready."""

    def finish(self, transfer: bytes, meta: bytes) -> None:
        """All have been announced."""

    def state_of(self, transfer: bytes) -> State | None:
        """Of a transfer that has not ended."""

    def withdraw(self, name: str) -> None:
        """Ends an offer."""


class _Side:
    """What both sides have."""

    def __init__(self, orders: Orders, transfer: bytes, request_id: str) -> None:
        self._orders = orders
        self.transfer_id = transfer
        self.request_id = request_id
        self.end: End | None = None

    def poll(self) -> State:
        """Its state; never blocks. COMMITTED, ABORTED, EXPIRED, FAILED are terminal: its blocks are free by then."""
        if self.end is not None:
            return self.end.state
        state = self._orders.state_of(self.transfer_id)
        return State.ENDING if state is None or state.terminal else state


class Receive(_Side, Pending[Received]):
    """Blocks that are being received; made by `Pool.prep_recv` and `Pool.pull`.

    `ticket`: bytes for `Pool.open_send` at the peer that has them. `wait(timeout)` and `await` give the Received, or
    raise TransferAborted, TransferExpired, TransferFailed; when either has happened nothing writes to the blocks any
    more, and they are free for another transfer (`on_failure="hedge"`: see `prep_recv`).
    """

    def __init__(self, orders: Orders, number: int, transfer: bytes, request_id: str, ticket: bytes) -> None:
        Pending.__init__(self, orders, number)
        _Side.__init__(self, orders, transfer, request_id)
        self.ticket = ticket
        self._layers: set[str] = set()
        self._change = threading.Condition()
        #: True once the deadline is not likely to be met: compute the blocks elsewhere, or cancel.
        self.recompute_suggested = False
        #: Bytes of verified or landed pieces, and of all that are needed (0 while nobody has opened it).
        self.progress = (0, 0)

    def cancel(self, cause: str = "cancelled", timeout: float = FENCE_S) -> bool:
        """Ends it on both sides; returns when nothing writes to the blocks any more: within milliseconds. Blocks.

        False if it had ended already, or ended otherwise meanwhile. HungError if the engine does not answer within
        `timeout` seconds: then the blocks stay borrowed.
        """
        self._orders.check_pid()
        if self.end is not None:
            return False
        self._orders.stop(self.transfer_id, State.ABORTED, cause)
        with self._change:
            if not self._change.wait_for(lambda: self.end is not None, timeout):
                raise HungError(f"{self.request_id!r} did not end within {timeout:g} s of its cancellation")
        return self.poll() is State.ABORTED

    def wait_layer(self, layer: str, timeout: float | None = None) -> None:
        """Blocks until a layer is there, verified: before everything else is. Raises as `wait`, and Timeout."""
        with self._change:
            ready = self._change.wait_for(lambda: layer in self._layers or self.end is not None, timeout)
        if not ready:
            raise Timeout(f"layer {layer!r} has not come within {timeout:g} s", op=self.request_id)
        if layer not in self._layers:
            self.wait()
            raise Timeout(f"layer {layer!r} has not come, and will not", op=self.request_id)

    # -- called by the exchange --

    def layer_landed(self, layer: str) -> None:
        """One more is there."""
        with self._change:
            self._layers.add(layer)
            self._change.notify_all()

    def ended(self, end: End) -> None:
        """Nothing touches the blocks any more."""
        with self._change:
            self.end = end
            self._change.notify_all()


class Send(_Side, Pending[Sent]):
    """Blocks that are being sent; made by `Pool.open_send`.

    `wait(timeout)` and `await` give the Sent, when the receiver has committed, or raise TransferAborted,
    TransferExpired, TransferFailed; when either has happened nothing reads the blocks any more.
    """

    def __init__(self, orders: Orders, number: int, transfer: bytes, request_id: str) -> None:
        Pending.__init__(self, orders, number)
        _Side.__init__(self, orders, transfer, request_id)
        #: Which of the send's positions these blocks of a layer are.
        self.positions: Callable[[str, Sequence[int] | Ids | None], tuple[SendUnit, Ids]]

    def layer_ready(self, layer: str, blocks: Sequence[int] | Ids | None = None) -> None:
        """These blocks (ids here; None: all of the send) of a layer hold what they are to hold, and must not be written
        to before the send has ended. Returns at once. Of a send that has ended: without effect.

        Raises ArgumentError (no such layer; a block that is none of this send's).
        """
        self._orders.announce(self.transfer_id, *self.positions(layer, blocks))

    def finish(self, first_token: int | None = None, meta: bytes = b"") -> None:
        """Everything has been announced. `meta` (64 KiB at most) comes out of the receiver's `wait`; `first_token` is
        short for a meta of 8 bytes, little endian. Returns at once. A layer that was not announced fails the transfer.
        """
        if first_token is not None:
            meta = first_token.to_bytes(8, "little", signed=True) + meta
        self._orders.finish(self.transfer_id, meta)

    def abort(self, cause: str = "aborted") -> None:
        """Ends it on both sides, soon; `wait` tells when nothing reads the blocks any more. Idempotent."""
        self._orders.stop(self.transfer_id, State.ABORTED, cause)

    # -- called by the exchange --

    def ended(self, end: End) -> None:
        """Nothing touches the blocks any more."""
        self.end = end


class Offered:
    """Blocks that others may pull, until `withdraw`, or the end of the lease."""

    def __init__(self, orders: Orders, name: str) -> None:
        self._orders = orders
        self.name = name
        self._over = threading.Event()
        self._pulls = 0
        #: "withdrawn", "lease" or "closed", once it is over.
        self.cause = ""

    def over(self) -> bool:
        """Whether its blocks are free again, but for pulls that are under way."""
        return self._over.is_set()

    def free(self) -> bool:
        """Whether it is over, and so is every pull of it: nothing reads its blocks on its account any more."""
        return self._over.is_set() and not self._pulls

    def wait(self, timeout: float | None = None) -> bool:
        """Blocks until it is over; False: it is not, after so many seconds."""
        return self._over.wait(timeout)

    def withdraw(self) -> None:
        """No pull that has not begun gets anything. Idempotent; does not block."""
        self._orders.withdraw(self.name)

    # -- called by the exchange --

    def pulls(self, more: int) -> None:
        """So many more, or fewer, are under way."""
        self._pulls += more

    def ended(self, cause: str) -> None:
        """No pull begins any more."""
        self.cause = cause
        self._over.set()
