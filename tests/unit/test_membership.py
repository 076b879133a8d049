"""The Membership machine, row by row, and then by a random walk with model peers that checks its invariants."""

from __future__ import annotations

import itertools
from copy import deepcopy
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from unit.group_table import A, B, C, D, Table, V, fault, frozen, group, join, of, pend, pid, suspect

from pccl import messages as m
from pccl.coordinator import snapshot
from pccl.coordinator.events import Disconnected, Event, From, Reconnected, Record, Send, Tick
from pccl.coordinator.membership import Membership
from pccl.coordinator.plan import STREAMS_FAR
from pccl.coordinator.run import GROUPS_MAX, Run
from pccl.coordinator.settings import Settings
from pccl.coordinator.steps import State
from pccl.errors import ArgumentError
from pccl.types import Cause, Lanes, OpName, Status

# -- forming ------------------------------------------------------------------------------------------------------


def test_forms_when_min_peers_are_here() -> None:
    table = Table(min_peers=2)
    (welcome,) = of(m.Welcome, table.say(A, join(A))).values()
    assert welcome == m.Welcome(V, 10.0, 2, 1) and table.state is State.FORMING
    sent = of(m.Epoch, table.say(B, join(B)))
    assert set(sent) == {A, B} and table.state is State.STABLE
    epoch = sent[A]
    assert isinstance(epoch, m.Epoch)
    assert (epoch.epoch, epoch.from_boundary, epoch.change) == (1, 0, 0)
    assert [member.peer for member in epoch.members] == [A, B] and epoch.plan.streams == STREAMS_FAR


def test_more_may_be_asked_for_to_begin_than_to_go_on() -> None:
    table = Table(min_peers=2, form_peers=3)
    (welcome,) = of(m.Welcome, table.say(A, join(A))).values()
    assert welcome == m.Welcome(V, 10.0, 2, 2) and table.machine.status(table.now).form_peers == 3
    table.say(B, join(B))
    assert table.state is State.FORMING
    assert set(of(m.Epoch, table.say(C, join(C)))) == {A, B, C}
    table.say(C, m.Leave(V, ""))
    for peer in (A, B):
        sent = table.say(peer, frozen(1))
    epoch = of(m.Epoch, sent)[A]
    assert isinstance(epoch, m.Epoch) and (len(epoch.members), epoch.min_peers) == (2, 2)
    for peer in (A, B):
        table.say(peer, m.Leave(V, ""))
    table.say(D, join(D))
    assert set(of(m.Epoch, table.say(pid(5), join(pid(5))))) == {D, pid(5)}, "it has begun once"


def test_fewer_to_begin_than_to_go_on_makes_no_sense() -> None:
    with pytest.raises(ArgumentError, match=r"form_peers \(2\) is less than min_peers \(3\)"):
        Settings(min_peers=3, form_peers=2)
    assert (Settings(min_peers=3).form_peers, Settings().form_peers) == (3, 1)


def test_join_is_idempotent() -> None:
    table = Table(min_peers=2)
    table.say(A, join(A))
    assert of(m.Welcome, table.say(A, join(A))) and len(table.machine.waiting) == 1
    table.say(B, join(B))
    assert not table.say(A, join(A)), "it asked before it could have heard"
    table.now += table.machine.settings.lease_s / 5
    assert set(of(m.Epoch, table.say(A, join(A)))) == {A}, "a member that still asks has missed its epoch"
    assert table.machine.epoch == 1


def test_a_waiting_peer_may_go() -> None:
    table = Table(min_peers=2)
    for event in (Disconnected(A), From(A, m.Leave(V, ""))):
        table.say(A, join(A))
        table(event)
        assert not table.machine.waiting
    table.say(A, join(A))
    table.wait(11.0)
    assert not table.machine.waiting and table.machine.next_deadline() is None


def test_full_and_other_wire_are_refused() -> None:
    table = group(A, peers_max=2)
    table.say(B, join(B))
    assert of(m.Refused, table.say(C, join(C)))
    refused = of(m.Refused, group(A).say(B, join(B, wire=2)))[B]
    assert isinstance(refused, m.Refused) and refused.kind == "version"


# -- growth -------------------------------------------------------------------------------------------------------


