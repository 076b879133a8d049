"""What a group remembers of itself: a Membership that is exported, restored in another process, and goes on."""

from __future__ import annotations

import pytest
from unit.group_table import A, B, C, D, Table, V, X, fault, frozen, group, join, of, pend, pid, suspect

from pccl import messages as m
from pccl.coordinator import snapshot
from pccl.coordinator.events import Record, Send, Tick
from pccl.coordinator.membership import Membership
from pccl.coordinator.settings import Settings
from pccl.coordinator.steps import State
from pccl.errors import StateError
from pccl.types import Cause, OpName, Status


def restarted(table: Table, after_s: float = 1.0, **options: object) -> Table:
    """The same group led by another process, which has nothing but the bytes."""
    data = snapshot.encode(table.machine.export())
    other = Table(**{"min_peers": table.machine.settings.min_peers, **options})
    other.now = table.now + after_s
    other.effects = other.machine.restore(other.now, snapshot.decode(data, "a file"))
    return other


def beat(table: Table, peer: bytes, epoch: int | None = None, boundary: int = 0) -> list[tuple[bytes, m.ToPeer]]:
    known = table.machine.epoch if epoch is None else epoch
    return table.say(peer, m.Heartbeat(V, boundary, known, boundary, 0, 0))


def test_members_are_what_they_were_and_nobody_is_told_anything() -> None:
    before = group(A, B)
    before.say(C, join(C))
    for peer in (A, B):
        before.say(peer, m.Held(V, 1, 5))
    table = restarted(before)
    assert table.state is State.STABLE and table.members == before.members == [A, B, C]
    assert [peer.since for peer in table.machine.members.values()] == [0, 0, 5]
    assert (table.machine.epoch, table.machine.plan) == (2, before.machine.plan)
    for peer in (A, B, C):
        assert [type(message) for _, message in beat(table, peer)] == [m.Ack]
    record = table.machine.log[0]
    assert (record.what, record.reason) == ("restart", "3 members of epoch 2 have 10 s to come back")


def test_a_member_has_a_full_lease_from_the_start() -> None:
    table = restarted(group(A, B), after_s=100.0)
    table.wait(9.0, A)
    assert table.members == [A, B]
    table.wait(2.0, A)
    assert table.members == [A] and table.machine.log[-1].what == "freeze"


def test_who_has_not_come_back_yet_is_not_taken_for_disconnected() -> None:
    table = restarted(group(A, B))
    beat(table, A)
    table.say(A, suspect(B, Cause.REFUSED))
    assert table.members == [A, B], "its connection may be on its way"


def test_who_lacks_the_newest_epoch_gets_it() -> None:
    before = group(A, B, C)
    before.say(C, m.Leave(V, ""))
    before.say(A, frozen(1))
    before.say(B, frozen(1))
    table = restarted(before)
    assert [type(message) for _, message in beat(table, A, epoch=2)] == [m.Ack]
    (told,) = of(m.Epoch, beat(table, B, epoch=1)).values()
    assert isinstance(told, m.Epoch) and (told.epoch, told.change) == (2, 1)


def test_a_change_is_begun_anew_under_a_higher_number() -> None:
    before = group(A, B, C)
    before.say(C, m.Leave(V, "tired"))
    before.say(A, frozen(1, 0, {0: 1}, pend(X, finished=True)))
    table = restarted(before)
    assert table.state is State.FREEZING
    for peer in (A, B):
        assert of(m.Freeze, beat(table, peer))[peer] == m.Freeze(V, 2, 1)
    assert not table.say(A, frozen(1)), "of the change before"
    table.say(A, frozen(2, 0, {0: 1}, pend(X, finished=True)))
    epoch = of(m.Epoch, table.say(B, frozen(2, 0, {0: 1}, pend(X, finished=True))))[A]
    assert isinstance(epoch, m.Epoch) and (epoch.epoch, epoch.change) == (2, 2)
    assert epoch.verdicts == (m.Verdict(m.OpRef(*X), Status.OK, ""),)
    assert epoch.reason == "leave of peer " + C.hex()[:8]


def test_who_went_in_the_change_and_what_was_said_of_ops_is_not_forgotten() -> None:
    before = group(A, B, C)
    before.say(B, fault("overdue", OpName(0, 0, 1), 1))
    before.say(C, m.Leave(V, ""))
    table = restarted(before)
    everyone, late = pend(X, everyone=True), pend(OpName(0, 0, 1))
    for peer in (A, B):
        sent = table.say(peer, frozen(3, 0, {0: 2}, everyone, late))
    epoch = of(m.Epoch, sent)[A]
    assert isinstance(epoch, m.Epoch)
    assert [verdict.status for verdict in epoch.verdicts] == [Status.EPEER, Status.ETIMEOUT]
    again = restarted(table)
    assert not of(m.Freeze, again.say(B, fault("overdue", OpName(0, 0, 1), 1))), "that was judged"


