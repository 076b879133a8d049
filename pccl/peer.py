"""peer.py - a Session with an engine: carries out what the session decides, and tells it what the engine reports.

No clock, no thread, no socket: `Control` and the simulator drive the same object. Messages for the coordinator
collect in `outbox`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable

from pccl import messages as m
from pccl import session as s
from pccl.achieved import Stopwatch
from pccl.contacts import Contacts, Way
from pccl.errors import PcclError
from pccl.logs import about
from pccl.measure import LineReporter, LinkReporter
from pccl.refusals import Refusals
from pccl.types import Engine, EpochView, Event, EventKind, Identity, OpInfo, OpName, OpState, Status

#: The engine is looked at so often at most for what a Heartbeat tells.
LOOK_GAP_S = 0.1
VERDICTS_MAX = 65536
FAILED_MAX = 1024

_ALIVE = (s.State.JOINING, s.State.MEMBER, s.State.FROZEN)

Describe = Callable[[int], "OpInfo | None"]


class Peer:
    """One peer of one group. Not thread-safe: the caller holds a lock."""

    def __init__(self, identity: Identity, engine: Engine, describe: Describe) -> None:
        self.session = s.Session(identity)
        self.outbox: deque[m.ToCoordinator] = deque()
        self.configured = 0  # how many epochs have been installed: grows with every change of the view
        self._engine = engine
        self._describe = describe
        self._reporter = LinkReporter()
        self._line_reporter = LineReporter()
        self._refusals = Refusals()
        self._stopwatch = Stopwatch()
        self._looked = float("-inf")
        self._verdicts: OrderedDict[OpName, tuple[int, str]] = OrderedDict()
        self._failed: OrderedDict[OpName, m.Pending] = OrderedDict()
        self._acquainted: set[bytes] = set()
        self._contacts = Contacts(identity.peer)
        self._sought = float("-inf")

    # -- facts ------------------------------------------------------------------------------------------------

    @property
    def id(self) -> bytes:
        """The 16 bytes."""
        return self.session.identity.peer

    @property
    def state(self) -> s.State:
        """Where the session is."""
        return self.session.state

    @property
    def boundary(self) -> int:
        """The boundary that this peer has reached."""
        return self.session.boundary

    @property
    def error(self) -> PcclError | None:
        """Why the peer is fenced or closed."""
        return self.session.error

    @property
    def deadline(self) -> float | None:
        """When `on_tick` is due."""
        return self.session.deadline

    def view(self, boundary: int | None = None) -> EpochView | None:
        """The epoch in which ops of a boundary (default: the present one) run."""
        return self.session.view(self.session.boundary if boundary is None else boundary)

    def verdict_text(self, name: OpName) -> str:
        """The words of a verdict; "" if there was none."""
        verdict = self._verdicts.get(name)
        return "" if verdict is None else verdict[1]

    def judged(self, name: OpName) -> bool:
        """Whether the coordinator has said how the op ends."""
        return name in self._verdicts

    def about(self) -> dict[str, object]:
        """Fields of records in the log."""
        return about(self.session.identity.run, self.id, self.session.epoch)

    # -- what happens -----------------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Asks to enter."""
        self._do(now, s.Start())

    def on_connected(self, now: float) -> None:
        """The control connection is up (again)."""
        self._reporter.forget()
        self._line_reporter.forget()
        self._looked = float("-inf")
        self._do(now, s.Connected())
        if self.state in _ALIVE:
            self._seek_again(now)

    def on_rejected(self, now: float, reason: str) -> None:
        """The coordinator refuses the handshake."""
        self._do(now, s.Rejected(reason))

    def on_message(self, now: float, message: m.ToPeer) -> None:
        """The coordinator has spoken."""
        self._do(now, message)
        stale = isinstance(message, m.Word) and 0 < message.incarnation < self.session.incarnation
        if isinstance(message, m.Contacts) and self.state in _ALIVE and not stale:
            self._keep_contacts(message)

    def on_engine(self, now: float, events: Iterable[Event]) -> list[Event]:
        """Takes the engine's events; gives back those of ops that ended, and of transfers."""
        ended = []
        for event in events:
            if event.kind == EventKind.OP:
                self._count(now, event)
                self._note_failure(event)
                ended.append(event)
            elif event.kind in (EventKind.FETCH, EventKind.WITHDRAWN, EventKind.ASKED):
                ended.append(event)
            else:
                self._on_fact(now, event)
        return ended

    def on_tick(self, now: float) -> None:
        """Time has passed."""
        self._do(now, s.Tick())
        if self.state in _ALIVE and now - self._sought >= self.session.lease_s:
            self._seek_again(now)

    def advance(self, now: float) -> int | None:
        """The new boundary, or None if it must wait: ask again after the next message."""
        before = self.session.boundary
        self._do(now, s.Advance())
        return self.session.boundary if self.session.boundary != before else None

    def fault(self, now: float, token: int, kind: str) -> None:
        """Asks the coordinator to settle an op."""
        self._fault(now, token, kind, b"", "")

    def forgo(self, now: float, name: OpName, what: str) -> None:
        """Asks the coordinator to end, on every peer, an op that this one was to call and never will."""
        if not self.judged(name):
            self._do(now, s.Faulted("forgone", name, b"", what, ""))

    def enter(self, now: float) -> None:
        """A guest so far, it wants to be a member."""
        self._do(now, s.Enter())

    def seek(self, peers: frozenset[bytes]) -> None:
        """Transfers name these peers of other groups, and no others."""
        message = self._contacts.seek(peers)
        if message is not None:
            self.outbox.append(message)

    def way_to(self, peer: bytes) -> Way:
        """Whether there is a link to a peer."""
        views = (self.view(), self.session.view(m.BOUNDARY_MAX))
        members = (member.id for view in views if view is not None for member in view.members)
        if peer in members or peer in (self.session.acquaintances or ()):
            return Way.GROUP
        return self._contacts.way_to(peer)

    def leave(self, now: float, reason: str = "closed by the user") -> None:
        """Leaves gracefully: CLOSED once the coordinator has said Goodbye."""
        self._do(now, s.Quit(reason))

    def close(self, now: float) -> None:
        """Ends without waiting for anybody."""
        self._do(now, s.Shut())

    # -- the inside -------------------------------------------------------------------------------------------

    def _on_fact(self, now: float, event: Event) -> None:
        if event.kind == EventKind.LINK_DOWN:
            self._do(now, s.LinkDown(event.peer, event.cause, event.sys_errno))
        elif event.kind == EventKind.LINK_UP:
            self._do(now, s.LinkUp(event.peer))
        elif event.kind == EventKind.FROZEN:
            self._on_frozen(now, event.token)
        elif event.kind == EventKind.MISMATCH:
            self._fault(now, event.token, "mismatch", event.peer, self._engine.desc_text(event.desc))
        elif event.kind == EventKind.OVERDUE:
            self._fault(now, event.token, "overdue", event.peer, "")
        elif event.kind == EventKind.REFUSED:
            self._refusals.note(now, self._engine.refusal(), self.about())

    def _on_frozen(self, now: float, change: int) -> None:
        states, lanes = self._engine.frozen()
        pending = (*(self._pending(state) for state in states), *self._failed.values())
        self._do(now, s.EngineFrozen(change, lanes, pending))

    def _pending(self, state: OpState) -> m.Pending:
        return _entry(state.name, bool(state.finished), self._describe(state.token))

    def _note_failure(self, event: Event) -> None:
        """An op that failed here alone is not over: reported as unfinished, lest it be committed for the others."""
        info = None if event.status == Status.OK else self._describe(event.token)
        if info is not None and info.name not in self._verdicts:
            self._failed[info.name] = _entry(info.name, False, info)
            while len(self._failed) > FAILED_MAX:
                self._failed.popitem(last=False)

    def _fault(self, now: float, token: int, kind: str, peer: bytes, theirs: str) -> None:
        info = self._describe(token)
        if info is not None:  # else it has ended meanwhile
            known = peer if any(peer) else b""
            self._do(now, s.Faulted(kind, info.name, known, info.what, theirs))

    def _count(self, now: float, event: Event) -> None:
        if event.status == Status.OK:
            self.session.ops += 1
        self.session.bytes += event.sent_bytes + event.received_bytes
        if self._stopwatch.could_count(event):
            desc = self._engine.read_desc(event.desc)
            if desc is not None:
                self._stopwatch.ended(now, event, desc)

    def _look(self, now: float) -> None:
        """For the next Heartbeat, whatever will be the cause of it."""
        self._looked = now
        self.session.oldest = self._engine.oldest_boundary()
        self.session.busy = self._engine.is_busy()
        for report in self._reporter.news(now, self._engine.links()):
            self.session.links[report.peer] = report
        line = self._line_reporter.news(now, self._engine.line())
        if line is not None:
            self.session.line = line
        if self.session.achieved is None:
            self.session.achieved = self._stopwatch.take()

    def _do(self, now: float, event: s.Event) -> None:
        if self.session.state is s.State.MEMBER and now - self._looked >= LOOK_GAP_S:
            self._look(now)
        for effect in self.session.handle(now, event):
            self._carry_out(effect)

    def _carry_out(self, effect: s.Effect) -> None:
        engine = self._engine
        if isinstance(effect, s.Send):
            self.outbox.append(effect.message)
        elif isinstance(effect, s.AdvanceEngine):
            engine.advance(effect.boundary)
        elif isinstance(effect, s.ForgetLanes):
            engine.forget(effect.boundary)
        elif isinstance(effect, s.Configure):
            self._keep_verdicts(effect)
            self.configured += 1
            self._stopwatch.configure(effect.config)
            engine.configure(effect.config)
        elif isinstance(effect, s.FreezeEngine):
            engine.freeze(effect.change)
        elif isinstance(effect, s.Prepare):
            engine.prepare(effect.members, effect.streams)
        elif isinstance(effect, m.Measure):
            engine.measure(effect.peer, effect.bytes, effect.timeout_s)
        elif isinstance(effect, s.Acquaint):
            self._acquaint(effect)
        else:
            engine.fail_all(effect.status)

    def _acquaint(self, effect: s.Acquaint) -> None:
        wanted = {member.id for member in effect.members}
        for peer in sorted(self._acquainted - wanted):
            self._engine.unacquaint(peer)
        for member in effect.members:
            if member.id not in self._acquainted:
                self._engine.acquaint(member, effect.streams)
        self._acquainted = wanted

    def _keep_contacts(self, said: m.Contacts) -> None:
        step = self._contacts.heard(said)
        for peer in step.closed:
            self._engine.unacquaint(peer)
        for member in step.opened:
            self._engine.acquaint(member, step.streams)

    def _seek_again(self, now: float) -> None:
        """Its answer tells all that may have been lost. Before a Heartbeat: a coordinator that has heard one takes it
        that this peer seeks nobody.
        """
        self._sought = now
        again = self._contacts.again()
        if again is None:
            return
        joins = [i for i, message in enumerate(self.outbox) if isinstance(message, m.Join)]
        self.outbox.insert(joins[-1] + 1 if joins else 0, again)

    def _keep_verdicts(self, effect: s.Configure) -> None:
        """Kept for the communicator until the op's event comes, or until it calls an op that has failed elsewhere."""
        for name, status in effect.config.verdicts:
            self._verdicts[name] = (status, effect.texts.get(name, ""))
            self._failed.pop(name, None)
        while len(self._verdicts) > VERDICTS_MAX:
            self._verdicts.popitem(last=False)


def _entry(name: OpName, finished: bool, info: OpInfo | None) -> m.Pending:
    if info is None:
        return m.Pending(m.OpRef(*name), finished, False, (), "an op")
    return m.Pending(m.OpRef(*name), finished, info.pair, info.needs, m.clip(info.what, 120), info.everyone)
