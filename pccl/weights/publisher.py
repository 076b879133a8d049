"""publisher.py - the trainer's side: what its weights differ from the last version in becomes the next.

Threads encode, block by block, and every slot goes as it is full; all has gone when the log is durable, but for the end
that says so. Only then the baseline moves. Nobody who follows is ever waited for, but by `max_staleness`.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from pccl.communicator import Communicator
from pccl.errors import ArgumentError, Closed, PcclError, Timeout
from pccl.weights import base as bases
from pccl.weights import codec
from pccl.weights.apply import apply
from pccl.weights.certificate import Certificate, SigningKey, Version, state_digest
from pccl.weights.codec import Codec
from pccl.weights.digests import strong
from pccl.weights.errors import LogError, WeightsError
from pccl.weights.fold import in_order, plain
from pccl.weights.gather import Arena, New, gather
from pccl.weights.joint import Joint, Together
from pccl.weights.leisure import leisure
from pccl.weights.log import DeltaLog
from pccl.weights.manifest import Manifest, Prelude
from pccl.weights.payload import Payload, Writer
from pccl.weights.receiver import Upstream, sources_of
from pccl.weights.schema import Schema
from pccl.weights.shadow import MemoryShadow
from pccl.weights.source import Source
from pccl.weights.ticket import Ticket

__all__ = ["Publisher"]

log = logging.getLogger("pccl.weights")


class Publisher:
    """Publishes versions of the tensors of a schema.

    `base`: version 0, tensors by name or a directory of safetensors; copied (that much memory is held). With a `log`
    that has versions already, the next one follows those; `tip` says which is there, and `tensors()` what it holds.
    `codecs`: as of codec.encode. `sign`: a SigningKey; None: nothing is signed. `max_staleness`: so many versions a
    receiver may be behind before `publish` waits for it. `name`: of this set of weights within the run.

    `ranks`: ids of ShardPublishers, or a function that gives them: then each version is made of their parts and what is
    published here, which must hold every element together (docs/weights.md 8), and fails if they have not come
    `parts_timeout_s` after its turn.

    Raises SchemaError, LineageError (the log is of another base), DamageError, LogError.
    """

    def __init__(
        self,
        comm: Communicator,
        schema: Schema,
        *,
        base: Mapping[str, Any] | Iterable[tuple[str, Any]] | str | Path,
        log: DeltaLog,
        sign: SigningKey | None = None,
        codecs: str = "auto",
        threads: int = 2,
        max_staleness: int | None = None,
        ranks: Upstream | None = None,
        parts_timeout_s: float = 600.0,
        name: str = "weights",
    ) -> None:
        if max_staleness is not None and max_staleness < 1:
            raise ArgumentError(f"max_staleness must be at least 1, not {max_staleness}")
        self.schema, self.log = schema, log
        self._sign, self._codecs, self._max_staleness = sign, codecs, max_staleness
        self._run = strong(b"run", name.encode())
        self._pool = ThreadPoolExecutor(threads, "pccl-weights")
        self._leisure = leisure()
        self._baseline = MemoryShadow(schema)
        self._lock = threading.Lock()  # of the baseline, while it moves
        self._closed = False
        self._unsettled: list[bytes | None] = []
        self._begin(base)
        self._source = Source(
            comm.transfers, name, schema, log, epoch=self.epoch, base=self._zero, block_at=self._block_at
        )
        self._joint = None
        if ranks is not None:
            given = sources_of(comm, ranks)
            self._joint = Joint(comm.transfers, name, schema, given, self._baseline, self.tip, parts_timeout_s)
        self._queue: queue.SimpleQueue[tuple[Ticket, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="pccl-weights-publisher", daemon=True)
        self._thread.start()

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def tip(self) -> Version:
        """The newest durable version."""
        return self.log.tip

    @property
    def sent_bytes(self) -> int:
        """Of the present live stream, for each who reads it from here."""
        return self._source.live.sent_bytes

    def tensors(self) -> Iterable[tuple[str, np.ndarray[Any, Any]]]:
        """(name, elements as unsigned integers) of the newest durable version; read-only views that change with it."""
        for number, tensor in enumerate(self.schema.tensors):
            view = self.schema.view(self._baseline.arena, number)
            view.flags.writeable = False
            yield tensor.name, view

    def receivers(self) -> tuple[int, int]:
        """(receivers that are there, also behind relays; the lowest version that all have committed)."""
        return self._source.below()

    def publish(self, named: New, *, timeout: float | None = None) -> Ticket:
        """Publishes what `named` holds as the next version; returns at once. The tensors must not be written to before
        `Ticket.wait("encoded")` has returned. Tensors that are not named stay as they were.

        `named`: tensors by name, pairs (name, tensor), or triples (name, local shard, ShardSpec); torch CPU tensors,
        DTensors (whose local shard is taken) or arrays. With `max_staleness` blocks while a receiver is further behind,
        at most `timeout` seconds, then raises Timeout and nothing has happened. Raises SchemaError, Closed.
        """
        self._check()
        news = gather(self.schema, named)
        self._wait_for_receivers(timeout)
        return self._put(news)

    def roll_back(self, version: int) -> Ticket:
        """Publishes, as the next version, the state of an earlier one. LineageError if that has been pruned."""
        self._check()
        self.log.version(version)
        return self._put(version)

    def close(self) -> None:
        """Ends what is being published first. Followers see that this source is gone, and keep what they have."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            if self._joint is not None:
                self._joint.close()
            self._thread.join()
            self._source.close()
            self._pool.shutdown()
            self._leisure.shutdown()

    # -- beginning --

    def _begin(self, base: Any) -> None:
        if isinstance(base, str | Path):
            bases.load(base, self._baseline)
        else:
            bases.fill(self._baseline, base)
        assert self._baseline.at is not None
        self._zero = self._baseline.at
        self.log.open(self._zero)
        tip, settled = self.log.tip, self.log.settled
        self.epoch = 1
        for piece in self.log.pieces(0, settled.version):
            self._replay(piece)
        if settled != tip:
            last = self.log.delta(tip.version)
            self.log.settle(plain(last, self.schema, self._baseline.arena, self._pool))
            self._replay(last)

    def _replay(self, payload: Payload) -> None:
        apply(payload, self.schema, self._baseline.arena, self._pool, check=True)
        self._baseline.begin(payload.manifest.at, payload.manifest.digests)
        self.epoch = payload.manifest.certificate.epoch + 1

    # -- publishing --

    def _check(self) -> None:
        if self._closed:
            raise Closed("the publisher is closed")

    def _wait_for_receivers(self, timeout: float | None) -> None:
        if self._max_staleness is None:
            return
        until = None if timeout is None else time.monotonic() + timeout
        with self._source.changed:
            while (behind := self.tip.version + 1 - self.receivers()[1]) > self._max_staleness:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    raise Timeout(f"a receiver would be {behind} versions behind; {self._max_staleness} are allowed")
                self._source.changed.wait(left)

    def _put(self, what: Any) -> Ticket:
        ticket = Ticket(self._source.changed, self._reached)
        self._queue.put((ticket, what))
        return ticket

    def _reached(self, ticket: Ticket, stage: str) -> bool:
        if stage in ("encoded", "durable"):
            return ticket.stage >= ("encoded", "durable").index(stage)
        if ticket.stage < 1 or ticket.version is None:
            return False
        states = [f.state for f in self._source.followers() if f.state is not None]
        relays = all(state.version >= ticket.version for state in states if state.role == "relay")
        return relays and (stage == "relays" or self._source.below()[1] >= ticket.version)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            ticket, what = item
            try:
                joint = None if isinstance(what, int) else self._joint
                news = self._old_state(what) if isinstance(what, int) else what
                if joint is not None:
                    news = joint.collect(news, self._pool, self._codecs)
                self._publish(ticket, news)
            except PcclError as error:
                self._fail(ticket, error)
            except Exception as error:  # noqa: BLE001 - told by the ticket
                self._fail(ticket, WeightsError(f"publishing failed: {error!r}"))

    def _fail(self, ticket: Ticket, error: PcclError) -> None:
        if ticket.stage < 1:
            self._source.renew_live()
            if self._joint is not None:
                self._joint.abort(error)
        with self._source.changed:
            ticket.error = error
            self._source.changed.notify_all()

    def _advance(self, ticket: Ticket, stage: int) -> None:
        with self._source.changed:
            ticket.stage = stage
            self._source.changed.notify_all()

    def _publish(self, ticket: Ticket, news: Any) -> None:
        started = time.monotonic()
        before = self.tip
        ticket.version = before.version + 1
        writer = Writer(Prelude(before, ticket.version, self.schema.hash))
        data = bytearray()  # grows on the way: gathered at the end, it would keep receivers waiting
        digests = list(self._baseline.digests)

        with self.log.begin() as file:

            def send(some: bytes) -> None:
                if some:
                    self._source.live.write(some)
                    file.add(some)
                    data.extend(some)

            send(writer.begin())
            self._encode(ticket, news, writer, digests, send)
            send(writer.close_chunks())
            ticket.stats.encode_s = time.monotonic() - started
            self._advance(ticket, 0)
            end, manifest = self._end(writer, before, digests)
            send(end)
            self._source.live.conclude()
            payload = Payload.made(data, manifest)
            self.log.append(data, payload, file)
        self._source.live.finish()
        ticket.stats.bytes = len(data)
        ticket.stats.durable_s = time.monotonic() - started
        self._source.move(self.tip, payload.sizes)
        if self._joint is not None:
            self._joint.open(self.tip, isinstance(news, Together))
        self._advance(ticket, 1)
        try:
            self._settle(payload)
        except LogError as error:
            log.warning("weights: version %d is durable, but folds must wait: %s", ticket.version, error)

    def _encode(self, ticket: Ticket, news: Any, writer: Writer, digests: list[bytes], send: Any) -> None:
        stats = ticket.stats
        stats.dense_bytes = self.schema.nbytes

        def one(number: int) -> tuple[int, bytes, bytes]:
            ready = news.ready(number)
            if ready is not None:
                return number, *ready
            new = news.block(number, self._baseline.arena)
            digest = bytearray(codec.HASH_BYTES)
            return number, codec.encode(self._baseline.block(number), new, self._codecs, hashed=digest), bytes(digest)

        for number, encoded, digest in in_order(self._pool, one, news.touched()):
            info = codec.describe(encoded)
            if info.codec == Codec.ZERO:
                continue
            stats.changed += info.changed
            stats.codecs[info.codec.name] = stats.codecs.get(info.codec.name, 0) + 1
            digests[number] = digest
            send(writer.add(number, encoded))

    def _end(self, writer: Writer, before: Version, digests: list[bytes]) -> tuple[bytes, Manifest]:
        state = state_digest(self.schema.hash, digests)
        certificate = Certificate(
            self._run, self.epoch, before.version + 1, before.lineage, self.schema.hash, state, writer.root
        )
        signature = b"" if self._sign is None else self._sign.sign(certificate)
        return writer.end(digests, certificate, signature)

    def _settle(self, payload: Payload) -> None:
        """After it is durable: the baseline moves, and the log is made ready for folds. What the disk has no room for
        is tried again after the next version.
        """
        self._unsettled.append(plain(payload, self.schema, self._baseline.arena, self._leisure))
        with self._lock:
            apply(payload, self.schema, self._baseline.arena, self._leisure, check=False)
            self._baseline.begin(payload.manifest.at, payload.manifest.digests)
        while self._unsettled:
            self.log.settle(self._unsettled[0])
            del self._unsettled[0]
        self.log.tend(self._leisure)

    # -- earlier states --

    def _old_state(self, version: int) -> Any:
        """The tensors of an earlier version: the way from there, inverted, from here."""
        arena = self._baseline.arena.copy()
        for piece in reversed(self.log.pieces(version, self.tip.version)):
            piece.check_chunks()
            for number, block in piece.blocks():
                codec.decode(codec.invert(block), self.schema.block_view(arena, self.schema.blocks[number]))
        return Arena(self.schema, arena)

    def _block_at(self, at: Version, block: int) -> np.ndarray[Any, Any] | None:
        with self._lock:
            return self._baseline.block(block).copy() if self._baseline.at == at else None
