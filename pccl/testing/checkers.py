"""checkers.py - looks on while a simulated run goes by, and says which promise was broken, and where.

`Watch` is told everything that happens (`called`, `ended`, `configured`, `decided`, ...) and compares at once what can
be compared at once; `finish` compares the peers with each other. Promises are those of the design: P1 one result,
P2 inputs survive, P3 joins never disturb, P4 link faults are not peer faults, P5 bounded waiting, P6 nothing is
trusted, P7 restarts of the coordinator are survived, P8 what counts as equal is equal (also guests.py).
Ops are compared within their group; what is fetched and pushed is looked at by deliveries.py. A checker knows
the faults only as excuses: who crashed or was cut off may be evicted, and may end without the results of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pccl import messages as m
from pccl.coordinator.events import Record
from pccl.coordinator.steps import State as GroupState
from pccl.session import State
from pccl.testing import agreement
from pccl.testing.clock import SECOND, Future, ns
from pccl.testing.deliveries import Deliveries
from pccl.types import EpochView, Status, short_id

if TYPE_CHECKING:
    from pccl.testing.cluster import Cluster, Node
    from pccl.testing.program import Work
    from pccl.transfer.target import Bytes

#: What an op may end with at a peer that is no survivor any more.
OUTSIDE = frozenset({Status.ECLOSED, Status.EEVICTED, Status.ELOST})
#: Ends that no fault explains.
NEVER_RIGHT = frozenset({Status.EPROTO, Status.EAUTH, Status.EINVAL, Status.ENOMEM, Status.EIO, Status.EAGAIN})
QUIET_S = 0.5


@dataclass(slots=True, frozen=True)
class Broken:
    """A promise that did not hold."""

    promise: str
    detail: str


class Watch:
    """All checkers of one run."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.works: list[Work] = []
        self.broken: list[Broken] = []
        self.grace_s = 6.0
        self.expected: set[int] = set()  # statuses that the scenario provokes
        self.overdue_expected = False
        self._excuses: dict[int, list[str]] = {}
        self._shaken: list[str] = []
        self._empties: dict[int, list[int]] = {}
        self._first_epoch: dict[bytes, int] = {}
        self._restless_ns = 0
        self._decisions: dict[tuple[int, type, int], m.ToPeer] = {}
        self._states: dict[tuple[int, int], tuple[Node, bytes]] = {}
        self.deliveries = Deliveries(self)

    def broke(self, promise: str, detail: str) -> None:
        """Notes it, once."""
        finding = Broken(promise, f"at {self.cluster.clock.now:.6f} s: {detail}")
        if all(known.detail != finding.detail for known in self.broken):
            self.broken.append(finding)
            self.cluster.trace("broken", promise, detail)

    # -- excuses ----------------------------------------------------------------------------------------------

    def excuse(self, node: Node, why: str) -> None:
        """A fault that may cost this peer its membership."""
        self._excuses.setdefault(node.index, []).append(why)
        self._shaken.append(f"{node} {why}")

    def excused(self, node: Node) -> bool:
        """Whether it had a fault of its own."""
        return bool(self._excuses.get(node.index))

    def shaken(self, why: str) -> None:
        """A fault that may make an op miss its deadline, at no peer in particular."""
        self._shaken.append(why)

    # -- while it goes on -------------------------------------------------------------------------------------

    def called(self, work: Work) -> None:
        """A peer calls an op."""
        self.works.append(work)

    def ended(self, work: Work) -> None:
        """An op has its event."""
        self.cluster.trace("ended", work.node.index, _name(work), work.retries, work.describe())
        self._check_input(work)
        self._check_status(work)
        changes = work.node.changes - work.changes_before
        if work.retries > changes:
            self.broke("P3", f"{_of(work)} was started again {work.retries} times for {changes} changes")
        late_ns = work.ended_ns - work.request.deadline_ns - ns(self.grace_s)
        if late_ns > 0 and not self._excuses.get(work.node.index):
            self.broke("P5", f"{_of(work)} ended {late_ns / SECOND + self.grace_s:.3f} s after its deadline")

    def _check_input(self, work: Work) -> None:
        if work.source is None or (work.in_place and work.status == Status.OK):
            return
        if work.source.tobytes() != work.source_before:
            kind = "restored" if work.in_place else "left alone"
            self.broke("P2", f"the input of {_of(work)} was not {kind}; it ended with {_name(work)}")

    def _check_status(self, work: Work) -> None:
        if work.status == Status.OK or work.status in self.expected:
            return
        if work.status in NEVER_RIGHT:
            self.broke("P1", f"{_of(work)} ended with {_name(work)}: {work.text}")
        if work.status in (Status.EEVICTED, Status.ELOST) and not self._excuses.get(work.node.index):
            self.broke("P4", f"{_of(work)} ended with {_name(work)}, and nothing had happened to that peer")
        if work.status == Status.ETIMEOUT and not self.overdue_expected and not self._shaken:
            self._check_timeout(work)

    def _check_timeout(self, work: Work) -> None:
        """All had called it in time and nobody was away: only links had faults."""
        callers = [other for other in self.works if other.name == work.name and other.node.group == work.node.group]
        called = {other.node.id for other in callers}
        limit_ns = work.request.deadline_ns - SECOND
        needed = {node.id for node in self.cluster.members_of(work.node.group)} if not work.pair else set(work.needs)
        if needed <= called and all(other.called_ns <= limit_ns for other in callers):
            self.broke("P4", f"{_of(work)} missed its deadline, though all had called it and only links had faults")

    def frozen(self, node: Node) -> None:
        """The engine has frozen: from now on until the next epoch nothing may be accepted."""
        for work in node.ops.pending.values():
            work.out_at_freeze = None if work.out is None else work.out.tobytes()

    def thawing(self, node: Node) -> None:
        """The next epoch has come and is about to be installed."""
        for work in node.ops.pending.values():
            before, work.out_at_freeze = work.out_at_freeze, None
            if before is not None and work.out is not None and work.out.tobytes() != before:
                self.broke("P1", f"{_of(work)} took bytes of a frozen epoch")

    def configured(self, node: Node, view: EpochView) -> None:
        """A peer has a new epoch."""
        entering = node.id not in self._first_epoch
        self._first_epoch.setdefault(node.id, view.epoch)
        if view.from_boundary and not entering and node.peer.boundary >= view.from_boundary:
            self.broke(
                "P3",
                f"{node} was at boundary {node.peer.boundary} when the growth from boundary {view.from_boundary} came",
            )

    def advanced(self, node: Node, passed: bool, sent: list[m.ToCoordinator]) -> None:
        """A peer has called advance()."""
        others = [type(message).__name__ for message in sent if not isinstance(message, m.Heartbeat)]
        if others:
            self.broke("P3", f"advance() of {node} sent {', '.join(others)}")
        if not passed and not self._shaken and self._is_quiet(node.group) and not node.peer.session.paused:
            self.broke("P3", f"advance() of {node} waits although nobody does")

    def _is_quiet(self, number: int) -> bool:
        """Nobody waits, nobody has joined or gone for a while."""
        group = self.cluster.coordinator.group(number)
        calm_ns = self.cluster.clock.now_ns - self._restless_ns
        return group.state is GroupState.STABLE and not group.waiting and calm_ns > ns(QUIET_S)

    def said(self, group: int, message: m.ToPeer) -> None:
        """The coordinator tells a group of a decision: of one number there is only one, whichever incarnation tells."""
        if isinstance(message, m.Epoch):
            number = message.epoch
        elif isinstance(message, m.Freeze):
            number = message.change
        elif isinstance(message, m.Hold):
            number = message.hold
        else:
            return
        if self._decisions.setdefault((group, type(message), number), message) != message:
            self.broke("P7", f"{type(message).__name__} {number} was said twice, and not the same")

    def decided(self, record: Record) -> None:
        """The coordinator has decided something."""
        if record.what in ("hold", "freeze", "epoch", "join", "release", "stall", "restart"):
            self._restless_ns = self.cluster.clock.now_ns
        if record.what == "empty":
            self._empties.setdefault(record.group, []).append(record.epoch)
        if record.what not in ("lost", "lease"):
            return
        node = self.cluster.by_id.get(record.peer)
        if node is not None and not self._excuses.get(node.index):
            self.broke("P4", f"{node} was evicted ({record.what}: {record.reason}), and only links had faults")

    # -- state ------------------------------------------------------------------------------------------------

    def equalised(self, node: Node, boundary: int, state: Bytes) -> None:
        """Peers have made their state equal."""
        other, theirs = self._states.setdefault((node.group, boundary), (node, state.tobytes()))
        if state.tobytes() != theirs:
            self.broke("P8", f"{node} and {other} have other states after they were made equal at boundary {boundary}")

    # -- at the end -------------------------------------------------------------------------------------------

    def finish(self) -> list[Broken]:
        """Compares everybody with everybody; gives all that was found."""
        self._check_liveness()
        for works in self._ops():
            for promise, detail in agreement.findings(self.cluster, works):
                self.broke(promise, detail)
        for work in self.works:
            watched = work.guarded and work.status is not None and work.node.alive
            if watched and work.out is not None and work.out.tobytes() != work.result:
                self.broke("P2", f"the memory of {_of(work)} changed after its end")
        self.deliveries.finish()
        self._check_leaks()
        return self.broken

    def _ops(self) -> list[list[Work]]:
        """The calls of each op. A group that was formed anew counts its boundaries anew."""
        ops: dict[tuple[int, int, tuple[int, int, int]], list[Work]] = {}
        for work in self.works:
            first = self._first_epoch.get(work.node.id, 0)
            generation = sum(first > empty for empty in self._empties.get(work.node.group, ()))
            ops.setdefault((work.node.group, generation, work.name), []).append(work)
        return list(ops.values())

    def _check_liveness(self) -> None:
        for node in self.cluster.nodes:
            if not node.alive or node.frozen:
                continue
            for work in node.ops.pending.values():
                self.broke("P5", f"{_of(work)} has no end")
            for task in node.tasks:
                if not task.done:
                    self.broke("P5", f"the program of {node} waits for ever for {_words(task.waits_for)}")
                elif task.error is not None and not isinstance(task.error, agreement.Expected):
                    self.broke("P1", f"the program of {node} failed: {task.error!r}")

    def _check_leaks(self) -> None:
        for node in self.cluster.nodes:
            if not node.alive or node.frozen or node.peer.state is not State.MEMBER:
                continue
            stats = node.engine.stats()
            if stats.ops_pending != len(node.ops.pending):
                self.broke("P5", f"{node}: {stats.ops_pending} ops are left in the engine")
            if stats.parked_bytes and not self._shaken and not self.overdue_expected:
                self.broke("P5", f"{node}: {stats.parked_bytes} parked bytes are left")


def _of(work: Work) -> str:
    return f"{work.describe()} of {work.node}"


def _name(work: Work) -> str:
    return "nothing yet" if work.status is None else Status(work.status).name


def _words(future: Future | None) -> str:
    describe = getattr(future, "describe", None)
    return describe() if describe is not None else type(future).__name__


def people(cluster: Cluster, peers: tuple[bytes, ...]) -> str:
    """Peers in words."""
    return ", ".join(repr(cluster.by_id[peer]) if peer in cluster.by_id else short_id(peer) for peer in peers)
