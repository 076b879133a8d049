"""What a group tells its guests and, of them, its members: once, again when it may be lost, and when it is not true."""

from __future__ import annotations

from dataclasses import replace

from unit.group_table import A, B, C, D, Table, V, group, join, of

from pccl import messages as m
from pccl.coordinator.contacts import STREAMS
from pccl.coordinator.events import Send
from pccl.coordinator.guests import Guests
from pccl.coordinator.roster import Peer


def peer(peer_id: bytes, *, acquainted: bool = False, checked: bool = True, inbound: bool = True) -> Peer:
    address = f"10.0.0.{peer_id[0]}:1"
    return Peer(
        peer_id,
        address,
        f"host{peer_id[0]}",
        1,
        1,
        0.0,
        addresses=(address,),
        checked=checked,
        inbound=inbound,
        guest=acquainted,
        acquainted=acquainted,
    )


def told(sends: list[Send]) -> dict[bytes, set[bytes]]:
    """Whom each peer is told of."""
    assert all(isinstance(send.message, m.Acquaint) for send in sends)
    return {send.peer: {member.peer for member in send.message.peers} for send in sends}  # type: ignore[union-attr]


class Group:
    """Guests, and who is in the group."""

    def __init__(self, *members: bytes) -> None:
        self.guests = Guests()
        self.epoch = 1
        self.members = {member: peer(member) for member in members}
        self.waiting: dict[bytes, Peer] = {}

    def news(self) -> dict[bytes, set[bytes]]:
        return told(self.guests.news(self.epoch, self.members, self.waiting.values(), None))

    def change(self, *members: bytes) -> dict[bytes, set[bytes]]:
        self.epoch += 1
        self.members = {member: peer(member) for member in members}
        return self.news()


def test_links_between_hosts_have_some_streams_whatever_the_group_has_within() -> None:
    """One that is alone, or all on one host, has plans of one stream: no measure for the way to a guest."""
    group = Group(A)
    group.waiting[B] = peer(B, acquainted=True)
    sends = group.guests.news(1, group.members, group.waiting.values(), None)
    assert {send.message.streams for send in sends} == {STREAMS}  # type: ignore[union-attr]
    near = Group(A)
    near.waiting[B] = replace(peer(B, acquainted=True), host="hostA", address=near.members[A].address)
    near.members[A].host = "hostA"
    sends = near.guests.news(1, near.members, near.waiting.values(), None)
    assert {send.message.streams for send in sends} == {1}  # type: ignore[union-attr]


def test_nobody_is_told_anything_without_guests() -> None:
    group = Group(A, B)
    group.waiting[C] = peer(C)
    assert group.news() == {} and group.change(A, B, C) == {}


def test_a_guest_and_the_members_hear_of_each_other_once() -> None:
    group = Group(A, B)
    group.waiting[C] = peer(C, acquainted=True)
    assert group.news() == {A: {C}, B: {C}, C: {A, B}}
    assert group.news() == {}


def test_guests_do_not_hear_of_each_other() -> None:
    group = Group(A)
    group.waiting[C] = peer(C, acquainted=True)
    group.news()
    group.waiting[D] = peer(D, acquainted=True)
    assert group.news() == {A: {C, D}, D: {A}}


def test_a_guest_that_cannot_be_reached_for_all_we_know_is_not_told_of() -> None:
    group = Group(A)
    group.waiting[C] = peer(C, acquainted=True, checked=False)
    assert group.news() == {}
    group.waiting[C] = replace(group.waiting[C], checked=True, inbound=False)
    sends = group.guests.news(1, group.members, group.waiting.values(), None)
    assert told(sends) == {A: {C}, C: {A}}
    by_peer = {send.peer: send.message for send in sends}
    assert [by_peer[A].peers[0].inbound, by_peer[C].inbound] == [False, False]  # type: ignore[union-attr]


def test_a_guest_of_a_run_without_members_is_told_so() -> None:
    group = Group()
    group.waiting[C] = peer(C, acquainted=True)
    assert group.news() == {C: set()}
    assert group.news() == {}
    assert group.change(A) == {A: {C}, C: {A}}


def test_members_that_come_and_go_are_told_of() -> None:
    group = Group(A, B)
    group.waiting[D] = peer(D, acquainted=True)
    group.news()
    assert group.change(A, B, C) == {C: {D}, D: {A, B, C}}, "A and B know"
    assert group.change(A, C) == {D: {A, C}}
    assert group.change(B, C) == {B: {D}, D: {B, C}}, "B has been away, and knows nothing"


def test_members_give_a_guest_up_when_it_is_gone_or_one_of_them() -> None:
    group = Group(A, B)
    group.waiting |= {C: peer(C, acquainted=True), D: peer(D, acquainted=True)}
    group.news()
    del group.waiting[D]
    assert group.news() == {A: {C}, B: {C}}
    del group.waiting[C]
    assert group.change(A, B, C) == {A: set(), B: set(), C: set()}
    assert group.news() == {}


def test_what_may_be_lost_is_said_again_to_that_peer_alone() -> None:
    group = Group(A, B)
    group.waiting[C] = peer(C, acquainted=True)
    group.news()
    group.guests.forget(A)
    assert group.news() == {A: {C}}
    group.guests.forget(C)
    assert group.news() == {C: {A, B}}
    group.guests.forget(D)
    assert group.news() == {}, "nobody knows it"


def test_one_that_may_not_have_heard_the_end_of_a_guest_is_told_again() -> None:
    group = Group(A, B)
    group.waiting[C] = peer(C, acquainted=True)
    group.news()
    group.guests.forget(A)
    del group.waiting[C]
    assert group.news() == {A: set(), B: set()}
    assert group.news() == {}


# -- in the group -----------------------------------------------------------------------------------------------------


def guest(peer_id: bytes) -> m.Join:
    plain = join(peer_id)
    return m.Join(V, plain.run, plain.group, plain.peer, plain.addresses, plain.host, plain.pid, plain.wire, guest=True)


def test_a_guest_is_no_joiner_until_it_says_so() -> None:
    table = group(A, B)
    sent = table.say(C, guest(C))
    assert of(m.Acquaint, sent).keys() == {A, B, C} and not of(m.Hold, sent)
    assert not of(m.Hold, table.wait(3.0, A, B, C)) and table.members == [A, B]
    sent = table.say(C, join(C))
    assert of(m.Hold, sent).keys() == {A, B}, "it has entered"


def test_a_guest_that_has_said_that_it_enters_cannot_take_it_back() -> None:
    table = group(A, B)
    table.say(C, guest(C))
    table.say(C, join(C))
    table.say(C, guest(C))
    assert not table.machine.waiting[C].guest


def test_a_guest_that_is_silent_is_dropped_and_the_members_close_their_links() -> None:
    table = group(A, B)
    table.say(C, guest(C))
    sent = table.wait(12.0, A, B)
    assert C not in table.machine.waiting
    assert all(message.peers == () for message in of(m.Acquaint, sent).values())  # type: ignore[attr-defined]
    assert of(m.Acquaint, sent).keys() == {A, B}


def test_a_table_without_guests_says_nothing_of_them() -> None:
    table = Table(min_peers=2)
    assert not of(m.Acquaint, table.formed(A, B).wait(2.0, A, B))
