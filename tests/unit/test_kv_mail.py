"""Correspondences over a network that a test carries by hand: first words, order, lost pools, and what is no mail."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from pccl.kv import messages as m
from pccl.kv.mail import TRIES, Correspondence, bell_key
from pccl.kv.post import Post
from pccl.kv.slots import SLOT_BYTES
from pccl.types import Status

A, B = b"A" * 16, b"B" * 16


class Region:
    def __init__(self, data: Any, whole: bool, on_asked: Any) -> None:
        self.data, self.there, self.on_asked = data, whole, on_asked


class Net:
    """Regions of both peers, asks that wait, and steps that are told. Everything happens in `run`."""

    def __init__(self) -> None:
        self.regions: dict[tuple[bytes, bytes, int], Region] = {}
        self.asks: dict[int, tuple[Any, bytes, bytes, bytes, int, int, int, bool]] = {}
        self.cancelled: set[int] = set()
        self.steps: list[Any] = []
        self.tasks: list[Any] = []
        self.now = 0.0
        self.tokens = 0

    def run(self) -> None:
        """Until nothing happens any more."""
        moved = True
        while moved:
            moved = bool(self.steps)
            while self.steps:
                self.steps.pop(0)()
            for token in list(self.asks):
                moved |= self._serve(token)
            for task in list(self.tasks):
                task.pump(self.now)
                if task.over:
                    self.tasks.remove(task)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.run()

    def _serve(self, token: int) -> bool:
        task, asker, peer, key, generation, address, nbytes, told = self.asks[token]
        region = self.regions.get((peer, key, generation))
        if token in self.cancelled:
            self._end(token, Status.ECANCELLED)
        elif region is None:
            self._end(token, Status.EGONE)
        elif not told:
            self.asks[token] = (task, asker, peer, key, generation, address, nbytes, True)
            if region.on_asked is not None:
                region.on_asked(asker)
        elif region.there:
            ctypes.memmove(address, region.data.tobytes(), nbytes)
            self._end(token, Status.OK)
        else:
            return False
        return True

    def _end(self, token: int, status: Status) -> None:
        task = self.asks.pop(token)[0]
        task.on_ended(token, status, self.now)

    def lose(self, peer: bytes) -> None:
        """It is gone, with its link."""
        for token, ask in list(self.asks.items()):
            if ask[2] == peer:
                self._end(token, Status.EPEER)


class End:
    """One peer's access to the net: its asks, and its regions."""

    def __init__(self, net: Net, own: bytes) -> None:
        self.net, self.own = net, own

    def ask(self, task: Any, peer: bytes, key: bytes, generation: int, span: Any, address: int, priority: int) -> int:
        self.net.tokens += 1
        self.net.asks[self.net.tokens] = (task, self.own, peer, key, generation, address, span[1], False)
        return self.net.tokens

    def cancel(self, token: int) -> None:
        self.net.cancelled.add(token)

    def offer_region(
        self,
        key: bytes,
        generation: int,
        data: Any,
        hold: Any,
        whole: bool,
        changes: bool = False,
        on_asked: Any = None,
    ) -> Region:
        place = (self.own, key, generation)
        assert place not in self.net.regions
        self.net.regions[place] = Region(data, whole, on_asked)
        return self.net.regions[place]

    def quietly(self, command: str, key: bytes, generation: int, *_: int) -> None:
        if command == "withdraw":
            self.net.regions.pop((self.own, key, generation), None)
        else:
            self.net.regions[self.own, key, generation].there = True


class Peer:
    """A Post, and what it was told."""

    def __init__(self, net: Net, own: bytes) -> None:
        self.net, self.own = net, own
        self.heard: list[tuple[bytes, m.Message]] = []
        self.losses: list[tuple[bytes, str]] = []
        self.end: Any = End(net, own)
        self.open()

    def open(self) -> None:
        self.post = Post(
            ("kv", self.own), self.end, self.end, self.net.tasks.append, self.net.steps.append, lambda: self.net.now
        )
        self.post.told = lambda peer, message: self.heard.append((peer, message))
        self.post.lost = lambda peer, cause, _text: self.losses.append((peer, cause))
        self.post.open()


