"""transfers.py - `Transfers`, what `comm.transfers` is: offers, fetches, pushes, caps; where the engine's events go."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pccl import _native
from pccl.arguments import PRIORITIES, PriorityName, choice
from pccl.contacts import Way
from pccl.errors import ArgumentError, Closed, PcclError
from pccl.transfer.accept import Acceptance, Acceptances, receipt_of
from pccl.transfer.fetch import Fetch, FetchResult
from pccl.transfer.job import Job
from pccl.transfer.manifest import check_generation, check_name
from pccl.transfer.offers import Offer, Offers, writable
from pccl.transfer.push import Push, PushJob, PushResult
from pccl.transfer.read import Read
from pccl.transfer.receipt import NO_ROOT, pushed_name
from pccl.transfer.target import Bytes, Into, Target
from pccl.transfer.task import Driven, ScatterAsks, Task
from pccl.transfer.worker import Worker, _RelayOf
from pccl.types import PEER_ID_BYTES, Event, EventKind, Status

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

    def way_to(self, peer: bytes) -> Way:
        """Whether there is a link to a peer."""

    def seek(self, peers: frozenset[bytes]) -> None:
        """Transfers name these peers of other groups, and no others."""


@dataclass(slots=True, frozen=True)
class Wish:
    """What a fetch is to be: see `Transfers.fetch`, and `changing` of Job."""

    generation: int | None = None
    digest: bytes | None = None
    priority: int = 0
    relay: bool = False
    changing: bool = False


@dataclass(slots=True)
class _Entry:
    """A transfer that has not ended. `into`: where the user wants it; `hold`: keeps its memory alive."""

    pending: Fetch | Push
    task: Task
    into: Any
    hold: Any
    acceptance: Acceptance | None


class Transfers:
    """Named bytes that peers of a run offer and fetch, beside the collectives and over the same links. Any thread.

    A fetch belongs to no boundary and no epoch: it goes on while peers join and leave, as long as one of its sources is
    there. What arrives is verified chunk by chunk by xxh3-128 digests, which find damage, not forgery.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self.offers = Offers(host)
        self._worker = Worker(self.offers, host, self._on_over)
        self._acceptances = Acceptances(self.offers)
        self._entries: dict[int, _Entry] = {}
        self._numbers = itertools.count(1)
        self._number_of: dict[Task, int] = {}
        self._lock = threading.Lock()

    @property
    def peer_id(self) -> bytes:
        """This peer."""
        return self._host.peer_id

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
        `sources`: ranks or ids of peers; ids also of peers of other groups, to which links are made while transfers
        name them. Faster ones carry more; chunks of one that is lost, silent or wrong move to
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
        if generation is not None:
            check_generation(generation)
        memory, hold = (None, None) if into is None else writable(into)
        wish = Wish(generation, digest, choice("priority", priority, PRIORITIES), relay)
        job = self._job(name, Into(memory, have), self._source_ids(sources), wish, self._seconds(timeout))
        return self._begin_fetch(job, into, (into, hold), None)

    def begin(self, name: str, target: Target, sources: Sequence[bytes], wish: Wish, seconds: float) -> Fetch:
        """Fetches into a target of the caller's making; what it does not want is not fetched. See `fetch`."""
        self._host.check()
        return self._begin_fetch(self._job(name, target, tuple(sources), wish, seconds), None, target, None)

    def read(
        self,
        peer: bytes,
        key: bytes,
        generation: int,
        offset: int,
        memory: Bytes,
        done: Callable[[Status], None],
        *,
        priority: PriorityName,
        seconds: float,
    ) -> Read:
        """Reads bytes of a region (`Offers.offer_region`) that a peer offers, or waits there until it has them. See
        Read.
        """
        self._host.check()
        number, deadline_at = choice("priority", priority, PRIORITIES), time.monotonic() + seconds
        task = Read(self._worker, peer, key, generation, offset, memory, done, priority=number, deadline_at=deadline_at)
        self._worker.begin(task)
        return task

    @property
    def asks(self) -> ScatterAsks:
        """How tasks of others' making ask; on the thread of transfers alone."""
        return self._worker

    def drive(self, task: Driven) -> None:
        """Takes over a task of another's making. Raises what forbids any further transfer."""
        self._host.check()
        self._worker.begin(task)

    def tell(self, step: Callable[[], Task]) -> None:
        """Runs a step on the thread of transfers; it gives the task that it was about. Does not block."""
        self._worker.tell(step)

    def links(self) -> dict[bytes, tuple[float, float]]:
        """Of the links: round trip in s, bytes/s of what is sent; 0: not known."""
        try:
            return {link.peer: (link.rtt_us / 1e6, float(link.bytes_per_s)) for link in self._host.engine.links()}
        except Closed:
            return {}

    def cancel_read(self, task: Read) -> None:
        """Ends a read soon; `done` still follows, unless it was called already. Does not block."""

        def step() -> Task:
            task.cancel()
            return task

        self._worker.tell(step)

    def accept(
        self,
        name: str,
        into: Any = None,
        *,
        sources: Sequence[Peer] | Peer | None = None,
        priority: PriorityName = "normal",
        timeout: float | None = None,
    ) -> Fetch:
        """Takes what other peers push here by that name, once; returns at once.

        `into`: contiguous writable memory of exactly the size that is pushed, which belongs to the Fetch until it is
        done; None: a uint8 numpy array is made. Nothing else is ever written to. `sources`: ranks or ids of peers that
        may push it; None: any peer that has a link. The first to push decides what the content is; others that push
        the same bytes carry a part of them, and those that push something else are told so. `priority`, `timeout`: as
        of `fetch`.

        The Fetch is one like any other; its errors reach those that have pushed. Raises ArgumentError (the name is
        being accepted already; an argument is wrong), TypeError, Closed.
        """
        self._host.check()
        offered_as = pushed_name(name, self._host.peer_id)
        allowed = None if sources is None else self._source_ids(sources)
        memory, hold = (None, None) if into is None else writable(into)
        wish = Wish(priority=choice("priority", priority, PRIORITIES))
        job = self._job(name, Into(memory), (), wish, self._seconds(timeout), offered_as)

        def on_pusher(peer: bytes) -> None:
            def step() -> Task:
                job.add_source(peer)
                return job

            if allowed is None or peer in allowed:
                self._worker.tell(step)

        return self._begin_fetch(job, into, (into, hold), self._acceptances.open(name, on_pusher))

    def push(
        self,
        name: str,
        array: Any,
        *,
        to: Peer,
        generation: int = 1,
        chunk_bytes: int | None = None,
        timeout: float | None = None,
    ) -> Push:
        """Gives the bytes of an array to a peer that accepts the name, now or within `timeout`.

        `array`, `generation`, `chunk_bytes`: as of `offer`; the memory must not be written to until the Push is done.
        `to`: rank or id of the peer, the id also of one of another group. Blocks while it reads all of the array, to
        take the digests (about 10 GB/s); then returns. The Push ends well when the peer has everything, verified.
        `timeout`: seconds until it ends with Timeout, whatever the other side does (default: the communicator's
        `op_timeout`).

        Raises ArgumentError (this name is being pushed to that peer already; an argument is wrong), TypeError, Closed.
        """
        self._host.check()
        (peer,) = self._source_ids(to, "to")
        deadline_at = time.monotonic() + self._seconds(timeout)
        offer = self.offers.offer(pushed_name(name, peer), array, check_generation(generation), chunk_bytes)

        def withdrawn(job: PushJob) -> None:
            def step() -> Task:
                job.on_withdrawn()
                return job

            self._worker.tell(step)

        now = time.monotonic()
        job = PushJob(self._worker, name, peer, offer, withdrawn, now=now, deadline_at=deadline_at)
        push = Push(self, next(self._numbers), job)
        try:
            self._begin(push, _Entry(push, job, array, array, None))
        except BaseException:
            offer.withdraw()
            raise
        return push

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
        """A transfer in words."""
        entry = self._entries.get(token)
        return f"transfer number {token}" if entry is None else entry.task.describe()

    def cancel_token(self, token: int) -> bool:
        """Ends a fetch or a push soon."""
        entry = self._entries.get(token)
        if entry is None:
            return False
        task = entry.task

        def step() -> Task:
            task.cancel()
            return task

        self._worker.tell(step)
        return True

    def on_event(self, event: Event) -> None:
        """A FETCH, WITHDRAWN or ASKED event; on the control thread."""
        if event.kind == EventKind.FETCH:
            self._worker.on_event(event)
        elif event.kind == EventKind.ASKED:
            self.offers.on_asked(event)
        else:
            self.offers.on_withdrawn(event)

    def on_contacts(self) -> None:
        """Links to peers of other groups have come or gone; on the control thread."""
        self._worker.look()

    def on_error(self, error: PcclError) -> None:
        """The control plane gave up: every transfer ends with that, for the others know this peer no more."""
        self._worker.give_up(error)

    def end(self) -> None:
        """The engine is gone: every transfer that is left ends with Closed, every offer's memory is free."""
        self.offers.end()
        self._worker.stop()

    # -- beginnings and ends --

    def _seconds(self, timeout: float | None) -> float:
        seconds = self._host.settings.op_timeout if timeout is None else timeout
        if not seconds > 0:
            raise ArgumentError(f"timeout must be a positive number of seconds, not {timeout!r}")
        return seconds

    def _job(
        self,
        name: str,
        target: Target,
        sources: tuple[bytes, ...],
        wish: Wish,
        seconds: float,
        offered_as: str | None = None,
    ) -> Job:
        now = time.monotonic()
        return Job(
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
            offered_as=offered_as,
        )

    def _begin_fetch(self, job: Job, into: Any, hold: Any, acceptance: Acceptance | None) -> Fetch:
        fetch = Fetch(self, next(self._numbers), job, self._worker.tell)
        try:
            self._begin(fetch, _Entry(fetch, job, into, hold, acceptance))
        except BaseException as error:
            if acceptance is not None:
                lost = error if isinstance(error, PcclError) else Closed("the fetch could not begin")
                self._acceptances.end(acceptance, receipt_of(0, NO_ROOT, lost))
            raise
        return fetch

    def _begin(self, pending: Fetch | Push, entry: _Entry) -> None:
        task, number = entry.task, pending._token
        with self._lock:
            self._entries[number] = entry
            self._number_of[task] = number
        try:
            self._worker.begin(task)
        except BaseException:
            self._forget(task)
            raise

    def _on_over(self, task: Task) -> None:
        if isinstance(task, Driven):
            task.on_over()
            return
        entry = self._forget(task)
        if isinstance(task, PushJob):
            of = task.manifest
            pushed = PushResult(task.name, of.generation, of.nbytes, of.root, task.duration_s)
            entry.pending._resolve(None if task.error is not None else pushed, task.error)  # type: ignore[arg-type]
            return
        assert isinstance(task, Job)
        manifest = task.manifest
        if entry.acceptance is not None:
            generation, root = (0, NO_ROOT) if manifest is None else (manifest.generation, manifest.root)
            self._acceptances.end(entry.acceptance, receipt_of(generation, root, task.error))
        if task.error is not None or manifest is None:
            entry.pending._resolve(None, task.error)
            return
        offer = task.relay.offer if isinstance(task.relay, _RelayOf) else None
        tensor = task.target.whole if entry.into is None and isinstance(task.target, Into) else entry.into
        facts = (manifest.generation, manifest.nbytes, manifest.root, task.report, offer)
        entry.pending._resolve(FetchResult(tensor, task.name, *facts), None)  # type: ignore[arg-type]

    def _forget(self, task: Task) -> _Entry:
        with self._lock:
            return self._entries.pop(self._number_of.pop(task))

    def _source_ids(self, sources: Sequence[Peer] | Peer, what: str = "sources") -> tuple[bytes, ...]:
        """Ids, each once. A rank must exist; an id may be of any peer of the run."""
        given = [sources] if isinstance(sources, int | bytes) else list(sources)
        ids: dict[bytes, None] = {}
        for source in given:
            if isinstance(source, bytes):
                if len(source) != PEER_ID_BYTES:
                    raise ArgumentError(f"{what}: a peer's id has {PEER_ID_BYTES} bytes, got {len(source)}")
                ids[source] = None
            else:
                peers = self._host.participants()
                if not 0 <= source < len(peers):
                    raise ArgumentError(f"{what}: rank {source} does not exist, the epoch has {len(peers)} peers")
                ids[peers[source]] = None
        if not ids or self._host.peer_id in ids:
            raise ArgumentError(f"{what}: name at least one peer, and not this one")
        return tuple(ids)
