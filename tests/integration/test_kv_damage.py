"""Bytes that change on their way between two pools: what is damaged is found before it counts, and fetched again."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
from integration import kv_pools

import pccl.kv as kv

BLOCKS = 64
BLOCK_BYTES = 256 << 10
CHUNK = 128 << 10
WAIT_S = 60.0


class Damager:
    """Passes streams on to a port, and changes a byte in the middle of each large chunk, so many times once armed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self.left = self.done = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                near.close()
                continue
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        buffer = bytearray(CHUNK)
        try:
            while count := source.recv_into(buffer):
                self._damage(buffer, count)
                sink.sendall(memoryview(buffer)[:count])
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            for one in (source, sink):
                one.close()

    def _damage(self, buffer: bytearray, count: int) -> None:
        with self._lock:
            if count < CHUNK // 4 or not self.left:
                return
            self.left -= 1
            self.done += 1
        buffer[count // 2] ^= 0x10


@contextmanager
def apart(cluster: Any) -> Iterator[tuple[list[Any], list[Damager]]]:
    """Two communicators that reach each other through Damagers."""
    coordinator = cluster.coordinator(1, form_peers=2)
    joined: list[Any] = []
    with ExitStack() as stack:
        damagers = []
        threads = []
        for _ in range(2):
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            damagers.append(Damager(port))
            stack.callback(damagers[-1].close)
            options = {"listen": f"127.0.0.1:{port}", "advertise": damagers[-1].address, "transport": "tcp"}
            threads.append(threading.Thread(target=_join, args=(cluster, coordinator, options, joined)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for comm in joined:
            stack.enter_context(comm)
        yield joined, damagers


def _join(cluster: Any, coordinator: Any, options: dict[str, Any], joined: list[Any]) -> None:
    joined.append(cluster.connect(coordinator, **options))


@pytest.mark.parametrize("damage", [1, 300])
def test_what_is_damaged_is_fetched_again(cluster: Any, damage: int) -> None:
    """Once: a digest finds it. So often that the first try is damaged all over and the second in places: checksums of
    frames find that.
    """
    layout = kv_pools.layout(layers=("L0",), block_bytes=BLOCK_BYTES)
    content = np.random.default_rng(2).integers(0, 256, BLOCKS * BLOCK_BYTES, np.uint8)
    memory = np.zeros_like(content)
    with apart(cluster) as (comms, damagers):
        with (
            kv.register(comms[0], layout, {"full": [memory]}) as d,
            kv.register(comms[1], layout, {"full": [content.copy()]}) as p,
        ):
            order = np.random.default_rng(3).permutation(BLOCKS).tolist()
            receive = d.prep_recv("r", range(BLOCKS), deadline=WAIT_S)
            send = p.open_send(receive.ticket, order)
            for damager in damagers:
                damager.left = damage
            send.layer_ready("L0")
            send.finish()
            assert receive.wait(WAIT_S).committed
            send.wait(WAIT_S)
        expected = content.reshape(BLOCKS, BLOCK_BYTES)[order]
        assert np.array_equal(memory.reshape(BLOCKS, BLOCK_BYTES), expected)
        assert any(damager.done for damager in damagers)