def note(number: int, size: int = 0) -> m.Finish:
    return m.Finish(number.to_bytes(16, "big"), bytes(size))


@pytest.fixture
def both() -> tuple[Net, Peer, Peer]:
    net = Net()
    return net, Peer(net, A), Peer(net, B)


def test_who_was_never_heard_of_is_answered_and_order_holds_both_ways(both: tuple[Net, Peer, Peer]) -> None:
    net, a, b = both
    for number in range(40):
        a.post.to(B).say(note(number, 5000 if number % 7 == 0 else 0))
    net.run()
    assert b.heard == [(A, note(number, 5000 if number % 7 == 0 else 0)) for number in range(40)]
    for number in range(200):
        b.post.to(A).say(note(number))
        if number % 3 == 0:
            net.run()
    net.run()
    assert a.heard == [(B, note(number)) for number in range(200)] and not a.losses and not b.losses
    assert sum(key[0] == B for key in net.regions) < 60, "slots that were read are withdrawn"


def test_both_begin_at_once(both: tuple[Net, Peer, Peer]) -> None:
    net, a, b = both
    a.post.to(B).say(note(1))
    b.post.to(A).say(note(2))
    net.run()
    assert a.heard == [(B, note(2))] and b.heard == [(A, note(1))]


def test_a_peer_without_a_pool_and_one_that_is_lost(both: tuple[Net, Peer, Peer]) -> None:
    net, a, b = both
    b.post.close()
    a.post.to(B).say(note(1))
    net.run()
    assert not a.losses, "it may be about to be there"
    for _ in range(3 * TRIES):
        net.wait(1.0)
    assert a.losses == [(B, "gone")]
    b.open()
    a.post.to(B).say(note(2))
    net.run()
    assert b.heard == [(A, note(2))]
    net.lose(B)
    net.run()
    assert a.losses == [(B, "gone"), (B, "lost")]
    assert not [key for key in net.regions if key[0] == A and key[1] != bell_key("kv")]


def test_a_pool_that_closes_is_noticed_and_its_successor_is_another(both: tuple[Net, Peer, Peer]) -> None:
    net, a, b = both
    a.post.to(B).say(note(1))
    net.run()
    b.post.to(A).say(note(1))
    b.post.close()
    net.run()
    assert (B, "gone") in a.losses
    b.open()
    b.post.to(A).say(note(3))
    net.run()
    assert a.heard[-1] == (B, note(3))
    assert not net.tasks or all(not task.over for task in net.tasks)


def test_what_is_no_mail_ends_the_correspondence_and_no_other(both: tuple[Net, Peer, Peer]) -> None:
    net, a, _b = both
    c = Peer(net, b"C" * 16)
    a.post.to(B).say(note(1))
    a.post.to(c.own).say(note(1))
    net.run()
    for place, region in list(net.regions.items()):
        if place[0] == B and region.data.size == SLOT_BYTES and not region.there:
            region.data[:] = 0xFF
            region.there = True
    net.run()
    assert a.losses == [(B, "protocol")]
    a.post.to(c.own).say(note(2))
    net.run()
    assert c.heard == [(A, note(1)), (A, note(2))]


def test_an_unknown_message_in_a_good_slot(both: tuple[Net, Peer, Peer]) -> None:
    net, a, b = both
    a.post.to(B).say(note(1))
    net.run()
    mail: Correspondence = b.post.to(A)
    for number, data, ahead in mail._writer.put(b"\x92\xa7unknown\x01"):
        mail._offer(ahead)
        mail._slots[number][: len(data)] = np.frombuffer(data, np.uint8)
        b.end.quietly("extend", mail._slot_key(A, mail._session), number)
    net.run()
    assert a.losses == [(B, "protocol")]


def test_a_head_that_never_comes_is_not_asked_for_for_ever(both: tuple[Net, Peer, Peer]) -> None:
    net, a, _ = both
    d = b"D" * 16
    net.regions[d, bell_key("kv"), 1] = Region(np.zeros(1, np.uint8), False, None)
    a.post.to(d).read()
    net.run()
    assert not a.losses
    for _ in range(3 * TRIES):
        net.wait(1.0)
    assert a.losses == [(d, "gone")]
