"""door.py - a listening socket that lets in who knows the secret, a bounded number at a time.

Strangers cannot hold it: a handshake has little time and few bytes, and when too many are under way the oldest goes.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence

from pccl.addresses import joined, split
from pccl.doctor.connection import Admit, Connection, receive_caller
from pccl.doctor.handshake import Hello
from pccl.errors import PcclError

__all__ = ["Door", "Note", "open_port"]

HANDSHAKES_MAX = 64
BACKLOG = 128
#: So often trouble at the door is told of; more would only fill a log.
NOTES_MAX = 50
#: After an accept that failed for lack of descriptors or memory.
PAUSE_S = 0.1

Enter = Callable[[Hello, Connection, bytes], None]
Note = Callable[[str], None]


def open_port(addresses: Sequence[str]) -> socket.socket:
    """A socket that listens at the first "host:port" that this host has. [::] takes IPv4 too. Raises PcclError."""
    for address in addresses:
        host, port = split(address)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            return _listen(found[0][0], found[0][4])
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL) or address == addresses[-1]:
                raise PcclError(f"cannot listen at {address}: {error.strerror or error}") from error
    raise PcclError("no address to listen at")


def _listen(family: int, sockaddr: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(sockaddr)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


class Door:
    """Accepts, shakes hands, hands over. `admit` decides about one who knows the secret, `enter` takes the connection
    over when it has been told so; `note` is told who was turned away, and why.
    """

    def __init__(self, sock: socket.socket, key: bytes, admit: Admit, enter: Enter, note: Note) -> None:
        self._sock = sock
        self._key = key
        self._admit = admit
        self._enter = enter
        self._note = note
        self._notes = 0
        self._handshakes: dict[asyncio.Task[None], None] = {}  # oldest first
        name = sock.getsockname()
        self.port = int(name[1])
        self.address = joined(str(name[0]), self.port)

    async def serve(self) -> None:
        """Until cancelled; closes the socket then."""
        try:
            while True:
                self._begin(await self._accept())
        finally:
            self._sock.close()
            for task in self._handshakes:
                task.cancel()
            await asyncio.gather(*self._handshakes, return_exceptions=True)

    async def _accept(self) -> socket.socket:
        while True:
            try:
                sock, _ = await asyncio.get_running_loop().sock_accept(self._sock)
                return sock
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED):
                    raise
                self._tell(f"cannot accept: {error.strerror}")
                self._drop_oldest()
                await asyncio.sleep(PAUSE_S)

    def _begin(self, sock: socket.socket) -> None:
        if len(self._handshakes) >= HANDSHAKES_MAX:
            self._drop_oldest()
        try:
            connection = Connection(sock)
        except OSError:  # it is gone already
            sock.close()
            return
        task = asyncio.ensure_future(self._shake(connection))
        self._handshakes[task] = None
        task.add_done_callback(lambda done: self._handshakes.pop(done, None))

    def _drop_oldest(self) -> None:
        oldest = next(iter(self._handshakes), None)
        if oldest is not None:
            self._handshakes.pop(oldest)
            oldest.cancel()

    async def _shake(self, connection: Connection) -> None:
        try:
            hello, key = await receive_caller(connection, self._key, self._admit)
        except PcclError as error:
            connection.close()
            self._tell(f"turned away: {error}")
        except BaseException:
            connection.close()
            raise
        else:
            self._enter(hello, connection, key)

    def _tell(self, text: str) -> None:
        self._notes += 1
        if self._notes <= NOTES_MAX:
            self._note(text)
        if self._notes == NOTES_MAX:
            self._note("from now on no caller that is turned away is told of")
