"""guests.py - simulated joiners that fetch state before they enter, from members that go on to write to it.

What decides is the product's own: what a peer keeps on offer (pccl/sharing/depot.py), the fetch (pccl/transfer/job.py,
driven by moving.py) and where it goes (pccl/sharing/staging.py). Checked here: a chunk that counts as held is what its
digest says (P8), and nothing is written to the guest's memory afterwards (P2); deliveries.py checks how a fetch ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pccl.arguments import PRIORITIES
from pccl.errors import Closed, CoordinatorLost, Evicted, PcclError
from pccl.sharing.content import Content
from pccl.sharing.staging import InPlace
from pccl.testing.program import Array, Program, SimPeer
from pccl.transfer.job import Job
from pccl.transfer.manifest import digest_of

if TYPE_CHECKING:
    from pccl.testing.cluster import Cluster

PASSES_MAX = 3


class SharedState:
    """A content that members hold and go on to change, and that guests fetch; the programs of both."""

    def __init__(self, cluster: Cluster, traffic: Program, nbytes: int, random: Random) -> None:
        self.cluster = cluster
        self.traffic = traffic
        self.bytes = np.random.default_rng(random.getrandbits(32)).integers(0, 256, nbytes, np.uint8)
        self._ended: set[int] = set()

    async def member(self, peer: SimPeer) -> None:
        """Offers it, and writes to it while others fetch."""
        array = self.bytes.copy()
        content = self._content(array, 1)
        self._show(peer, content, 1)
        writer = peer.node.spawn(lambda writer: self._write(writer, array, content))
        await self.traffic(peer)
        self._ended.add(peer.index)
        await writer

    async def guest(self, peer: SimPeer) -> None:
        """Fetches it, enters, and is a member like others. One that is out tries again, as another process."""
        array = np.zeros(self.bytes.size, np.uint8)
        await self._prefetch(peer, array)
        before = array.copy()
        try:
            await peer.enter()
        except (Evicted, CoordinatorLost, Closed):
            self.cluster.clock.after(0.05, lambda: self.cluster.add(self.guest, guest=True))
        else:
            await self.traffic(peer)
        if not np.array_equal(array, before):
            self.cluster.watch.broke("P2", f"the state of {peer.node} was written to after its fetch had ended")

    # -- members --

    def _content(self, array: Array, step: int) -> Content:
        content = Content({"state": array, "step": step}, frozenset(), read_only=False)
        content.fixed.read()
        return content

    def _show(self, peer: SimPeer, content: Content, generation: int) -> None:
        share = content.fixed
        manifest = share.manifest(content.name(share), generation)
        peer.moves.depot.show(manifest, share.parts, [tensor.owner for tensor in share.tensors])
        peer.node.wake()

    async def _write(self, peer: SimPeer, array: Array, content: Content) -> None:
        """A few bytes now and then, the same at all members; every few times what is there now is offered."""
        chunk_bytes = content.fixed.layout.chunk_bytes
        for generation in range(2, 8):
            for turn in range(3):
                await peer.compute(0.05)
                array[(5 * generation + turn) * chunk_bytes % array.size] ^= generation
                if peer.index in self._ended:
                    return
            if generation % 3 == 0:
                self._show(peer, self._content(array, generation), generation)

    # -- guests --

    async def _prefetch(self, peer: SimPeer, array: Array) -> None:
        content = self._content(array, 0)
        target = InPlace(content.fixed)
        for _ in range(PASSES_MAX):
            sources = peer.node.peer.session.acquaintances
            if not sources:
                break
            fetching = peer.moves.begin(
                content.name(content.fixed), target, sources, 5.0, priority=PRIORITIES["low"], changing=True
            )
            with contextlib.suppress(PcclError):
                await fetching
            job = fetching.task
            assert isinstance(job, Job)
            if target.manifest is None or not target.is_new:
                break
            missing = target.keep(job.have())
            self._check_held(peer, content, missing)
            self.cluster.marks["held"] += not missing
            self.cluster.trace("prefetched", peer.index, len(missing), content.fixed.layout.count)
            if not missing:
                break

    def _check_held(self, peer: SimPeer, content: Content, missing: Sequence[int]) -> None:
        share = content.fixed
        lacking = set(missing)
        for chunk in range(share.layout.count):
            start, end = share.layout.span(chunk)
            held = cast(Any, share.tensors[0].data)[start:end]
            if chunk not in lacking and digest_of(held) != share.digest(chunk):
                self.cluster.watch.broke("P8", f"{peer.node} counts chunk {chunk} as held, and has other bytes there")
