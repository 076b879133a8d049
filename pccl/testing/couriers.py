"""couriers.py - programs of peers that fetch from and push to each other, in whatever groups, beside their ops.

Each peer offers content of its own, in generation after generation; what it fetches it may pass on, so that others find
it at several places; what it pushes is accepted over there, or not, or in time or not. Whom it deals with, and what it
calls off, is drawn from its chance. `Traffic` goes on meanwhile; deliveries.py looks at everything that ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pccl.errors import ArgumentError, Closed, CoordinatorLost, Evicted
from pccl.session import State
from pccl.testing.clock import Future
from pccl.testing.program import Array, Program, SimPeer
from pccl.testing.traffic import Traffic, settled

if TYPE_CHECKING:
    from pccl.testing.cluster import Cluster, Node
    from pccl.testing.moving import Moving

__all__ = ["Couriers", "Errands"]

OVER = (Evicted, CoordinatorLost, Closed)
SOURCES_MAX = 3


@dataclass(slots=True)
class Errands:
    """What a courier does."""

    couriers: int = 2  # of each peer
    turns: int = 3
    gap_s: float = 0.05
    sizes: Sequence[int] = (1, 5_000, 20_000, 60_000)
    timeouts_s: Sequence[float] = (0.3, 2.0, 8.0)
    kinds: Sequence[str] = ("fetch", "fetch", "relay", "push", "update")
    cancel_chance: float = 0.2
    enter_chance: float = 0.4  # of a guest, when it has done its errands
    leave_chance: float = 0.3  # of anybody, when all is done; who stays is looked at: what is left of it all?


class Couriers:
    """The programs of one run. `traffic`: what members do besides; nobody leaves in it."""

    def __init__(self, cluster: Cluster, traffic: Traffic, errands: Errands | None = None) -> None:
        self.cluster = cluster
        self.traffic = traffic
        self.errands = errands if errands is not None else Errands()
        self._pushes = 0
        self._shown: dict[int, int] = {}
        self._relaying: set[tuple[int, str]] = set()

    async def member(self, peer: SimPeer) -> None:
        """One that is in a group."""
        errands = self._send_out(peer)
        await self.traffic(peer)
        for one in errands:
            await one
        await self._part(peer)

    async def guest(self, peer: SimPeer) -> None:
        """One that is in no group; it may enter afterwards."""
        for one in self._send_out(peer):
            await one
        if peer.random.random() < self.errands.enter_chance:
            try:
                await peer.enter()
            except OVER:
                return
            await self.traffic(peer)
        await self._part(peer)

    async def _part(self, peer: SimPeer) -> None:
        if peer.random.random() < self.errands.leave_chance:
            await peer.leave()

    def _send_out(self, peer: SimPeer) -> list[Future]:
        """Errands that go on beside each other."""
        self.show(peer)
        return [peer.node.spawn(self.run) for _ in range(self.errands.couriers)]

    async def run(self, peer: SimPeer) -> None:
        """Errands of one peer, one after the other."""
        try:
            for _ in range(self.errands.turns):
                await peer.compute(peer.random.random() * 2 * self.errands.gap_s)
                kind = peer.random.choice(self.errands.kinds)
                if kind == "update":
                    self.show(peer)
                elif kind == "push":
                    await self._end(peer, self._push(peer))
                else:
                    await self._end(peer, self._fetch(peer, kind == "relay"))
        except OVER:
            return

    # -- contents --

    def content(self, index: int, generation: int) -> Array:
        """What a peer offers as a generation."""
        draw = np.random.default_rng((self.cluster.seed, index, generation))
        size = int(draw.choice(list(self.errands.sizes)))
        return draw.integers(0, 256, size, np.uint8)

    def show(self, peer: SimPeer) -> None:
        """Offers its next generation, in place of the last."""
        generation = self._shown[peer.index] = self._shown.get(peer.index, 0) + 1
        peer.moves.offer(name_of(peer.index), self.content(peer.index, generation), generation)

    def others(self, peer: SimPeer) -> list[Node]:
        """Those that are in the run, as far as is known here."""
        return [node for node in self.cluster.nodes if node.index != peer.index and is_there(node)]

    # -- what it does --

    def _fetch(self, peer: SimPeer, relay: bool) -> Moving | None:
        """Something that somebody offers, from him and some who may have it too."""
        others = self.others(peer)
        if not others:
            return None
        owner = peer.random.choice(others)
        name = name_of(owner.index)
        holders = [node for node in others if node.moves.offered_bytes(name)]
        some = peer.random.sample(holders, min(len(holders), peer.random.randint(1, SOURCES_MAX)))
        sources = [node.id for node in some] or [owner.id]
        size = owner.moves.offered_bytes(name) or 1
        timeout = peer.random.choice(self.errands.timeouts_s)
        relay = relay and not peer.moves.offered_bytes(name) and (peer.index, name) not in self._relaying
        if relay:
            self._relaying.add((peer.index, name))
        return peer.moves.fetch(name, np.zeros(size, np.uint8), sources, relay=relay, timeout=timeout)

    def _push(self, peer: SimPeer) -> Moving | None:
        """Something new, to somebody who will accept it, mostly."""
        others = self.others(peer)
        if not others:
            return None
        self._pushes += 1
        taker, name = peer.random.choice(others), f"push {self._pushes}"
        data = self.content(-self._pushes % (1 << 32), 1)
        timeout = peer.random.choice(self.errands.timeouts_s)
        if peer.random.random() < 0.9:
            size = data.size + (peer.random.random() < 0.1)
            taker.spawn(self._taking(name, size, peer.random.choice((0.0, 0.02, 0.3)), timeout))
        return peer.moves.push(name, data, taker.id, timeout)

    def _taking(self, name: str, size: int, after_s: float, timeout: float) -> Program:
        async def program(peer: SimPeer) -> None:
            try:
                await peer.compute(after_s)
                if peer.node.peer.error is None:
                    await self._end(peer, peer.moves.accept(name, np.zeros(size, np.uint8), timeout))
            except OVER:
                return

        return program

    async def _end(self, peer: SimPeer, moving: Moving | None) -> None:
        """Waits for it, or calls it off before."""
        if moving is None:
            return
        node, there = peer.node, [self.cluster.by_id[other] for other in moving.others]
        if peer.random.random() < self.errands.cancel_chance:
            await peer.compute(peer.random.random() * 4 * self.errands.gap_s)
            peer.moves.call_off(moving)
        error = await settled(moving)
        self._relaying.discard((peer.index, moving.task.name))
        if error is None and any(other.group != node.group for other in there):
            self.cluster.marks["across groups"] += 1
        if error is None and any(State.JOINING in (node.peer.state, other.peer.state) for other in there):
            self.cluster.marks["with a guest"] += 1
        if isinstance(error, ArgumentError):
            self.cluster.watch.broke("P1", f"{moving.describe()}: {error!r}")


def name_of(index: int) -> str:
    """What a peer calls its own content."""
    return f"of {index}"


def is_there(node: Node) -> bool:
    """Whether it is a member, or a guest that the members know."""
    entered = node.peer.view() is not None or bool(node.peer.session.acquaintances)
    return node.alive and entered and node.peer.state in (State.MEMBER, State.FROZEN, State.JOINING)