def test_growth_takes_the_largest_promise() -> None:
    table = group(A, B)
    sent = table.say(C, join(C))
    assert set(of(m.Hold, sent)) == {A, B} and table.state is State.HOLDING
    hold = of(m.Hold, sent)[A]
    assert isinstance(hold, m.Hold) and [j.peer for j in hold.joiners] == [C] and hold.epoch == 1
    assert not table.say(A, m.Held(V, hold.hold, 3))
    assert not table.say(D, join(D))[1:], "a later joiner waits for the next turn"
    sent = table.say(B, m.Held(V, hold.hold, 7))
    epochs = of(m.Epoch, sent)
    assert set(epochs) == {A, B, C}
    epoch = epochs[C]
    assert isinstance(epoch, m.Epoch) and (epoch.epoch, epoch.from_boundary, epoch.change) == (2, 7, 0)
    assert [member.since for member in epoch.members] == [0, 0, 7]
    assert set(of(m.Hold, sent)) == {A, B, C} and table.state is State.HOLDING, "the next turn, for D"


def test_an_old_held_is_ignored() -> None:
    table = group(A)
    table.say(B, join(B))
    assert not table.say(A, m.Held(V, 99, 5)) and table.state is State.HOLDING


def test_release_when_the_joiner_is_gone() -> None:
    table = group(A, B)
    table.say(C, join(C))
    assert set(of(m.Release, table(Disconnected(C)))) == {A, B} and table.state is State.STABLE
    assert table.say(A, m.Held(V, 1, 1)) == []


def test_a_loss_forgets_the_hold_and_asks_anew() -> None:
    table = group(A, B)
    table.say(C, join(C))
    table.say(A, m.Held(V, 1, 4))
    sent = table.say(B, m.Leave(V, "done"))
    assert set(of(m.Goodbye, sent)) == {B} and set(of(m.Freeze, sent)) == {A} and table.state is State.FREEZING
    assert not table.say(A, m.Held(V, 1, 4))
    sent = table.say(A, frozen(1))
    assert set(of(m.Epoch, sent)) == {A} and set(of(m.Hold, sent)) == {A} and table.state is State.HOLDING
    table.say(A, m.Held(V, 2, 5))
    assert table.members == [A, C]


# -- changes ------------------------------------------------------------------------------------------------------


def test_two_losses_are_two_changes_and_old_answers_count_no_more() -> None:
    table = group(A, B, C)
    freeze = of(m.Freeze, table.say(C, m.Leave(V, "")))
    assert freeze[A] == m.Freeze(V, 1, 1)
    table.say(A, frozen(1))
    freeze = of(m.Freeze, table.say(B, m.Leave(V, "")))
    assert freeze == {A: m.Freeze(V, 2, 1)}
    assert not table.say(A, frozen(1)) and table.state is State.FREEZING
    epoch = of(m.Epoch, table.say(A, frozen(2)))[A]
    assert isinstance(epoch, m.Epoch) and (epoch.epoch, epoch.change, epoch.min_peers) == (2, 2, 3)


def test_an_empty_group_forms_anew() -> None:
    table = group(A)
    table.say(A, m.Leave(V, ""))
    assert table.state is State.FORMING and table.machine.epoch == 1
    epoch = of(m.Epoch, table.say(B, join(B)))[B]
    assert isinstance(epoch, m.Epoch) and (epoch.epoch, epoch.from_boundary, epoch.change) == (2, 0, 0)


def test_who_waited_forms_the_group_when_the_last_member_goes() -> None:
    table = group(A)
    table.say(B, join(B))
    assert set(of(m.Epoch, table.say(A, m.Leave(V, "")))) == {B} and table.state is State.STABLE


def test_a_removed_peer_never_comes_back() -> None:
    table = group(A, B)
    table.wait(12.0, A)
    assert table.members == [A]
    for message in (m.Heartbeat(V, 0, 1, 0, 0, 0), join(B), frozen(1)):
        (answer,) = table.say(B, message)
        assert isinstance(answer[1], m.Evicted) and "lease" in answer[1].reason
    assert table.say(B, m.Leave(V, "")) == [(B, m.Goodbye(V))]


# -- evidence (1.4) -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed_first", [True, False])
def test_closed_connection_and_refused_dial_are_a_loss(closed_first: bool) -> None:
    table = group(A, B)
    table.say(A, suspect(B, Cause.EOF))
    events: list[Event] = [Disconnected(B), From(A, suspect(B, Cause.REFUSED))]
    table(events[not closed_first])
    assert table.state is State.STABLE
    sent = table(events[closed_first])
    assert table.members == [A] and table.state is State.FREEZING and set(of(m.Evicted, sent)) == {B}
    entry = next(e for e in table.machine.log if e.what == "lost")
    assert "refused" in entry.reason and A[:4].hex() in entry.reason
    assert entry in [effect for effect in table.effects if isinstance(effect, Record)]


