"""session.py - decides what a peer does about the coordinator: the Session machine of docs/protocol.md 1.6.

Pure: `handle(now, event) -> effects`. No clock, no socket, no engine, no randomness. `TABLE` maps (state, event) to
what is done and to the states that may follow. Messages may be lost when the control connection breaks; therefore
everything that awaits an answer is sent again on `Connected`, and every handler takes the same message twice. Once a
coordinator's incarnation was heard, what an earlier one says is nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum

from msgspec import structs

from pccl import errors
from pccl import messages as m
from pccl.epochs import acquaintances_of, configuration, flaw_of, vias_of, view_of
from pccl.frozen import name_of, report_of
from pccl.table import Row
from pccl.table import row as _row
from pccl.types import Cause, EpochConfig, EpochView, Identity, Lanes, MemberConfig, OpName, Status

JOIN_RETRY_S = 0.5
FRESH_S, FRESH_EACH_S = 0.05, 0.002  # advance() sends a heartbeat if the last is older; of all members 500 a second
VIEWS_MAX = 256
TURNED_AWAY_MAX = 3


class State(Enum):
    """States of a peer."""

    OFFLINE = "offline"
    JOINING = "joining"
    MEMBER = "member"
    FROZEN = "frozen"
    FENCED = "fenced"
    CLOSED = "closed"


# -- events other than messages -------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Start:
    """The user wants to enter."""


@dataclass(slots=True, frozen=True)
class Connected:
    """The control connection is up (again): what was sent before may be lost."""


@dataclass(slots=True, frozen=True)
class Rejected:
    """The coordinator refuses the handshake of the control connection."""

    reason: str


@dataclass(slots=True, frozen=True)
class Tick:
    """Time has passed; due at `deadline`."""


@dataclass(slots=True, frozen=True)
class Advance:
    """The user wants to pass to the next boundary."""


@dataclass(slots=True, frozen=True)
class Enter:
    """The user, a guest so far, wants to be a member."""


@dataclass(slots=True, frozen=True)
class LinkDown:
    """The engine lost the last stream to a peer."""

    peer: bytes
    cause: int
    errno: int


@dataclass(slots=True, frozen=True)
class LinkUp:
    """The engine has a stream to a peer again."""

    peer: bytes


@dataclass(slots=True, frozen=True)
class EngineFrozen:
    """The engine has frozen for this change."""

    change: int
    lanes: Lanes
    pending: tuple[m.Pending, ...]


@dataclass(slots=True, frozen=True)
class Faulted:
    """An op cannot end by itself."""

    kind: str
    name: OpName
    peer: bytes
    mine: str
    theirs: str


@dataclass(slots=True, frozen=True)
class Quit:
    """The user wants to leave gracefully."""

    reason: str


@dataclass(slots=True, frozen=True)
class Shut:
    """The user closes without waiting for anybody."""


Event = (
    Start | Connected | Rejected | Tick | Advance | Enter | LinkDown | LinkUp | EngineFrozen | Faulted | Quit | Shut
    | m.ToPeer
)  # fmt: skip

# -- effects --------------------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Send:
    """Send a message to the coordinator."""

    message: m.ToCoordinator


@dataclass(slots=True, frozen=True)
class Prepare:
    """engine.prepare"""

    members: list[MemberConfig]
    streams: int


@dataclass(slots=True, frozen=True)
class Acquaint:
    """engine.acquaint with these; unacquaint with those before"""

    members: list[MemberConfig]
    streams: int


@dataclass(slots=True, frozen=True)
class FreezeEngine:
    """engine.freeze"""

    change: int


@dataclass(slots=True, frozen=True)
class Configure:
    """engine.configure; the texts belong to the verdicts."""

    config: EpochConfig
    texts: dict[OpName, str]


@dataclass(slots=True, frozen=True)
class AdvanceEngine:
    """engine.advance"""

    boundary: int


@dataclass(slots=True, frozen=True)
class ForgetLanes:
    """engine.forget"""

    boundary: int


@dataclass(slots=True, frozen=True)
class FailAll:
    """engine.fail_all"""

    status: int


Effect = Send | Prepare | Acquaint | FreezeEngine | Configure | AdvanceEngine | ForgetLanes | FailAll | m.Measure


class Session:
    """One peer's membership in one group."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.state = State.OFFLINE
        self.boundary = 0
        self.epoch = 0
        self.lease_s = 5.0
        self.min_peers = 0
        self.waiting_for = 0
        self.welcomed = False
        self.guest = identity.guest
        self.acquaintances: tuple[bytes, ...] | None = None  # of a guest the members; None: not told yet
        self.met = False  # has heard of the coordinator at least once
        self.incarnation = 0  # the latest that was heard
        self.error: errors.PcclError | None = None
        self.ops = 0
        self.bytes = 0
        self.oldest = 0  # no op of an earlier boundary is pending here
        self.links: dict[bytes, m.LinkReport] = {}  # news that the next Heartbeat takes along
        self.achieved: m.Achieved | None = None  # likewise
        self.line: m.Line | None = None  # likewise
        self.busy = False  # ops or transfers are under way
        self._chain: list[EpochView] = []
        self._views: OrderedDict[int, EpochView] = OrderedDict()
        self._streams = 1
        self._forgotten = 0
        self._hold = 0
        self._promise: int | None = None
        self._change = 0
        self._answer: m.Frozen | None = None
        self._suspects: dict[bytes, m.Suspect] = {}
        self._early: dict[bytes, LinkDown] = {}  # links to joiners that could not be made, until their epoch
        self._up: dict[bytes, bool] = {}  # links that have ever been up: are they?
        self._around: frozenset[bytes] = frozenset()  # members that are reached by detours
        self._inbound = True  # this peer can be dialled
        self._faults: dict[OpName, m.OpFault] = {}
        self._leave: m.Leave | None = None
        self._turned_away = 0
        self._now = float("-inf")
        self._heard = 0.0
        self._beat = float("-inf")
        self._asked = float("-inf")
        self._out: list[Effect] = []

    # -- the outside ------------------------------------------------------------------------------------------

    def handle(self, now: float, event: Event) -> list[Effect]:
        """Takes one event, gives what is to be done about it."""
        self._out = []
        self._forgive_stall(now)
        if isinstance(event, m.Message):
            if self._is_stale(event):
                return self._out
            self._heard = now
            self.met = True
        row = TABLE.get((self.state, type(event)))
        if row is None:
            return self._out
        before = self.state
        row.act(self, event)
        assert self.state in row.to, f"{before} + {type(event).__name__} led to {self.state}"
        return self._out

    def _is_stale(self, message: m.Message) -> bool:
        """Whether it is of a coordinator that has been replaced. One without durable state (0) cannot be."""
        said = message.incarnation if isinstance(message, m.Word) else 0
        if said > self.incarnation and self.acquaintances:
            self._forget_guests(isinstance(message, m.Welcome))
        self.incarnation = max(self.incarnation, said)
        return 0 < said < self.incarnation

    def _forget_guests(self, as_new: bool) -> None:
        """A new coordinator knows of no guests. Members close their links to them, and who was one (taken for new now
        that it enters) must not come back by its id: frames of links that only one end has closed would not fit.
        """
        if self.state is not State.JOINING:
            self.acquaintances = ()
            self._out.append(Acquaint([], 1))
        elif as_new:
            why = "a new coordinator does not know this guest"
            self._send(m.Leave(m.VERSION, why))
            self._fence(errors.Evicted(why), Status.EEVICTED)

    @property
    def deadline(self) -> float | None:
        """When a Tick is due."""
        if self.state in (State.OFFLINE, State.FENCED, State.CLOSED):
            return None
        due = self._heard + self.identity.coordinator_timeout_s
        if self._leave is not None or (self.state is State.JOINING and not self.welcomed):
            return min(due, self._asked + JOIN_RETRY_S)
        return min(due, self._beat + self._beat_gap())

    @property
    def waits_for(self) -> str:
        """Why Advance does not pass now; "" if it would."""
        if self.state is not State.MEMBER:
            return f"an epoch (this peer is {self.state.value})"
        target = self._target()
        if target is None:
            return f"more peers: {len(self._chain[-1].members)} are here, the run asks for {self.min_peers}"
        if self._promise is not None and target >= self._promise:
            return "the coordinator's word on a growth or a new plan"
        return ""

    @property
    def paused(self) -> bool:
        """Whether Advance waits for more peers."""
        return self.state is State.MEMBER and self._target() is None

    def view(self, boundary: int) -> EpochView | None:
        """The epoch in which ops of a boundary run."""
        for view in reversed(self._chain):
            if view.from_boundary <= boundary:
                return view
        return None

    def epoch_view(self, epoch: int) -> EpochView | None:
        """An epoch by number, also a past one that ops may have ended in."""
        return self._views.get(epoch)

    # -- joining ----------------------------------------------------------------------------------------------

    def _on_start(self, event: Start) -> None:
        """sends Join"""
        self._heard = self._now
        self.state = State.JOINING
        self._ask()

    def _on_welcome(self, event: m.Welcome) -> None:
        """waits for an Epoch"""
        self.welcomed = True
        self._take_lease(event.lease_s)
        self.min_peers, self.waiting_for = event.min_peers, event.waiting_for
        self._beat = self._now

    def _take_lease(self, lease_s: float) -> None:
        self.lease_s = max(lease_s, 0.01)

    def _on_refused(self, event: m.Refused) -> None:
        """gives up"""
        kind = errors.Closed if event.kind == "closed" else errors.ProtocolError
        self._fence(kind(f"the coordinator refuses this peer: {event.reason}"), Status.EPROTO)

    def _on_rejected(self, event: Rejected) -> None:
        """gives up, unless the coordinator was heard before"""
        if not self.met:
            self._fence(errors.AuthError(event.reason), Status.EAUTH)

    def _on_turned_away(self, event: m.Evicted) -> None:
        """asks anew: the coordinator has forgotten the Join; gives up when it insists, or members know this peer"""
        self._turned_away += TURNED_AWAY_MAX if self.acquaintances else 1
        if self._turned_away >= TURNED_AWAY_MAX:
            self._fence(errors.Evicted(event.reason), Status.EEVICTED)
        else:
            self.welcomed = False
            self._ask()

    def _ask(self) -> None:
        me = self.identity
        self._asked = self._now
        self._send(m.Join(m.VERSION, me.run, me.group, me.peer, me.addresses, me.host, me.pid, me.wire, self.guest))

    def _on_enter(self, event: Enter) -> None:
        """asks again, now to be a member"""
        self.guest = self.welcomed = False
        self._ask()

    def _on_acquaint(self, event: m.Acquaint) -> None:
        """keeps links to these peers, for transfers"""
        members = acquaintances_of(self.identity.peer, event.inbound, event.peers)
        self.acquaintances = tuple(member.id for member in members)
        self._out.append(Acquaint(members, event.streams))

    # -- membership -------------------------------------------------------------------------------------------

    def _on_epoch(self, event: m.Epoch) -> None:
        """configures the engine; one that is old or out of turn is ignored, one that cannot be fences"""
        if not self._is_next(event):
            return
        if all(member.peer != self.identity.peer for member in event.members):
            self._fence(errors.Evicted(f"the epoch has no place for this peer: {event.reason}"), Status.EEVICTED)
            return
        entering = self.state is State.JOINING
        flaw = flaw_of(self.identity.peer, event, None if entering else self.boundary)
        if flaw:
            self._fence(errors.ProtocolError(f"epoch {event.epoch} cannot be: {flaw}"), Status.EPROTO)
            return
        view = view_of(event)
        self._chain = [view] if event.change or entering else [*self._live_chain(), view]
        self._views[view.epoch] = view
        while len(self._views) > VIEWS_MAX:
            self._views.popitem(last=False)
        self.epoch, self.min_peers, self._streams = event.epoch, event.min_peers, event.plan.streams
        self._take_lease(event.lease_s)
        self._promise, self._answer = None, None
        if event.change:
            judged = {name_of(verdict.op) for verdict in event.verdicts}
            faults = self._faults.items()
            self._faults = {op: fault for op, fault in faults if fault.epoch == event.epoch and op not in judged}
        present = {*(member.peer for member in event.members), *(self.acquaintances or ())}
        self._suspects = {peer: suspect for peer, suspect in self._suspects.items() if peer in present}
        self._up = {peer: up for peer, up in self._up.items() if peer in present}
        self.state = State.MEMBER
        self._out.append(Configure(*configuration(self.identity.peer, event)))
        if entering:
            self.boundary = next(member.since for member in event.members if member.peer == self.identity.peer)
            self.oldest = self.boundary
            self._out.append(AdvanceEngine(self.boundary))
        self._pulse()
        self._send(*(self._faults.values() if event.change else ()))
        self._tell_of_links(event)

    def _tell_of_links(self, event: m.Epoch) -> None:
        """What the coordinator does not know yet about the links of the new epoch."""
        own = self.identity.peer
        self._inbound = next(member.inbound for member in event.members if member.peer == own)
        self._around = frozenset(event.members[rank].peer for rank in vias_of(own, event))
        for peer in sorted(peer for peer in self._around if self._up.get(peer)):
            self._send(m.Healed(m.VERSION, peer))
        early, self._early = self._early, {}
        for down in early.values():
            self._on_link_down(down)

    def _is_next(self, event: m.Epoch) -> bool:
        if self.state is State.JOINING:
            return event.change == 0
        expected = self._change if self.state is State.FROZEN else 0
        return event.epoch == self.epoch + 1 and event.change == expected

    def _live_chain(self) -> list[EpochView]:
        """The epochs that ops of this boundary or later ones still need."""
        current = self.view(self.boundary)
        return [view for view in self._chain if current is None or view.epoch >= current.epoch]

    def _on_hold(self, event: m.Hold) -> None:
        """prepares the links, promises the next boundary, answers Held; asks for an epoch it has missed"""
        if event.epoch != self.epoch:
            self._pulse()
            return
        if event.hold < self._hold or self.boundary >= m.BOUNDARY_MAX:  # there is no later one to promise
            return
        if event.hold > self._hold or self._promise is None:
            self._hold, self._promise = event.hold, self.boundary + 1
            own, inbound = self.identity.peer, self._inbound
            if event.joiners:
                self._out.append(Prepare(acquaintances_of(own, inbound, event.joiners), event.streams))
        self._send_held()

    def _on_release(self, event: m.Release) -> None:
        """takes the promise back; nobody needs the links that were prepared for it"""
        if event.hold == self._hold:
            self._promise = None
            self._out.append(Prepare([], 1))

    def _on_freeze(self, event: m.Freeze) -> None:
        """freezes the engine (again, for a later change), forgets a hold; asks for an epoch it has missed"""
        if event.epoch != self.epoch:
            self._pulse()
        elif event.change > self._change:
            self._change, self._promise, self._answer = event.change, None, None
            self.state = State.FROZEN
            self._out.append(FreezeEngine(event.change))
        elif event.change == self._change and self._answer is not None:
            self._send(self._answer)

    def _on_engine_frozen(self, event: EngineFrozen) -> None:
        """answers Frozen; faults that waited for what it names are for this change, or for the next epoch"""
        if event.change == self._change and self._answer is None:
            self._answer = m.Frozen(m.VERSION, event.change, self.boundary, event.lanes, event.pending)
            report = report_of(self._answer)
            named = [op for op, fault in self._faults.items() if fault.epoch > self.epoch and report.names(op)]
            self._faults |= {op: structs.replace(self._faults[op], epoch=self.epoch) for op in named}
            self._send(*(self._faults[op] for op in named), self._answer)

    def _on_probe(self, event: m.Probe) -> None:
        """answers ProbeReply"""
        self._send(m.ProbeReply(m.VERSION, event.probe))

    def _on_measure(self, event: m.Measure) -> None:
        """has the engine measure the link"""
        self._out.append(event)

    def _on_evicted(self, event: m.Evicted) -> None:
        """fails every op"""
        self._fence(errors.Evicted(f"the coordinator removed this peer: {event.reason}"), Status.EEVICTED)

    def _heard_only(self, event: Event) -> None:
        """nothing but that the coordinator lives"""

    def _on_ack(self, event: m.Ack) -> None:
        """forgets what it called at boundaries of which nothing is pending anywhere"""
        if event.settled > self._forgotten:
            self._forgotten = event.settled
            self._out.append(ForgetLanes(event.settled))

    # -- the user ---------------------------------------------------------------------------------------------

    def _on_advance(self, event: Advance) -> None:
        """passes, unless a hold names the boundary or no epoch runs there"""
        target = self._target()
        if target is None or (self._promise is not None and target >= self._promise):
            return
        self.boundary = target
        self._out.append(AdvanceEngine(target))
        if self._now - self._beat > max(FRESH_S, FRESH_EACH_S * len(self._chain[-1].members)):
            self._pulse()

    def _target(self) -> int | None:
        """The next boundary, or the first one behind a pause; None while a pause has no end."""
        target = self.boundary + 1
        view = self.view(target)
        if view is not None and not view.paused:
            return target
        later = [v.from_boundary for v in self._chain if v.from_boundary > target and not v.paused]
        return min(later, default=None)

    def _on_quit(self, event: Quit) -> None:
        """sends Leave"""
        self._leave = m.Leave(m.VERSION, m.clip(event.reason))
        self._asked = self._now
        self._send(self._leave)

    def _on_shut(self, event: Event) -> None:
        """ends every op"""
        if self.error is None:
            self.error = errors.Closed("the communicator was closed")
        self.state = State.CLOSED
        self._out.append(FailAll(Status.ECLOSED))

    # -- the engine -------------------------------------------------------------------------------------------

    def _on_link_down(self, event: LinkDown) -> None:
        """sends Suspect at once; of a joiner when it is a member"""
        if all(member.id != event.peer for member in self._chain[-1].members):
            if self._promise is not None:
                self._early[event.peer] = event
            return
        was_up = event.peer in self._up
        if was_up:
            self._up[event.peer] = False
        known = self._suspects.get(event.peer)
        if known is not None and known.cause in (Cause.REFUSED, event.cause):
            return
        suspect = m.Suspect(m.VERSION, event.peer, event.cause, event.errno, self.epoch, was_up)
        self._suspects[event.peer] = suspect
        self._send(suspect)

    def _on_link_up(self, event: LinkUp) -> None:
        """sends Healed if the link was suspected, or nobody expected it"""
        self._early.pop(event.peer, None)
        self._up[event.peer] = True
        if self._suspects.pop(event.peer, None) is not None or event.peer in self._around:
            self._send(m.Healed(m.VERSION, event.peer))

    def _note_link(self, event: LinkUp | LinkDown) -> None:
        """notes it, for when this peer is a member"""
        if isinstance(event, LinkUp) or event.peer in self._up:
            self._up[event.peer] = isinstance(event, LinkUp)

    def _on_faulted(self, event: Faulted) -> None:
        """sends OpFault"""
        if event.kind not in ("mismatch", "overdue", "cancelled", "forgone"):
            raise ValueError(f"no such kind of fault: {event.kind}")
        # A change ends without a verdict on what no report names, and then the fault is for the next epoch.
        named = self._answer is not None and report_of(self._answer).names(event.name)
        late = self.state is State.FROZEN and not named and event.kind != "forgone"
        op, words = m.OpRef(*event.name), (m.clip(event.mine), m.clip(event.theirs))
        fault = m.OpFault(m.VERSION, event.kind, op, self.epoch + late, event.peer, *words)  # type: ignore[arg-type]
        self._faults[event.name] = fault
        self._send(*(() if late else (fault,)))

    # -- time and connection ----------------------------------------------------------------------------------

    def _on_connected(self, event: Connected) -> None:
        """sends again everything that awaits an answer"""
        if self.state is State.JOINING:
            self._ask()
        else:
            self._pulse()
            self._send(*self._suspects.values(), *self._faults.values())
            if self._promise is not None:
                self._send_held()
            if self._answer is not None:
                self._send(self._answer)
        if self._leave is not None:
            self._send(self._leave)

    def _on_tick(self, event: Tick) -> None:
        """renews the lease, repeats what was not answered, gives up on a silent coordinator"""
        silence = self._now - self._heard
        if silence >= self.identity.coordinator_timeout_s:
            reason = f"nothing heard from the coordinator for {silence:.0f} s"
            self._fence(errors.CoordinatorLost(reason), Status.ELOST)
            return
        if self._leave is not None and self._now >= self._asked + JOIN_RETRY_S:
            self._asked = self._now
            self._send(self._leave)
        if self.state is State.JOINING and not self.welcomed:
            if self._now >= self._asked + JOIN_RETRY_S:
                self._ask()
        elif self._now >= self._beat + self._beat_gap():
            self._pulse()

    def _beat_gap(self) -> float:
        """Often enough for the lease, and for the Acks that tell that the coordinator lives."""
        return min(self.lease_s, self.identity.coordinator_timeout_s) / 5

    def _pulse(self) -> None:
        self._beat = self._now
        news = tuple(self.links.values())[: m.LINKS_MAX]
        for report in news:
            del self.links[report.peer]
        achieved, self.achieved = self.achieved, None
        line, self.line = self.line, None
        counts = (self.boundary, self.epoch, self.oldest, self.ops, self.bytes)
        self._send(m.Heartbeat(m.VERSION, *counts, news, achieved, line, self.busy))

    def _send_held(self) -> None:
        assert self._promise is not None
        self._send(m.Held(m.VERSION, self._hold, self._promise))

    def _fence(self, error: errors.PcclError, status: Status) -> None:
        error.epoch = self.epoch or None
        self.error = error
        self.state = State.FENCED
        self._out.append(FailAll(status))

    def _forgive_stall(self, now: float) -> None:
        """If this very process slept, the coordinator's silence says nothing."""
        gap = now - self._now
        self._now = now
        if self.lease_s < gap < float("inf"):
            self._heard = min(now, self._heard + gap)

    def _send(self, *messages: m.ToCoordinator) -> None:
        self._out += map(Send, messages)


