"""moving.py - transfers in the simulation: what simulated peers offer and fetch, and state that they make equal by it.

The fetches are the product's jobs (pccl/transfer/job.py), driven by the virtual clock instead of a thread. Content that
is offered is kept as it was then, and the memory of a fetch as it was at its end: `Watch.finish` asks for both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pccl import _native as native
from pccl.sharing.election import Summary, elect
from pccl.testing.clock import Future, Timer, ns
from pccl.transfer.job import Job
from pccl.transfer.manifest import HEAD_GENERATION, Head, Manifest, data_key, head_key, manifest_key
from pccl.transfer.schedule import Path, bitmap
from pccl.transfer.target import Bytes, Into
from pccl.transfer.task import Task
from pccl.types import Event, EventKind

if TYPE_CHECKING:
    from pccl.testing.cluster import Node
    from pccl.testing.program import SimPeer

__all__ = ["Fetching", "Moves", "equalise"]

CHUNK_BYTES = 1024


class Fetching(Future):
    """One fetch: await it for its report, or its error. `after`: its memory when it had ended."""

    __slots__ = ("after", "job", "node", "target", "timer")

    def __init__(self, node: Node, target: Bytes, job: Job) -> None:
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
    """The transfers of one node: what Transfers, Offers and Worker are to a Communicator. A Port of its jobs."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.paths: dict[bytes, Path] = {}
        self._of: dict[object, Fetching] = {}
        self._asks: dict[int, Fetching] = {}
        self._offered: dict[str, Manifest] = {}
        self._memory: list[Any] = []  # that the engine may still read

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
        engine, name = self.node.engine, manifest.name
        engine.withdraw(head_key(name), HEAD_GENERATION)
        engine.withdraw(manifest_key(name), manifest.generation)
        engine.withdraw(data_key(name, 0), manifest.data_generation)
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
        now = self.node.cluster.clock.now
        job = self.node.cluster.options.job(
            self,
            name,
            tuple(sources),
            Into([target], have),
            generation=generation,
            root=None,
            priority=0,
            relay=relay,
            now=now,
            deadline_at=now + timeout,
        )
        fetching = Fetching(self.node, target, job)
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
        """An ask has ended, or memory is not read any more."""
        if event.kind != EventKind.FETCH:
            return
        fetching = self._asks.pop(event.token)
        fetching.job.on_ended(event.token, event.status, self.node.cluster.clock.now)
        self._pump(fetching)

    def _pump(self, fetching: Fetching) -> None:
        job, clock = fetching.job, self.node.cluster.clock
        if fetching.timer is not None:
            fetching.timer.cancel()
            fetching.timer = None
        if fetching.after is not None:
            return
        job.pump(clock.now)
        deadline = job.deadline(clock.now)
        if job.over:
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
        token = self.node.cluster.next_token()
        self._asks[token] = self._of[task]
        deadline_ns = ns(task.deadline_at)
        self.node.engine.fetch(
            native.FetchRequest(peer, key, generation, ((*span, address),), token, priority, deadline_ns)
        )
        return token

    def cancel(self, token: int) -> None:
        """See Port."""
        self.node.engine.cancel_fetch(token)

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
        self._region(data_key(name, 0), manifest.data_generation, data, whole)
        self._region(manifest_key(name), generation, np.frombuffer(encoded, np.uint8), True)
        self._region(head_key(name), HEAD_GENERATION, head, True)
        self.node.wake()

    def _region(self, key: bytes, generation: int, data: Bytes, whole: bool) -> None:
        address, hold = native.pin(data)
        self._memory.append((data, hold))
        token = self.node.cluster.next_token()
        self.node.engine.offer(native.Region(key, generation, address, data.size, token), whole=whole)


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