def test_a_hold_is_forgotten_and_who_still_holds_is_released() -> None:
    before = group(A, B)
    before.say(C, join(C))
    before.say(A, m.Held(V, 1, 3))
    table = restarted(before)
    assert table.state is State.STABLE and not table.machine.waiting
    beat(table, A, boundary=2)
    assert table.say(A, m.Held(V, 1, 3)) == [(A, m.Release(V, 1))]
    hold = of(m.Hold, table.say(C, join(C)))[A]
    assert isinstance(hold, m.Hold) and hold.hold == 2, "no number twice"


def test_a_hold_that_an_epoch_ends_is_not_released() -> None:
    before = group(A, B)
    before.say(C, join(C))
    before.say(A, m.Held(V, 1, 3))
    before.say(B, m.Held(V, 1, 3))
    table = restarted(before)
    assert set(of(m.Epoch, beat(table, A, epoch=1))) == {A}
    assert not table.say(A, m.Held(V, 1, 3)), "it has not got the epoch yet: boundary 3 is not free"


def test_who_is_out_stays_out() -> None:
    before = group(A, B)
    before.wait(11.0, A)
    table = restarted(before)
    sent = of(m.Evicted, table.say(B, join(B)))
    assert sent[B] == m.Evicted(V, "lease: nothing heard for 10 s")


def test_an_empty_group_begins_again_where_it_ended() -> None:
    before = group(A)
    before.say(A, m.Leave(V, ""))
    table = restarted(before)
    assert table.state is State.FORMING and table.machine.epoch == 1
    epoch = of(m.Epoch, table.say(B, join(B)))[B]
    assert isinstance(epoch, m.Epoch) and epoch.epoch == 2


def test_a_broken_link_is_avoided_until_it_mends() -> None:
    before = group(A, B, C, link_grace_s=1.0)
    before.say(A, suspect(B, Cause.RESET))
    before.wait(3.0, A, B, C)
    for peer in (A, B, C):
        before.say(peer, frozen(1))
    assert before.machine.plan is not None and before.machine.plan.avoids((A, B))
    suspected, silent = (restarted(before, link_grace_s=1.0) for _ in range(2))
    suspected.say(A, suspect(B, Cause.RESET))
    for table in (suspected, silent):
        table.wait(20.0, A, B, C)
    assert suspected.state is State.STABLE and silent.state is State.HOLDING
    assert "can be used again" in silent.machine.log[-1].reason


def test_other_settings_are_told() -> None:
    table = restarted(group(A, B), min_peers=1, form_peers=3)
    assert "asked for are 1 peers, 3 to begin, no longer 2 and 2" in table.machine.log[0].reason


def test_what_is_told_twice_after_a_restart_changes_nothing() -> None:
    table = restarted(group(A, B))
    revision = table.machine.revision
    for peer in (A, B):
        beat(table, peer)
        table.say(peer, m.ProbeReply(V, 1))
    table(Tick())
    assert table.machine.revision == revision, "a write for nothing"
    assert all(isinstance(effect, Record | Send) for effect in table.effects)


@pytest.mark.parametrize("cut", [0, 5, 8, 20, -1])
def test_half_a_memory_is_none(cut: int) -> None:
    data = snapshot.encode(group(A, B).machine.export())
    with pytest.raises(StateError, match="a file is damaged"):
        snapshot.decode(data[:cut], "a file")


def test_a_flipped_bit_is_seen() -> None:
    data = bytearray(snapshot.encode(group(A, B).machine.export()))
    data[len(data) // 2] ^= 4
    with pytest.raises(StateError, match="checksum"):
        snapshot.decode(bytes(data), "a file")


def test_members_without_their_epoch_are_refused() -> None:
    state = group(A, B).machine.export()
    for wrong in ({"epochs": ()}, {"plan": None}, {"epoch": 7}):
        with pytest.raises(StateError, match="group 0 has members that its epoch"):
            snapshot.decode(snapshot.encode(m.structs.replace(state, **wrong)), "a file")


def test_a_group_of_many() -> None:
    """It fits, and comes back equal."""
    peers = tuple(pid(n) for n in range(1, 200))
    machine = group(*peers, peers_max=1000).machine
    state = machine.export()
    other = Membership(0, Settings(min_peers=199))
    other.restore(0.0, snapshot.decode(snapshot.encode(state), "a file"))
    assert other.export() == state
    assert D in other.members
