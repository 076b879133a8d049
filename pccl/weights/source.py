"""source.py - the serving side of a publisher and of a relay: tip, live streams, followers, and ways from anywhere.

A follower rings the bell; from then on its state is read, and what it wants is answered. One thread decides; folds are
made on another, one at a time. The next live stream is offered before the tip is shown, so that whoever has the tip can
ask for it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pccl.errors import PcclError
from pccl.transfer.manifest import key_of
from pccl.transfer.offers import FENCE_S
from pccl.transfer.transfers import Transfers
from pccl.weights.certificate import Version
from pccl.weights.errors import LineageError
from pccl.weights.fold import fold
from pccl.weights.layout import slots_for
from pccl.weights.line import Inbox, Outbox
from pccl.weights.log import DeltaLog
from pccl.weights.payload import Payload
from pccl.weights.records import (
    PEERS_MAX,
    WANTS_DELTA,
    WANTS_NOTHING,
    Answer,
    Peers,
    State,
    Tip,
    answer_line,
    decode,
    fold_stream,
    live_stream,
    peers_line,
    state_line,
    tip_line,
)
from pccl.weights.schema import Schema
from pccl.weights.stream import StreamOut

__all__ = ["Follower", "Source", "live_slots"]

log = logging.getLogger("pccl.weights")

LIVE_KEPT = 3  # live streams behind the newest
FOLDS_KEPT = 4
IDLE_S = 1.0


def live_slots(schema: Schema) -> int:
    """What the next delta needs at most: all raw, and a manifest."""
    blocks = len(schema.blocks)
    return slots_for(schema.nbytes + schema.nbytes // 512 + 512 * blocks + 65536)


def bell_key(name: str) -> bytes:
    """The region that followers ask for."""
    return key_of("weights.bell", name)


@dataclass(slots=True)
class Follower:
    """What is known of one. `state` is None before it has said anything."""

    peer: bytes
    inbox: Inbox
    answers: Outbox
    state: State | None = None
    answered: int = 0


class Source:
    """See the header. `block_at(version, block)`: a copy of a block at that version, or None if that is not at hand."""

    def __init__(
        self,
        transfers: Transfers,
        name: str,
        schema: Schema,
        deltas: DeltaLog,
        *,
        epoch: int,
        base: Version,
        block_at: Callable[[Version, int], np.ndarray[Any, Any] | None],
    ) -> None:
        self._transfers, self._name, self._schema, self._log = transfers, name, schema, deltas
        self._block_at, self._base = block_at, base
        # Of its own: a fold may wait for a state that moves, and what moves it needs threads too.
        self._pool = ThreadPoolExecutor(2, "pccl-weights-ways")
        self.epoch = epoch
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._followers: dict[bytes, Follower] = {}
        self._live: deque[tuple[Version, StreamOut]] = deque()
        self._folds: deque[tuple[str, StreamOut, tuple[int, int]]] = deque()
        self._folder = ThreadPoolExecutor(1, "pccl-weights-fold")
        self.changed = threading.Condition()
        self.on_followers: Callable[[], None] = lambda: None
        self._closed = False
        self._open_live(deltas.tip)
        self._tip = Outbox(transfers, tip_line(name), self._tip_of(deltas.tip, (0, 0)).encode())
        self._serving: list[bytes] = []
        self._peers = Outbox(transfers, peers_line(name), Peers([]).encode())
        bell = np.zeros(1, np.uint8)
        self._bell = transfers.offers.offer_region(bell_key(name), 1, bell, None, whole=False, on_asked=self._on_bell)
        self._thread = threading.Thread(target=self._run, name="pccl-weights-source", daemon=True)
        self._thread.start()

    # -- what is served --

    @property
    def live(self) -> StreamOut:
        """The stream of the next version."""
        return self._live[-1][1]

    def renew_live(self) -> None:
        """What was written of the next version is void: those who read it find it gone, and ask again."""
        base, stream = self._live.pop()
        stream.close()
        self._open_live(base)

    def move(self, tip: Version, sizes: tuple[int, int]) -> None:
        """The log has a new tip; `sizes`: of the delta to it, if that was served as a live stream."""
        self._open_live(tip)
        while len(self._live) > LIVE_KEPT:
            self._live.popleft()[1].close()
        self._tip.post(self._tip_of(tip, sizes).encode())

    def followers(self) -> list[Follower]:
        """Those that are there and have said where they are."""
        return [follower for follower in list(self._followers.values()) if follower.state is not None]

    def below(self) -> tuple[int, int]:
        """(receivers that follow from here, relays' included; the lowest version committed among them)."""
        count, lowest = 0, self._log.tip.version
        for follower in self.followers():
            assert follower.state is not None
            if follower.state.role == "receiver":
                count, lowest = count + 1, min(lowest, follower.state.committed)
            elif follower.state.below[0]:
                count, lowest = count + follower.state.below[0], min(lowest, follower.state.below[1])
        return count, lowest

    def close(self) -> None:
        """Nothing is served any more."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        self._thread.join()
        self._folder.shutdown(wait=True)
        self._pool.shutdown()
        self._tip.close()
        self._peers.close()
        self._transfers.offers.quietly("withdraw", bell_key(self._name), 1)
        self._bell.gone.wait(FENCE_S)
        for _, stream in self._live:
            stream.close()
        for _, stream, _ in self._folds:
            stream.close()
        for follower in self._followers.values():
            follower.inbox.close()
            follower.answers.close()

    def _open_live(self, base: Version) -> None:
        slots = live_slots(self._schema)
        stream = StreamOut(self._transfers, live_stream(self._name, base), base.version + 1, slots)
        self._live.append((base, stream))

    def _tip_of(self, tip: Version, sizes: tuple[int, int]) -> Tip:
        return Tip(tip.version, tip.lineage, self._base.lineage, self._schema.hash, self.epoch, sizes)

    # -- followers --

    def _on_bell(self, peer: bytes) -> None:
        self._queue.put(lambda: self._ring(peer))

    def _run(self) -> None:
        wait = IDLE_S
        while True:
            try:
                step = self._queue.get(timeout=wait)
                if step is None:
                    return
                step()
            except queue.Empty:
                pass
            except PcclError as error:
                log.warning("weights: %s", error)
            now = time.monotonic()
            due = [follower.inbox.tend(now) for follower in self._followers.values()]
            wait = max(0.001, min([IDLE_S, *(at - now for at in due)]))

    def _ring(self, peer: bytes) -> None:
        if peer in self._followers:
            return

        def told(data: bytes) -> None:
            self._queue.put(lambda: self._told(peer, data))

        def lost() -> None:
            self._queue.put(lambda: self._forget(peer))

        answers = Outbox(self._transfers, answer_line(self._name, peer), Answer(0, "", 0, (0, 0), "").encode())
        inbox = Inbox(self._transfers, peer, state_line(self._name), told, lambda: None, lost)
        self._followers[peer] = Follower(peer, inbox, answers)

    def _forget(self, peer: bytes) -> None:
        follower = self._followers.pop(peer, None)
        if follower is not None:
            follower.inbox.close()
            follower.answers.close()
            self._notify()

    def _told(self, peer: bytes, data: bytes) -> None:
        follower = self._followers.get(peer)
        if follower is None:
            return
        state = decode(State, data)
        if state.role == "gone":
            self._forget(peer)
            return
        follower.state = state
        self._notify()
        if state.wants != WANTS_NOTHING and state.number > follower.answered:
            follower.answered = state.number
            self._folder.submit(self._answer, follower, state)

    def _notify(self) -> None:
        serving = sorted(f.peer for f in self.followers() if f.state is not None and f.state.serves)[:PEERS_MAX]
        if serving != self._serving:
            self._serving = serving
            self._peers.post(Peers(serving).encode())
        with self.changed:
            self.changed.notify_all()
        self.on_followers()

    # -- ways from anywhere --

    def _answer(self, follower: Follower, state: State) -> None:
        try:
            answer = self._way(state)
        except PcclError as error:
            answer = Answer(state.number, "", 0, (0, 0), str(error)[:500])
        except Exception as error:
            log.exception("a way could not be made")
            answer = Answer(state.number, "", 0, (0, 0), repr(error)[:500])
        follower.answers.post(answer.encode())

    def _way(self, state: State) -> Answer:
        base, tip, settled = state.at, self._log.tip, self._log.settled
        if not self._log.knows(base):
            raise LineageError(f"{base} is not known here; the log has {self._log.span()}")
        if base == tip:
            return Answer(state.number, "", 0, (0, 0), "")
        one = state.wants == WANTS_DELTA or settled.version <= base.version
        end = self._log.version(base.version + 1) if one else settled
        stream = fold_stream(self._name, base, end)
        for name, _, sizes in self._folds:
            if name == stream:
                return Answer(state.number, stream, slots_for(sizes[0]), sizes, "")
        payload = Payload(self._payload(base, end))
        sizes = payload.sizes
        made = StreamOut(self._transfers, stream, 1, slots_for(sizes[0]))
        for start, stop in pairwise([0, *payload.manifest.ends, payload.nbytes]):
            made.write(payload.data[start:stop])
        made.conclude()
        made.finish()
        self._folds.append((stream, made, sizes))
        if len(self._folds) > FOLDS_KEPT:
            self._folds.popleft()[1].close()
        return Answer(state.number, stream, slots_for(sizes[0]), sizes, "")

    def _payload(self, base: Version, end: Version) -> bytes:
        if end.version == base.version + 1:
            delta = self._log.delta(end.version)
            delta.check_chunks()
            return bytes(delta.data)
        pieces = self._log.pieces(base.version, end.version)
        return fold(pieces, self._pool, lambda block: self._block_at(end, block))
