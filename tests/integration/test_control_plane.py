"""Coordinator and peers over real sockets on loopback, with an engine that moves no bytes."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from queue import Queue

import pytest
from unit.fake_engine import FakeEngine

from pccl.control import Control
from pccl.coordinator.server import Coordinator
from pccl.errors import AuthError, CoordinatorLost, Evicted, PcclError, ProtocolError, Timeout, TooFewPeers
from pccl.keys import run_keys
from pccl.session import State
from pccl.types import Cause, EpochView, Event, EventKind, OpInfo, OpName, Status

LONG = 30.0


class Node:
    """One peer: a Control and what it called back."""

    def __init__(self, address: str, run: str = "test", secret: bytes = b"secret", **options: float) -> None:
        self.engine = FakeEngine()
        self.ops: Queue[Event] = Queue()
        self.views: list[EpochView] = []
        self.changed = threading.Condition()
        self.infos: dict[int, OpInfo] = {}
        self.control = Control(
            address,
            run,
            run_keys(secret, run),
            0,
            self.engine,
            None,
            self.infos.get,
            self.ops.put,
            self._on_view,
            **options,
        )

    def _on_view(self, view: EpochView) -> None:
        with self.changed:
            self.views.append(view)
            self.changed.notify_all()

    def until(self, wanted: Callable[[EpochView], bool]) -> EpochView:
        """Waits for a view."""
        with self.changed:
            assert self.changed.wait_for(lambda: bool(self.views) and wanted(self.views[-1]), LONG)
            return self.views[-1]

    def post(self, token: int, name: OpName, what: str, finished: bool = False) -> None:
        self.infos[token] = OpInfo(what, (), False, name)
        self.engine.post(name, token, finished)

    def close(self) -> None:
        self.control.close()
        self.engine.close()


class Fleet:
    """A coordinator and its peers."""

    def __init__(self, **options: float) -> None:
        self.stack = ExitStack()
        # fake engines open no port
        coordinator = Coordinator(run="test", secret=b"secret", dial_back=False, **options)
        self.coordinator = self.stack.enter_context(coordinator)

    def node(self, **options: float) -> Node:
        node = Node(self.coordinator.address, **options)
        self.stack.callback(node.close)
        node.control.start()
        return node

    def joined(self, count: int) -> list[Node]:
        nodes = [self.node() for _ in range(count)]
        for node in nodes:
            node.control.join(LONG)
        return nodes


@pytest.fixture
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    fleet = Fleet(**getattr(request, "param", {}))
    with fleet.stack:
        yield fleet


def resources() -> tuple[int, int]:
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("fleet", [{"min_peers": 4}], indirect=True)
def test_four_join_and_agree(fleet: Fleet) -> None:
    nodes = fleet.joined(4)
    views = [node.control.view() for node in nodes]
    assert len(set(views)) == 1
    assert {member.id for member in views[0].members} == {node.control.peer_id for node in nodes}
    assert views[0].epoch == 1 and views[0].from_boundary == 0 and not views[0].paused
    assert all(member.address.startswith("127.0.0.1:") for member in views[0].members)
    status = fleet.coordinator.status().groups[0]
    assert status.state == "stable" and [peer.rank for peer in status.members] == [0, 1, 2, 3]


@pytest.mark.parametrize("fleet", [{"min_peers": 2}], indirect=True)
def test_growth_at_a_boundary(fleet: Fleet) -> None:
    a, b = fleet.joined(2)
    assert a.control.advance(LONG).epoch == 1 and a.control.boundary == 1
    c = fleet.node()
    view = c.control.join(LONG)
    entered = view.from_boundary
    assert c.control.boundary == entered >= 1
    for node in (a, b):
        while node.control.boundary < entered:
            node.control.advance(LONG)
        assert node.control.view().epoch == 2 and len(node.control.view().participants(entered)) == 3
    assert len(a.control.view().participants(entered - 1)) == 2
    assert a.control.epoch_view(1) is not None and a.control.epoch_view(77) is None


def test_a_vanished_process_is_out_in_no_time(fleet: Fleet) -> None:
    a, b, c = grown(fleet, 3)
    victim = b.control.peer_id
    a.post(7, OpName(a.control.boundary, 0, 0), "all_reduce")
    began = time.monotonic()
    b.control.close()  # without a word: the control connection closes
    for node in (a, c):
        node.engine.emit(Event(kind=EventKind.LINK_DOWN, peer=victim, cause=Cause.EOF))
        node.engine.emit(Event(kind=EventKind.LINK_DOWN, peer=victim, cause=Cause.REFUSED))
    a.until(lambda view: victim not in {member.id for member in view.members})
    elapsed = time.monotonic() - began
    assert elapsed < 2.0, "a lease of 5 s was waited for"
    log = fleet.coordinator.status().groups[0].log
    assert any(entry.what == "lost" and "refused" in entry.reason for entry in log)
    assert a.engine.ops, "an op that nobody judged starts again"


def grown(fleet: Fleet, count: int) -> list[Node]:
    """`count` peers in one epoch, with min_peers 1: each joins at the next boundary of those before it."""
    nodes: list[Node] = []
    for _ in range(count):
        node = fleet.node()
        while node.control.state is not State.MEMBER:
            for member in nodes:
                member.control.advance(LONG)
            try:
                node.control.join(0.05)
            except (Timeout, CoordinatorLost):
                continue
        nodes.append(node)
    for node in nodes:
        while node.control.boundary < nodes[-1].control.boundary:
            node.control.advance(LONG)
    return nodes


@pytest.mark.parametrize("fleet", [{"min_peers": 2, "lease_s": 0.3}], indirect=True)
def test_a_silent_peer_is_out_with_its_lease(fleet: Fleet) -> None:
    a, b = fleet.joined(2)
    blocked = threading.Event()
    b.control._thread.call(blocked.wait, LONG)  # its thread does not run any more, its connection stays
    view = a.until(lambda view: len(view.members) == 1)
    assert view.paused
    with pytest.raises(TooFewPeers, match="asks for 2"):
        a.control.advance(0.01)
    with pytest.raises(TooFewPeers):
        a.control.advance(LONG, wait_for_peers=False)
    blocked.set()
    with b.control.lock:
        with pytest.raises(Evicted, match="lease"):
            b.control._wait(lambda: False, LONG)
    assert ("fail_all", Status.EEVICTED) in b.engine.calls
    with pytest.raises(Evicted):
        b.control.advance(LONG)


@pytest.mark.parametrize("fleet", [{"min_peers": 2}], indirect=True)
def test_advance_waits_for_a_joiner_after_a_loss(fleet: Fleet) -> None:
    a, b = fleet.joined(2)
    assert b.control.leave(LONG)
    a.until(lambda view: view.paused)
    done: Queue[EpochView] = Queue()
    thread = threading.Thread(target=lambda: done.put(a.control.advance(LONG)))
    thread.start()
    c = fleet.node()
    entered = c.control.join(LONG)
    view = done.get(timeout=LONG)
    thread.join()
    assert view == entered and a.control.boundary == c.control.boundary and not view.paused


@pytest.mark.parametrize("fleet", [{"min_peers": 2}], indirect=True)
def test_a_fault_ends_the_op_on_every_peer(fleet: Fleet) -> None:
    a, b = fleet.joined(2)
    name = OpName(0, 0, 0)
    a.post(5, name, "all_reduce of 10")
    b.post(6, name, "all_reduce of 20")
    a.engine.emit(Event(kind=EventKind.MISMATCH, token=5, peer=b.control.peer_id, desc=99))
    for node, token in ((a, 5), (b, 6)):
        event = node.ops.get(timeout=LONG)
        assert (event.token, event.status) == (token, Status.EMISMATCH)
        assert "all_reduce of 10" in node.control.verdict_text(name)
        assert "all_reduce of 20" in node.control.verdict_text(name)
    b.post(8, OpName(0, 0, 1), "barrier")
    b.control.fault(8, "cancelled")
    assert b.ops.get(timeout=LONG).status == Status.ECANCELLED


@pytest.mark.parametrize(("run", "secret"), [("test", b"wrong"), ("other", b"secret")])
def test_a_stranger_gets_an_auth_error_quickly(fleet: Fleet, run: str, secret: bytes) -> None:
    node = Node(fleet.coordinator.address, run=run, secret=secret)
    fleet.stack.callback(node.close)
    node.control.start()
    with pytest.raises(AuthError, match="handshake"):
        node.control.join(LONG)
    assert fleet.coordinator.status().groups == ()


def test_no_coordinator_is_said_so() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # taken, but nobody listens
        node = Node(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        try:
            node.control.start()
            with pytest.raises(CoordinatorLost, match="no coordinator"):
                node.control.join(0.2)
        finally:
            node.close()


@pytest.mark.parametrize("fleet", [{"min_peers": 2}], indirect=True)
def test_garbage_changes_nothing(fleet: Fleet) -> None:
    a, b = fleet.joined(2)
    for garbage in (b"\0" * 10_000, b"GET / HTTP/1.1\r\n\r\n", b"\xff\0\0\0\0\0\0\0\1\x7f\3\1CURVE" + b"\0" * 100, b""):
        with socket.create_connection(("127.0.0.1", fleet.coordinator.port), LONG) as stranger:
            with suppress(OSError):  # closed by the other side at any point
                stranger.sendall(garbage)
                stranger.shutdown(socket.SHUT_WR)
                while stranger.recv(4096):
                    pass
    a.control._thread.call(a.control._dealer.send, b"\xc1 no message")
    a.control._thread.call(a.control._dealer.send_multipart, [b"two", b"frames"])
    a.control.advance(LONG)
    assert b.control.leave(LONG), "the coordinator does not answer any more"
    a.until(lambda view: len(view.members) == 1)
    assert fleet.coordinator.status().malformed == 2


def test_what_makes_no_sense_is_refused() -> None:
    with Coordinator(run="test", secret="secret", peers_max=1) as coordinator:
        first, second = Node(coordinator.address), Node(coordinator.address)
        try:
            first.control.start()
            first.control.join(LONG)
            second.control.start()
            with pytest.raises(ProtocolError, match="no more are possible"):
                second.control.join(LONG)
        finally:
            first.close()
            second.close()
    with pytest.raises(PcclError, match="cannot listen"):
        Coordinator(bind="tcp://256.0.0.1:1", secret="secret").start()


def test_leaving(fleet: Fleet) -> None:
    (a,) = fleet.joined(1)
    assert a.control.leave(LONG)
    assert a.control.state is State.CLOSED
    assert fleet.coordinator.status().groups[0].members == ()
    with pytest.raises(PcclError, match="closed"):
        a.control.advance(LONG)


def test_the_coordinator_is_gone(fleet: Fleet) -> None:
    node = fleet.node(coordinator_timeout_s=0.3)
    node.control.join(LONG)
    fleet.coordinator.close()
    with node.control.lock:
        with pytest.raises(CoordinatorLost):
            node.control._wait(lambda: False, LONG)
    assert ("fail_all", Status.ELOST) in node.engine.calls
    assert not node.control.leave(0.01)


@pytest.mark.parametrize("fleet", [{"min_peers": 2}], indirect=True)
def test_a_broken_control_connection_is_no_loss(fleet: Fleet) -> None:
    a, b = fleet.joined(2)
    cut(b)
    for node, other in ((a, b), (b, a)):
        node.engine.emit(Event(kind=EventKind.LINK_DOWN, peer=other.control.peer_id, cause=Cause.RESET))
    c = fleet.node()
    waited = c.control.join(LONG)  # needs Held from both
    assert len(waited.members) == 3 and waited.epoch == 2


def cut(node: Node) -> None:
    """Breaks the control connection from the inside, as a router on the way would; ZeroMQ dials again."""
    done = threading.Event()

    def again() -> None:
        dealer, endpoint = node.control._dealer, node.control._endpoints.current
        dealer.disconnect(endpoint)
        dealer.connect(endpoint)
        done.set()

    node.control._thread.call(again)
    assert done.wait(LONG)


def test_nothing_is_left_after_close() -> None:
    before: tuple[int, int] | None = None
    for _ in range(4):
        fleet = Fleet(min_peers=2)
        with fleet.stack:
            fleet.joined(2)
        before = before or resources()  # the first round pays for what is made once per process
    assert resources() == before


def test_advance_costs_no_switch(fleet: Fleet) -> None:
    (a,) = fleet.joined(1)
    began = time.perf_counter()
    for _ in range(2000):
        a.control.advance(LONG)
    each = (time.perf_counter() - began) / 2000
    assert each < 0.005
    assert a.engine.boundary == a.control.boundary == 2000