# -- the table ------------------------------------------------------------------------------------------------


_O, _J, _M, _Z, _X, _C = State.OFFLINE, State.JOINING, State.MEMBER, State.FROZEN, State.FENCED, State.CLOSED
_S = Session

TABLE: dict[tuple[State, type], Row[Session, State]] = {
    (_O, Start): _row(_S._on_start, _J),
    (_O, Quit): _row(_S._on_shut, _C),
    (_O, Shut): _row(_S._on_shut, _C),
    (_J, Connected): _row(_S._on_connected, _J),
    (_J, Rejected): _row(_S._on_rejected, _J, _X),
    (_J, m.Welcome): _row(_S._on_welcome, _J),
    (_J, m.Refused): _row(_S._on_refused, _X),
    (_J, m.Ack): _row(_S._heard_only, _J),
    (_J, m.Epoch): _row(_S._on_epoch, _J, _M, _X),
    (_J, m.Evicted): _row(_S._on_turned_away, _J, _X),
    (_J, m.Goodbye): _row(_S._on_shut, _C),
    (_J, Tick): _row(_S._on_tick, _J, _X),
    (_J, Enter): _row(_S._on_enter, _J),
    (_J, m.Acquaint): _row(_S._on_acquaint, _J),
    (_J, LinkUp): _row(_S._note_link, _J),
    (_J, LinkDown): _row(_S._note_link, _J),
    (_J, Quit): _row(_S._on_quit, _J),
    (_J, Shut): _row(_S._on_shut, _C),
    (_M, Advance): _row(_S._on_advance, _M),
    (_M, Connected): _row(_S._on_connected, _M),
    (_M, m.Ack): _row(_S._on_ack, _M),
    (_M, m.Acquaint): _row(_S._on_acquaint, _M),
    (_M, m.Hold): _row(_S._on_hold, _M),
    (_M, m.Release): _row(_S._on_release, _M),
    (_M, m.Freeze): _row(_S._on_freeze, _M, _Z),
    (_M, m.Epoch): _row(_S._on_epoch, _M, _X),
    (_M, m.Probe): _row(_S._on_probe, _M),
    (_M, m.Measure): _row(_S._on_measure, _M),
    (_M, m.Evicted): _row(_S._on_evicted, _X),
    (_M, m.Goodbye): _row(_S._on_shut, _C),
    (_M, LinkDown): _row(_S._on_link_down, _M),
    (_M, LinkUp): _row(_S._on_link_up, _M),
    (_M, Faulted): _row(_S._on_faulted, _M),
    (_M, Tick): _row(_S._on_tick, _M, _X),
    (_M, Quit): _row(_S._on_quit, _M),
    (_M, Shut): _row(_S._on_shut, _C),
    (_Z, Connected): _row(_S._on_connected, _Z),
    (_Z, m.Ack): _row(_S._on_ack, _Z),
    (_Z, m.Acquaint): _row(_S._on_acquaint, _Z),
    (_Z, m.Freeze): _row(_S._on_freeze, _Z),
    (_Z, EngineFrozen): _row(_S._on_engine_frozen, _Z),
    (_Z, m.Epoch): _row(_S._on_epoch, _Z, _M, _X),
    (_Z, m.Probe): _row(_S._on_probe, _Z),
    (_Z, m.Evicted): _row(_S._on_evicted, _X),
    (_Z, m.Goodbye): _row(_S._on_shut, _C),
    (_Z, LinkDown): _row(_S._on_link_down, _Z),
    (_Z, LinkUp): _row(_S._on_link_up, _Z),
    (_Z, Faulted): _row(_S._on_faulted, _Z),
    (_Z, Tick): _row(_S._on_tick, _Z, _X),
    (_Z, Quit): _row(_S._on_quit, _Z),
    (_Z, Shut): _row(_S._on_shut, _C),
    (_X, Quit): _row(_S._on_shut, _C),
    (_X, Shut): _row(_S._on_shut, _C),
}
"""Events that a state does not name change nothing there."""
