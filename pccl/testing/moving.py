"""moving.py - transfers in the simulation: what simulated peers offer, fetch, push and accept, and state that they make
equal by it.

What decides is the product's: jobs and pushes (pccl/transfer/job.py, push.py), offers and relays (offers.py), doors and
receipts (accept.py), links across groups (named.py), driven by the virtual clock instead of a thread. What is offered
is a copy, which turns to rubbish as soon as the engine has let go of it: who reads it later, or writes to the memory of
a fetch after its end, is found out (deliveries.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from pccl import _native as native
from pccl.contacts import Way
from pccl.errors import Closed, PcclError, ResourceError
from pccl.sharing.depot import Depot
from pccl.sharing.election import Summary, elect
from pccl.testing.clock import Future, Timer, ns
from pccl.transfer import Transfers
from pccl.transfer.accept import Acceptance, Acceptances, receipt_of
from pccl.transfer.job import Job
from pccl.transfer.manifest import HEAD_GENERATION, Head, Manifest, data_key, head_key, manifest_key
from pccl.transfer.offers import Offer, Offers
from pccl.transfer.push import PushJob
from pccl.transfer.receipt import NO_ROOT, pushed_name
from pccl.transfer.schedule import Path, bitmap
from pccl.transfer.target import Bytes, Into, Target
from pccl.transfer.task import Task
from pccl.transfer.worker import _RelayOf
from pccl.types import Event, EventKind, Status

if TYPE_CHECKING:
    from pccl.testing.cluster import Node
    from pccl.testing.program import SimPeer

__all__ = ["Moves", "Moving", "equalise"]

CHUNK_BYTES = 1024
Moved = Job | PushJob


class Moving(Future):
    """One fetch or push: await it for the report of the fetch, or the error. `target`: its memory, None where it has
    none or somebody else looks after it; `after`: what that was when it had ended. `others`: with whom it deals.
    """

    __slots__ = (
        "acceptance", "after", "cancelled_at", "frozen_before_ns", "node", "others", "target", "task", "timer",
    )  # fmt: skip

    def __init__(self, node: Node, target: Bytes | None, task: Moved, others: Sequence[bytes]) -> None:
        super().__init__()
        self.node = node
        self.target = target
        self.task = task
        self.others = tuple(others)
        self.acceptance: Acceptance | None = None
        self.after: bytes | None = None
        self.cancelled_at = math.inf
        self.frozen_before_ns = node.frozen_ns
        self.timer: Timer | None = None

    @property
    def accepts(self) -> bool:
        """Whether it takes what others push."""
        return self.acceptance is not None

    def describe(self) -> str:
        """In words."""
        return f"{self.task.describe()} of {self.node}"


class _Links:
    """What Named needs of a node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def way_to(self, peer: bytes) -> Way:
        return self._node.peer.way_to(peer)

    def seek(self, peers: frozenset[bytes]) -> None:
        self._node.peer.seek(peers)
        self._node.flush()