@pytest.mark.parametrize("cause", sorted({*Cause} - {Cause.REFUSED}))
def test_broken_streams_are_no_loss(cause: Cause) -> None:
    """A router that forgets breaks them all at once, and the peer lives."""
    table = group(A, B, C)
    table(Disconnected(B))
    table.say(A, suspect(B, cause))
    table.say(C, suspect(B, cause))
    assert table.members == [A, B, C]


def test_weak_evidence_does_not_replace_strong() -> None:
    table = group(A, B)
    table.say(A, suspect(B, Cause.REFUSED))
    table.say(A, suspect(B, Cause.UNREACHABLE))
    table(Disconnected(B))
    assert table.members == [A]


@pytest.mark.parametrize(("age_s", "left"), [(9.0, [A]), (11.0, [A, B])])
def test_a_refusal_of_long_ago_proves_nothing(age_s: float, left: list[bytes]) -> None:
    """A firewall between two live peers: that B's connection breaks for a moment, much later, is no loss."""
    table = group(A, B)
    table.say(A, suspect(B, Cause.REFUSED))
    table.wait(age_s, A, B)
    table.say(A, suspect(B, Cause.REFUSED))
    table(Disconnected(B))
    assert table.members == left


def test_a_link_fault_is_probed_and_no_more() -> None:
    table = group(A, B)
    assert of(m.Probe, table.say(A, suspect(B, Cause.EOF))) == {B: m.Probe(V, 1)}
    table.say(B, m.ProbeReply(V, 1))
    assert table.state is State.STABLE and table.machine.log[-1].what == "alive"
    assert not table.say(A, suspect(B, Cause.EOF)), "one probe a second is enough"


def test_healed_evidence_counts_no_more() -> None:
    table = group(A, B)
    table.say(A, suspect(B, Cause.REFUSED))
    table.say(A, m.Healed(V, B))
    table.say(A, suspect(B, Cause.RESET))
    table(Disconnected(B))
    assert table.members == [A, B]


def test_a_reconnected_peer_is_not_lost() -> None:
    table = group(A, B)
    table(Disconnected(B))
    table(Reconnected(B))
    table.say(A, suspect(B, Cause.REFUSED))
    assert table.members == [A, B]


def test_nobody_is_evicted_by_a_stranger_or_by_itself() -> None:
    table = group(A, B)
    table(Disconnected(B))
    table.say(B, suspect(B, Cause.REFUSED))
    table.say(D, suspect(B, Cause.REFUSED))
    table.say(C, join(C))
    table.say(C, suspect(B, Cause.REFUSED))
    assert table.members == [A, B]


def test_the_lease_decides_without_evidence() -> None:
    table = group(A, B)
    table(Disconnected(B))
    table.wait(5.0, A)
    assert table.members == [A, B]
    table.wait(6.0, A)
    assert table.members == [A]


def test_leases_that_end_together_are_one_change() -> None:
    table = group(A, B, C)
    sent = table.wait(12.0, A)
    assert {message.change for peer, message in sent if peer == A and type(message) is m.Freeze} == {1}


def test_a_coordinator_that_slept_evicts_nobody() -> None:
    table = group(A, B)
    table.now += 60.0
    table(Tick())
    assert table.members == [A, B]
    table.wait(12.0, A)
    assert table.members == [A]


def test_what_was_missed_is_sent_again() -> None:
    table = group(A, B)
    assert set(of(m.Epoch, table(Reconnected(A)))) == {A}, "it has not confirmed epoch 1"
    table.say(A, m.Heartbeat(V, 0, 1, 0, 0, 0))
    assert not table(Reconnected(A))
    table.say(C, join(C))
    assert set(of(m.Hold, table(Reconnected(A)))) == {A}
    table.say(C, m.Leave(V, ""))
    table.say(B, m.Leave(V, ""))
    assert set(of(m.Freeze, table(Reconnected(A)))) == {A}
    table.now += 3.0
    again = table.say(A, m.Heartbeat(V, 0, 1, 0, 0, 0))
    assert [type(message) for _, message in again] == [m.Ack, m.Freeze]


