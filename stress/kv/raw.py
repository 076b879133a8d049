"""raw.py - what plain TCP carries between the same two processes: blocking sockets, one thread for each stream."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import numpy as np

CHUNK = 1 << 20


class Sink:
    """Receives so many bytes over so many streams into memory; `wait` gives when the last one came."""

    def __init__(self, host: str, streams: int, memory: Any) -> None:
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

    @staticmethod
    def _take(connection: socket.socket, part: memoryview) -> None:
        with connection:
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

    def __init__(self, host: str, port: int, streams: int, congestion: str) -> None:
        self._sockets = [socket.create_connection((host, port)) for _ in range(streams)]
        for one in self._sockets if congestion else []:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())

    def send(self, memory: Any) -> float:
        """Sends all of it; gives when that began."""
        began = time.monotonic()
        parts = np.array_split(memory, len(self._sockets))
        threads = [
            threading.Thread(target=self._give, args=pair, daemon=True)
            for pair in zip(self._sockets, parts, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return began

    @staticmethod
    def _give(connection: socket.socket, part: Any) -> None:
        with connection:
            connection.sendall(part)
