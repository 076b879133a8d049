"""follow.py - the fetching side of a receiver and of a relay: which source, which stream, and what when one fails.

One thread decides. It follows the tips of all sources, fetches from the first that is there, and has one payload in
flight: the next delta, asked for before it exists, when it is up to date; else one that leads from where it is to the
tip. Neighbours help where sources fail. What is done with payloads is for the `Sink` to say.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from pccl.errors import Closed, PcclError
from pccl.transfer.transfers import Transfers
from pccl.types import Status
from pccl.weights.certificate import Version
from pccl.weights.errors import DamageError, LineageError, SchemaError
from pccl.weights.line import Inbox, Outbox
from pccl.weights.neighbours import Neighbours
from pccl.weights.parts import PartsIn
from pccl.weights.payload import Payload
from pccl.weights.records import (
    WANTS_NOTHING,
    Answer,
    State,
    Tip,
    answer_line,
    decode,
    live_stream,
    peers_line,
    state_line,
    tip_line,
)
from pccl.weights.source import LIVE_KEPT, bell_key, live_slots
from pccl.weights.stream import Helpers, Incoming, StreamIn, nobody

__all__ = ["Follow", "Sink"]

log = logging.getLogger("pccl.weights")

IDLE_S = 0.5
BELL_S = 600.0
#: So many payloads in a row that were no good, and the user is told.
FAILURES_MAX = 4
#: So long a stream may wait at neighbours alone while a source is ahead; then that is asked for a fold.
STRANDED_S = 1.0

Step = Callable[[], None]


class Sink(Protocol):
    """What becomes of payloads. All but `on_slot` are called on the thread of the Follow."""

    role: str
    owned: frozenset[int] | None  # blocks that are wanted; None: all
    serves: bool  # neighbours may fetch from here, and this side from them

    def have(self) -> Version:
        """The newest that is here: payloads must lead on from it."""

    def committed(self) -> int:
        """The version that is served from here."""

    def below(self) -> tuple[int, int]:
        """See State."""

    def wants(self) -> int:
        """What to ask for when the next delta is not enough."""

    def opened(self, name: str, generation: int, slots: int) -> None:
        """A delta is going to be asked for, in a stream of that name."""

    def on_slot(self, stream: Incoming, index: int, slot: np.ndarray[Any, Any]) -> None:
        """A verified slot; on the thread of transfers."""

    def grown(self, stream: Incoming) -> None:
        """More of the payload is there."""

    def take(self, stream: Incoming, payload: Payload) -> None:
        """All of it is there. A PcclError: it is no good, and nothing has changed."""

    def dropped(self) -> None:
        """The stream that was in flight will not be completed."""

    def lineage_lost(self, error: LineageError) -> bool:
        """No source knows where this side is. True: it has begun anew; False: it gives up."""

    def failed(self, error: PcclError) -> None:
        """It cannot go on; nothing more will come."""


class Upstream:
    """One source, as it is known here."""

    def __init__(self, peer: bytes) -> None:
        self.peer = peer
        self.tip: Tip | None = None
        self.tips: Inbox | None = None
        self.answers: Inbox | None = None
        self.peers: Inbox | None = None
        self.bell: Any = None

    def inboxes(self) -> list[Inbox]:
        """All that are open."""
        return [inbox for inbox in (self.tips, self.answers, self.peers) if inbox is not None]


class Follow:
    """See the header. `upstream`: gives the ids of sources, the best first; asked again and again."""

    def __init__(
        self, transfers: Transfers, name: str, schema: Any, upstream: Callable[[], Sequence[bytes]], sink: Sink
    ) -> None:
        self._transfers, self._name, self._schema = transfers, name, schema
        self._upstream, self._sink = upstream, sink
        self._queue: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
        self._sources: dict[bytes, Upstream] = {}
        self._order: list[bytes] = []
        self._refused: set[bytes] = set()  # sources that have no way from here
        self._stream: Incoming | None = None
        self._is_live = False
        self._no_live: bytes | None = None
        self._no_help: bytes | None = None
        self._number = 0
        self._asked: tuple[bytes, int] | None = None
        self._failures = 0
        self._over = False
        self._neighbours = Neighbours(transfers, name, schema.hash, self.tell, self._on_neighbour)
        self._line = Outbox(transfers, state_line(name), self._state(WANTS_NOTHING).encode())
        self._thread = threading.Thread(target=self._run, name="pccl-weights-follow", daemon=True)
        self._thread.start()

    # -- any thread --

    def tell(self, step: Step) -> None:
        """Runs a step on the thread."""
        self._queue.put(step)

    def moved(self) -> None:
        """What this side has committed, or has below it, has changed."""
        self.tell(self._show)

    def close(self) -> None:
        """Fetches nothing more; returns when nothing is under way."""
        self._queue.put(None)
        self._thread.join()

    # -- the thread --

    def _run(self) -> None:
        wait = 0.0
        while True:
            try:
                step = self._queue.get(timeout=wait)
                if step is None:
                    break
                self._guarded(step)
            except queue.Empty:
                self._guarded(self._look)
            now = time.monotonic()
            due = [inbox.tend(now) - now for source in self._sources.values() for inbox in source.inboxes()]
            wait = max(0.001, min([IDLE_S, self._neighbours.tend(now) - now, *due]))
        self._end()

    def _guarded(self, step: Step) -> None:
        if self._over:
            return
        try:
            step()
        except Closed:
            self._over = True
        except PcclError as error:
            self._give_up(error)
        except Exception as error:
            log.exception("following failed")
            self._give_up(PcclError(f"following failed: {error!r}"))

    def _give_up(self, error: PcclError) -> None:
        self._drop()
        self._over = True
        self._sink.failed(error)

    def _end(self) -> None:
        self._drop()
        self._neighbours.close()
        for source in self._sources.values():
            self._close_source(source)
        self._line.post(State("gone", 0, b"", 0, 0, 0, (0, 0), False).encode())
        self._line.close()

    # -- sources --

    def _look(self) -> None:
        """Whether there are new sources; every IDLE_S."""
        self._order = list(self._upstream())
        for peer in self._order:
            if peer not in self._sources:
                self._sources[peer] = self._meet(peer)
        for peer in [peer for peer in self._sources if peer not in self._order]:
            self._close_source(self._sources.pop(peer))
        source, stream = self._current(), self._stream
        if source is not None and stream is not None and stream.stranded_s > STRANDED_S:
            assert source.tip is not None
            if source.tip.version > self._sink.have().version:
                self._no_live = self._sink.have().lineage
                self._drop()
        self._advance()

    def _meet(self, peer: bytes) -> Upstream:
        source = Upstream(peer)

        def told(data: bytes) -> None:
            self.tell(lambda: self._on_tip(source, data))

        def lost() -> None:
            self.tell(lambda: self._on_lost(source))

        def absent() -> None:
            self.tell(lambda: self._on_absent(source))

        source.tips = Inbox(self._transfers, peer, tip_line(self._name), told, absent, lost)
        if self._sink.serves:

            def named(data: bytes) -> None:
                self.tell(lambda: self._neighbours.hear(peer, data, self._order))

            source.peers = Inbox(self._transfers, peer, peers_line(self._name), named, lambda: None, lambda: None)
        return source

    def _close_source(self, source: Upstream) -> None:
        for inbox in source.inboxes():
            inbox.close()
        if source.bell is not None:
            self._transfers.cancel_read(source.bell)
            source.bell = None

    def _on_tip(self, source: Upstream, data: bytes) -> None:
        tip = decode(Tip, data)
        if tip.schema != self._schema.hash:
            raise SchemaError(f"the source serves weights of another schema than {self._schema!r}", peer=source.peer)
        source.tip = tip
        self._refused.discard(source.peer)
        if self._stream is not None and self._is_live:
            self._stream.reconsider(source.peer)
        self._ring(source)
        self._advance()

    def _on_lost(self, source: Upstream) -> None:
        self._close_source(source)
        self._on_absent(source)

    def _on_absent(self, source: Upstream) -> None:
        """It serves nothing any more, or not yet."""
        if source.tip is None:
            return
        source.tip = None
        if self._asked is not None and self._asked[0] == source.peer:
            self._asked = None
        self._advance()

    def _on_neighbour(self) -> None:
        """One of them has more to serve than before."""
        self._no_help = None
        if self._stream is not None:
            self._stream.reconsider()
        else:
            self._advance()

    def _ring(self, source: Upstream) -> None:
        """Lets the source know of this peer, and listens to its answers."""
        if source.bell is not None or self._current() is not source:
            return
        if source.answers is None:

            def told(data: bytes) -> None:
                self.tell(lambda: self._on_answer(source, decode(Answer, data)))

            source.answers = Inbox(
                self._transfers, source.peer, answer_line(self._name, self._me()), told, lambda: None, lambda: None
            )

        def ended(status: Status) -> None:
            if status in (Status.ETIMEOUT, Status.EGONE):
                self.tell(lambda: self._rung(source))

        memory = np.empty(1, np.uint8)
        source.bell = self._transfers.read(
            source.peer, bell_key(self._name), 1, 0, memory, ended, priority="high", seconds=BELL_S
        )

    def _rung(self, source: Upstream) -> None:
        source.bell = None

    def _me(self) -> bytes:
        return self._transfers.peer_id

    def _current(self) -> Upstream | None:
        """The first that is there, is not behind, and has a way from here."""
        least = self._sink.have().version
        for peer in self._order:
            source = self._sources.get(peer)
            tip = None if source is None or peer in self._refused else source.tip
            if tip is not None and tip.version >= least:
                return source
        return None

    # -- what to fetch --

    def _advance(self) -> None:
        source, have = self._current(), self._sink.have()
        if source is None:
            alone = self._stream is None and self._no_help != have.lineage
            if alone and self._neighbours.helpers(have)[0]:
                self._open_live(have, [], None)
            return
        assert source.tip is not None
        self._ring(source)
        tip = source.tip
        if self._stream is not None:
            return
        if self._sink.owned is not None and tip.at == have:
            return  # who wants parts waits for the manifest, which says where they are
        if self._comes_live(tip, have):
            self._open_live(have, self._ready(source), tip)
        elif self._asked is None:
            self._number += 1
            self._asked = (source.peer, self._number)
            self._show()

    def _comes_live(self, tip: Tip, have: Version) -> bool:
        """Whether the next delta is to be had as a live stream."""
        ahead = tip.version - have.version
        if self._sink.owned is not None:
            return ahead == 1 and any(tip.sizes) and self._no_live != have.lineage
        return tip.at == have or (0 < ahead <= LIVE_KEPT and self._no_live != have.lineage)

    def _ready(self, first: Upstream) -> list[bytes]:
        """Sources of a live stream: the current one, and the others after it."""
        others = [p for p in self._order if p != first.peer and (s := self._sources.get(p)) and s.tip is not None]
        return [first.peer, *others]

    def _open_live(self, have: Version, sources: Sequence[bytes], tip: Tip | None) -> None:
        name, generation, slots = live_stream(self._name, have), have.version + 1, live_slots(self._schema)
        if self._sink.owned is not None:
            assert tip is not None
            self._open_parts(name, generation, slots, tip.sizes, sources)
            self._is_live = True
            return
        self._sink.opened(name, generation, slots)
        expected = 0 if tip is None else tip.sizes[0]  # of the delta that led to the tip: this one, or one like it
        self._open(name, generation, slots, sources, lambda: self._neighbours.helpers(have), expected)

    def _open(
        self,
        name: str,
        generation: int,
        slots: int,
        sources: Sequence[bytes],
        helpers: Helpers = nobody,
        expected: int | None = None,
    ) -> None:
        self._is_live = helpers is not nobody
        self._stream = StreamIn(
            self._transfers, name, generation, slots, sources, helpers=helpers, expected=expected,
            on_grown=lambda stream: self.tell(lambda: self._on_grown(stream)),
            on_failed=lambda stream, why: self.tell(lambda: self._on_failed(stream, why)),
            on_slot=self._sink.on_slot,
        )  # fmt: skip

    def _open_parts(
        self, name: str, generation: int, slots: int, sizes: tuple[int, int], sources: Sequence[bytes]
    ) -> None:
        assert self._sink.owned is not None
        self._is_live = False
        self._stream = PartsIn(
            self._transfers, name, generation, slots, sizes, sources, self._sink.owned.__contains__,
            on_grown=lambda stream: self.tell(lambda: self._on_grown(stream)),
            on_failed=lambda stream, why: self.tell(lambda: self._on_failed(stream, why)),
        )  # fmt: skip

    def _on_answer(self, source: Upstream, answer: Answer) -> None:
        if self._asked != (source.peer, answer.number):
            return
        self._asked = None
        if answer.error:
            self._refused.add(source.peer)
            if self._current() is None:
                error = LineageError(answer.error, peer=source.peer)
                if not self._sink.lineage_lost(error):
                    raise error
                self._refused.clear()
            self._advance()
        elif answer.stream and self._stream is None and self._sink.owned is None:
            self._open(answer.stream, 1, answer.slots, [source.peer])
        elif answer.stream and self._stream is None:
            self._open_parts(answer.stream, 1, answer.slots, answer.sizes, [source.peer])

    def _on_grown(self, stream: Incoming) -> None:
        if stream is not self._stream:
            return
        if not stream.complete:
            self._sink.grown(stream)
            return
        try:
            self._sink.grown(stream)
            payload = Payload(stream.memory.data[: stream.total])
            self._sink.take(stream, payload)
        except DamageError as error:
            self._drop()
            self._no_live = self._sink.have().lineage
            self._failures += 1
            log.warning("weights: a payload is refused: %s", error)
            if self._failures >= FAILURES_MAX:
                raise
            self._advance()
            return
        self._failures = 0
        self._stream = None
        stream.cancel()
        self._show()
        self._advance()

    def _on_failed(self, stream: Incoming, why: str) -> None:
        if stream is not self._stream:
            return
        log.info("weights: %s is not to be had: %s", stream.name, why)
        self._no_live = self._sink.have().lineage
        if self._current() is None:
            self._no_help = self._no_live
        self._drop()
        self.tell(self._advance)

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None
            self._sink.dropped()

    # -- what others hear --

    def _show(self) -> None:
        asked = self._asked is not None
        self._line.post(self._state(self._sink.wants() if asked else WANTS_NOTHING).encode())

    def _state(self, wants: int) -> State:
        sink = self._sink
        have = sink.have()
        return State(
            sink.role, have.version, have.lineage, sink.committed(), wants, self._number, sink.below(), sink.serves
        )  # fmt: skip
