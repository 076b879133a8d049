"""mail.py - one correspondence: a box for the other pool, its box read, and everything else that is asked of it.

A Task of the thread of transfers, as long as the two have something to say to each other. What it decides is in
slots.py. See docs/kv.md 1.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from pccl import _native
from pccl.errors import PcclError, ProtocolError, ResourceError
from pccl.kv.messages import Message, decode, encode
from pccl.kv.slots import HEAD_BYTES, SLOT_BYTES, Head, SlotReader, SlotWriter
from pccl.transfer.manifest import key_of
from pccl.transfer.offers import log
from pccl.transfer.task import Runs, ScatterAsks
from pccl.types import PartDigests, Priority, Status, short_id

__all__ = ["Correspondence", "Regions", "bell_key"]

FOREVER_S = 1e7
AGAIN_S, AGAIN_MAX_S = 0.005, 0.25
#: So often a bell or a head is asked for that is not there: then the other pool is not, or not any more.
TRIES = 7

Done = Callable[[int, float], None]


class Regions(Protocol):
    """The part of Offers that is used here. `on_asked` is called on another thread."""

    def offer_region(
        self,
        key: bytes,
        generation: int,
        data: Any,
        hold: Any,
        whole: bool,
        changes: bool = False,
        on_asked: Callable[[bytes], None] | None = None,
    ) -> Any:
        """Offers memory."""

    def quietly(self, command: str, *arguments: Any) -> None:
        """Tells the engine."""


def bell_key(pool: str) -> bytes:
    """Of the byte that a pool is rung by."""
    return key_of("kv.bell", pool)


class Correspondence:
    """`told(message)` and `lost(cause)` are called on the thread of transfers; after `lost`, nothing. `tell`: runs a
    step on that thread, from any.
    """

    def __init__(
        self,
        asks: ScatterAsks,
        regions: Regions,
        names: tuple[str, bytes, bytes],
        tell: Callable[[Callable[[], Any]], None],
        told: Callable[[Message], None],
        lost: Callable[[str, str], None],
        now: float,
    ) -> None:
        self.pool, self.own, self.peer = names
        self.deadline_at = now + FOREVER_S
        self.over = False
        self.error: PcclError | None = None
        self._asks, self._regions = asks, regions
        self._tell, self._told, self._lost = tell, told, lost
        self._session = secrets.randbits(64)
        self._writer, self._reader = SlotWriter(), SlotReader()
        self._slots: dict[int, np.ndarray[Any, Any]] = {}
        self._out: dict[int, Done] = {}
        self._hold: dict[int, Any] = {}
        self._their_session: int | None = None
        self._tries = {"bell": 0, "head": 0}
        self._again: list[tuple[float, Callable[[], None]]] = []
        self._open = False
        self._closed = False

    # -- what the pool does with it --

    def open(self) -> None:
        """Offers the box, then rings."""
        if self._open:
            return
        self._open = True
        head = np.frombuffer(Head.encode(self._session), np.uint8)
        for number in self._writer.begin():
            self._offer(number)
        self._regions.offer_region(self._head_key(self.peer), 1, head, None, whole=True)
        self._ring()

    def read(self) -> None:
        """The other has rung: its box is there."""
        if self._their_session is None:
            self._ask_head()

    def say(self, message: Message) -> None:
        """Arrives in order, once, unless the correspondence is lost."""
        if self._closed:
            return
        try:
            slots = self._writer.put(encode(message))
        except ResourceError as error:
            self.lose("lost", f"it reads no mail: {error.message}")
            return
        for number, data, ahead in slots:
            self._offer(ahead)
            self._slots[number][: len(data)] = np.frombuffer(data, np.uint8)
            self._regions.quietly("extend", self._slot_key(self.peer, self._session), number, 0, SLOT_BYTES)

    def fetch(self, key: bytes, runs: Runs, priority: int, done: Done, digests: PartDigests | None = None) -> int:
        """Asks for runs of a region; gives a token for `drop`. `done(status, now)` follows exactly once."""
        token = self._asks.ask_runs(self, self.peer, key, 1, runs, priority, digests)
        self._out[token] = done
        self._hold[token] = digests
        return token

    def drop(self, token: int) -> None:
        """Ends an ask soon."""
        if token in self._out:
            self._asks.cancel(token)

    def cancel(self) -> None:
        """See Task."""
        self.lose("closed", "it was closed here")

    def lose(self, cause: str, text: str) -> None:
        """The end of it; `lost` is called."""
        if not self._closed:
            self.close()
            self._lost(cause, text)

    def close(self) -> None:
        """The end of it. Asks that are out still end."""
        self._closed = True
        if self._open:
            self._regions.quietly("withdraw", self._head_key(self.peer), 1)
            key = self._slot_key(self.peer, self._session)
            for number in self._slots:
                self._regions.quietly("withdraw", key, number)
        for token in list(self._out):
            self._asks.cancel(token)

    # -- as a Task --

    def pump(self, now: float) -> None:
        """See Task."""
        due = [step for at, step in self._again if now >= at]
        self._again = [] if self._closed else [one for one in self._again if now < one[0]]
        for step in due:
            if not self._closed:
                step()
        self.over = self._closed and not self._out

    def deadline(self, now: float) -> float:
        """See Task."""
        return min((at for at, _ in self._again), default=float("inf"))

    def on_ended(self, token: int, status: int, now: float) -> None:
        """See Task."""
        self._hold.pop(token, None)
        self._out.pop(token)(status, now)

    def fail(self, error: PcclError) -> None:
        """See Task."""
        log.debug("a correspondence of pools ends: %s", error)
        self.lose("closed", error.message)

    def describe(self) -> str:
        """See Task."""
        return f"mail with peer {short_id(self.peer)}"

    def on_over(self) -> None:
        """See Driven."""
        for done in list(self._out.values()):  # the engine is gone
            done(Status.ECLOSED, 0.0)
        self._out.clear()

    # -- the box --

    def _head_key(self, reader: bytes) -> bytes:
        return key_of("kv.head", f"{self.pool}/{reader.hex()}")

    def _slot_key(self, reader: bytes, session: int) -> bytes:
        return key_of("kv.slot", f"{self.pool}/{reader.hex()}/{session:016x}")

    def _offer(self, number: int) -> None:
        if number in self._slots:
            return
        memory = self._slots[number] = np.zeros(SLOT_BYTES, np.uint8)
        key = self._slot_key(self.peer, self._session)

        def on_asked(peer: bytes) -> None:
            if peer == self.peer:
                self._tell(lambda: self._read_until(number))

        self._regions.offer_region(key, number, memory, None, whole=False, on_asked=on_asked)

    def _read_until(self, number: int) -> Correspondence:
        key = self._slot_key(self.peer, self._session)
        for done in self._writer.asked(number):
            if self._slots.pop(done, None) is not None and not self._closed:
                self._regions.quietly("withdraw", key, done)
        return self

    # -- their box --

    def _ring(self) -> None:
        def ended(status: int, now: float) -> None:
            if not self._closed and not (self._their_session is None and self._tried("bell", status, now, self._ring)):
                self._unreachable(status)

        self._ask(bell_key(self.pool), np.empty(1, np.uint8), ended)

    def _tried(self, what: str, status: int, now: float, again: Callable[[], None]) -> bool:
        """Whether it is worth another try: it may be about to be offered."""
        if status != Status.EGONE or self._tries[what] == TRIES:
            return False
        self._again.append((now + min(AGAIN_S * 2.0 ** self._tries[what], AGAIN_MAX_S), again))
        self._tries[what] += 1
        return True

    def _ask(self, key: bytes, memory: np.ndarray[Any, Any], done: Done, generation: int = 1) -> None:
        address, pinned = _native.pin(memory)
        token = self._asks.ask(self, self.peer, key, generation, (0, memory.size), address, int(Priority.HIGH))
        self._out[token] = done
        self._hold[token] = pinned

    def _ask_head(self) -> None:
        memory = np.zeros(HEAD_BYTES, np.uint8)

        def done(status: int, now: float) -> None:
            if self._closed:
                return
            if status == Status.OK:
                self._guarded(lambda: self._begin(Head.decode(memory.tobytes())))
            elif not self._tried("head", status, now, self._ask_head):
                self._unreachable(status)

        self._ask(self._head_key(self.own), memory, done)

    def _begin(self, session: int) -> None:
        if self._their_session is None:
            self._their_session = session
            self._read_on()

    def _read_on(self) -> None:
        assert self._their_session is not None
        key = self._slot_key(self.own, self._their_session)
        for number in self._reader.wanted():
            self._ask_slot(key, number)

    def _ask_slot(self, key: bytes, number: int) -> None:
        memory = np.zeros(SLOT_BYTES, np.uint8)

        def done(status: int, now: float) -> None:
            if self._closed:
                return
            if status == Status.OK:
                self._guarded(lambda: self._take(number, memory.tobytes()))
            else:
                self._unreachable(status)

        self._ask(key, memory, done, number)

    def _take(self, number: int, slot: bytes) -> None:
        whole = self._reader.came(number, slot)
        self._read_on()
        for data in whole:
            if not self._closed:
                self._told(decode(data))

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except ProtocolError as error:
            log.warning("peer %s sends what is no mail: %s", short_id(self.peer), error.message)
            self.lose("protocol", error.message)

    def _unreachable(self, status: int) -> None:
        gone = status == Status.EGONE
        self.lose("gone" if gone else "lost", f"peer {short_id(self.peer)} {'has no such pool' if gone else 'is lost'}")
