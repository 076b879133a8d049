"""listener.py - the side that waits: one client after another, each examined to its end. Decides who may come in when.

Who knows the secret may be a client (if nobody else is being examined), a stream that the client announced, or a call
of it; anything else is turned away.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence

from pccl.addresses import joined
from pccl.doctor.connection import Connection, within
from pccl.doctor.door import Door, Note
from pccl.doctor.facts import Measurements, Place
from pccl.doctor.handshake import Hello, Purpose, Verdict
from pccl.doctor.host import this_host
from pccl.doctor.talk import Talk
from pccl.doctor.visit import Visit
from pccl.errors import PcclError

__all__ = ["Listener"]


class Listener:
    """Made within a running loop; `close` at the end. `advertise`: numeric "host:port" under which runs would dial this
    machine, if that is not where the client finds it.
    """

    def __init__(self, sock: socket.socket, key: bytes, advertise: Sequence[str], note: Note) -> None:
        self._key = key
        self._advertise = advertise
        self._note = note
        self._visit: Visit | None = None
        self._arrived: asyncio.Queue[Visit] = asyncio.Queue()
        self._door = Door(sock, key, self._admit, self._enter, note)
        self._serving = asyncio.ensure_future(self._door.serve())
        self.address = self._door.address
        self.port = self._door.port

    async def examine_one(self, wait_s: float | None) -> Measurements:
        """What the next client has found. Raises Timeout if none comes within `wait_s`, or what went wrong with it."""
        nobody = f"nobody who knows the secret came to {self.address} within {wait_s or 0:g} s"
        visit = await self._next() if wait_s is None else await within(wait_s, self._next(), nobody)
        self._note(f"examining the path to {visit.remote}")
        try:
            return await visit.run()
        finally:
            self._visit = None

    async def close(self) -> None:
        """Ends all connections."""
        self._serving.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)
        if self._visit is not None:
            self._visit.close()

    async def _next(self) -> Visit:
        """The next client; what goes wrong with the door is raised."""
        arrived = asyncio.ensure_future(self._arrived.get())
        try:
            await asyncio.wait([arrived, self._serving], return_when=asyncio.FIRST_COMPLETED)
            if not arrived.done():
                raise PcclError(f"cannot accept at {self.address} any more: {self._serving.exception()}")
            return arrived.result()
        finally:
            arrived.cancel()

    def _admit(self, hello: Hello) -> Verdict:
        if hello.purpose is Purpose.SESSION:
            return Verdict.WELCOME if self._visit is None else Verdict.BUSY
        expected = self._visit is not None and self._visit.expects(hello)
        return Verdict.WELCOME if expected else Verdict.NOT_EXPECTED

    def _enter(self, hello: Hello, connection: Connection, key: bytes) -> None:
        if hello.purpose is not Purpose.SESSION:
            if self._visit is None or not self._visit.enter(hello, connection):
                connection.close()  # nobody waits for it any more
        elif self._visit is None:
            talk = Talk(connection, key, "listener")
            self._visit = Visit(talk, self._key, self._place_of(connection), os.urandom(16))
            self._arrived.put_nowait(self._visit)
        else:
            connection.close()  # another client was a moment faster

    def _place_of(self, connection: Connection) -> Place:
        """This side, as it tells the client of itself; the client knows better where it is seen."""
        own = connection.own_host
        addresses = tuple(self._advertise) or (joined(own, self.port),)
        return Place(this_host(), own, own, self.address, addresses)
