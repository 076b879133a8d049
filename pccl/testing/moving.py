"""moving.py - transfers in the simulation: what simulated peers offer and fetch, and state that they make equal by it.

The fetches are the product's jobs (pccl/transfer/job.py), driven by the virtual clock instead of a thread. Content that
is offered is kept as it was then, and the memory of a fetch as it was at its end: `Watch.finish` asks for both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from pccl import _native as native
from pccl.errors import Closed, PcclError, ResourceError
from pccl.sharing.depot import Depot
from pccl.sharing.election import Summary, elect
from pccl.testing.clock import Future, Timer, ns
from pccl.transfer import Transfers
from pccl.transfer.job import Job
from pccl.transfer.manifest import HEAD_GENERATION, Head, Manifest, data_key, head_key, manifest_key
from pccl.transfer.offers import Offers
from pccl.transfer.schedule import Path, bitmap
from pccl.transfer.target import Bytes, Into, Target
from pccl.transfer.task import Task
from pccl.types import Event, EventKind, Status

if TYPE_CHECKING:
    from pccl.testing.cluster import Node
    from pccl.testing.program import SimPeer

__all__ = ["Fetching", "Moves", "equalise"]

CHUNK_BYTES = 1024


class Fetching(Future):
    """One fetch: await it for its report, or its error. `target`: its memory, None where somebody else looks after it;
    `after`: what that was when it had ended.
    """

    __slots__ = ("after", "job", "node", "target", "timer")

    def __init__(self, node: Node, target: Bytes | None, job: Job) -> None:
        super().__init__()
        self.node = node
        self.target = target
        self.job = job
        self.after: bytes | None = None
        self.timer: Timer | None = None

    def describe(self) -> str:
        """In words."""
        return f"{self.job.describe()} of {self.node}"


class _Relay:
    """What a fetch passes on, as its job sees it."""

    def __init__(self, moves: Moves, manifest: Manifest, fetching: Fetching) -> None:
        self._moves = moves
        self._manifest = manifest
        self._fetching = fetching

    def extend(self, first: int, end: int) -> None:
        manifest = self._manifest
        self._moves.node.engine.extend(data_key(manifest.name, 0), manifest.data_generation, first, end - first)
        self._moves.node.wake()

    def withdraw(self) -> None:
        self._moves.withdraw(self._manifest)
        self._fetching.job.on_withdrawn()  # the memory lives as long as the run


class Moves:
    """The transfers of one node: what Transfers and Worker are to a Communicator. A Port of its jobs, a Host of its
    offers. `depot`: what it keeps of its state on offer.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.paths: dict[bytes, Path] = {}
        self.offers = Offers(self)
        self.depot = Depot(cast(Transfers, self))
        self._of: dict[object, Fetching] = {}
        self._asks: dict[int, Fetching] = {}
        self._offered: dict[str, Manifest] = {}

    @property
    def engine(self) -> native.Engine:
        """The node's."""
        return self.node.engine

    def check(self) -> None:
        """Nothing forbids a transfer."""

    def check_pid(self) -> None:
        """Nobody forks."""

    # -- what a program asks for --

    def offer(self, name: str, data: Bytes, generation: int = 1, chunk_bytes: int = CHUNK_BYTES) -> Bytes:
        """Offers a copy of the bytes, in place of what was offered by that name; gives the copy."""
        copy: Bytes = data.copy()
        manifest = Manifest.of(name, generation, copy, chunk_bytes)
        self.node.cluster.watch.offered(manifest, copy)
        self._publish(manifest, copy, whole=True)
        return copy

    def withdraw(self, manifest: Manifest) -> None:
        """Ends an offer."""
        name = manifest.name
        self.offers.quietly("withdraw", head_key(name), HEAD_GENERATION)
        self.offers.quietly("withdraw", manifest_key(name), manifest.generation)
        self.offers.quietly("withdraw", data_key(name, 0), manifest.data_generation)
        self._offered.pop(name, None)

    def fetch(
        self,
        name: str,
        target: Bytes,
        sources: Sequence[bytes],
        *,
        generation: int | None = None,
        have: bytes | None = None,
        relay: bool = False,
        timeout: float = 10.0,
    ) -> Fetching:
        """Begins to fetch a name into the target."""
        into = Into([target], have)
        return self.begin(name, into, sources, timeout, memory=target, generation=generation, relay=relay)

    def begin(
        self,
        name: str,
        target: Target,
        sources: Sequence[bytes],
        timeout: float,
        *,
        memory: Bytes | None = None,
        generation: int | None = None,
        priority: int = 0,
        relay: bool = False,
        changing: bool = False,
    ) -> Fetching:
        """Begins to fetch a name into any target."""
        now = self.node.cluster.clock.now
        job = self.node.cluster.options.job(
            self,
            name,
            tuple(sources),
            target,
            generation=generation,
            root=None,
            priority=priority,
            relay=relay,
            now=now,
            deadline_at=now + timeout,
            changing=changing,
        )
        fetching = Fetching(self.node, memory, job)
        self._of[job] = fetching
        self.node.cluster.watch.fetches.append(fetching)
        self._pump(fetching)
        return fetching

    def cancel_fetch(self, fetching: Fetching) -> None:
        """Ends it: await it for the fence."""
        fetching.job.cancel()
        self._pump(fetching)

    # -- what happens --

    def on_event(self, event: Event) -> None:
        """An ask has ended, memory is not read any more, or somebody has asked for it."""
        if event.kind == EventKind.WITHDRAWN:
            self.offers.on_withdrawn(event)
        elif event.kind == EventKind.ASKED:
            self.offers.on_asked(event)
        else:
            self._ended(event.token, event.status)

    def _ended(self, token: int, status: int) -> None:
        fetching = self._asks.pop(token)
        try:
            fetching.job.on_ended(token, status, self.node.cluster.clock.now)
        except PcclError as error:
            fetching.job.fail(error)
        self._pump(fetching)

    def _pump(self, fetching: Fetching) -> None:
        job, clock = fetching.job, self.node.cluster.clock
        if fetching.timer is not None:
            fetching.timer.cancel()
            fetching.timer = None
        if fetching.done:
            return
        try:
            job.pump(clock.now)
        except PcclError as error:
            job.fail(error)
            job.pump(clock.now)
        deadline = job.deadline(clock.now)
        if job.over:
            if fetching.target is not None:
                fetching.after = fetching.target.tobytes()
            self.node.cluster.watch.fetched(fetching)
            fetching.resolve(job.report, job.error)
        elif not math.isinf(deadline):
            due_ns = max(ns(deadline) + 1, clock.now_ns + 1)
            fetching.timer = clock.at(due_ns, lambda: self.node.when_awake(lambda: self._pump(fetching)))
        self.node.wake()

    # -- Port --

    def ask(
        self, task: Task, peer: bytes, key: bytes, generation: int, span: tuple[int, int], address: int, priority: int
    ) -> int:
        """See Port."""
        token, clock = self.node.cluster.next_token(), self.node.cluster.clock
        self._asks[token] = self._of[task]
        deadline_ns = max(clock.now_ns, ns(task.deadline_at))
        request = native.FetchRequest(peer, key, generation, ((*span, address),), token, priority, deadline_ns)
        try:
            self.engine.fetch(request)
        except (Closed, ResourceError):
            clock.after(0.0, lambda: self.node.do(lambda: self._ended(token, Status.ECLOSED)))
        return token

    def cancel(self, token: int) -> None:
        """See Port."""
        self.offers.quietly("cancel_fetch", token)

    def relay(self, job: Job, manifest: Manifest, parts: Sequence[Bytes]) -> _Relay:
        """See Port."""
        self._publish(manifest, parts[0], whole=False)
        return _Relay(self, manifest, self._of[job])

    def _publish(self, manifest: Manifest, data: Bytes, whole: bool) -> None:
        if manifest.name in self._offered:
            self.withdraw(self._offered[manifest.name])
        self._offered[manifest.name] = manifest
        encoded = manifest.encode()
        head = np.frombuffer(Head.of(manifest, encoded).encode(), np.uint8)
        name, generation = manifest.name, manifest.generation
        self.offers.offer_region(data_key(name, 0), manifest.data_generation, data, data, whole)
        self.offers.offer_region(manifest_key(name), generation, np.frombuffer(encoded, np.uint8), None, True)
        self.offers.offer_region(head_key(name), HEAD_GENERATION, head, None, True)
        self.node.wake()


