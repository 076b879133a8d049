"""deliveries.py - looks on at what simulated peers fetch and push, and says what was wrong with it.

Bytes are those of the generation that was offered (P8). A transfer ends by its deadline, or soon after its cancel,
whatever the other side does (P5), with an error that it may end with; a push that has ended well was taken (P1).
Afterwards its memory is nobody's but the caller's (P2), and nothing of it is left: no ask, no serving, no region, no
stream (P5). Who has not been hit counts for nobody as lost (P4), and brings no bytes that it does not offer (P6).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pccl.errors import Cancelled, Closed, CoordinatorLost, Evicted, PeerLost, Timeout, TransferError
from pccl.session import State
from pccl.testing.clock import SECOND
from pccl.transfer.job import Job
from pccl.transfer.push import PushJob

if TYPE_CHECKING:
    from pccl.testing.checkers import Watch
    from pccl.testing.cluster import Node
    from pccl.testing.moving import Moving
    from pccl.transfer.manifest import Manifest
    from pccl.transfer.target import Bytes

__all__ = ["Deliveries"]

FENCE_S = 0.1  # a transfer has ended so soon after its deadline or its cancel
TURNS = 10  # of a slow process, to notice that
#: What a transfer may end with, and with what besides where the peer itself is over.
ENDS = (PeerLost, TransferError, Timeout)
OVER = (Closed, Evicted, CoordinatorLost)


class Deliveries:
    """Those of one run."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.moving: list[Moving] = []
        self.settled = False  # nothing is under way any more, for long enough that nobody names anybody
        self.liars: set[int] = set()  # peers whose offers rot
        self._offered: dict[tuple[str, int, bytes], bytes] = {}
        self._owed: dict[Moving, list[Node]] = {}

    # -- while it goes on --

    def offered(self, manifest: Manifest, data: Bytes) -> None:
        """A peer offers this, under these digests."""
        self._offered[manifest.name, manifest.generation, manifest.root] = data.tobytes()

    def began(self, moving: Moving) -> None:
        """A fetch or a push has begun."""
        self.moving.append(moving)

    def owe(self, moving: Moving, ends: Sequence[Node]) -> None:
        """It has to end well, unless something happens to one of these: no other fault of this run is a reason."""
        self._owed[moving] = [moving.node, *ends]
        if moving.done:
            self._check_owed(moving)

    def ended(self, moving: Moving) -> None:
        """From now on nothing is written to its memory."""
        task, node = moving.task, moving.node
        self.watch.cluster.trace("moved", node.index, task.name, type(task.error).__name__)
        self._check_time(moving)
        self._check_error(moving)
        if isinstance(task, Job):
            self._check_bytes(moving, task)
            self._check_sources(moving, task)
        if moving in self._owed:
            self._check_owed(moving)

    def _broke(self, promise: str, moving: Moving, what: str) -> None:
        self.watch.broke(promise, f"{moving.describe()} {what}")

    def _check_time(self, moving: Moving) -> None:
        node, now_ns = moving.node, self.watch.cluster.clock.now_ns
        asleep_s = (node.frozen_ns - moving.frozen_before_ns + TURNS * node.slowest_ns) / SECOND
        for due_s, what in ((moving.task.deadline_at, "its deadline"), (moving.cancelled_at, "its cancel")):
            late_s = now_ns / SECOND - due_s - FENCE_S - asleep_s
            if late_s > 0:
                self._broke("P5", moving, f"ended {late_s + FENCE_S:.3f} s after {what}")

    def _check_error(self, moving: Moving) -> None:
        error, node = moving.task.error, moving.node
        if error is None or isinstance(error, ENDS):
            return
        if isinstance(error, Cancelled) and moving.cancelled_at < float("inf"):
            return
        if not (isinstance(error, OVER) and node.peer.error is not None):
            self._broke("P1", moving, f"ended with {error!r}")

    def _check_bytes(self, moving: Moving, job: Job) -> None:
        if moving.target is None or job.error is not None:
            return
        manifest = job.manifest
        assert manifest is not None
        if self._offered[manifest.name, manifest.generation, manifest.root] != moving.after:
            self._broke("P8", moving, "brought other bytes than were offered")

    def _check_sources(self, moving: Moving, job: Job) -> None:
        by_id = self.watch.cluster.by_id
        for source, found in job.lookup.found.items():
            ends = moving.node, by_id[source]
            if found.why == "is lost" and not any(map(self._is_hit, ends)) and self._can_meet(*ends):
                self._broke("P4", moving, f"says that {by_id[source]} {found.why}, and nothing had happened to it")
        for chunk, source in job.report.refused:
            if by_id[source].index not in self.liars:
                self._broke("P6", moving, f"got chunk {chunk} from {by_id[source]}, which does not offer such bytes")

    def _is_hit(self, node: Node) -> bool:
        """Whether it is gone, or had a fault, or another coordinator may not know it."""
        over = not node.alive or node.leaves or node.peer.state in (State.FENCED, State.CLOSED)
        unknown = node.peer.state is not State.MEMBER and self.watch.cluster.coordinator.restarts > 0
        return over or unknown or self.watch.excused(node)

    def _can_meet(self, one: Node, other: Node) -> bool:
        """Across groups there are no relays: one of the two has to be dialled."""
        return one.group == other.group or not {one.index, other.index} <= self.watch.cluster.hidden.keys()

    def _check_owed(self, moving: Moving) -> None:
        if moving.task.error is not None and not any(map(self._is_hit, self._owed[moving])):
            self._broke("P4", moving, f"had to end well: {moving.task.error!r}")

    # -- at the end --

    def finish(self) -> None:
        """Nothing was touched after its end, and nothing is left."""
        for moving in self.moving:
            if not moving.node.alive or moving.node.frozen:
                continue
            if not moving.done:
                self._broke("P5", moving, "has no end")
            elif moving.target is not None and moving.target.tobytes() != moving.after:
                self._broke("P2", moving, "has ended, and its memory was written to after that")
            elif isinstance(moving.task, PushJob) and moving.task.error is None:
                self._check_taken(moving, moving.task)
        if self.settled:
            for node in self.watch.cluster.nodes:
                self._check_left(node)

    def _check_taken(self, moving: Moving, push: PushJob) -> None:
        """Who has taken it is the one that accepted it, by its name, with those bytes."""
        taker = self.watch.cluster.by_id[moving.others[0]]
        taken = [
            other
            for other in self.moving
            if other.node is taker and other.accepts and other.task.name == push.name and other.done
        ]
        wanted = self._offered[push.manifest.name, push.manifest.generation, push.manifest.root]
        if not any(other.task.error is None and other.after == wanted for other in taken):
            self._broke("P1", moving, f"has ended well, and {taker} did not take it")

    def _check_left(self, node: Node) -> None:
        """Nothing is, once all have ended."""
        if not node.alive or node.frozen or node.peer.error is not None or node.peer.state is State.CLOSED:
            return
        stats, moves = node.engine.stats(), node.moves
        left = {
            "asks": stats.transfers_pending + moves.asks,
            "servings": 0 if self._is_cut_off(node) else stats.transfers_served,
            "regions that nobody offers": stats.regions - moves.lent,
            "streams that nobody uses": self.watch.cluster.sim.streams(node.index) - stats.conns,
            "links to peers of other groups": len(self._strange_links(node)),
        }
        for what, count in left.items():
            if count:
                self.watch.broke("P5", f"{node}: {count} {what} are left")

    def _is_cut_off(self, node: Node) -> bool:
        """Whether somebody cannot tell it now that he has ended something."""
        return any(node.index in cut for cut in self.watch.cluster.cuts)

    def _strange_links(self, node: Node) -> list[bytes]:
        group = self.watch.cluster.coordinator.group(node.group)
        if node.peer.session.epoch != group.epoch and node.peer.state is State.MEMBER:
            return []
        known = {*group.members, *group.waiting}
        return [link.peer for link in node.engine.links() if link.peer not in known]