class Moves:
    """The transfers of one node: what Transfers and Worker are to a Communicator. A Port of its jobs, a Host of its
    offers. `depot`: what it keeps of its state on offer.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.paths: dict[bytes, Path] = {}
        self.offers = Offers(self)
        self.depot = Depot(cast(Transfers, self))
        self._named = node.cluster.options.named(_Links(node), self._end_ask)
        self._acceptances = Acceptances(self.offers, node.cluster.next_token)
        self._of: dict[object, Moving] = {}
        self._asks: dict[int, Moving] = {}
        self._offered: dict[str, Manifest] = {}
        self._relayed: dict[str, Offer] = {}
        self._tick: Timer | None = None

    @property
    def engine(self) -> native.Engine:
        """The node's."""
        return self.node.engine

    @property
    def lent(self) -> int:
        """How many regions it has to have on offer when nothing is under way: of its names, of what it passes on, and
        receipts of the past; a depot's are what they are.
        """
        if self.depot.generation:
            return self.offers.regions
        relayed = sum(2 + sum(map(bool, offer.manifest.parts)) for offer in self._relayed.values())
        own = sum(2 + (manifest.nbytes > 0) for manifest in self._offered.values())
        return own + relayed + self._acceptances.receipts

    @property
    def asks(self) -> int:
        """How many have not ended."""
        return len(self._asks)

    def check(self) -> None:
        """Nothing forbids a transfer."""

    def check_pid(self) -> None:
        """Nobody forks."""

    # -- what a program asks for --

    def offer(self, name: str, data: Bytes, generation: int = 1, chunk_bytes: int = CHUNK_BYTES) -> Bytes:
        """Offers a copy of the bytes, in place of what was offered by that name; gives the copy."""
        copy: Bytes = data.copy()
        manifest = Manifest.of(name, generation, copy, chunk_bytes)
        self.node.cluster.watch.deliveries.offered(manifest, copy)
        self._publish(manifest, copy)
        return copy

    def withdraw(self, name: str) -> Future:
        """Ends an offer, or what a fetch has left of one; resolved when its name is free."""
        gone = Future()
        relay = self._relayed.pop(name, None)
        if relay is not None:
            relay.withdraw_soon(lambda: self.node.resolve(gone))
        else:
            gone.resolve()
        manifest = self._offered.pop(name, None)
        if manifest is not None:
            self.offers.quietly("withdraw", head_key(name), HEAD_GENERATION)
            self.offers.quietly("withdraw", manifest_key(name), manifest.generation)
            self.offers.quietly("withdraw", data_key(name, 0), manifest.data_generation)
        self.node.wake()
        return gone

    def offered_bytes(self, name: str) -> int | None:
        """The size of what it has on offer by that name, of its own or passed on, whole or not; None: nothing."""
        relaying = (task.manifest for task in self._of if isinstance(task, Job) and task.name == name and task.relay)
        relayed = self._relayed.get(name)
        manifest = self._offered.get(name) or (relayed.manifest if relayed is not None else next(relaying, None))
        return None if manifest is None else manifest.nbytes

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
    ) -> Moving:
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
        acceptance: Acceptance | None = None,
    ) -> Moving:
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
            offered_as=None if acceptance is None else pushed_name(name, self.node.id),
        )
        moving = Moving(self.node, memory, job, sources)
        moving.acceptance = acceptance
        return self._begin(moving)

    def accept(self, name: str, target: Bytes, timeout: float = 10.0) -> Moving:
        """Takes what others push here by that name, once."""

        def on_pusher(peer: bytes) -> None:
            self._soon(moving, lambda: cast(Job, moving.task).add_source(peer))

        acceptance = self._acceptances.open(name, on_pusher)
        moving = self.begin(name, Into([target]), (), timeout, memory=target, acceptance=acceptance)
        return moving

    def push(self, name: str, data: Bytes, to: bytes, timeout: float = 10.0) -> Moving:
        """Gives a copy of the bytes to a peer that accepts the name."""
        copy, now = data.copy(), self.node.cluster.clock.now
        offer = self.offers.offer(pushed_name(name, to), copy, 1, CHUNK_BYTES)
        self.node.cluster.watch.deliveries.offered(offer.manifest, copy)

        def withdrawn(job: PushJob) -> None:
            copy[:] = ~copy
            self._soon(moving, job.on_withdrawn)

        job = PushJob(self, name, to, offer, withdrawn, now=now, deadline_at=now + timeout)
        moving = Moving(self.node, None, job, (to,))
        return self._begin(moving)

    def call_off(self, moving: Moving) -> None:
        """Ends it: await it for the fence."""
        if not moving.done:
            moving.cancelled_at = self.node.cluster.clock.now
            moving.task.cancel()
            self._pump(moving)

    # -- what happens --

    def on_event(self, event: Event) -> None:
        """An ask has ended, memory is not read any more, or somebody has asked for it."""
        if event.kind == EventKind.WITHDRAWN:
            self.offers.on_withdrawn(event)
        elif event.kind == EventKind.ASKED:
            self.offers.on_asked(event)
        else:
            self._ended(event.token, event.status)

    def look(self) -> None:
        """Links across groups may have come or gone."""
        self._named.look()

    def give_up(self, error: PcclError | None) -> None:
        """The peer is over: so is all that it fetches and pushes."""
        for moving in list(self._of.values()):
            if error is not None:
                moving.task.fail(type(error)(error.message, op=moving.task.describe()))
            else:
                moving.task.fail(Closed("the peer has left", op=moving.task.describe()))
            self._pump(moving)

    def _soon(self, moving: Moving, step: Callable[[], None]) -> None:
        """Something for a task, when the process runs."""

        def act() -> None:
            step()
            self._pump(moving)

        self.node.cluster.clock.after(0.0, lambda: self.node.do(act))

    def _ended(self, token: int, status: int) -> None:
        moving = self._asks.pop(token)
        try:
            moving.task.on_ended(token, status, self.node.cluster.clock.now)
        except PcclError as error:
            moving.task.fail(error)
        self._pump(moving)

    def _begin(self, moving: Moving) -> Moving:
        self._of[moving.task] = moving
        self.node.cluster.watch.deliveries.began(moving)
        self._pump(moving)
        return moving

    def _pump(self, moving: Moving) -> None:
        task, clock = moving.task, self.node.cluster.clock
        if moving.timer is not None:
            moving.timer.cancel()
            moving.timer = None
        if moving.done:
            return
        try:
            task.pump(clock.now)
        except PcclError as error:
            task.fail(error)
            task.pump(clock.now)
        deadline = task.deadline(clock.now)
        if task.over:
            self._over(moving)
        elif not math.isinf(deadline):
            due_ns = max(ns(deadline) + 1, clock.now_ns + 1)
            moving.timer = clock.at(due_ns, lambda: self.node.when_awake(lambda: self._pump(moving)))
        self._named_on_time()
        self.node.wake()

    def _over(self, moving: Moving) -> None:
        task = moving.task
        del self._of[task]
        self._named.over(task, self.node.cluster.clock.now)
        if moving.target is not None:
            moving.after = moving.target.tobytes()
        if isinstance(task, Job):
            if moving.acceptance is not None:
                of = (0, NO_ROOT) if task.manifest is None else (task.manifest.generation, task.manifest.root)
                self._acceptances.end(moving.acceptance, receipt_of(*of, task.error))
            if task.error is None and isinstance(task.relay, _RelayOf):
                self._relayed[task.name] = task.relay.offer
        self.node.cluster.watch.deliveries.ended(moving)
        moving.resolve(task.report if isinstance(task, Job) else None, task.error)

    def _named_on_time(self) -> None:
        """Peers of other groups are named for a while after the last transfer with them."""
        clock, due = self.node.cluster.clock, self._named.deadline()
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        if not math.isinf(due):
            self._tick = clock.at(max(ns(due) + 1, clock.now_ns + 1), lambda: self.node.when_awake(self._forget))

    def _forget(self) -> None:
        self._named.tick(self.node.cluster.clock.now)
        self._named_on_time()

    # -- Port --

    def ask(
        self, task: Task, peer: bytes, key: bytes, generation: int, span: tuple[int, int], address: int, priority: int
    ) -> int:
        """See Port."""
        token, clock = self.node.cluster.next_token(), self.node.cluster.clock
        self._asks[token] = self._of[task]

        def go() -> None:
            deadline_ns = max(clock.now_ns, ns(task.deadline_at))
            request = native.FetchRequest(peer, key, generation, ((*span, address),), token, priority, deadline_ns)
            try:
                self.engine.fetch(request)
            except (Closed, ResourceError):
                self._end_ask(token, Status.ECLOSED)
            self.node.wake()

        self._named.ask(task, peer, token, go)
        return token

    def cancel(self, token: int) -> None:
        """See Port."""
        if not self._named.cancel(token):
            self.offers.quietly("cancel_fetch", token)

    def relay(self, job: Job, manifest: Manifest, parts: Sequence[Bytes]) -> _RelayOf:
        """See Port."""
        moving = self._of[job]
        return _RelayOf(self.offers.relay(manifest, parts), lambda: self._soon(moving, job.on_withdrawn))

    def _end_ask(self, token: int, status: Status) -> None:
        """One that the engine has not taken."""
        self.node.cluster.clock.after(0.0, lambda: self.node.do(lambda: self._ended(token, status)))

    def _publish(self, manifest: Manifest, data: Bytes) -> None:
        self.withdraw(manifest.name)
        self._offered[manifest.name] = manifest
        encoded = manifest.encode()
        head = np.frombuffer(Head.of(manifest, encoded).encode(), np.uint8)
        name, generation = manifest.name, manifest.generation
        lent = self.offers.offer_region(data_key(name, 0), manifest.data_generation, data, data, True)
        self.offers.offer_region(manifest_key(name), generation, np.frombuffer(encoded, np.uint8), None, True)
        self.offers.offer_region(head_key(name), HEAD_GENERATION, head, None, True)
        self.offers.when_gone([lent], lambda: _spoil(data))
        self.node.wake()


def _spoil(data: Bytes) -> None:
    """Nobody may read it any more."""
    data[:] = ~data


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
            peer.node.cluster.watch.deliveries.liars.add(peer.index)
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
