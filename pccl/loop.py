"""loop.py - a uvloop event loop in a thread of its own, and ZeroMQ sockets in it. Decides nothing.

ZeroMQ's descriptor only says that *something* happened to a socket, and a send may swallow that hint. So `ZmqReader`
reads until nothing is left, and whoever has sent outside of a read calls `poke`.
"""

from __future__ import annotations

import asyncio
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import uvloop
import zmq

from pccl.errors import HungError

BURST = 256
STOP_S = 5.0


class LoopThread:
    """One thread, one loop, one timer. `setup` and `teardown` run in the thread."""

    def __init__(self, name: str, setup: Callable[[], None], teardown: Callable[[], None]) -> None:
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._setup = setup
        self._teardown = teardown
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._lock = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """Runs a function in the thread, soon. Any thread; nothing happens once the loop was told to stop."""
        with self._lock:
            if not self._stopped:
                self.loop.call_soon_threadsafe(function, *args)

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Ends the thread and waits for it (not for itself). Any thread; idempotent.

        Raises HungError if it has not ended in time: it is a daemon, which does not keep the process from ending.
        """
        with self._lock:
            first, self._stopped = not self._stopped, True
            if first:
                self.loop.call_soon_threadsafe(self.loop.stop)
        if self._thread.ident is None:
            self.loop.close()
        elif self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                name = self._thread.name
                raise HungError(f"thread {name} has not ended within {timeout_s:g} s: it is {self._where()}")

    def _where(self) -> str:
        frame = sys._current_frames().get(self._thread.ident or 0)
        if frame is None:
            return "about to end"
        code = frame.f_code
        return f"in {code.co_name}, line {frame.f_lineno} of {code.co_filename}"

    def arm(self, deadline: float | None, callback: Callable[[], None]) -> None:
        """Calls back at a time of time.monotonic(), once; replaces the timer that was. Loop thread."""
        if self._timer is not None:
            if deadline == self._due:
                return
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            self._due = deadline
            self._timer = self.loop.call_later(max(0.0, deadline - time.monotonic()), self._fire, callback)

    def _fire(self, callback: Callable[[], None]) -> None:
        self._timer = None
        callback()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self._setup()
            self.loop.run_forever()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._teardown()
            asyncio.set_event_loop(None)
            self.loop.close()


class ZmqReader:
    """Hands every message of a socket to a function, in the loop's thread."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, socket: zmq.Socket[bytes], on_frames: Callable[[list[zmq.Frame]], None]
    ) -> None:
        self.socket = socket
        self._loop = loop
        self._on_frames = on_frames
        self._fd = int(socket.getsockopt(zmq.FD))
        loop.add_reader(self._fd, self.drain)
        self.poke()

    def poke(self) -> None:
        """Looks again, soon."""
        self._loop.call_soon(self.drain)

    def drain(self) -> None:
        """Reads what there is; after a long burst lets others run first."""
        for _ in range(BURST):
            if self.socket.closed:
                return
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._on_frames(frames)
        self.poke()

    def close(self) -> None:
        """Stops reading and closes the socket."""
        self._loop.remove_reader(self._fd)
        self.socket.close(linger=0)


def monitor_event(frames: list[zmq.Frame]) -> tuple[int, int]:
    """(event, value) of a socket monitor's message."""
    event, value = struct.unpack("=HI", frames[0].bytes)
    return event, value
