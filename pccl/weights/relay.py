"""relay.py - a source that is not the publisher: it passes each slot on as it comes, and keeps a log of its own.

With a shadow it holds the state and can make folds; without one it has the deltas as they were published, and the fold
from the base that it began with.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from pccl.communicator import Communicator
from pccl.errors import ArgumentError, PcclError
from pccl.weights.apply import apply
from pccl.weights.certificate import Version
from pccl.weights.errors import DamageError, LineageError, LogError
from pccl.weights.fold import plain
from pccl.weights.follow import Follow
from pccl.weights.leisure import leisure
from pccl.weights.log import DeltaLog
from pccl.weights.payload import Payload
from pccl.weights.receiver import Upstream, sources_of
from pccl.weights.records import WANTS_DELTA, WANTS_FOLD, live_stream
from pccl.weights.schema import Schema
from pccl.weights.shadow import MemoryShadow
from pccl.weights.source import Source
from pccl.weights.stream import Incoming

__all__ = ["Relay"]


class Relay:
    """Follows a publisher or another relay, and serves others.

    `base`: version 0: a MemoryShadow with the base loaded, which the relay moves along, or only its Version. `log`: its
    own. `upstream`, `pubkey`, `name`: as of Receiver. Raises LineageError (the log is of another base), DamageError,
    LogError.
    """

    role = "relay"
    serves = False  # as a source, to those who name it as one
    owned: frozenset[int] | None = None

    def __init__(
        self,
        comm: Communicator,
        schema: Schema,
        *,
        base: MemoryShadow | Version,
        log: DeltaLog,
        upstream: Upstream | None = None,
        pubkey: bytes | None = None,
        threads: int = 2,
        name: str = "weights",
    ) -> None:
        self.schema, self.log = schema, log
        self._name, self._pubkey = name, pubkey
        self._shadow = base if isinstance(base, MemoryShadow) else None
        zero = base.at if isinstance(base, MemoryShadow) else base
        if zero is None or zero.version != 0:
            raise ArgumentError("base must be version 0: a shadow that a base was loaded into, or its Version")
        self._zero = zero
        self._pool = ThreadPoolExecutor(threads, "pccl-weights")
        self._leisure = leisure()
        self._lock = threading.Lock()  # of the shadow, while it moves
        self._closed = False
        self._error: PcclError | None = None
        self._passed: Incoming | None = None
        self._anew = False
        self._begin()
        self._source = Source(comm.transfers, name, schema, log, epoch=0, base=zero, block_at=self._block_at)
        self._follow = Follow(comm.transfers, name, schema, sources_of(comm, upstream), self)
        self._source.on_followers = self._follow.moved

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def version(self) -> int:
        """The newest that is durable here."""
        return self.log.tip.version

    @property
    def error(self) -> PcclError | None:
        """Why it follows no more; None while it does. It goes on serving what it has."""
        return self._error

    def receivers(self) -> tuple[int, int]:
        """(receivers that follow from here; the lowest version that all have committed)."""
        return self._source.below()

    def close(self) -> None:
        """Follows and serves no more."""
        if not self._closed:
            self._closed = True
            self._follow.close()
            self._source.close()
            self._pool.shutdown()
            self._leisure.shutdown()

    # -- its own copy --

    def _begin(self) -> None:
        self.log.open(self._zero)
        if self._shadow is None:
            return
        for piece in self.log.pieces(0, self.log.settled.version):
            self._move(piece, check=True)
        if self.log.settled != self.log.tip:
            self._settle(self.log.delta(self.log.tip.version))

    def _move(self, payload: Payload, check: bool) -> None:
        assert self._shadow is not None
        with self._lock:
            apply(payload, self.schema, self._shadow.arena, self._pool, check)
            self._shadow.begin(payload.manifest.at, payload.manifest.digests)

    def _settle(self, payload: Payload) -> None:
        """With a shadow the log learns to fold; without one it is left as it came."""
        if self._shadow is not None:
            data = plain(payload, self.schema, self._shadow.arena, self._pool)
            self._move(payload, check=True)
            self.log.settle(data)
            self.log.tend(self._leisure)

    def _block_at(self, at: Version, block: int) -> np.ndarray[Any, Any] | None:
        with self._lock:
            shadow = self._shadow
            return None if shadow is None or shadow.at != at else shadow.block(block).copy()

    # -- Sink --

    def have(self) -> Version:
        """See Sink."""
        return self._zero if self._anew else self.log.tip

    def committed(self) -> int:
        """See Sink."""
        return self.version

    def below(self) -> tuple[int, int]:
        """See Sink."""
        return self._source.below()

    def wants(self) -> int:
        """See Sink: all at once when it has nothing, else what was published."""
        return WANTS_FOLD if self.have().version == 0 else WANTS_DELTA

    def opened(self, name: str, generation: int, slots: int) -> None:
        """See Sink."""

    def on_slot(self, stream: Incoming, index: int, slot: np.ndarray[Any, Any]) -> None:
        """See Sink: passed on at once."""
        if stream.name == live_stream(self._name, self.log.tip):
            self._passed = stream
            self._source.live.put(index, slot)

    def grown(self, stream: Incoming) -> None:
        """See Sink."""

    def take(self, stream: Incoming, payload: Payload) -> None:
        """See Sink."""
        if payload.base != self.have():
            raise DamageError(f"a payload from {payload.base} came for {self.have()}")
        payload.manifest.check(self.schema, self._pubkey)
        payload.check_chunks()
        data = bytes(payload.data)
        kept = Payload(data)
        if not payload.manifest.is_delta:
            self._restart(data, kept)
            return
        self.log.append(data, kept)
        if self._passed is not stream:
            self._source.live.write(data)
            self._source.live.conclude()
            self._source.live.finish()
        self._source.epoch = payload.manifest.certificate.epoch
        self._source.move(self.log.tip, kept.sizes)
        self._settle(kept)

    def _restart(self, data: bytes, payload: Payload) -> None:
        if payload.base != self._zero:
            raise DamageError(f"a relay was sent a fold from {payload.base}")
        if self._shadow is not None and self._shadow.at == self._zero:
            self._move(payload, check=True)
        elif self._shadow is not None:
            raise LogError("a relay that holds a state cannot begin anew: make another one, from the base")
        self.log.restart(data, payload)
        self._anew = False
        self._source.move(self.log.tip, (0, 0))

    def dropped(self) -> None:
        """See Sink: what was passed on is void."""
        if self._passed is not None:
            self._passed = None
            self._source.renew_live()

    def lineage_lost(self, error: LineageError) -> bool:
        """See Sink: begins at the base again, once."""
        if self._anew or self.log.tip.version == 0:
            return False
        self._anew = True
        return True

    def failed(self, error: PcclError) -> None:
        """See Sink."""
        self._error = error
