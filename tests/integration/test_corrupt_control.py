"""A byte of the control connection is changed on its way, under a good TCP checksum: it is made anew within seconds."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest

import pccl

PEERS = 2
LEASE_S = 4.0
PATIENCE_S = 30.0


class Corrupter:
    """Passes connections on to a coordinator; changes a byte of one when told to."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connections = 0
        self.changed = threading.Event()
        self.swallows = False  # what comes over new connections goes nowhere
        self._armed: str | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"

    def corrupt(self, way: str, at: int = -1) -> None:
        """The next bytes that go that way ("up" or "down") are not what was sent."""
        self.changed.clear()
        self._at, self._armed = at, way

    def cut(self) -> None:
        """All connections of now."""
        for end in self._sockets:
            shut(end)

    def _accept(self) -> None:
        while True:
            try:
                here = self._listener.accept()[0]
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", self.port))
            self.connections += 1
            self._sockets += [here, there]
            if self.swallows:
                continue
            for way, pair in (("up", (here, there)), ("down", (there, here))):
                self._threads.append(threading.Thread(target=self._pass_on, args=(way, *pair)))
                self._threads[-1].start()

    def _pass_on(self, way: str, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                if self._armed == way:
                    self._armed = None
                    mangled = bytearray(data)
                    mangled[self._at] ^= 1
                    data = bytes(mangled)
                    self.changed.set()
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            shut(end)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        for end in self._sockets:
            end.close()


def shut(end: socket.socket) -> None:
    with suppress(OSError):  # the other side may have been first
        end.shutdown(socket.SHUT_RDWR)


@contextmanager
def corrupter(port: int) -> Iterator[Corrupter]:
    made = Corrupter(port)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize(("way", "greeting"), [("up", False), ("down", False), ("up", True), ("down", True)])
def test_it_is_connected_again_and_stays_a_member(cluster: Any, way: str, greeting: bool) -> None:
    """`greeting`: the first byte of a new connection is wrong, after which libzmq gives up without a word."""
    coordinator = cluster.coordinator(PEERS, lease_s=LEASE_S)
    secret = {"secret": cluster.secret, "listen": "127.0.0.1:0", "timeout": PATIENCE_S, "op_timeout": PATIENCE_S}
    other: list[pccl.Communicator] = []
    join = threading.Thread(target=lambda: other.append(pccl.connect(coordinator.address, **secret)))
    with corrupter(coordinator.port) as between:
        join.start()
        with pccl.connect(between.address, **secret) as comm:
            join.join(PATIENCE_S)
            with other[0]:
                before = between.connections
                between.corrupt(way, 0 if greeting else -1)
                if greeting:
                    between.cut()
                assert between.changed.wait(PATIENCE_S)
                first, second = (each.all_reduce(np.ones(4), async_op=True) for each in (comm, other[0]))
                assert first.wait().world_size == second.wait().world_size == PEERS
                wait_until(lambda: "reconnected" in str(coordinator.status()), LEASE_S)
                assert between.connections > before
                assert "lease" not in [entry.what for entry in coordinator.status().groups[0].log]
                assert comm.advance().epoch == comm.epoch


def test_handshakes_that_hang_are_given_up_in_time(cluster: Any) -> None:
    """A wrong byte may make either side wait for more: two new connections stay silent, and the lease goes on."""
    coordinator = cluster.coordinator(1, lease_s=LEASE_S)
    with (
        corrupter(coordinator.port) as between,
        pccl.connect(between.address, secret=cluster.secret, listen="127.0.0.1:0", timeout=PATIENCE_S) as comm,
    ):
        before = between.connections
        between.swallows = True
        between.cut()
        wait_until(lambda: between.connections == before + 2, LEASE_S)
        between.swallows = False
        wait_until(lambda: "reconnected" in str(coordinator.status()), LEASE_S)
        assert "lease" not in [entry.what for entry in coordinator.status().groups[0].log]
        assert comm.advance().epoch == comm.epoch


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    """AssertionError if it does not come in time."""
    deadline = time.monotonic() + seconds
    poll = threading.Event()
    while not holds():
        assert time.monotonic() < deadline, f"this does not come within {seconds:g} s"
        poll.wait(0.05)
