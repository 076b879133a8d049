"""traffic.py - the program that the simulator runs by default: a loop of boundaries, each with a mixture of ops.

What is called at a boundary follows from (seed, boundary) alone, so that a peer that joins late calls what the others
call. Integer contributions are 4**index times an odd number that changes with op and element: a wrong sum tells whose
input is missing, doubled or stale. Arrays lie between canaries and are never used twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from pccl.errors import Closed, CoordinatorLost, Evicted, PcclError, TooFewPeers
from pccl.testing.clock import Future
from pccl.testing.program import PRIORITIES, Array, SimPeer, Work

if TYPE_CHECKING:
    from pccl.testing.cluster import Cluster

CANARY = 0xA5
CANARY_BYTES = 64
KINDS = ("all_reduce", "all_reduce", "all_reduce", "all_reduce", "broadcast", "all_gather", "barrier", "pair")
EVERY_KIND = ("all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast", "barrier", "pair")
COUNTS = (1, 7, 64, 300, 1000, 2500)


@dataclass(slots=True)
class Shape:
    """What a traffic program does."""

    boundaries: int = 8
    ops_max: int = 4
    gap_s: float = 0.002
    timeout_s: float = 10.0
    counts: Sequence[int] = COUNTS
    kinds: Sequence[str] = KINDS
    algorithms: Sequence[str] = ("auto", "auto", "auto", "ring", "mesh", "one_round")
    dtypes: Sequence[str] = ("int64", "int64", "float32")
    tag_chance: float = 0.4
    skip_chance: float = 0.0  # a peer forgets to call an op
    leave: bool = True


@dataclass(slots=True, frozen=True)
class Call:
    """One op of a boundary, the same for all peers."""

    number: int
    kind: str
    count: int
    dtype: str
    in_place: bool
    algorithm: str
    tag: str | None


class Traffic:
    """A program for `Cluster.add`. Keeps the canaries of all its peers."""

    def __init__(self, cluster: Cluster, shape: Shape | None = None) -> None:
        self.cluster = cluster
        self.shape = shape if shape is not None else Shape()
        self._blocks: list[tuple[int, np.ndarray[Any, Any]]] = []

    async def __call__(self, peer: SimPeer) -> None:
        """The loop of one peer."""
        try:
            while peer.boundary < self.shape.boundaries:
                await self._boundary(peer)
                await peer.advance()
            if self.shape.leave:
                await peer.leave()
        except (Evicted, CoordinatorLost, Closed):
            return

    async def _boundary(self, peer: SimPeer) -> None:
        works = []
        for call in self._order(peer, self.calls(peer.boundary)):
            await self._think(peer)
            if peer.random.random() < self.shape.skip_chance:
                continue
            try:
                works += self._call(peer, call)
            except TooFewPeers:
                break
        for work in works:
            await settled(work)

    async def _think(self, peer: SimPeer) -> None:
        if self.shape.gap_s and peer.random.random() < 0.6:
            await peer.compute(peer.random.random() * self.shape.gap_s)

    # -- what is called ---------------------------------------------------------------------------------------

    def calls(self, boundary: int) -> list[Call]:
        """The ops of a boundary."""
        random = Random(f"{self.cluster.seed}:boundary:{boundary}")
        calls = []
        for number in range(random.randint(1, self.shape.ops_max)):
            calls.append(
                Call(
                    number=number,
                    kind=random.choice(self.shape.kinds),
                    count=random.choice(self.shape.counts),
                    dtype=random.choice(self.shape.dtypes),
                    in_place=random.random() < 0.6,
                    algorithm=random.choice(self.shape.algorithms),
                    tag=f"t{number}" if random.random() < self.shape.tag_chance else None,
                )
            )
        return calls

    def _order(self, peer: SimPeer, calls: list[Call]) -> list[Call]:
        """Ops without a tag keep their order, those with one go anywhere between."""
        ordered = [call for call in calls if call.tag is None]
        for call in calls:
            if call.tag is not None:
                ordered.insert(peer.random.randint(0, len(ordered)), call)
        return ordered

    def _call(self, peer: SimPeer, call: Call) -> list[Work]:
        timeout, guard = self.shape.timeout_s, True
        if call.kind == "barrier":
            return [peer.barrier(tag=call.tag, timeout=timeout)]
        if call.kind == "pair":
            return self._pair(peer, call)
        array = self.contribution(peer, call)
        if call.kind == "reduce_scatter":
            out = self.empty(peer, call.count, call.dtype)
            return [peer.reduce_scatter(array, out, tag=call.tag, timeout=timeout, guard=guard)]
        if call.kind == "all_to_all":
            rows = self.empty(peer, call.count * peer.world_size, call.dtype)
            rows[:] = np.concatenate([array * (1 + k) for k in range(peer.world_size)])
            out = self.empty(peer, call.count * peer.world_size, call.dtype)
            return [peer.all_to_all(rows, out, tag=call.tag, timeout=timeout, guard=guard)]
        if call.kind == "broadcast":
            root = self._pick(peer, call)[0]
            return [peer.broadcast(array, root, algorithm=call.algorithm, tag=call.tag, timeout=timeout, guard=guard)]
        if call.kind == "all_gather":
            out = self.empty(peer, call.count * len(self.cluster.nodes) + call.count * 8, call.dtype)
            return [peer.all_gather(array, out, tag=call.tag, timeout=timeout, guard=guard)]
        out = array if call.in_place else self.empty(peer, call.count, call.dtype)
        priority = PRIORITIES[(peer.index + call.number) % len(PRIORITIES)]  # the others' may be another one
        return [
            peer.all_reduce(
                array,
                out=out,
                algorithm=call.algorithm,
                priority=priority,
                tag=call.tag,
                timeout=timeout,
                guard=guard,
            )
        ]

    def _pair(self, peer: SimPeer, call: Call) -> list[Work]:
        pair = self._pick(peer, call)[:2]
        if peer.id not in pair or len(pair) < 2:
            return []
        array = self.contribution(peer, call)
        if peer.id == pair[0]:
            return [peer.send(array, pair[1], tag=call.tag, timeout=self.shape.timeout_s)]
        return [peer.receive(array, pair[0], tag=call.tag, timeout=self.shape.timeout_s)]

    def _pick(self, peer: SimPeer, call: Call) -> list[bytes]:
        """Participants in an order that a loss does not change."""
        salt = f"{peer.boundary}:{call.number}".encode()
        return sorted(peer.peers, key=lambda other: hashlib.blake2b(other + salt, digest_size=8).digest())

    # -- memory -----------------------------------------------------------------------------------------------

    def contribution(self, peer: SimPeer, call: Call) -> Array:
        """This peer's input of an op."""
        array = self.empty(peer, call.count, call.dtype)
        step = np.arange(call.count, dtype=np.int64) * 2654435761 + peer.boundary * 7919 + call.number * 104729
        factor = (step % (1 << 20)) | 1
        if call.dtype == "int64":
            array[:] = factor * 4**peer.index
        else:
            array[:] = factor * (1.0 + peer.index) ** 3 / 7.0
        return array

    def empty(self, peer: SimPeer, count: int, dtype: str) -> Array:
        """Zeros between two canaries."""
        nbytes = count * np.dtype(dtype).itemsize
        block = np.full(nbytes + 2 * CANARY_BYTES, CANARY, np.uint8)
        self._blocks.append((peer.index, block))
        array: Array = block[CANARY_BYTES : CANARY_BYTES + nbytes].view(dtype)
        array[:] = 0
        return array

    def check(self) -> None:
        """Nobody has written beside an array."""
        for index, block in self._blocks:
            beside = np.concatenate([block[:CANARY_BYTES], block[-CANARY_BYTES:]])
            if (beside != CANARY).any():
                self.cluster.watch.broke("P2", f"memory beside an array of peer {index} was written")


async def settled(work: Future) -> PcclError | None:
    """Waits for an op, or a fetch, however it ends."""
    try:
        await work
    except (Evicted, CoordinatorLost, Closed):
        raise
    except PcclError as error:
        return error
    return None