# -- status, plan, run --------------------------------------------------------------------------------------------


def test_status_and_rates() -> None:
    table = group(A, B)
    table.say(A, m.Heartbeat(V, 1, 1, 0, 10, 1000))
    table.now += 1.0
    table.say(A, m.Heartbeat(V, 5, 1, 0, 20, 3000))
    table.say(C, join(C))
    status = table.machine.status(table.now)
    assert m.decode_at_peer(m.encode(m.Status(V, "run", 1.0, 0, (status,)))).groups == (status,)
    assert status.members[0].boundary == 5 and status.members[0].ops_per_s == pytest.approx(20, rel=0.1)
    assert [peer.rank for peer in status.waiting] == [-1] and status.state == "holding"


def test_run_routes_and_limits() -> None:
    run = Run("run", Settings(peers_max=2), 0.0)

    def answer(peer: bytes, message: m.ToCoordinator) -> m.ToPeer:
        return next(e.message for e in run.message(1.0, peer, message) if isinstance(e, Send))

    assert isinstance(answer(A, join(A, run="other")), m.Refused)
    assert isinstance(answer(A, join(B)), m.Refused)
    assert isinstance(answer(A, m.Healed(V, B)), m.Evicted)
    assert isinstance(answer(A, m.Leave(V, "")), m.Goodbye)
    assert isinstance(answer(A, join(A, group=0)), m.Welcome)
    assert isinstance(answer(A, join(A, group=1)), m.Refused)
    assert isinstance(answer(B, join(B, group=1)), m.Welcome)
    assert isinstance(answer(C, join(C, group=2)), m.Refused)
    status = answer(D, m.StatusRequest(V, "run"))
    assert isinstance(status, m.Status) and [g.group for g in status.groups] == [0, 1]
    assert run.bytes_from(1.0, D, b"garbage") == [] and run.malformed == 1
    (told,) = run.bytes_from(1.0, D, b"\x92\xa4Join\x02")
    assert isinstance(told, Send) and isinstance(told.message, m.Refused)
    assert run.next_deadline() is not None and run.tick(2.0) == []
    crowded = Run("run", Settings(peers_max=10**6), 0.0)
    for number in range(GROUPS_MAX + 1):
        peer = number.to_bytes(16, "big")
        out = [e.message for e in crowded.message(1.0, peer, join(peer, group=number)) if isinstance(e, Send)]
    assert isinstance(out[0], m.Refused) and len(crowded.groups) == GROUPS_MAX


# -- a random walk ------------------------------------------------------------------------------------------------


@dataclass
class Model:
    """A peer as the protocol wants it, seen from the coordinator: answers late, in order, or never."""

    inbox: list[m.ToPeer] = field(default_factory=list)
    boundary: int = 0
    epoch: int = 0
    promise: int | None = None
    hold: int = 0
    change: int = 0
    lanes: Lanes = field(default_factory=lambda: {0: {}})
    called: set[OpName] = field(default_factory=set)
    pending: dict[OpName, bool] = field(default_factory=dict)
    since: int = 0
    member: bool = False

    def beat(self, *links: m.LinkReport) -> m.Heartbeat:
        oldest = min([self.boundary, *(name.boundary for name in self.pending)])
        return m.Heartbeat(V, self.boundary, self.epoch, oldest, 0, 0, links)

    def forget(self, settled: int) -> None:
        """As the engine does: what an entry says holds up to the next one."""
        known = sorted(self.lanes)
        for boundary, after in itertools.pairwise(known):
            if after <= settled:
                del self.lanes[boundary]


