"""receiver.py - a rollout worker's side: updates that are ready to be committed, the newest there is.

Fetching, decoding and verifying go on in the background and never touch what is committed. What is staged is merged
with what was staged before, so that there is one update at most, however long nobody takes it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np

from pccl.communicator import Communicator
from pccl.errors import ArgumentError, Closed, PcclError, Timeout
from pccl.weights.certificate import Version
from pccl.weights.errors import LineageError
from pccl.weights.follow import Follow
from pccl.weights.payload import Payload, Reader
from pccl.weights.records import WANTS_FOLD
from pccl.weights.shadow import Shadow, Staged
from pccl.weights.share import Share
from pccl.weights.stage import Stage
from pccl.weights.stream import Incoming
from pccl.weights.update import Update, UpdateStats, refuse_old

__all__ = ["Receiver", "sources_of"]

Upstream = Callable[[], Sequence[bytes]] | Sequence[bytes | int]


def sources_of(comm: Communicator, upstream: Upstream | None) -> Callable[[], Sequence[bytes]]:
    """What was given, as a function that gives ids."""
    if upstream is None:
        return comm.sources
    if callable(upstream):
        return upstream
    ids = [peer if isinstance(peer, bytes) else comm.peers[peer] for peer in upstream]
    return lambda: ids


class Receiver:
    """Follows a publisher, by its sources.

    `shadow`: begun, at whatever version: loaded from a base (`pccl.weights.base`), or a FileShadow of an earlier life.
    `upstream`: ids or ranks of sources, the best first, or a function that gives ids; None: all peers that can be
    fetched from. `filter`: names of the tensors that this receiver owns; of others only the blocks come that they share
    with these: nothing else is fetched, decoded or kept right.
    `pubkey`: the publisher's public key; None: signatures are not looked at. `serve`: others that follow the same
    sources may fetch deltas from this receiver, and it from them, when a source fails (docs/weights.md 4); one with a
    filter has nothing whole to serve, and does not. `name`: of the set of weights.

    Raises ArgumentError, DamageError (the shadow is not what was committed).
    """

    role = "receiver"

    def __init__(
        self,
        comm: Communicator,
        shadow: Shadow,
        *,
        upstream: Upstream | None = None,
        filter: Callable[[str], bool] | None = None,
        pubkey: bytes | None = None,
        serve: bool = True,
        threads: int = 2,
        name: str = "weights",
    ) -> None:
        if shadow.at is None:
            raise ArgumentError("the shadow holds nothing yet: load a base into it first (pccl.weights.base)")
        self.shadow = shadow
        self._pubkey = pubkey
        self.owned = None if filter is None else shadow.schema.blocks_of(filter)
        self._pool = ThreadPoolExecutor(threads, "pccl-weights")
        self._writers = ThreadPoolExecutor(threads, "pccl-weights-write")  # of its own: what decodes may wait for it
        shadow.pool = self._writers
        self._ready = threading.Condition()
        self._commit_lock = threading.Lock()
        self._staged: tuple[Staged, UpdateStats] | None = None
        self._given: int = shadow.at.version
        self._stage: Stage | None = None
        self._reader: tuple[Incoming, Reader] | None = None
        self._error: PcclError | None = None
        self._closed = False
        self.serves = serve and filter is None
        self._share = Share(comm.transfers, name, shadow.schema.hash, shadow.at) if self.serves else None
        self._follow = Follow(comm.transfers, name, shadow.schema, sources_of(comm, upstream), self)

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def version(self) -> int:
        """The committed one."""
        return self._at().version

    @property
    def lineage(self) -> bytes:
        """Of the committed version."""
        return self._at().lineage

    def next(self, timeout: float | None = None) -> Update:
        """The newest update, when there is one that is newer than what was given out or committed before. Blocks at
        most `timeout` seconds, then raises Timeout; Ctrl-C interrupts. Raises what ended the following: LineageError,
        DamageError (the shadow is damaged, or no source has right bytes), SchemaError, Closed.
        """
        until = None if timeout is None else time.monotonic() + timeout
        with self._ready:
            while self._staged is None or self._staged[0].at.version <= self._given:
                if self._error is not None:
                    raise self._error
                if self._closed:
                    raise Closed("the receiver is closed")
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    raise Timeout(f"no version newer than {self._given} came within {timeout:g} s")
                self._ready.wait(left)
            staged, stats = self._staged
            self._given = staged.at.version
        with self._commit_lock:
            self.shadow.prepare(staged)
        return Update(self.shadow, staged, stats, self.owned, self._committing)

    def updates(self) -> Iterator[Update]:
        """Updates, each the newest when it is given out, until the receiver is closed. See `next`."""
        while True:
            try:
                yield self.next()
            except Closed:
                return

    def close(self) -> None:
        """Ends the following. What is committed stays."""
        if self._closed:
            return
        with self._ready:
            self._closed = True
            self._ready.notify_all()
        self._follow.close()
        if self._share is not None:
            self._share.close()
        with self._commit_lock:
            self.shadow.pool = None
        self._pool.shutdown()
        self._writers.shutdown()

    # -- commit --

    @contextmanager
    def _committing(self, update: Update) -> Iterator[None]:
        with self._commit_lock:
            refuse_old(update)
            staged = update._staged
            self.shadow.prepare(staged)
            yield
            started = time.monotonic()
            self.shadow.commit(staged)
            update.stats.commit_s = time.monotonic() - started
            with self._ready:
                if self._staged is not None and self._staged[0] is staged:
                    self._staged = None
        self._follow.moved()

    # -- Sink --

    def _at(self) -> Version:
        assert self.shadow.at is not None
        return self.shadow.at

    def have(self) -> Version:
        """See Sink."""
        with self._ready:
            return self._at() if self._staged is None else self._staged[0].at

    def committed(self) -> int:
        """See Sink."""
        return self.version

    def below(self) -> tuple[int, int]:
        """See Sink."""
        return 0, 0

    def wants(self) -> int:
        """See Sink."""
        return WANTS_FOLD

    def opened(self, name: str, generation: int, slots: int) -> None:
        """See Sink."""
        if self._share is not None:
            self._share.open(name, generation, slots)

    def on_slot(self, stream: Incoming, index: int, slot: np.ndarray[Any, Any]) -> None:
        """See Sink: passed on at once."""
        if self._share is not None:
            self._share.put(stream.name, index, slot)

    def grown(self, stream: Incoming) -> None:
        """See Sink: blocks are decoded as they come."""
        if self._reader is None or self._reader[0] is not stream:
            self._reader = (stream, Reader(stream.memory))
            with self._ready:
                onto = None if self._staged is None else self._staged[0]
            self._stage = Stage(self.shadow, self._pool, onto, self.owned)
        assert self._stage is not None
        reader, blocks = self._reader[1], len(self.shadow.schema.blocks)
        for block, encoded in chain(reader.grow(stream.contiguous, blocks), reader.beyond(stream.islands, blocks)):
            self._stage.feed(block, encoded)
        if not stream.complete:
            self._stage.foresee(reader, stream.contiguous, self._pubkey)

    def take(self, stream: Incoming, payload: Payload) -> None:
        """See Sink."""
        assert self._stage is not None and self._reader is not None
        started = time.monotonic()
        staged = self._stage.finish(payload, self._pubkey, self._reader[1].chunks)
        self._reader = self._stage = None
        with self._ready:
            before = UpdateStats() if self._staged is None else self._staged[1]
            stats = UpdateStats(
                before.bytes + payload.nbytes, before.received_bytes + stream.received_bytes, staged.changed,
                time.monotonic() - started,
            )  # fmt: skip
            self._staged = (staged, stats)
            self._ready.notify_all()
        if self._share is not None:
            self._share.whole(stream.name, staged.at)

    def dropped(self) -> None:
        """See Sink."""
        if self._stage is not None:
            self._stage.cancel()
        self._reader = self._stage = None
        if self._share is not None:
            self._share.void()

    def lineage_lost(self, error: LineageError) -> bool:
        """See Sink."""
        return False

    def failed(self, error: PcclError) -> None:
        """See Sink."""
        with self._ready:
            self._error = error
            self._ready.notify_all()
