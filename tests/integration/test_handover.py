"""A peer that dials its coordinator anew while its old connection is only half dead: the coordinator lives on.

libzmq 4.3.5 aborts the process when a connection whose messages nobody takes any more is reset, and a heartbeat of its
own falls due on it.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zmq
from integration.leaders import SECRET, Leader

from pccl import messages as m
from pccl.keys import as_secret, run_keys

ME = b"\x01" * 16
WAIT_S = 20.0
LEASE_S = 0.5


class Passage:
    """Passes one connection on, until it is reset."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._far = socket.create_connection(("127.0.0.1", port))
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        self._near = self._listener.accept()[0]
        self._listener.close()
        back = threading.Thread(target=self._pump, args=(self._far, self._near))
        self._threads.append(back)
        back.start()
        self._pump(self._near, self._far)

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)

    def reset(self) -> None:
        """The far end hears that it is dead, at once."""
        self._far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for end in (self._far, self._near):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RD)
        for thread in self._threads:
            thread.join()
        self._far.close()
        self._near.close()


def dealer(context: zmq.Context[zmq.Socket[bytes]], port: int) -> zmq.Socket[bytes]:
    keys = run_keys(as_secret(SECRET), "default")
    made = context.socket(zmq.DEALER)
    options = {zmq.LINGER: 0, zmq.HEARTBEAT_IVL: 100, zmq.HEARTBEAT_TIMEOUT: 30000, zmq.HEARTBEAT_TTL: 1000}
    for option, value in options.items():
        made.setsockopt(option, value)
    made.setsockopt(zmq.RECONNECT_IVL, -1)
    made.setsockopt(zmq.ROUTING_ID, ME)
    made.setsockopt(zmq.CURVE_SERVERKEY, keys.coordinator.public)
    made.setsockopt(zmq.CURVE_PUBLICKEY, keys.peer.public)
    made.setsockopt(zmq.CURVE_SECRETKEY, keys.peer.secret)
    made.connect(f"tcp://127.0.0.1:{port}")
    return made


def ask(over: zmq.Socket[bytes]) -> None:
    """And is answered."""
    over.send(m.encode(m.StatusRequest(m.VERSION, "default")))
    assert over.poll(WAIT_S * 1000) and over.recv()


@pytest.fixture
def leader(tmp_path: Path) -> Iterator[Leader]:
    made = Leader(tmp_path, "--lease", str(LEASE_S))
    made.start()
    yield made
    made.kill()


def test_an_old_connection_that_is_reset_after_its_handover_harms_nobody(leader: Leader) -> None:
    port = int(leader.address.rsplit(":", 1)[1])
    process = leader.process
    assert process is not None
    descriptors = Path(f"/proc/{process.pid}/fd")
    passage = Passage(port)
    with zmq.Context() as context, dealer(context, passage.port) as old:
        ask(old)
        had = len(list(descriptors.iterdir()))
        with dealer(context, port) as new:
            ask(new)  # all that comes from ME is taken from here from now on
            old.send(m.encode(m.StatusRequest(m.VERSION, "default")))  # which nobody takes
            ask(new)
            passage.reset()
            until = time.monotonic() + WAIT_S
            while process.poll() is None and len(list(descriptors.iterdir())) > had:
                assert time.monotonic() < until, "the old connection's descriptor is kept"
            assert process.poll() is None, "the coordinator is dead"
            ask(new)
