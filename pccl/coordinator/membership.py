"""membership.py - decides who is in a group, and when: the Membership machine of docs/protocol.md 1.3 to 1.5.

Pure: `handle(now, event) -> effects`. No clock, no socket, no randomness. `TABLE` maps (state, event) to what is
done and to the states that may follow; `handle` asserts the latter, so that the diagram drawn from it is true.
Handlers record facts (who joined, answered, vanished); `_settle` draws the conclusions (form, hold, grow, judge).
Every decision is an entry of the log, with its reason.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable

from pccl import messages as m
from pccl.coordinator.events import (
    DialBack,
    Dialled,
    Disconnected,
    Effect,
    Event,
    From,
    Reconnected,
    Record,
    Send,
    Tick,
)
from pccl.coordinator.guests import Guests
from pccl.coordinator.links import Links
from pccl.coordinator.plan import Pair, Plan
from pccl.coordinator.planning import Planning
from pccl.coordinator.probes import Probes, measure_message
from pccl.coordinator.reach import Reach, apart, notice
from pccl.coordinator.roster import (
    Peer,
    Settled,
    evidence_in_words,
    in_words,
    joiner,
    names_of,
    refuse,
    remember,
    wire_epoch,
    wire_members,
)
from pccl.coordinator.settings import Settings
from pccl.coordinator.snapshot import GroupState, MemberState, restart_in_words
from pccl.coordinator.status import group_status
from pccl.coordinator.steps import Change, Growth, State
from pccl.coordinator.verdicts import FAULTS_MAX, Fault, judge
from pccl.frozen import name_of, report_of
from pccl.table import Row
from pccl.table import row as _row
from pccl.types import OpName, short_id

LOG_MAX = 256
PROBE_GAP_S = 1.0


class Membership:
    """One group."""

    def __init__(self, group: int, settings: Settings) -> None:
        self.group = group
        self.settings = settings
        self.state = State.FORMING
        self.epoch = 0
        self.from_boundary = 0
        self.plan: Plan | None = None
        self.members: dict[bytes, Peer] = {}
        self.waiting: dict[bytes, Peer] = {}
        self.log: deque[Record] = deque(maxlen=LOG_MAX)
        self.counts: Counter[str] = Counter()  # of all entries of the log, by what they say
        self.losses: Counter[str] = Counter()
        self.growth: Growth | None = None
        self.change: Change | None = None
        self._holds = 0
        self._changes = 0
        self._epochs: list[m.Epoch] = []
        self._links = Links(settings.link_grace_s, settings.link_mended_s)
        self._reach = Reach()
        self._planning = Planning(settings)
        self._probes = Probes(settings.lease_s / 5)
        self._settled = Settled()
        self._guests = Guests()
        self._faults: dict[OpName, Fault] = {}
        self._judged: OrderedDict[OpName, int] = OrderedDict()
        self._lost: dict[bytes, int] = {}  # in the change under way, and when they had come
        self._gone: OrderedDict[bytes, str] = OrderedDict()
        self.revision = 0  # grows with whatever `export` would tell
        self._now = float("-inf")
        self._out: list[Effect] = []

    # -- the outside ------------------------------------------------------------------------------------------

    def handle(self, now: float, event: Event) -> list[Effect]:
        """Takes one event, gives what is to be done about it."""
        self._out = []
        self._forgive_stall(now)
        if isinstance(event, From):
            if not self._renew(event):
                return self._out
            kind: type = type(event.message)
        else:
            kind = type(event)
        row = TABLE.get((self.state, kind))
        if row is None:
            return self._out
        before = self.state
        row.act(self, event)
        self._settle()
        self._out += self._guests.news(self.epoch, self.members, self.waiting.values(), self.plan)
        assert self.state in row.to, f"{before} + {kind.__name__} led to {self.state}"
        return self._out

    def next_deadline(self) -> float | None:
        """When a Tick is due; None while the group is empty."""
        if not self.members and not self.waiting:
            return None
        due = min(self._lease_end(), self._links.next_due(self._now), self._reach.next_due(self._now))
        return min(due, self._now + self.settings.lease_s / 4)

    # -- beyond this process --------------------------------------------------------------------------------

    def export(self) -> GroupState:
        """What must outlive this process: other than before only if `revision` is."""
        return GroupState(
            group=self.group,
            epoch=self.epoch,
            from_boundary=self.from_boundary,
            min_peers=self.settings.min_peers,
            form_peers=self.settings.form_peers,
            plan=self.plan,
            members=tuple(MemberState.of(peer) for peer in self.members.values()),
            holds=self._holds,
            changes=self._changes,
            change=self.change.reason if self.change is not None else None,
            lost=dict(self._lost),
            gone=dict(self._gone),
            epochs=tuple(self._epochs),
            faults=tuple((fault.reporter, fault.report) for fault in self._faults.values()),
            judged=tuple((m.OpRef(*name), epoch) for name, epoch in self._judged.items()),
            broken=self._links.export(),
            turned=tuple(sorted(self._reach.turned)),
            tried=self._probes.tried,
        )

    def restore(self, now: float, state: GroupState) -> list[Effect]:
        """Takes up, empty as it is, what another process has exported.

        Every member has a full lease from now. A change that was under way is begun anew under a higher number, a hold
        is forgotten: who still holds says so, and is released.
        """
        self._out, self._now = [], now
        self.epoch, self.from_boundary, self.plan = state.epoch, state.from_boundary, state.plan
        self.members = {entry.peer: entry.remembered(now) for entry in state.members}
        self._holds, self._changes, self._epochs = state.holds, state.changes, list(state.epochs)
        self._lost, self._gone = dict(state.lost), OrderedDict(state.gone)
        self._faults = {name_of(report.op): Fault(reporter, report) for reporter, report in state.faults}
        self._judged = OrderedDict((name_of(op), epoch) for op, epoch in state.judged)
        self._links.restore(now, state.broken)
        self._reach.turned = frozenset(state.turned)
        self._probes.restore(now, state.tried)
        self._planning.begin(now, self.epoch, self.plan.reason if self.plan is not None else "")
        self.state = State.STABLE if self.members else State.FORMING
        self._note(b"", "restart", restart_in_words(state, self.settings))
        if state.change is not None:
            self._freeze(state.change)
        for peer in self.members.values():
            peer.reminded = float("-inf")  # nobody is connected yet: told when it is heard
        return self._out

    def knows(self, peer: bytes) -> bool:
        """Whether the peer is a member or waits."""
        return peer in self.members or peer in self.waiting

    def status(self, now: float, links: bool = True) -> m.GroupStatus:
        """What `pccl status` shows; `links`: of each link, too."""
        return group_status(self, self._planning.status(), self._links if links else None, now)

    # -- facts ------------------------------------------------------------------------------------------------

    def _renew(self, event: From) -> bool:
        """Renews the lease. False, and an answer, if the sender is nobody here."""
        peer = self.members.get(event.peer) or self.waiting.get(event.peer)
        if peer is not None:
            peer.heard = self._now
            if not peer.connected:
                peer.connected = True
                self._note(peer.id, "reconnected", "a message came")
            return True
        if isinstance(event.message, m.Leave):
            self._send(event.peer, m.Goodbye(m.VERSION))
            return False
        if isinstance(event.message, m.Join) and event.peer not in self._gone:
            return True
        self._send(event.peer, m.Evicted(m.VERSION, self._gone.get(event.peer, "not a member of this group")))
        return False

    def _on_join(self, event: From) -> None:
        """registers the peer, answers Welcome; its addresses are dialled back"""
        join = event.message
        assert isinstance(join, m.Join)
        member = self.members.get(event.peer)
        if member is not None:  # it may only have been impatient
            if self._now - member.reminded >= self.settings.lease_s / 5:
                self._remind(member)
            return
        if event.peer not in self.waiting:
            refusal = refuse(join, [*self.members.values()], [*self.waiting.values()], self.settings)
            if refusal is not None:
                self._send(event.peer, refusal)
                return
            self.waiting[event.peer] = joiner(self._now, join, checked=not self.settings.dial_back)
            self._note(event.peer, "join", f"{join.addresses[0]} on {join.host}, pid {join.pid}")
            if self.settings.dial_back:
                self._out.append(DialBack(event.peer, join.addresses))
        self.waiting[event.peer].guest &= join.guest  # there is no way back
        self._guests.forget(event.peer)
        self._welcome(event.peer)

    def _welcome(self, peer: bytes, text: str = "") -> None:
        missing = self._to_form - len(self.waiting) if self.state is State.FORMING else 0
        settings = self.settings
        self._send(peer, m.Welcome(m.VERSION, settings.lease_s, settings.min_peers, max(0, missing), notice=text))

    def _on_dialled(self, event: Dialled) -> None:
        """the joiner's addresses have been tried: it may enter; if none answered it is told so, and dials the others"""
        peer = self.waiting.get(event.peer)
        if peer is None or peer.checked:
            return
        peer.checked, peer.inbound = True, event.address is not None
        if event.address is not None:
            peer.address = event.address
            return
        self._note(peer.id, "dials only", f"no answer at {', '.join(peer.addresses)}: NAT or a firewall")
        self._welcome(peer.id, notice(peer))

    def _on_heartbeat(self, event: From) -> None:
        """answers Ack; sends again what the peer has missed; takes what it has measured"""
        beat = event.message
        assert isinstance(beat, m.Heartbeat)
        peer = self.members.get(event.peer)
        if peer is not None:
            before = peer.oldest
            peer.note(self._now, beat)
            self._settled.moved(before, peer.oldest)
            self._probes.beat(self._now, peer.id, beat)
        self._send(event.peer, m.Ack(m.VERSION, beat.boundary, self._settled.among(self.members.values())))
        if peer is None:
            return
        self._links.report(self._now, peer.id, (entry for entry in beat.links if entry.peer in self.members))
        if beat.line is not None:
            self._links.report_line(self._now, peer.id, beat.line)
        if beat.achieved is not None:
            self._planning.report(peer.id, beat.achieved)
        if self._now - peer.reminded >= self.settings.lease_s / 5:
            self._remind(peer)
        self._review()

    def _on_held(self, event: From) -> None:
        """notes the promise"""
        held = event.message
        assert isinstance(held, m.Held)
        if self.growth is not None and held.hold == self.growth.number and event.peer in self.members:
            self.growth.promises[event.peer] = held.boundary

    def _on_late_held(self, event: From) -> None:
        """Release: the hold is of a time before a restart; not if an epoch that ends it is on its way"""
        held = event.message
        assert isinstance(held, m.Held)
        peer = self.members.get(event.peer)
        if peer is not None and peer.epoch == self.epoch:
            self._send(event.peer, m.Release(m.VERSION, held.hold))

    def _on_frozen(self, event: From) -> None:
        """notes the report; one of an older change is ignored"""
        frozen = event.message
        assert isinstance(frozen, m.Frozen)
        if self.change is not None and frozen.change == self.change.number and event.peer in self.members:
            self.change.reports[event.peer] = report_of(frozen)
            self.members[event.peer].boundary = frozen.boundary

    def _on_suspect(self, event: From) -> None:
        """notes the evidence; a refused dial and a closed control connection: out; else Probe"""
        suspect = event.message
        assert isinstance(suspect, m.Suspect)
        target = self.members.get(suspect.peer)
        if target is None or event.peer not in self.members or event.peer == suspect.peer:
            return
        self._links.suspect(self._now, event.peer, suspect)
        self._reach.suspect(self._now, event.peer, suspect)
        self._note(target.id, "suspect", evidence_in_words(event.peer, suspect))
        if not self._lose_if_proven(target) and target.connected:
            self._probe(target)

    def _on_healed(self, event: From) -> None:
        """withdraws the evidence"""
        healed = event.message
        assert isinstance(healed, m.Healed)
        self._reach.heal(event.peer, healed.peer)
        if self._links.heal(self._now, event.peer, healed.peer):
            self._note(healed.peer, "healed", f"by peer {short_id(event.peer)}")

    def _on_probe_reply(self, event: From) -> None:
        """notes that the peer lives: a link fault; a link that stays dead is done without"""
        if self._links.evidence(event.peer):
            self._note(event.peer, "alive", "answered a probe: a link fault, not a peer fault")
        self._review()

    def _on_fault(self, event: From) -> None:
        """notes the fault; starts a change unless one is under way or the op has been judged"""
        fault = event.message
        assert isinstance(fault, m.OpFault)
        name = name_of(fault.op)
        if event.peer not in self.members or fault.epoch < self._judged.get(name, 0) or len(self._faults) == FAULTS_MAX:
            return
        known = self._faults.get(name)
        if known is None or (fault.kind == "mismatch" and known.report.kind != "mismatch"):  # it outranks the others
            self.revision += 1
            self._faults[name] = Fault(event.peer, fault)
            self._note(event.peer, f"fault {fault.kind}", f"op {tuple(name)}: {fault.mine}")
        if self.state is not State.FREEZING:
            self._freeze(f"op {tuple(name)} {fault.kind}, says peer {short_id(event.peer)}")

    def _on_leave(self, event: From) -> None:
        """Goodbye; the peer is out"""
        leave = event.message
        assert isinstance(leave, m.Leave)
        self._send(event.peer, m.Goodbye(m.VERSION))
        if event.peer in self.waiting:
            self._drop(event.peer, "leave", leave.reason)
        else:
            self._lose([(event.peer, "leave", leave.reason)])

    def _on_disconnected(self, event: Disconnected) -> None:
        """a waiting peer is dropped, no guest; a member is out if its port refused a dial, else its lease runs"""
        if event.peer in self.waiting and not self.waiting[event.peer].acquainted:
            self._drop(event.peer, "gone", "its control connection closed before it was a member")
            return
        peer = self.members.get(event.peer)
        if peer is not None and peer.connected:
            peer.connected = False
            self._note(peer.id, "disconnected", "its control connection closed")
            self._lose_if_proven(peer)

    def _on_reconnected(self, event: Reconnected) -> None:
        """sends again what the peer may have missed"""
        peer = self.members.get(event.peer)
        if peer is not None:
            if not peer.connected:
                self._note(peer.id, "reconnected", "on a new control connection")
            peer.connected = True
            self._remind(peer)

    def _on_tick(self, event: Tick) -> None:
        """whose lease ran out is out; a link that stays dead is done without; a better plan waits for a boundary"""
        silence = self.settings.lease_s
        for peer in [peer for peer in self.waiting.values() if self._now >= peer.heard + silence]:
            self._drop(peer.id, "lease", f"nothing heard for {silence:g} s")
        expired = [peer for peer in self.members.values() if self._now >= peer.heard + silence]
        self._lose([(peer.id, "lease", f"nothing heard for {silence:g} s") for peer in expired])
        self._review()

    # -- conclusions ------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        steps = {
            State.FORMING: self._try_form,
            State.STABLE: self._try_hold,
            State.HOLDING: self._try_grow,
            State.FREEZING: self._try_judge,
        }
        while steps[self.state]():
            pass

    @property
    def _to_form(self) -> int:
        """A group that has begun once and lost everybody begins again with as few as may go on."""
        return self.settings.min_peers if self.epoch else self.settings.form_peers

    @property
    def _ready(self) -> dict[bytes, Peer]:
        """Who waits and may enter."""
        return {peer.id: peer for peer in self.waiting.values() if peer.checked and not peer.guest}

    def _try_form(self) -> bool:
        ready = self._ready
        if not ready or len(ready) < self._to_form:
            return False
        reason = f"{len(ready)} peers are here, {self._to_form} were asked for"
        self._enter(ready, 0)
        self._publish(0, 0, (), reason)
        return True

    def _try_hold(self) -> bool:
        ready = self._ready
        if not ready and not self._planning.wish:
            return False
        self._holds += 1
        self.revision += 1
        joiners = tuple(ready.values())
        reason = f"{len(joiners)} wait to join" if joiners else self._planning.wish
        streams = self._plan_for([*self.members.values(), *joiners]).streams
        message = m.Hold(m.VERSION, self._holds, self.epoch, streams, wire_members(joiners))
        self.growth = Growth(self._holds, tuple(ready), reason, message)
        self.state = State.HOLDING
        self._note(b"", "hold", reason)
        self._tell_all(message)
        return True

    def _try_grow(self) -> bool:
        growth = self.growth
        assert growth is not None
        if growth.joiners and not any(peer in self.waiting for peer in growth.joiners):
            self.growth, self.state = None, State.STABLE
            self._note(b"", "release", "the joiners are gone")
            self._tell_all(m.Release(m.VERSION, growth.number))
            return True
        if growth.promises.keys() != self.members.keys():
            return False
        joiners = {peer: self.waiting[peer] for peer in growth.joiners if peer in self.waiting}
        boundary = max(growth.promises[peer] for peer in self.members)
        self._enter(joiners, boundary)
        names = ", ".join(short_id(peer) for peer in joiners)
        self._publish(boundary, 0, (), f"growth: {names}" if joiners else growth.reason)
        return True

    def _try_judge(self) -> bool:
        change = self.change
        assert change is not None
        if change.reports.keys() != self.members.keys():
            return False
        since = {peer.id: peer.since for peer in self.members.values()}
        reports = {peer: change.reports[peer] for peer in self.members}
        verdicts = judge(since, reports, self._faults, self.settings.min_peers, self._lost)
        for name in {*self._faults, *(name_of(verdict.op) for verdict in verdicts)}:
            remember(self._judged, name, self.epoch + 1)
        self._faults.clear()
        self._publish(0, change.number, verdicts, change.reason)
        return True

    # -- plans ------------------------------------------------------------------------------------------------

    def _plan_for(self, peers: Iterable[Peer], broken: frozenset[Pair] = frozenset()) -> Plan:
        return self._planning.plan_for(self._now, peers, self._links, broken)

    def _review(self) -> None:
        """Does the plan still fit the links? If one is dead for good: a change at once; else a wish for a new plan."""
        if self.state not in (State.STABLE, State.HOLDING) or self._turn_links() or self._avoid_dead_links():
            return
        mended = self._links.mend(self._now)
        if mended:
            self.revision += 1
            self._planning.wish = f"new plan: {names_of(mended)} can be used again"
        elif self.state is State.STABLE and self._planning.is_due(self._now):
            self._compare()
        self._measure()

    def _measure(self) -> None:
        """Lets members measure unknown paths, unless somebody comes. Not only when STABLE: members that call nothing
        pass no boundary either, and a hold for a new plan may last.
        """
        if not self.settings.measure or self.waiting:
            return
        before = self._probes.changes
        paths, unknown = self._probes.next(self._now, self.members, self._links)
        self.revision += self._probes.changes - before
        if paths and unknown:
            self._note(b"", "measure", f"no rate is known of {unknown} paths, and all members are quiet")
        for path in paths:
            self._send(path[0], measure_message(path))

    def _turn_links(self) -> bool:
        """Starts a change if a member cannot dial another that has no way around it: that one dials from now on."""
        turned = self._reach.turn(self._now)
        self.revision += bool(turned)
        for a, b in turned:
            self._note(a, "turned", f"link to peer {short_id(b)}: a dial was in vain, the other one dials from now on")
        urgent = [pair for pair in turned if pair not in self._links.broken]
        if urgent:
            self._freeze(f"{names_of(urgent)} is dialled from the other side")
        return bool(urgent)

    def _avoid_dead_links(self) -> bool:
        """Starts a change if a link has been dead for the grace between two members that have both been heard since."""
        dead: list[Pair] = []
        for pair, due in self._links.overdue(self._now):
            ends = [self.members[peer] for peer in pair]
            silent = [peer for peer in ends if peer.heard < due]
            for peer in silent:
                self._probe(peer)
            if silent or not all(peer.connected for peer in ends):
                continue
            if self._plan_for(self.members.values(), frozenset({*dead, pair})).avoids(pair):
                dead.append(pair)
            else:
                self._links.give_up(pair)
                self._note(pair[0], "dead link", f"to peer {short_id(pair[1])}: no plan can do without it")
        for pair in dead:
            self._links.set_broken(pair)
            self._note(pair[0], "dead link", f"to peer {short_id(pair[1])}, and both are alive: a plan without it")
        if dead:
            self._freeze(f"{names_of(dead)} is dead between live peers")
        return bool(dead)

    def _compare(self) -> None:
        assert self.plan is not None
        for remark in self._planning.compare(self._now, self.plan, self.members.values(), self._links):
            self._note(b"", remark.what, remark.text, remark.warning)

    # -- steps ------------------------------------------------------------------------------------------------

    def _enter(self, joiners: dict[bytes, Peer], boundary: int) -> None:
        self._settled.look_again()
        for peer in list(joiners.values()):
            del self.waiting[peer.id]
            peer.since = peer.boundary = peer.oldest = boundary
            self.members[peer.id] = peer
        self._links.presume(apart(self.members, joiners))

    def _publish(self, boundary: int, change: int, verdicts: tuple[m.Verdict, ...], reason: str) -> None:
        """The one place that makes an epoch."""
        self.revision += 1
        chosen = self._plan_for(self.members.values())
        assert sorted(chosen.order) == sorted(self.members), "a plan orders the members, no others"
        self.members = {peer: self.members[peer] for peer in chosen.order}
        self.plan, self.epoch, self.from_boundary = chosen, self.epoch + 1, boundary
        self.growth, self.change, self.state = None, None, State.STABLE
        self._lost.clear()
        self._planning.begin(self._now, self.epoch, chosen.reason)
        self._links.try_again()
        message = wire_epoch(self, boundary, change, verdicts, reason, self._reach.ranks(self.members))
        self._epochs = [*self._unconfirmed(), message] if boundary else [message]
        self._note(b"", "epoch", f"{len(self.members)} members from boundary {boundary}: {reason}")
        if chosen.reason:
            self._note(b"", "plan", in_words(chosen))
        self._tell_all(message)

    def _unconfirmed(self) -> list[m.Epoch]:
        """Epochs that some member may still lack."""
        oldest = min((peer.epoch for peer in self.members.values() if peer.epoch), default=0)
        return [epoch for epoch in self._epochs if epoch.epoch > oldest]

    def _lose_if_proven(self, peer: Peer) -> bool:
        """A closed control connection and a port that refuses: the process is gone. Broken streams prove nothing, nor
        does a port that never answered.
        """
        if peer.connected or not peer.inbound:
            return False
        proof = self._links.refusal(peer.id, self._now - self.settings.lease_s)
        if proof is not None:
            reason = f"its control connection closed; {evidence_in_words(*proof)}"
            self._lose([(peer.id, "lost", reason)])
        return proof is not None

    def _lose(self, losses: list[tuple[bytes, str, str]]) -> None:
        """Members go, all in one change."""
        self._settled.look_again()
        for peer, what, reason in losses:
            self._lost[peer] = self.members.pop(peer).since
            remember(self._gone, peer, f"{what}: {reason}")
            self._links.forget(peer)
            self._reach.forget(peer)
            self._probes.forget(peer)
            if what != "leave":
                self._send(peer, m.Evicted(m.VERSION, m.clip(f"{what}: {reason}")))
            self.losses[what] += 1
            self._note(peer, what, reason)
        if losses:
            self._freeze(", ".join(f"{what} of peer {short_id(peer)}" for peer, what, _ in losses))

    def _freeze(self, reason: str) -> None:
        """Starts a change among the members that are left; with nobody left the group begins anew."""
        self.revision += 1
        self.growth = None
        if not self.members:
            self.change, self.plan, self.state = None, None, State.FORMING
            self._epochs, self._planning.wish = [], ""
            self._links = Links(self.settings.link_grace_s, self.settings.link_mended_s)
            self._reach = Reach()
            self._faults.clear()
            self._note(b"", "empty", reason)
            return
        self._changes += 1
        self.change = Change(self._changes, reason)
        self.state = State.FREEZING
        self._note(b"", "freeze", f"change {self._changes}: {reason}")
        self._tell_all(m.Freeze(m.VERSION, self._changes, self.epoch))

    def _drop(self, peer: bytes, what: str, reason: str) -> None:
        if self.waiting.pop(peer).acquainted:  # others have closed their links to it: it may come back by another id
            self.revision += 1
            remember(self._gone, peer, f"{what}: {reason}")
        self._note(peer, what, reason)

    def _probe(self, peer: Peer) -> None:
        if self.settings.probe and self._now - peer.probed >= PROBE_GAP_S:
            peer.probed = self._now
            self._send(peer.id, m.Probe(m.VERSION, self.epoch))

    def _remind(self, peer: Peer) -> None:
        """Sends again what a member has not confirmed: epochs in their order, then the question that is open."""
        peer.reminded = self._now
        self._guests.forget(peer.id)
        for epoch in self._epochs:
            if epoch.epoch > peer.epoch and any(member.peer == peer.id for member in epoch.members):
                self._send(peer.id, epoch)
        if self.change is not None and peer.id not in self.change.reports:
            self._send(peer.id, m.Freeze(m.VERSION, self.change.number, self.epoch))
        if self.growth is not None and peer.id not in self.growth.promises:
            self._send(peer.id, self.growth.message)

    def _forgive_stall(self, now: float) -> None:
        """If this very process slept, the silence of the others says nothing."""
        gap = now - self._now
        self._now = now
        if gap == float("inf") or gap <= self.settings.lease_s / 2:
            return
        peers = [*self.members.values(), *self.waiting.values()]
        for peer in peers:
            peer.heard += gap
        if peers:
            self._note(b"", "stall", f"the coordinator did not run for {gap:.1f} s: leases extended")

    def _lease_end(self) -> float:
        heard = min(peer.heard for peer in [*self.members.values(), *self.waiting.values()])
        return heard + self.settings.lease_s

    def _send(self, peer: bytes, message: m.ToPeer) -> None:
        self._out.append(Send(peer, message))

    def _tell_all(self, message: m.ToPeer) -> None:
        """One message for all members: it is encoded once."""
        for peer in self.members.values():
            peer.reminded = self._now
            self._send(peer.id, message)

    def _note(self, peer: bytes, what: str, reason: str, warning: bool = False) -> None:
        entry = Record(self._now, self.group, self.epoch, peer, what, m.clip(reason), warning)
        self.log.append(entry)
        self.counts[what] += 1
        self._out.append(entry)