async def equalise(peer: SimPeer, state: Bytes, rot: int | None = None) -> tuple[list[int], int]:
    """Makes `state` equal on all peers, as sync_state does: the content that most have wins, and only chunks that
    differ move, from all who have it. Gives those that differed here, and how many bytes came. `rot`: a byte of what
    this peer offers that changes after its digest was taken.
    """
    generation = 1 + peer.boundary
    manifest = Manifest.of("state", generation, state, CHUNK_BYTES)
    own = Summary(0, False, True, 1, 0, generation, bytes(16), manifest.root, bytes(16)).pack().copy()
    rows = np.zeros(peer.world_size * own.size, np.uint8)
    result = await peer.all_gather(own, rows)
    summaries = [Summary.unpack(row) for row in rows.reshape(-1, own.size)]
    chosen = elect(summaries)
    holders = [p for p, s in zip(result.peers, summaries, strict=True) if s.content == chosen]
    wrong, moved = list[int](), 0
    if peer.id in holders:
        offered = peer.moves.offer("state", state, generation)
        if rot is not None:
            offered[rot] ^= 0xFF
    else:
        aside = state.copy()
        claimed = bitmap(bytes([1]) * manifest.count)  # the job looks which are right
        report = await peer.moves.fetch("state", aside, holders, generation=generation, have=claimed)
        wrong = [c for c in range(manifest.count) if (aside != state)[slice(*manifest.span(c))].any()]
        moved = sum(report.received.values()) - CHUNK_BYTES * report.retries
        state[:] = aside
    await peer.barrier()
    peer.node.cluster.watch.equalised(peer.node, peer.boundary, state)
    return wrong, moved
