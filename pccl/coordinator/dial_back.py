"""dial_back.py - opens a connection to each address that a joiner advertises, and closes it: can it be dialled?

Decides nothing. The engine there sees a stranger that goes away. Only numeric addresses are tried, a few per peer and
so many at a time, each for DIAL_S at most. Nobody is asked to resolve them: the loop would do that on four threads of
its own, which stay, and which the end of the process waits for.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
from collections.abc import Callable, Sequence

from pccl.addresses import split
from pccl.errors import ArgumentError

__all__ = ["DIAL_S", "DialBacks"]

DIAL_S = 2.0
ADDRESSES_MAX = 4
AT_ONCE_MAX = 64


class DialBacks:
    """All that are under way in one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, dial_s: float = DIAL_S) -> None:
        self._loop = loop
        self._dial_s = dial_s
        self._room = asyncio.Semaphore(AT_ONCE_MAX)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, addresses: Sequence[str], done: Callable[[str | None], None]) -> None:
        """Tries the addresses; calls back with the first that answers, or None. Loop thread."""
        task = self._loop.create_task(self._run(addresses[:ADDRESSES_MAX], done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Ends all of them, without calling back. The loop has been stopped and is not closed yet."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))

    async def _run(self, addresses: Sequence[str], done: Callable[[str | None], None]) -> None:
        tries = [self._loop.create_task(self._try(address)) for address in addresses]
        try:
            found = None
            for answer in asyncio.as_completed(tries):
                found = await answer
                if found is not None:
                    break
        finally:
            for other in tries:
                other.cancel()
        done(found)

    async def _try(self, address: str) -> str | None:
        async with self._room:
            try:
                await asyncio.wait_for(self._dial(address), self._dial_s)
            except (OSError, ArgumentError, ValueError, TimeoutError):
                return None
        return address

    async def _dial(self, address: str) -> None:
        host, port = split(address)
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            failure = probe.connect_ex((host, port))
            if failure == errno.EINPROGRESS:
                await self._writable(probe)
                failure = probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure:
            raise OSError(failure, os.strerror(failure))

    async def _writable(self, probe: socket.socket) -> None:
        came = asyncio.Event()
        self._loop.add_writer(probe, came.set)
        try:
            await came.wait()
        finally:
            self._loop.remove_writer(probe)
