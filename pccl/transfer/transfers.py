"""transfers.py - `Transfers`, what `comm.transfers` is: offers, fetches, caps; and where the engine's events go."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pccl import _native
from pccl.arguments import PRIORITIES, PriorityName, choice
from pccl.errors import ArgumentError
from pccl.transfer.fetch import Fetch, FetchResult
from pccl.transfer.job import Job
from pccl.transfer.manifest import check_generation, check_name
from pccl.transfer.offers import Offer, Offers, writable
from pccl.transfer.target import Into, Target
from pccl.transfer.worker import Worker, _RelayOf
from pccl.types import PEER_ID_BYTES, Event, EventKind

__all__ = ["Transfers"]

Peer = int | bytes


class Settings(Protocol):
    """What transfers need of the settings."""

    @property
    def op_timeout(self) -> float:
        """Default deadline, in seconds."""


class Host(Protocol):
    """What transfers need of the communicator."""

    @property
    def engine(self) -> _native.Engine:
        """The engine."""

    @property
    def peer_id(self) -> bytes:
        """This peer."""

    @property
    def settings(self) -> Settings:
        """Its settings."""

    def check(self) -> None:
        """Raises what forbids any further transfer."""

    def check_pid(self) -> None:
        """Raises ForkError in a forked child."""

    def participants(self) -> tuple[bytes, ...]:
        """The peers of the epoch, in the order of their ranks."""


@dataclass(slots=True, frozen=True)
class Wish:
    """What a fetch is to be: see `Transfers.fetch`, and `changing` of Job."""

    generation: int | None = None
    digest: bytes | None = None
    priority: int = 0
    relay: bool = False
    changing: bool = False


class Transfers:
    """Named bytes that peers of a run offer and fetch, beside the collectives and over the same links. Any thread.

    A fetch belongs to no boundary and no epoch: it goes on while peers join and leave, as long as one of its sources is
    there. What arrives is verified chunk by chunk by xxh3-128 digests, which find damage, not forgery.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self.offers = Offers(host)
        self._worker = Worker(self.offers, self._on_over)
        self._fetches: dict[int, tuple[Fetch, Any]] = {}
        self._numbers = itertools.count(1)
        self._number_of: dict[Job, int] = {}
        self._lock = threading.Lock()

    # -- what users call --

    def offer(self, name: str, array: Any, *, generation: int = 1, chunk_bytes: int | None = None) -> Offer:
        """Offers the bytes of an array (torch CPU tensor, numpy array, or buffer; contiguous; any size), or of a list
        of arrays, to all peers.

        Nothing is copied: the memory must not be written to until `Offer.withdraw` or `update` has returned, and is
        kept alive until then. Blocks while it reads all of it, to take the digests (about 10 GB/s). `generation`: 1 to
        2**63 - 1, for the user to tell contents apart. `chunk_bytes`: what is verified, asked for again and passed on
        as one; a power of two from 1 KiB to 1 GiB, 65,536 chunks at most; default 1 MiB, more beyond 64 GiB.

        Raises ArgumentError (the name is offered here already; an argument is wrong), TypeError, Closed.
        """
        self._host.check()
        check_name(name)
        return self.offers.offer(name, array, check_generation(generation), chunk_bytes)

    def fetch(
        self,
        name: str,
        into: Any = None,
        *,
        sources: Sequence[Peer] | Peer,
        generation: int | None = None,
        digest: bytes | None = None,
        have: bytes | None = None,
        priority: PriorityName = "normal",
        timeout: float | None = None,
        relay: bool = False,
    ) -> Fetch:
        """Fetches a name from one or more peers at once; returns at once.

        `into`: contiguous writable memory of exactly the offer's size, which belongs to the fetch until it is done; of
        an offer of several arrays one for all, or a list of such of their sizes; None: a uint8 numpy array is made.
        `sources`: ranks or ids of peers. Faster ones carry more; chunks of one that is lost, silent or wrong move to
        the others; one that does not offer the name yet is asked again. `generation`, `digest` (of `Offer.digest`):
        what must be offered; without them it is the newest that the sources offer when the fetch begins, and if they
        differ in it, what most of them offer. `have`: chunks that `into` holds already (`Fetch.have()`); they are
        verified, and not fetched if they are right. `priority`: whose bytes the sources send first; see also `limit`.
        `timeout`: seconds until the fetch ends with Timeout, whatever the other side does (default: the communicator's
        `op_timeout`). `relay`: this peer offers the name on from the start, each chunk as soon as it is verified, and
        goes on when the fetch is done (`FetchResult.offer`); a fetch that fails withdraws it.

        Raises ArgumentError, TypeError or Closed: then nothing has happened. What goes wrong later is raised by the
        Fetch.
        """
        self._host.check()
        check_name(name)
        seconds = self._host.settings.op_timeout if timeout is None else timeout
        if not seconds > 0:
            raise ArgumentError(f"timeout must be a positive number of seconds, not {timeout!r}")
        if generation is not None:
            check_generation(generation)
        memory, hold = (None, None) if into is None else writable(into)
        wish = Wish(generation, digest, choice("priority", priority, PRIORITIES), relay)
        return self._begin(name, Into(memory, have), self._source_ids(sources), wish, seconds, (into, hold))

    def begin(self, name: str, target: Target, sources: Sequence[bytes], wish: Wish, seconds: float) -> Fetch:
        """Fetches into a target of the caller's making; what it does not want is not fetched. See `fetch`."""
        self._host.check()
        return self._begin(name, target, tuple(sources), wish, seconds, (None, target))

    def _begin(
        self, name: str, target: Target, sources: tuple[bytes, ...], wish: Wish, seconds: float, hold: tuple[Any, Any]
    ) -> Fetch:
        now = time.monotonic()
        job = Job(
            self._worker,
            name,
            sources,
            target,
            generation=wish.generation,
            root=wish.digest,
            priority=wish.priority,
            relay=wish.relay,
            now=now,
            deadline_at=now + seconds,
            changing=wish.changing,
        )
        number = next(self._numbers)
        fetch = Fetch(self, number, job, self._worker.tell)
        with self._lock:
            self._fetches[number] = (fetch, hold)
            self._number_of[job] = number
        try:
            self._worker.begin(job)
        except BaseException:
            self._forget(job)
            raise
        return fetch

    def limit(self, priority: PriorityName, bytes_per_s: int) -> None:
        """Caps what this peer sends of fetches of a priority, to all peers together; 0: no cap. Collectives are not
        limited, but count against the cap of "low", which has what they and higher priorities leave of it: give it a
        little less than this peer's line carries, and they do not wait behind what nobody is in a hurry for.
        """
        self._host.check()
        if bytes_per_s < 0:
            raise ArgumentError(f"bytes_per_s must not be negative: {bytes_per_s}")
        self._host.engine.limit(choice("priority", priority, PRIORITIES), int(bytes_per_s))

    # -- called by Work, Runtime and the worker --

    def check_pid(self) -> None:
        """Raises ForkError in a forked child."""
        self._host.check_pid()

    def describe_token(self, token: int) -> str:
        """A fetch in words."""
        found = self._fetches.get(token)
        return f"fetch number {token}" if found is None else found[0]._job.describe()

    def cancel_token(self, token: int) -> bool:
        """Ends a fetch soon."""
        found = self._fetches.get(token)
        if found is None:
            return False
        job = found[0]._job

        def step() -> Job:
            job.cancel()
            return job

        self._worker.tell(step)
        return True

    def on_event(self, event: Event) -> None:
        """A FETCH or WITHDRAWN event; on the control thread."""
        if event.kind == EventKind.FETCH:
            self._worker.on_event(event)
        else:
            self.offers.on_withdrawn(event)

    def end(self) -> None:
        """The engine is gone: every fetch that is left ends with Closed, every offer's memory is free."""
        self.offers.end()
        self._worker.stop()

    def _on_over(self, job: Job) -> None:
        fetch, (into, _) = self._forget(job)
        if job.error is not None or job.manifest is None:
            fetch._resolve(None, job.error)
            return
        manifest = job.manifest
        offer = job.relay.offer if isinstance(job.relay, _RelayOf) else None
        tensor = job.target.whole if into is None and isinstance(job.target, Into) else into
        result = FetchResult(tensor, job.name, manifest.generation, manifest.nbytes, manifest.root, job.report, offer)
        fetch._resolve(result, None)

    def _forget(self, job: Job) -> tuple[Fetch, Any]:
        with self._lock:
            return self._fetches.pop(self._number_of.pop(job))

    def _source_ids(self, sources: Sequence[Peer] | Peer) -> tuple[bytes, ...]:
        """Ids, each once. A rank must exist; an id may be of a peer that is not in the epoch, if there is a link."""
        given = [sources] if isinstance(sources, int | bytes) else list(sources)
        ids: dict[bytes, None] = {}
        for source in given:
            if isinstance(source, bytes):
                if len(source) != PEER_ID_BYTES:
                    raise ArgumentError(f"sources: a peer's id has {PEER_ID_BYTES} bytes, got {len(source)}")
                ids[source] = None
            else:
                peers = self._host.participants()
                if not 0 <= source < len(peers):
                    raise ArgumentError(f"sources: rank {source} does not exist, the epoch has {len(peers)} peers")
                ids[peers[source]] = None
        if not ids or self._host.peer_id in ids:
            raise ArgumentError("sources: name at least one peer, and not this one")
        return tuple(ids)
