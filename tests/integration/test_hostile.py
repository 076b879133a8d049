"""Strangers at the ports: whatever they send to a peer or to the coordinator, the run does not notice."""

from __future__ import annotations

import os
import random
import resource
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import numpy as np
import pytest
from integration.wire import (
    CHALLENGE,
    DATA,
    FIN,
    HELLO,
    RELAY,
    RELAYED,
    SIZES,
    Frame,
    acceptor_mac,
    data_key,
    hello,
    receive,
    run_id,
    shake,
)

import pccl
from pccl.coordinator.server import Coordinator

PEERS = 3
PATIENCE_S = 30.0
CROWD = 500
RUN = "default"


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Loop:
    """Three peers that reduce until told to end; every result is checked."""

    def __init__(self) -> None:
        self.rounds = 0
        self.ids: dict[int, bytes] = {}
        self.epochs: set[int] = set()
        self.errors: list[BaseException] = []
        self.changed = threading.Condition()
        self.end = threading.Event()

    def body(self, comm: pccl.Communicator) -> None:
        """One peer; the sum of the last element tells all of them in the same round that it is over."""
        rank = comm.rank
        self.ids[rank] = comm.peer_id
        buffer = np.empty(50_000, np.float64)
        while True:
            buffer.fill(2.0**rank)
            buffer[-1] = float(rank == 0 and self.end.is_set())
            result = comm.all_reduce(buffer)
            assert (buffer[:-1] == 2.0**PEERS - 1).all()
            assert result.retries == 0
            assert result.world_size == PEERS
            with self.changed:
                self.epochs.add(result.epoch)
                self.rounds += rank == 0
                self.changed.notify_all()
            if buffer[-1]:
                return
            comm.advance()

    def guarded(self, connect: Callable[[], pccl.Communicator]) -> None:
        """The body in a thread."""
        try:
            with connect() as comm:
                self.body(comm)
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            with self.changed:
                self.errors.append(error)
                self.changed.notify_all()

    def goes_on(self, rounds: int = 10) -> None:
        """Waits until so many more results are there."""
        with self.changed:
            wanted = self.rounds + rounds
            moved = self.changed.wait_for(lambda: self.rounds >= wanted or self.errors, PATIENCE_S)
            assert moved, "the run stands still"
        if self.errors:
            raise self.errors[0]


@contextmanager
def running(cluster: object, **options: object) -> Iterator[tuple[Loop, Coordinator]]:
    """A run under way; afterwards: one epoch, nothing malformed on the way, no thread left."""
    coordinator = cluster.coordinator(PEERS)  # type: ignore[attr-defined]
    loop = Loop()
    connect = lambda: cluster.connect(coordinator, **options)  # type: ignore[attr-defined]  # noqa: E731
    threads = [threading.Thread(target=loop.guarded, args=(connect,), daemon=True) for _ in range(PEERS)]
    for thread in threads:
        thread.start()
    try:
        loop.goes_on()
        yield loop, coordinator
        loop.goes_on()
        assert len(loop.epochs) == 1, "the epoch changed"
    finally:
        loop.end.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads)
    assert not loop.errors


