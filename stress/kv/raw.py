"""raw.py - what plain TCP carries between the same two processes: blocking sockets, one thread for each stream.

Streams are warm before the time begins: each has carried so many bytes, and been told that they have come.
"""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import numpy as np

CHUNK = 1 << 20


class Sink:
    """Receives so many bytes over so many streams into memory; `wait` gives when the last one came."""

    def __init__(self, host: str, streams: int, memory: Any, warm_bytes: int) -> None:
        self._warm_bytes = warm_bytes
        self._listener = socket.create_server((host, 0), backlog=streams)
        self.port = self._listener.getsockname()[1]
        self._parts = np.array_split(memory, streams)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        threads = []
        for part in self._parts:
            connection, _ = self._listener.accept()
            threads.append(threading.Thread(target=self._take, args=(connection, memoryview(part)), daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join()
        self._listener.close()
        self.ended_at = time.monotonic()

    def _take(self, connection: socket.socket, part: memoryview) -> None:
        with connection:
            for left in range(self._warm_bytes, 0, -CHUNK):
                connection.recv(min(left, CHUNK), socket.MSG_WAITALL)
            connection.sendall(b"w")
            at = 0
            while at < len(part):
                count = connection.recv_into(part[at : at + CHUNK])
                if not count:
                    return
                at += count

    def wait(self) -> float:
        """Blocks until everything has come."""
        self._thread.join()
        return self.ended_at


class Source:
    """Streams that are open before `send` is called. `congestion`: "": the system's."""

    def __init__(self, host: str, port: int, streams: int, congestion: str, warm_bytes: int) -> None:
        self._sockets = [socket.create_connection((host, port)) for _ in range(streams)]
        for one in self._sockets if congestion else []:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
        self._each([self._warm] * streams, [bytes(warm_bytes)] * streams)

    def send(self, memory: Any) -> float:
        """Sends all of it; gives when that began."""
        began = time.monotonic()
        self._each([self._give] * len(self._sockets), np.array_split(memory, len(self._sockets)))
        return began

    def _each(self, steps: Any, parts: Any) -> None:
        threads = [
            threading.Thread(target=step, args=(one, part), daemon=True)
            for step, one, part in zip(steps, self._sockets, parts, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    @staticmethod
    def _warm(connection: socket.socket, part: Any) -> None:
        connection.sendall(part)
        connection.recv(1)

    @staticmethod
    def _give(connection: socket.socket, part: Any) -> None:
        with connection:
            connection.sendall(part)
