"""Asks to peers of other groups: they wait for a link, end without one, and let it go a while after the last task."""

from __future__ import annotations

from typing import cast

from pccl.contacts import Way
from pccl.transfer.named import KEEP_S, Named
from pccl.transfer.task import Task
from pccl.types import Status

MATE, OTHER, THIRD = (bytes([number] * 16) for number in (1, 2, 3))


class World:
    """Links as the test says, and what becomes of asks."""

    def __init__(self) -> None:
        self.ways = {MATE: Way.GROUP}
        self.sought: list[set[bytes]] = []
        self.went: list[int] = []
        self.ended: list[tuple[int, Status]] = []
        self.named = Named(self, lambda token, status: self.ended.append((token, status)))

    def way_to(self, peer: bytes) -> Way:
        return self.ways.get(peer, Way.NONE_YET)

    def seek(self, peers: frozenset[bytes]) -> None:
        self.sought.append(set(peers))

    def ask(self, task: object, peer: bytes, token: int) -> None:
        self.named.ask(cast(Task, task), peer, token, lambda: self.went.append(token))


def test_the_group_is_asked_at_once_and_nobody_is_sought_for_it() -> None:
    world = World()
    world.ask("a", MATE, 1)
    assert world.went == [1] and not world.sought and world.named.deadline() == float("inf")


def test_an_ask_waits_for_its_link_and_goes_once() -> None:
    world = World()
    world.ask("a", OTHER, 1)
    world.ask("b", OTHER, 2)
    assert world.sought == [{OTHER}] and not world.went
    world.ways[OTHER] = Way.LINK
    world.named.look()
    world.named.look()
    assert world.went == [1, 2] and not world.ended


def test_one_that_can_have_no_link_ends_as_lost_and_the_others_wait_on() -> None:
    world = World()
    world.ask("a", OTHER, 1)
    world.ask("a", THIRD, 2)
    world.ways[OTHER] = Way.NEVER
    world.named.look()
    assert world.ended == [(1, Status.EPEER)] and not world.went
    assert world.named.cancel(2) and world.ended[-1] == (2, Status.ECANCELLED)
    world.ways[THIRD] = Way.LINK
    world.named.look()
    assert not world.went and not world.named.cancel(2)


def test_a_peer_is_sought_until_a_while_after_the_last_task_that_named_it() -> None:
    world = World()
    world.ask("a", OTHER, 1)
    world.ask("b", OTHER, 2)
    world.named.over(cast(Task, "a"), 10.0)
    assert world.named.deadline() == float("inf")
    world.named.over(cast(Task, "b"), 20.0)
    assert world.named.deadline() == 20.0 + KEEP_S
    world.named.tick(20.0 + KEEP_S / 2)
    assert world.sought == [{OTHER}]
    world.ask("c", OTHER, 3)
    world.named.tick(21.0 + KEEP_S)
    assert world.sought == [{OTHER}], "it is named again"
    world.named.over(cast(Task, "c"), 30.0)
    world.named.tick(30.0 + KEEP_S)
    assert world.sought == [{OTHER}, set()]
