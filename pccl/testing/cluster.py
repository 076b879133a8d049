"""cluster.py - real engines, real peers and the real coordinator in one thread, under one virtual clock and one seed.

    cluster = Cluster(seed=7)
    for _ in range(4):
        cluster.add(program)
    cluster.run()                       # until every program has ended, or 60 virtual seconds have passed
    assert not cluster.watch.finish()   # what the checkers found

The only moving parts that are not the product's are the clock, the network and the faults. Everything that happens is
drawn from `random` or follows from it, so a seed replays; `digest` tells two runs apart.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from pccl import _native as native
from pccl import messages as m
from pccl.coordinator.cost import Measurements
from pccl.coordinator.ledger import Ledger
from pccl.coordinator.membership import Membership
from pccl.coordinator.plan import Pair, Plan, plan
from pccl.coordinator.settings import Settings
from pccl.errors import Timeout
from pccl.peer import Peer
from pccl.session import Session, State
from pccl.testing.checkers import Watch
from pccl.testing.clock import MILLISECOND, NEVER, SECOND, Clock, Future, Task, Timer, ns
from pccl.testing.coordinator import RUN, Coordinator
from pccl.testing.moving import Moves
from pccl.testing.network import Connection, ControlOptions, Ends
from pccl.testing.program import Ops, Program, SimPeer, is_over
from pccl.transfer.job import Job
from pccl.transfer.named import Named
from pccl.types import Event, EventKind, Identity, MemberInfo

TRACE_KEPT = 400
TURNS_MAX = 2_000_000


@dataclass(slots=True)
class Options:
    """How a simulated run is laid out. Small segments and budgets make much happen in little data."""

    min_peers: int = 1
    lease_s: float = 1.0
    coordinator_timeout_s: float = 8.0
    join_timeout_s: float = 20.0
    streams: int = 2
    segment_bytes: int = 1024
    one_round_bytes_max: int = 256
    mesh_bytes_max: int = 4096
    eager_bytes: int = 16 << 10
    silence_s: float = 1.0
    link_grace_s: float = 3.5  # of which the coordinator takes 2.5 for over when a link is reported as silent
    link_mended_s: float = 2.0
    handshake_timeout_s: float = 2.0
    transport: str = "sim"
    harmful: bool = False  # "faulty+sim": also corrupt bytes and reset streams
    measure: bool = True
    rank_by_index: bool = False  # else by order of arrival
    dial_back_lies: bool = False  # the coordinator stands where it sees the opposite of what the peers see
    defects: int = 0
    deaf_ns: int = 0  # when a session has heard its engine it does not listen for up to so long, while programs go on
    quantum_ns: int = 0  # 0: every delivery is a turn of its own
    path: native.SimPath = field(default_factory=lambda: native.SimPath(MILLISECOND, MILLISECOND // 2))
    control: ControlOptions = field(default_factory=ControlOptions)
    session: type[Session] = Session
    membership: type[Membership] = Membership
    ledger: type[Ledger] = Ledger
    job: type[Job] = Job
    named: type[Named] = Named


class Node:
    """One simulated process."""

    def __init__(
        self, cluster: Cluster, index: int, host: str, program: Program | None, guest: bool, group: int
    ) -> None:
        self.cluster = cluster
        self.index = index
        self.group = group
        self.id = hashlib.blake2b(f"{cluster.seed}:{index}".encode(), digest_size=16).digest()
        self.alive = True
        self.leaves = False  # has said so
        self.frozen = False
        self.frozen_ns = 0  # how long it has stood still in all, the present time excepted
        self.slow_ns = 0
        self.slowest_ns = 0  # it has been at some time
        self.not_before_ns = 0
        self._deaf_until_ns = 0
        self.wake_ns = 0
        self.changes = 0
        self.engine = native.Engine(cluster.engine_config(self.id, index))
        self.ops = Ops(self)
        options = cluster.options
        identity = self._identity(host, guest)
        self.peer = Peer(identity, self.engine, self.ops.describe)
        self.peer.session = options.session(identity)
        self.moves = Moves(self)
        self.ready: deque[Task] = deque()
        self.tasks: list[Task] = []
        self.face = SimPeer(self, Random(f"{cluster.seed}:peer:{index}"))
        self._program = program
        self._inbox: deque[Callable[[], None]] = deque()
        self._advancing: list[tuple[Future, bool]] = []
        self._leaving: list[Future] = []
        self._entering: list[Future] = []
        self._tick: Timer | None = None
        self._configured = 0
        self._frozen_at_ns = 0
        self._restless = options.transport != "sim"  # what wraps it may have something to do at any time
        self.connection = self._connect()
        self.do(lambda: self.peer.start(cluster.clock.now))
        cluster.clock.after(options.join_timeout_s, self._stop_joining)

    def _identity(self, host: str, guest: bool) -> Identity:
        return Identity(
            peer=self.id,
            run=RUN,
            group=self.group,
            addresses=(f"sim:{self.index}",),
            host=host,
            pid=self.index,
            coordinator_timeout_s=self.cluster.options.coordinator_timeout_s,
            guest=guest,
        )

    def _connect(self) -> Connection:
        cluster = self.cluster
        ends = Ends(
            to_peer=self._hear,
            to_coordinator=lambda data: cluster.coordinator.hear(self.id, data),
            peer_connected=self._connected,
            served=lambda: cluster.coordinator.alive,
            coordinator_lost=lambda: cluster.coordinator.lost(self.id),
        )
        return Connection(cluster.clock, cluster.random, cluster.options.control, ends)

    def __repr__(self) -> str:
        return f"peer {self.index}"

    # -- what the world does to it ----------------------------------------------------------------------------

    def crash(self) -> None:
        """The process is gone, at once and without a word."""
        if not self.alive:
            return
        self.alive = False
        self.cluster.trace("crash", self.index)
        self.cluster.sim.crash(self.index)
        self.connection.close()

    def freeze(self) -> None:
        """The process stands still: SIGSTOP, a page fault storm, a suspended machine."""
        self.frozen = True
        self._frozen_at_ns = self.cluster.clock.now_ns
        self.cluster.trace("freeze", self.index)

    def thaw(self) -> None:
        """The process goes on, with everything that waits at its doors."""
        if not self.frozen:
            return
        self.frozen = False
        self.frozen_ns += self.cluster.clock.now_ns - self._frozen_at_ns
        self.cluster.trace("thaw", self.index)
        if self.alive:
            inbox, self._inbox = self._inbox, deque()
            for action in inbox:
                action()
            self._on_tick()
            self.wake()

    def _stop_joining(self) -> None:
        """As a caller of connect() would."""
        if self.peer.state is State.JOINING:
            self.cluster.watch.excuse(self, "gave up joining")
            self.do(lambda: self.peer.close(self.cluster.clock.now))

    def _hear(self, data: bytes) -> None:
        self.do(lambda: self._on_message(m.decode_at_peer(data)))

    def _on_message(self, message: m.ToPeer) -> None:
        if isinstance(message, m.Epoch) and message.change:
            self.cluster.watch.thawing(self)
        self.peer.on_message(self.cluster.clock.now, message)
        if isinstance(message, m.Contacts):
            self.moves.look()

    def _connected(self) -> None:
        """The coordinator knows who it is with the first message."""
        self.do(lambda: self.peer.on_connected(self.cluster.clock.now))

    # -- its loop ---------------------------------------------------------------------------------------------

    def do(self, action: Callable[[], None]) -> None:
        """Something for the session or a transfer; a frozen process does it when it thaws."""
        if not self.alive:
            return
        if self.frozen:
            self._inbox.append(action)
            return
        action()
        self.after_session()

    def after_session(self) -> None:
        """Carries on what the session has decided."""
        self.flush()
        if self.peer.configured != self._configured:
            self._configured = self.peer.configured
            self._on_view()
        if self.peer.session.acquaintances is not None:
            self._begin_program()
        self._try_advance()
        if is_over(self.peer.state):
            self._on_over()
        self._arm()
        self.wake()

    def flush(self) -> None:
        """Sends what waits for it."""
        while self.peer.outbox:
            message = self.peer.outbox.popleft()
            self.cluster.trace("up", self.index, type(message).__name__)
            self.connection.send_up(m.encode(message))

    def _on_view(self) -> None:
        view = self.peer.view()
        session = self.peer.session
        if view is not None and session.epoch_view(session.epoch) is not None:
            newest = session.epoch_view(session.epoch)
            assert newest is not None
            self.changes += newest.from_boundary == 0
            self.cluster.trace("epoch", self.index, session.epoch, newest.from_boundary)
            self.cluster.watch.configured(self, newest)
        entering, self._entering = self._entering, []
        for future in entering:
            future.resolve()
        self._begin_program()

    def _begin_program(self) -> None:
        """A guest's when it knows the members, else with the first epoch."""
        if self._program is not None:
            program, self._program = self._program, None
            self.tasks.append(Task(self._main(program), self.ready))

    async def _main(self, program: Program) -> None:
        await program(self.face)

    def spawn(self, program: Program) -> Task:
        """Runs a further coroutine in this process."""
        task = Task(self._main(program), self.ready)
        self.tasks.append(task)
        self.wake()
        return task

    def _on_over(self) -> None:
        error = self.peer.error
        for future in (*(future for future, _ in self._advancing), *self._entering):
            future.resolve(None, error)
        self._advancing, self._entering = [], []
        for future in self._leaving:
            future.resolve()
        self._leaving = []
        self.moves.give_up(error)

    def _arm(self) -> None:
        deadline = self.peer.deadline
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        if deadline is not None:
            clock = self.cluster.clock
            self._tick = clock.at(max(ns(deadline) + 1, clock.now_ns + 1), self._on_tick)

    def _on_tick(self) -> None:
        if self.alive and not self.frozen:
            self.do(lambda: self.peer.on_tick(self.cluster.clock.now))

    def wake(self) -> None:
        """The engine has something to do now."""
        self.wake_ns = 0

    @property
    def due_ns(self) -> int:
        """When it wants its next turn."""
        if not self.alive or self.frozen:
            return NEVER
        return max(self.wake_ns, self.not_before_ns)

    def turn(self) -> None:
        """One turn of the process: engine, its events, the program."""
        now_ns = self.cluster.clock.now_ns
        if not self.alive or self.frozen:
            return
        if self.cluster.sim.stirred(self.index) or self.ready or self._restless:
            self.wake()
        if now_ns < self.wake_ns:
            return
        if now_ns < self.not_before_ns:
            self.wake()
            return
        self.not_before_ns = now_ns + self.slow_ns
        self.slowest_ns = max(self.slowest_ns, self.slow_ns)
        self.wake_ns = self.engine.step(now_ns)
        self._listen(now_ns)
        while self.ready and self.alive:
            self.ready.popleft().step()
            self.wake()

    def _listen(self, now_ns: int) -> None:
        if now_ns < self._deaf_until_ns:
            self.wake_ns = min(self.wake_ns, self._deaf_until_ns)
            return
        events = self.engine.events()
        if not events:
            return
        if self.cluster.options.deaf_ns:
            self._deaf_until_ns = now_ns + self.cluster.random.randrange(self.cluster.options.deaf_ns)
        self._take(events)

    def _take(self, events: list[Event]) -> None:
        for event in events:
            self.cluster.trace("event", self.index, event.kind, event.status, event.token, event.epoch, event.cause)
            if event.kind == EventKind.FROZEN:
                self.cluster.watch.frozen(self)
        for event in self.peer.on_engine(self.cluster.clock.now, events):
            (self.ops.ended if event.kind == EventKind.OP else self.moves.on_event)(event)
        self.after_session()

    # -- what the program asks for ----------------------------------------------------------------------------

    def when_awake(self, action: Callable[[], None]) -> None:
        """Something that a timer of this process does: when it runs again, if it stands still now."""
        if self.frozen:
            self._inbox.append(action)
        elif self.alive:
            action()
            self.wake()

    def resolve(self, future: Future) -> None:
        """Wakes a coroutine of this process, when it runs again."""
        self.when_awake(future.resolve)

    def advance(self, timeout: float) -> Future:
        """Passes to the next boundary, or waits for it."""
        future = Future()
        before = len(self.peer.outbox)
        passed = self.peer.advance(self.cluster.clock.now)
        self.cluster.watch.advanced(self, passed is not None, list(self.peer.outbox)[before:])
        if passed is not None:
            self.cluster.trace("advance", self.index, passed)
            self.after_session()
            future.resolve(passed)
            return future
        self._advancing.append((future, True))
        self.cluster.clock.after(timeout, lambda: self._give_up(future))
        self.after_session()
        return future

    def _try_advance(self) -> None:
        if not self._advancing:
            return
        passed = self.peer.advance(self.cluster.clock.now)
        if passed is None:
            return
        self.cluster.trace("advance", self.index, passed)
        future, _ = self._advancing.pop(0)
        future.resolve(passed)
        self.flush()

    def _give_up(self, future: Future) -> None:
        waiting = [entry for entry in self._advancing if entry[0] is future]
        if waiting:
            self._advancing.remove(waiting[0])
            reason = f"advance() did not pass boundary {self.peer.boundary}: waits for {self.peer.session.waits_for}"
            future.resolve(None, Timeout(reason, peer=self.id, epoch=self.peer.session.epoch))
            self.wake()

    def give_up(self, token: int) -> None:
        """Asks the coordinator to end an op everywhere."""
        self.do(lambda: self.peer.fault(self.cluster.clock.now, token, "cancelled"))

    def enter(self) -> Future:
        """A guest wants to be a member; resolved when it is one."""
        future = Future()
        self._entering.append(future)
        self.cluster.trace("enter", self.index)
        self.do(lambda: self.peer.enter(self.cluster.clock.now))
        return future

    def leave(self) -> Future:
        """Says goodbye; resolved when the coordinator has answered."""
        future = Future()
        self.leaves = True
        self._leaving.append(future)
        self.cluster.trace("leave", self.index)
        self.do(lambda: self.peer.leave(self.cluster.clock.now))
        return future


