"""shards.py - a trainer rank that is not the lead: it encodes its own shards, and the lead makes the version of all.

What it holds is a copy of what it last sent, of its own shards alone. When the lead says that the version is durable
that copy moves; when the version did not come to be it stays. What the copy does not have is sent whole, once.
"""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from pccl.communicator import Communicator
from pccl.errors import ArgumentError, Closed, PcclError, PeerLost
from pccl.weights import codec
from pccl.weights.errors import WeightsError
from pccl.weights.fold import in_order
from pccl.weights.gather import New, Parts, gather
from pccl.weights.layout import slots_for
from pccl.weights.line import Inbox, Outbox
from pccl.weights.pieces import Piece, Place, part_of, piece_of, places
from pccl.weights.receiver import sources_of
from pccl.weights.records import Part, Round, decode, part_line, part_stream, round_line
from pccl.weights.schema import Schema
from pccl.weights.shadow import MemoryShadow
from pccl.weights.stream import StreamOut
from pccl.weights.ticket import Ticket

__all__ = ["ShardPublisher"]

Array = np.ndarray[Any, Any]


class ShardPublisher:
    """Publishes shards of the tensors of a schema, together with a Publisher, the lead, and others like this one.

    `lead`: its id or rank. `base`: the shards as they are in the lead's newest version, in the form of `publish`;
    copied. None, or wherever this rank does not know them (it is new, or the lead has published without it): they are
    sent whole, once. `codecs`, `threads`, `name`: as of Publisher.

    Raises SchemaError, ArgumentError.
    """

    def __init__(
        self,
        comm: Communicator,
        schema: Schema,
        *,
        lead: bytes | int,
        base: New | None = None,
        codecs: str = "auto",
        threads: int = 2,
        name: str = "weights",
    ) -> None:
        self.schema = schema
        self._transfers, self._name, self._codecs = comm.transfers, name, codecs
        (self._lead,) = sources_of(comm, [lead])()
        self._baseline = MemoryShadow(schema)  # only what is written to takes memory
        self._known: set[Place] = set()
        self._at: bytes | None = None  # the lineage that it is of; None: that of the first round
        self._pool = ThreadPoolExecutor(threads, "pccl-weights")
        if base is not None:
            self._learn(gather(schema, base))
        self._changed = threading.Condition()
        self._closed = False
        self._answered: tuple[bytes, int] | None = None
        self._round: Round | None = None
        self._lost = self._gone = False
        self._line = Outbox(comm.transfers, part_line(name), Part(b"", 0, 0).encode())
        name = round_line(self._name)
        self._inbox = Inbox(comm.transfers, self._lead, name, self._on_round, self._on_absent, self._on_lost)
        self._queue: queue.SimpleQueue[tuple[Ticket, Parts] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="pccl-weights-shards", daemon=True)
        self._thread.start()

    def __enter__(self) -> ShardPublisher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def publish(self, named: New) -> Ticket:
        """Gives this rank's part of the next version; returns at once. The tensors must not be written to before
        `Ticket.wait("encoded")` has returned. The lead, and all other ranks, must publish, too: when `wait("durable")`
        has returned the version is there, of all of them; if it raises there is none (PeerLost, if it was the lead that
        was lost: then only its log knows). `named`: as of Publisher.publish. Raises SchemaError, Closed.
        """
        if self._closed:
            raise Closed("the publisher is closed")
        ticket = Ticket(self._changed, _reached)
        self._queue.put((ticket, gather(self.schema, named)))
        return ticket

    def close(self) -> None:
        """What has not become part of a version will not any more."""
        if self._closed:
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._queue.put(None)
        self._thread.join()
        self._inbox.close()
        self._line.close()
        self._pool.shutdown()

    # -- on the thread of transfers --

    def _on_round(self, data: bytes) -> None:
        with self._changed:
            if self._gone:
                self._gone, self._answered = False, None
            self._round = decode(Round, data)
            self._changed.notify_all()

    def _on_absent(self) -> None:
        """The lead does not publish yet, or no more."""
        with self._changed:
            if self._round is not None:
                self._round, self._gone = None, True
                self._changed.notify_all()

    def _on_lost(self) -> None:
        with self._changed:
            self._lost = True
            self._changed.notify_all()

    # -- the thread --

    def _work(self) -> None:
        while (item := self._next_item()) is not None:
            ticket, news = item
            try:
                self._publish(ticket, news)
            except PcclError as error:
                self._fail(ticket, error)
            except Exception as error:  # noqa: BLE001 - told by the ticket
                self._fail(ticket, WeightsError(f"publishing failed: {error!r}"))

    def _next_item(self) -> tuple[Ticket, Parts] | None:
        while True:
            try:
                return self._queue.get(timeout=self._tend())
            except queue.Empty:
                continue

    def _tend(self) -> float:
        """Looks for the lead again if it is time; how many seconds that may be left alone now."""
        now = time.monotonic()
        return min(max(0.001, self._inbox.tend(now) - now), 1.0)

    def _fail(self, ticket: Ticket, error: PcclError) -> None:
        with self._changed:
            ticket.error = error
            self._changed.notify_all()

    def _advance(self, ticket: Ticket, stage: int) -> None:
        with self._changed:
            ticket.stage = stage
            self._changed.notify_all()

    def _publish(self, ticket: Ticket, news: Parts) -> None:
        started = time.monotonic()
        now = self._next_round(under_way=False)
        self._answered = now.key
        ticket.version = now.version + 1
        if self._at not in (None, now.lineage):
            self._known.clear()
        self._at = now.lineage
        pieces = list(in_order(self._pool, self._encoded, places(self.schema, news)))
        data = part_of(pieces)
        ticket.stats.bytes, ticket.stats.encode_s = len(data), time.monotonic() - started
        ticket.stats.dense_bytes = sum(self._view(piece.place).nbytes for piece in pieces)
        ticket.stats.changed = sum(codec.describe(piece.encoded).changed for piece in pieces)
        self._advance(ticket, 0)
        then = self._offer(now, data)
        if then.version != now.version + 1 or not then.joint:
            if then.blame == self._transfers.peer_id:
                self._known.clear()
            raise WeightsError(
                f"version {now.version + 1} did not come to be: {then.error or 'the lead went on alone'}"
            )
        for piece in pieces:
            codec.decode(piece.encoded, self._view(piece.place))
            self._known.add(piece.place)
        self._at = then.lineage
        ticket.stats.durable_s = time.monotonic() - started
        self._advance(ticket, 1)

    def _offer(self, now: Round, data: bytes) -> Round:
        """Until the lead says what came of it."""
        slots = slots_for(len(data))
        stream = StreamOut(self._transfers, part_stream(self._name, now.key), now.version + 1, slots)
        try:
            stream.write(data)
            stream.conclude()
            stream.finish()
            self._line.post(Part(now.lineage, now.attempt, slots).encode())
            return self._next_round(under_way=True)
        finally:
            self._line.post(Part(b"", 0, 0).encode())
            stream.close()

    def _next_round(self, under_way: bool) -> Round:
        """That which this rank has not answered yet. Blocks. Raises PeerLost, Closed. `under_way`: it has one."""
        with self._changed:
            while self._round is None or self._round.key == self._answered:
                if self._closed:
                    raise Closed("the publisher is closed")
                if self._lost or (self._gone and under_way):
                    raise PeerLost("the lead of the publishers is gone", peer=self._lead)
                self._changed.wait(self._tend())
            return self._round

    def _encoded(self, item: tuple[Place, Array]) -> Piece:
        place, new = item
        return piece_of(place, self._view(place) if place in self._known else None, new, self._codecs)

    def _view(self, place: Place) -> Array:
        block, at, elements = place
        return self._baseline.block(block)[at : at + elements]

    def _learn(self, base: Parts) -> None:
        for place, data in places(self.schema, base):
            self._view(place)[:] = data
            self._known.add(place)


def _reached(ticket: Ticket, stage: str) -> bool:
    if stage not in ("encoded", "durable"):
        raise ArgumentError(f"how far a version has come with {stage!r} knows the lead, not a rank")
    return ticket.stage >= ("encoded", "durable").index(stage)