class Walk(RuleBasedStateMachine):
    """Peers join, post, finish, advance, vanish; the invariants are checked at every epoch."""

    @initialize(min_peers=st.integers(1, 4))
    def begin(self, min_peers: int) -> None:
        self.machine = Membership(0, Settings(min_peers=min_peers, lease_s=10.0, link_grace_s=0.03))
        self.now = 0.0
        self.peers: dict[bytes, Model] = {}
        self.born = 0
        self.epochs = 0
        self.changes = 0
        self.promised: dict[bytes, int] = {}
        self.reported: dict[bytes, m.Frozen] = {}
        for _ in range(min_peers):
            self.arrives()
        self.settle()

    def feed(self, event: Event) -> None:
        self.now += 0.01
        published: m.Epoch | None = None
        revision, before = self.machine.revision, self.machine.export()
        for effect in self.machine.handle(self.now, event):
            if isinstance(effect, Send) and effect.peer in self.peers:
                self.peers[effect.peer].inbox.append(effect.message)
                if isinstance(effect.message, m.Epoch) and effect.message.epoch > self.epochs:
                    published = effect.message
        assert self.machine.revision > revision or self.machine.export() == before, "a change that is never written"
        if published is not None:
            self.check(published)

    def check(self, epoch: m.Epoch) -> None:
        assert epoch.epoch == self.epochs + 1, "epochs go up by one"
        self.epochs = epoch.epoch
        assert {member.peer for member in epoch.members} == set(self.machine.members) <= set(self.peers)
        if epoch.change == 0 and epoch.from_boundary:
            assert all(epoch.from_boundary >= promise for promise in self.promised.values())
        if epoch.change:
            assert epoch.change > self.changes, "changes are numbered upwards"
            self.changes = epoch.change
            assert {self.reported[member.peer].change for member in epoch.members} == {epoch.change}
        for detour in epoch.detours:
            assert len(set(detour)) == 3 and max(detour) < len(epoch.members)
        for verdict in epoch.verdicts:
            name = OpName(verdict.op.boundary, verdict.op.lane, verdict.op.seq)
            if verdict.status == Status.OK:
                for member in epoch.members:
                    if member.since <= name.boundary:
                        assert self.has_finished(member.peer, name)
        self.promised.clear()

    def has_finished(self, peer: bytes, name: OpName) -> bool:
        for entry in self.reported[peer].pending:
            if entry.op == m.OpRef(*name):
                return entry.finished
        return name in self.peers[peer].called

    # -- what peers do --

    def pick(self, data: st.DataObject, *, member: bool = True) -> bytes | None:
        fit = sorted(peer for peer, model in self.peers.items() if model.member or not member)
        return data.draw(st.sampled_from(fit)) if fit else None

    @precondition(lambda self: len(self.peers) < 5)
    @rule()
    def arrives(self) -> None:
        self.born += 1
        peer = pid(self.born % 250 + 1)[:8] + self.born.to_bytes(8, "big")
        self.peers[peer] = Model()
        self.feed(From(peer, join(peer)))

    @rule(data=st.data())
    def reads(self, data: st.DataObject) -> None:
        busy = sorted(peer for peer, model in self.peers.items() if model.inbox)
        if busy:
            self.read(data.draw(st.sampled_from(busy)))

    def read(self, peer: bytes) -> None:
        model = self.peers[peer]
        message = model.inbox.pop(0)
        if isinstance(message, m.Epoch):
            if not model.member:
                model.member = True
                model.since = model.boundary = next(p.since for p in message.members if p.peer == peer)
                model.lanes = {model.boundary: {}}
            for verdict in message.verdicts:
                model.pending.pop(OpName(verdict.op.boundary, verdict.op.lane, verdict.op.seq), None)
            model.epoch, model.promise, model.change = message.epoch, None, 0
        elif isinstance(message, m.Hold):
            if message.hold < model.hold or message.epoch != model.epoch:
                return
            model.hold, model.promise = message.hold, model.boundary + 1
            self.promised[peer] = model.promise
            self.feed(From(peer, m.Held(V, message.hold, model.promise)))
        elif isinstance(message, m.Release):
            model.promise = None
        elif isinstance(message, m.Ack):
            model.forget(message.settled)
        elif isinstance(message, m.Freeze):
            model.change, model.promise = message.change, None
            self.promised.clear()
            entries = tuple(pend(name, finished) for name, finished in sorted(model.pending.items()))
            answer = m.Frozen(V, message.change, model.boundary, deepcopy(model.lanes), entries)
            self.reported[peer] = answer
            self.feed(From(peer, answer))
        elif isinstance(message, m.Evicted):
            del self.peers[peer]

    @rule(data=st.data(), lane=st.integers(0, 1))
    def posts(self, data: st.DataObject, lane: int) -> None:
        peer = self.pick(data)
        if peer is not None and not self.peers[peer].change:
            model = self.peers[peer]
            lanes = model.lanes[model.boundary]
            seq = lanes.get(lane, 0)
            lanes[lane] = seq + 1
            name = OpName(model.boundary, lane, seq)
            model.called.add(name)
            model.pending[name] = False

    @rule(data=st.data())
    def finishes(self, data: st.DataObject) -> None:
        peer = self.pick(data)
        if peer is not None and self.peers[peer].pending and not self.peers[peer].change:
            model = self.peers[peer]
            model.pending[data.draw(st.sampled_from(sorted(model.pending)))] = True

    @rule(data=st.data())
    def advances(self, data: st.DataObject) -> None:
        peer = self.pick(data)
        if peer is not None:
            model = self.peers[peer]
            if not model.change and (model.promise is None or model.boundary + 1 < model.promise):
                model.boundary += 1
                model.lanes[model.boundary] = {}

    @rule(data=st.data())
    def complains(self, data: st.DataObject) -> None:
        peer = self.pick(data)
        if peer is not None and self.peers[peer].pending:
            name = data.draw(st.sampled_from(sorted(self.peers[peer].pending)))
            self.feed(From(peer, fault("overdue", name, self.peers[peer].epoch)))

    @rule(data=st.data(), graceful=st.booleans())
    def vanishes(self, data: st.DataObject, graceful: bool) -> None:
        peer = self.pick(data, member=False)
        if peer is None:
            return
        del self.peers[peer]
        self.promised.pop(peer, None)
        if graceful:
            self.feed(From(peer, m.Leave(V, "")))
            return
        self.feed(Disconnected(peer))
        witness = next((p for p, model in sorted(self.peers.items()) if model.member), None)
        if witness is not None:
            self.feed(From(witness, m.Suspect(V, peer, Cause.REFUSED, 0, 0)))
        while self.machine.knows(peer):
            self.time_passes()

    @rule(data=st.data(), heals=st.booleans())
    def blames_a_link(self, data: st.DataObject, heals: bool) -> None:
        a, b = self.pick(data), self.pick(data)
        if a is None or b is None or a == b:
            return
        message: m.ToCoordinator = m.Healed(V, b) if heals else m.Suspect(V, b, Cause.SILENT, 0, 0)
        self.feed(From(a, message))
        for peer in (a, b, a, b, a, b):
            self.feed(From(peer, m.ProbeReply(V, 1)))

    @rule(data=st.data(), rate=st.sampled_from([10**6, 10**7, 10**8]))
    def measures(self, data: st.DataObject, rate: int) -> None:
        a, b = self.pick(data), self.pick(data)
        if a is not None and b is not None and a != b:
            model = self.peers[a]
            self.feed(From(a, model.beat(m.LinkReport(b, 50_000, rate, 0))))

    @rule()
    def time_passes(self) -> None:
        self.now += 2.0
        for peer, model in sorted(self.peers.items()):
            self.feed(From(peer, model.beat()))
        self.feed(Tick())

    @rule(lost=st.integers(0, 3))
    def restarts(self, lost: int) -> None:
        """Another process takes over; of what the former one said, something has not arrived."""
        state = snapshot.decode(snapshot.encode(self.machine.export()), "the walk")
        self.machine = Membership(0, self.machine.settings)
        self.machine.restore(self.now, state)
        for peer, model in sorted(self.peers.items()):
            del model.inbox[max(0, len(model.inbox) - lost) :]
            if not model.member:  # it was not welcomed by this one
                self.feed(From(peer, join(peer)))
                continue
            self.feed(From(peer, model.beat()))
            if model.promise is not None:
                self.feed(From(peer, m.Held(V, model.hold, model.promise)))

    # -- what always holds --

    @invariant()
    def members_live(self) -> None:
        if hasattr(self, "machine"):
            assert set(self.machine.members) <= set(self.peers)
            assert (self.machine.state is State.FORMING) == (not self.machine.members)
            assert (self.machine.state is State.FREEZING) == (self.machine.change is not None)
            assert (self.machine.state is State.HOLDING) == (self.machine.growth is not None)

    def teardown(self) -> None:
        """Once everybody answers, every change and every growth ends."""
        if not hasattr(self, "machine"):
            return
        self.settle()
        assert self.machine.state in (State.STABLE, State.FORMING)

    def settle(self) -> None:
        """Everybody reads everything."""
        for _ in range(200):
            for peer in sorted(self.peers):
                if peer in self.peers and self.peers[peer].inbox:
                    self.read(peer)


Walk.TestCase.settings = settings(max_examples=200, stateful_step_count=40)
TestWalk = Walk.TestCase