class Cluster:
    """The whole simulated world."""

    def __init__(self, seed: int, options: Options | None = None) -> None:
        self.seed = seed
        self.options = options if options is not None else Options()
        self.clock = Clock()
        self.random = Random(f"{seed}:cluster")
        self.sim = native.Sim(seed)
        self.nodes: list[Node] = []
        self.by_id: dict[bytes, Node] = {}
        self.cuts: set[tuple[int, int]] = set()  # directions in which nothing passes now
        self.hidden: dict[int, int] = {}  # nodes that nobody can dial: DIALS_LOST or DIALS_REFUSED
        self.watch = Watch(self)
        self.log: deque[str] = deque(maxlen=TRACE_KEPT)
        self.turns = 0
        self.marks: Counter[str] = Counter()  # what a scenario was named for has happened
        self.observers: list[Callable[[str, tuple[object, ...]], None]] = []
        self._digest = hashlib.blake2b(digest_size=16)
        self._tokens = 0
        self._free = False
        self.coordinator = Coordinator(self, self._settings())

    def _settings(self) -> Settings:
        options = self.options
        return Settings(
            min_peers=options.min_peers,
            lease_s=options.lease_s,
            link_grace_s=options.link_grace_s,
            link_mended_s=options.link_mended_s,
            dial_back=True,
            measure=options.measure,
            planner=self._plan,
        )

    def _plan(self, members: Sequence[MemberInfo], measured: Measurements, broken: frozenset[Pair]) -> Plan:
        """The planner's order and ways around dead links; everything else as the options say."""
        del measured
        options = self.options
        around = plan(members, broken=broken)
        order = around.order if around.detours else tuple(member.id for member in members)
        if options.rank_by_index and not around.detours:
            order = tuple(sorted(order, key=lambda peer: self.by_id[peer].index))
        return Plan(
            streams=options.streams,
            segment_bytes=options.segment_bytes,
            mesh_bytes_max=options.mesh_bytes_max,
            order=order,
            one_round_bytes_max=options.one_round_bytes_max,
            detours=around.detours,
        )

    def engine_config(self, peer_id: bytes, index: int) -> native.EngineConfig:
        """How the engine of a node is made."""
        options = self.options
        return native.EngineConfig(
            peer_id=peer_id,
            run=hashlib.blake2b(RUN.encode(), digest_size=16).digest(),
            key=hashlib.blake2b(b"key", digest_size=32).digest(),
            transport=options.transport,
            listen=f"sim:{index}",
            fault_seed=(self.seed * 1000 + index) % (1 << 63) | (options.harmful << 63),
            eager_bytes=options.eager_bytes,
            handshake_timeout_s=options.handshake_timeout_s,
            silence_s=options.silence_s,
            defects=options.defects,
            sim=self.sim,
        )

    # -- peers ------------------------------------------------------------------------------------------------

    def add(
        self, program: Program | None = None, host: str = "", hidden: int = 0, guest: bool = False, group: int = 0
    ) -> Node:
        """A new process, which asks to join a group at once; its program begins when it is a member, or, if it is to be
        a `guest` first, when it knows the members. `hidden`: it cannot be dialled.
        """
        index = len(self.nodes)
        if hidden:
            self.hidden[index] = hidden
        for other in range(index):
            self.set_path(other, index, self.options.path)
        node = Node(self, index, host or f"host{index}", program, guest, group)
        self.nodes.append(node)
        self.by_id[node.id] = node
        self.trace("add", index)
        return node

    def add_later(self, seconds: float, program: Program | None = None) -> None:
        """The same at a later time."""
        self.clock.after(seconds, lambda: self.add(program))

    def members_of(self, group: int = 0) -> list[Node]:
        """Who is in a group as the coordinator sees it."""
        return [self.by_id[peer] for peer in self.coordinator.group(group).members]

    def set_path(self, a: int, b: int, path: native.SimPath, *, both: bool = True) -> None:
        """The data network between two nodes."""
        for source, target in ((a, b), (b, a))[: 1 + both]:
            self.sim.set_path(source, target, replace(path, dials=self.hidden.get(target, path.dials)))
            (self.cuts.add if path.cut else self.cuts.discard)((source, target))

    def form_with(self, peers: int, group: int = 0) -> None:
        """The group waits for so many before it forms; afterwards `Options.min_peers` counts."""
        settings = replace(self._settings(), form_peers=max(peers, self.options.min_peers))
        self.coordinator.settle(group, settings)

    def next_token(self) -> int:
        """Names an op within the simulation."""
        self._tokens += 1
        return self._tokens

    # -- the loop ---------------------------------------------------------------------------------------------

    def run(self, seconds: float = 60.0, until: Callable[[], bool] | None = None) -> bool:
        """Runs so much virtual time at most; True once `until` holds (default: every program has ended)."""
        end_ns = self.clock.now_ns + ns(seconds)
        done = self.programs_ended if until is None else until
        while True:
            self._turn()
            if done():
                return True
            next_ns = min(self.clock.next_ns, self.sim.next(), *(node.due_ns for node in self.nodes))
            next_ns = max(next_ns, self.clock.now_ns + 1)
            if self.options.quantum_ns:
                next_ns = -(-next_ns // self.options.quantum_ns) * self.options.quantum_ns
            self.turns += 1
            if next_ns > end_ns or self.turns > TURNS_MAX:
                self.clock.now_ns = min(end_ns, max(next_ns, self.clock.now_ns))
                return False
            self.clock.now_ns = next_ns

    def _turn(self) -> None:
        self.sim.advance(self.clock.now_ns)
        self.clock.run_due()
        for node in self.nodes:
            node.turn()

    def programs_ended(self) -> bool:
        """Every process that can still do something has done it."""
        return all(
            not node.alive
            or (not node.frozen and is_over(node.peer.state) and not node.tasks)
            or (bool(node.tasks) and all(task.done for task in node.tasks))
            for node in self.nodes
        )

    def trace(self, what: str, *facts: object) -> None:
        """One line of the run's story; part of the digest. Observers hear of it at once: they may only plan."""
        for observer in tuple(self.observers):
            observer(what, facts)
        line = f"{self.clock.now_ns / SECOND:.9f} {what} {' '.join(map(str, facts))}"
        self._digest.update(line.encode())
        self.log.append(line)

    @property
    def digest(self) -> str:
        """Equal for equal runs."""
        both = self._digest.copy()
        both.update(self.sim.digest().to_bytes(8, "little"))
        return both.hexdigest()

    def close(self) -> None:
        """Frees everything. The engine asserts that its pool is whole again."""
        if self._free:
            return
        self._free = True
        for node in self.nodes:
            for task in node.tasks:
                task.coroutine.close()
            node.engine.close()
            node.engine.free()
        self.sim.free()


__all__ = ["Cluster", "Node", "Options", "State"]