def dial(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def data_ports(coordinator: Coordinator) -> dict[bytes, int]:
    """Where each peer listens."""
    members = coordinator.status().groups[0].members
    return {member.peer: int(member.address.rpartition(":")[2]) for member in members}


def send_quietly(sock: socket.socket, data: bytes) -> None:
    """Sends until the other side has had enough."""
    with suppress(ConnectionError):
        sock.sendall(data)


def is_closed(sock: socket.socket) -> bool:
    """Whether the other side ends the connection, without a word."""
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True


def bad_hellos(peer: bytes) -> dict[str, bytes]:
    """One HELLO per thing that can be wrong with it."""
    run, me = run_id(RUN), secrets.token_bytes(16)
    good = hello(run, me, peer)
    return {
        "version": hello(run, me, peer, version=2),
        "run": hello(run_id("another"), me, peer),
        "acceptor": hello(run, me, me),
        "itself": hello(run, peer, peer),
        "stream": hello(run, me, peer, stream=1, streams=1),
        "streams": hello(run, me, peer, streams=65),
        "no streams": hello(run, me, peer, streams=0),
        "purpose": hello(run, me, peer, purpose=4),
        "no target": hello(run, me, peer, purpose=RELAY),
        "a target": hello(run, me, peer, target=me),
        "hops": hello(run, me, peer, purpose=RELAYED, hops=1),
        "checksum": good[:-1] + bytes([good[-1] ^ 1]),
        "magic": b"HTTP" + good[4:],
    }


def garbage(seed: int) -> list[bytes]:
    chance = random.Random(seed)
    noise = [chance.randbytes(4096), chance.randbytes(64)]
    return [b"\0" * 4096, *noise, b"GET / HTTP/1.1\r\n\r\n" * 10, b"\xff" * (1 << 20)]


def test_garbage_at_every_port(cluster: object) -> None:
    with running(cluster) as (loop, coordinator):
        before = descriptors()
        for data in garbage(1):
            for port in data_ports(coordinator).values():
                with dial(port) as sock:
                    send_quietly(sock, data)
                    if len(data) >= SIZES[HELLO]:
                        assert is_closed(sock)
            with dial(coordinator.port) as sock:
                send_quietly(sock, data)
            loop.goes_on(3)
        wait_for_descriptors(loop, before)


def wait_for_descriptors(loop: Loop, count: int) -> None:
    """The other side notices a moment later that we have closed; of a proven stranger, when its time is up."""
    deadline = time.monotonic() + PATIENCE_S
    while descriptors() > count and time.monotonic() < deadline:
        loop.goes_on(1)
    assert descriptors() <= count


def test_handshakes_that_are_wrong(cluster: object) -> None:
    with running(cluster) as (loop, coordinator):
        before = descriptors()
        for peer, port in data_ports(coordinator).items():
            for what, said in bad_hellos(peer).items():
                with dial(port) as sock:
                    sock.sendall(said)
                    assert is_closed(sock), what
        peer, port = next(iter(data_ports(coordinator).items()))
        with dial(port) as sock:  # the right words, the wrong secret
            said = hello(run_id(RUN), secrets.token_bytes(16), peer)
            sock.sendall(said)
            assert len(receive(sock, 76)) == 76
            send_quietly(sock, b"\0" * 44)
            assert is_closed(sock)
        wait_for_descriptors(loop, before)


def test_a_handshake_cut_short_is_given_up(cluster: object) -> None:
    with running(cluster) as (loop, coordinator), ExitStack() as stack:
        before = descriptors()
        sockets = []
        for peer, port in data_ports(coordinator).items():
            said = hello(run_id(RUN), secrets.token_bytes(16), peer)
            for kept in (0, 1, 50, SIZES[HELLO] - 1, SIZES[HELLO]):
                sock = stack.enter_context(dial(port))
                sock.sendall(said[:kept])
                sockets.append(sock)
        loop.goes_on()
        for sock in sockets:
            receive(sock, 1 << 16)  # a CHALLENGE for the whole ones, then the end
            sock.close()
        wait_for_descriptors(loop, before)


def test_frames_of_one_who_knows_the_secret(cluster: object) -> None:
    """It gets in as nobody's peer, or in the name of a member whose link is whole: neither is listened to."""
    with running(cluster) as (loop, coordinator):
        before = descriptors()
        key = data_key(cluster.secret.encode(), RUN)  # type: ignore[attr-defined]
        ports = data_ports(coordinator)
        frames = [
            Frame(DATA, payload_bytes=(1 << 32) - 1),
            Frame(DATA, payload_bytes=1 << 20, offset=1 << 60),
            Frame(FIN, epoch=1 << 31, link_seq=1 << 30, link_ack=1 << 30),
            Frame(99),
        ]
        for frame in frames:
            for peer, port in ports.items():
                for name in (secrets.token_bytes(16), *(other for other in ports if other != peer)):
                    with dial(port) as sock:
                        assert shake(sock, key, hello(run_id(RUN), name, peer))
                        send_quietly(sock, frame.pack() + bytes(4096))
            loop.goes_on(3)
        wait_for_descriptors(loop, before)


def test_only_members_are_relayed(cluster: object) -> None:
    """With the secret and a member's name one gets as far as another member's CHALLENGE, else nowhere."""
    with running(cluster) as (loop, coordinator):
        before = descriptors()
        key = data_key(cluster.secret.encode(), RUN)  # type: ignore[attr-defined]
        run, stranger = run_id(RUN), secrets.token_bytes(16)
        ports = data_ports(coordinator)
        (relay, port), (dialler, _), (target, _) = ports.items()
        with dial(port) as sock:  # the right names, the wrong secret
            said = hello(run, dialler, relay, purpose=RELAY, target=target)
            sock.sendall(said)
            assert len(receive(sock, SIZES[CHALLENGE])) == SIZES[CHALLENGE]
            send_quietly(sock, b"\0" * 44)
            assert is_closed(sock)
        for one, other in ((stranger, target), (dialler, stranger), (dialler, relay)):
            with dial(port) as sock:
                assert shake(sock, key, hello(run, one, relay, purpose=RELAY, target=other))
                assert is_closed(sock)
        for garbage_first in (True, False):
            with dial(port) as sock:
                assert shake(sock, key, hello(run, dialler, relay, purpose=RELAY, target=target))
                said = hello(run, dialler, target)
                sock.sendall(b"\0" * len(said) if garbage_first else said)
                challenge = receive(sock, SIZES[CHALLENGE])
                if garbage_first:
                    assert challenge == b"" and is_closed(sock)
                else:
                    assert challenge[40:72] == acceptor_mac(key, said, challenge[8:40]), "the target's own"
            loop.goes_on(3)
        wait_for_descriptors(loop, before)


def crowd(stack: ExitStack, port: int) -> None:
    for _ in range(CROWD):
        stack.enter_context(dial(port))


def test_a_crowd_that_says_nothing(cluster: object) -> None:
    """Nor does it keep out one who has something to say."""
    with running(cluster) as (loop, coordinator):
        before = descriptors()
        key = data_key(cluster.secret.encode(), RUN)  # type: ignore[attr-defined]
        peer, port = next(iter(data_ports(coordinator).items()))
        with ExitStack() as stack:
            crowd(stack, port)
            loop.goes_on()
            crowd(stack, port)
            with dial(port) as sock:
                assert shake(sock, key, hello(run_id(RUN), secrets.token_bytes(16), peer))
            loop.goes_on()
        with ExitStack() as stack:
            crowd(stack, coordinator.port)
            loop.goes_on()
            with pytest.raises(pccl.Timeout, match="waits for 2 more peers"):  # an answer
                cluster.connect(coordinator, group=1, timeout=3.0)  # type: ignore[attr-defined]
        wait_for_descriptors(loop, before)
