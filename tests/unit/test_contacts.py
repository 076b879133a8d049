"""Links across groups: what a run decides of them, also after another coordinator took over, and what a peer makes of
what it is told."""

from __future__ import annotations

from unit.fake_engine import FakeEngine
from unit.group_table import A, B, C, D, V, join

from pccl import messages as m
from pccl.contacts import Contacts, Way
from pccl.coordinator.events import Effect, Send
from pccl.coordinator.run import Run
from pccl.coordinator.settings import Settings
from pccl.coordinator.snapshot import GroupState
from pccl.peer import Peer
from pccl.types import Identity

GROUP = {A: 0, B: 0, C: 1, D: 1}
STRANGER = bytes([9] * 16)


class World:
    """A run of two groups of two, and its peers' sides."""

    def __init__(self, incarnation: int = 1, states: list[GroupState] | None = None) -> None:
        settings = Settings(min_peers=2, lease_s=5.0, dial_back=False)
        self.run = Run("run", settings, 0.0)
        self.run.incarnation = incarnation
        self.peers = {peer: Contacts(peer) for peer in GROUP}
        if states is not None:
            self.run.restore(0.0, states)
            return
        for peer, group in GROUP.items():
            self.say(peer, join(peer, group=group))

    def restarted(self) -> World:
        """The next coordinator; the peers are what they were, and have not been heard."""
        made = World(self.run.incarnation + 1, [group.export() for group in self.run.groups.values()])
        made.peers = self.peers
        return made

    def say(self, peer: bytes, message: m.ToCoordinator | None) -> dict[bytes, m.Contacts]:
        return {} if message is None else self.take(self.run.message(1.0, peer, message))

    def take(self, effects: list[Effect]) -> dict[bytes, m.Contacts]:
        told = {e.peer: e.message for e in effects if isinstance(e, Send) and isinstance(e.message, m.Contacts)}
        for peer, said in told.items():
            self.peers[peer].heard(said)
        return told

    def seek(self, peer: bytes, *others: bytes) -> dict[bytes, m.Contacts]:
        return self.say(peer, self.peers[peer].seek(others))

    def numbers(self, peer: bytes) -> dict[bytes, int]:
        message = self.peers[peer].again()
        return {} if message is None else dict(message.links)


def beat() -> m.Heartbeat:
    return m.Heartbeat(V, 0, 1, 0, 0, 0)


def test_both_ends_are_told_of_one_link_until_neither_seeks_the_other() -> None:
    world = World()
    assert world.seek(A, C).keys() == {A, C}
    assert world.numbers(A)[C] == world.numbers(C)[A] == 1 << 32 | 1
    assert world.peers[A].way_to(C) is Way.LINK and world.peers[B].way_to(C) is Way.NONE_YET
    assert world.seek(C, A).keys() == {C}
    assert world.seek(A).keys() == {A}, "the other still seeks it"
    assert world.numbers(A)[C] == world.numbers(C)[A]
    assert world.seek(C).keys() == {A, C}
    assert not world.numbers(A) and not world.numbers(C)


def test_the_next_link_of_a_pair_is_of_a_higher_incarnation() -> None:
    world = World()
    world.seek(A, C)
    first = world.numbers(A)[C]
    world.seek(A)
    world.seek(A, C)
    assert world.numbers(A)[C] == world.numbers(C)[A] > first
    step = world.peers[C].heard(m.Contacts(V, 0, (), (), 4, True))
    assert step.closed == [A]


def test_who_is_in_no_group_is_named_at_once_and_who_leaves_when_it_does() -> None:
    world = World()
    world.seek(A, STRANGER, C)
    assert world.peers[A].way_to(STRANGER) is Way.NEVER and "no group" in world.peers[A].missing[STRANGER]
    assert world.peers[A].way_to(C) is Way.LINK
    told = world.say(C, m.Leave(V, "bye"))
    assert A in told and world.peers[A].way_to(C) is Way.NEVER
    assert not world.numbers(A)


def test_who_is_of_the_same_group_needs_nothing() -> None:
    world = World()
    world.seek(A, B)
    assert world.peers[A].way_to(B) is Way.NONE_YET and not world.numbers(B)


def test_an_answer_to_an_earlier_question_refuses_nobody() -> None:
    peer = Contacts(A)
    first = peer.seek([STRANGER])
    assert first is not None
    peer.seek([])
    peer.seek([STRANGER])
    peer.heard(m.Contacts(V, first.seek, (), ((STRANGER, "gone"),), 4, True))
    assert peer.way_to(STRANGER) is Way.NONE_YET


def test_what_was_lost_with_a_connection_is_said_again() -> None:
    world = World()
    world.seek(A, C)
    again = world.take(world.run.reconnected(2.0, C))
    assert again.keys() == {C} and again[C].contacts[0].member.peer == A
    assert world.take(world.run.reconnected(2.0, B)) == {}


def test_another_coordinator_leaves_links_as_they_are() -> None:
    before = World()
    before.seek(A, C)
    number = before.numbers(A)[C]
    world = before.restarted()
    world.say(C, world.peers[C].again())
    assert world.numbers(C) == {A: number}, "the one that seeks it has not been heard yet"
    world.say(C, beat())
    world.say(A, world.peers[A].again())
    world.say(A, beat())
    assert world.numbers(A) == {C: number} and world.numbers(C) == {A: number}
    world.seek(A)
    assert not world.numbers(A) and not world.numbers(C)
    world.seek(A, D)
    assert world.numbers(A)[D] == 2 << 32 | 1


def test_a_link_that_nobody_seeks_ends_when_both_were_heard_by_the_next_coordinator() -> None:
    before = World()
    before.seek(A, C)
    before.peers[A] = Contacts(A)  # it has given up meanwhile
    world = before.restarted()
    world.say(C, world.peers[C].again())
    assert C in world.say(A, beat())
    assert not world.numbers(C)


def test_two_that_cannot_be_dialled_are_told_so() -> None:
    world = World()
    for peer in (A, C):
        group = world.run.groups[GROUP[peer]]
        group.members[peer].inbound = False
    world.seek(A, C, D)
    assert "dialled" in world.peers[A].missing[C] and world.peers[A].way_to(D) is Way.LINK


def test_who_was_told_before_it_was_back_is_told_again() -> None:
    world = World().restarted()
    told = world.say(A, world.peers[A].seek([C]))
    assert C in told, "and the message is lost: it has no connection yet"
    assert world.say(C, beat()).keys() == {C}
    assert world.say(C, beat()) == {}


def test_a_link_that_its_end_was_not_heard_of_is_found_by_the_next_seek() -> None:
    world = World()
    world.seek(A, C)
    kept = dict(world.peers[C]._links)
    world.seek(A)
    world.peers[C]._links = kept  # the message was lost
    assert world.say(C, world.peers[C].again()).keys() == {C}
    assert not world.numbers(C)


def test_a_peer_with_such_links_asks_again_every_lease() -> None:
    engine = FakeEngine()
    peer = Peer(Identity(A, "run", 0, ("10.0.0.1:1",), "host1", 1), engine, {}.get)
    peer.start(0.0)
    peer.on_message(0.0, m.Welcome(V, 2.0, 1, 0))
    peer.on_tick(0.1)
    assert not any(isinstance(message, m.Seek) for message in peer.outbox), "it has none"
    peer.seek(frozenset([C]))
    for now in (0.5, 1.5, 2.5, 3.0, 4.6):
        peer.on_tick(now)
    assert [message.peers for message in peer.outbox if isinstance(message, m.Seek)] == [(C,)] * 3