# -- the table ------------------------------------------------------------------------------------------------


_F, _S, _H, _Z = State.FORMING, State.STABLE, State.HOLDING, State.FREEZING
_M = Membership

TABLE: dict[tuple[State, type], Row[Membership, State]] = {
    (_F, m.Join): _row(_M._on_join, _F, _S),
    (_F, m.Heartbeat): _row(_M._on_heartbeat, _F),
    (_F, m.Leave): _row(_M._on_leave, _F),
    (_F, Dialled): _row(_M._on_dialled, _F, _S),
    (_F, Disconnected): _row(_M._on_disconnected, _F),
    (_F, Tick): _row(_M._on_tick, _F),
    (_S, m.Join): _row(_M._on_join, _S, _H),
    (_S, m.Heartbeat): _row(_M._on_heartbeat, _S, _H, _Z),
    (_S, m.Held): _row(_M._on_late_held, _S),
    (_S, m.Suspect): _row(_M._on_suspect, _S, _Z),
    (_S, m.Healed): _row(_M._on_healed, _S),
    (_S, m.ProbeReply): _row(_M._on_probe_reply, _S, _H, _Z),
    (_S, m.OpFault): _row(_M._on_fault, _S, _Z),
    (_S, m.Leave): _row(_M._on_leave, _S, _Z, _F),
    (_S, Dialled): _row(_M._on_dialled, _S, _H),
    (_S, Disconnected): _row(_M._on_disconnected, _S, _Z),
    (_S, Reconnected): _row(_M._on_reconnected, _S),
    (_S, Tick): _row(_M._on_tick, _S, _H, _Z, _F),
    (_H, m.Join): _row(_M._on_join, _H),
    (_H, m.Heartbeat): _row(_M._on_heartbeat, _H, _Z),
    (_H, m.Held): _row(_M._on_held, _H, _S),
    (_H, m.Suspect): _row(_M._on_suspect, _H, _Z),
    (_H, m.Healed): _row(_M._on_healed, _H),
    (_H, m.ProbeReply): _row(_M._on_probe_reply, _H, _Z),
    (_H, m.OpFault): _row(_M._on_fault, _H, _Z),
    (_H, m.Leave): _row(_M._on_leave, _H, _S, _Z, _F),
    (_H, Dialled): _row(_M._on_dialled, _H),
    (_H, Disconnected): _row(_M._on_disconnected, _H, _S, _Z),
    (_H, Reconnected): _row(_M._on_reconnected, _H),
    (_H, Tick): _row(_M._on_tick, _H, _S, _Z, _F),
    (_Z, m.Join): _row(_M._on_join, _Z),
    (_Z, m.Heartbeat): _row(_M._on_heartbeat, _Z),
    (_Z, m.Frozen): _row(_M._on_frozen, _Z, _S, _H),
    (_Z, m.Suspect): _row(_M._on_suspect, _Z),
    (_Z, m.Healed): _row(_M._on_healed, _Z),
    (_Z, m.ProbeReply): _row(_M._on_probe_reply, _Z),
    (_Z, m.OpFault): _row(_M._on_fault, _Z),
    (_Z, m.Leave): _row(_M._on_leave, _Z, _F, _S),
    (_Z, Dialled): _row(_M._on_dialled, _Z),
    (_Z, Disconnected): _row(_M._on_disconnected, _Z),
    (_Z, Reconnected): _row(_M._on_reconnected, _Z),
    (_Z, Tick): _row(_M._on_tick, _Z, _F, _S),
}
"""Events that a state does not name change nothing there (a Frozen that comes late, evidence while forming)."""
