"""connection.py - one TCP connection of the doctor: bytes with deadlines, and the handshake of both sides.

Everything that can go wrong with the network becomes an error of pccl that begins with the other side's address.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pccl.addresses import host_of, joined
from pccl.doctor import handshake as h
from pccl.doctor.errors import Busy, Gone, Unreachable
from pccl.errors import AuthError, PcclError, ProtocolError, Timeout

__all__ = ["Connection", "connect", "introduce", "receive_caller", "within"]

#: As the engine's: short queues, so that what a flow measures is what an op would get.
UNSENT_BYTES = 512 << 10
TCP_NOTSENT_LOWAT = 25
HANDSHAKE_S = 5.0
_LINGER_RESET = struct.pack("ii", 1, 0)

T = TypeVar("T")
Admit = Callable[[h.Hello], h.Verdict]


async def within(seconds: float, awaitable: Awaitable[T], message: str) -> T:
    """The result; Timeout with the message if it takes longer.

    Not asyncio.wait_for: before Python 3.12 it forgets a cancellation that comes together with the result.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        done, _ = await asyncio.wait([task], timeout=seconds)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    if not done:
        raise Timeout(message)
    return task.result()


class Connection:
    """A connected socket. `remote`: the other side's numeric "host:port"."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):  # a wish, as the engine's
            sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        self.sock = sock
        here, there = sock.getsockname(), sock.getpeername()
        self.own_host, self.remote_host = host_of(here), host_of(there)
        self.remote = joined(self.remote_host, there[1])

    async def read(self, count: int) -> bytes:
        """Exactly so many bytes. Raises Gone."""
        data = bytearray(count)
        view, got = memoryview(data), 0
        while got < count:
            try:
                more = await asyncio.get_running_loop().sock_recv_into(self.sock, view[got:])
            except OSError as error:
                raise Gone(f"{self.remote} is gone: {_words(error)}") from error
            if more == 0:
                raise Gone(f"{self.remote} closed the connection")
            got += more
        return bytes(data)

    async def write(self, data: bytes) -> None:
        """All of it. Raises Gone."""
        try:
            await asyncio.get_running_loop().sock_sendall(self.sock, data)
        except OSError as error:
            raise Gone(f"{self.remote} is gone: {_words(error)}") from error

    def close(self) -> None:
        """What was written still arrives. Idempotent."""
        self.sock.close()

    def abort(self) -> None:
        """Drops what was written: a test's bytes would only hold up what follows. Idempotent."""
        if self.sock.fileno() >= 0:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        self.sock.close()


async def connect(host: str, port: int, seconds: float, *, numeric: bool = False) -> Connection:
    """To the first of the host's addresses that answers. `numeric`: ask no resolver. Raises Unreachable or Timeout."""
    address = joined(host, port)
    flags = socket.AI_NUMERICHOST if numeric else 0
    loop = asyncio.get_running_loop()
    try:
        asked = loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
        found = await within(seconds, asked, f"the resolver did not tell within {seconds:g} s who {host} is")
    except socket.gaierror as error:
        raise Unreachable(f"no host {host!r}: {error.strerror}") from error
    failure: PcclError = Unreachable(f"no address of {host!r}")
    for family, kind, protocol, _, sockaddr in found:
        try:
            return await _dial(address, family, kind, protocol, sockaddr, seconds)
        except PcclError as error:
            failure = error
    raise failure


async def _dial(
    address: str, family: int, kind: int, protocol: int, sockaddr: tuple[object, ...], seconds: float
) -> Connection:
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        dialled = asyncio.get_running_loop().sock_connect(sock, sockaddr)
        silent = f"no answer from {address} within {seconds:g} s: nothing is there, or a firewall drops our packets"
        await within(seconds, dialled, silent)
        return Connection(sock)
    except BaseException as error:
        sock.close()
        if isinstance(error, ConnectionRefusedError):
            raise Unreachable(f"nobody listens at {address}, or a firewall refuses: {_words(error)}") from error
        if isinstance(error, OSError) and not isinstance(error, PcclError):
            raise Unreachable(f"no way to {address}: {_words(error)}") from error
        raise


async def introduce(connection: Connection, key: bytes, hello: h.Hello) -> bytes:
    """The dialler's side of the handshake: the key of what is said afterwards. Raises Timeout, AuthError, Busy, Gone or
    ProtocolError, each naming the other side.
    """
    remote = connection.remote
    silent = f"{remote} took the connection, but said nothing for {HANDSHAKE_S:g} s: no pccl doctor --listen there?"
    try:
        return await within(HANDSHAKE_S, _introduce(connection, key, hello), silent)
    except (AuthError, ProtocolError, Busy) as error:
        raise type(error)(f"{remote} {error.message}") from None


async def _introduce(connection: Connection, key: bytes, hello: h.Hello) -> bytes:
    said = hello.pack()
    await connection.write(said)
    head = await connection.read(h.HEAD.size)
    h.check_head(head)
    said += head + await connection.read(h.CHALLENGE.size - len(head))
    await connection.write(h.proof(key, said))
    h.judge(key, said, await connection.read(h.VERDICT.size))
    return h.talk_key(key, said)


async def receive_caller(connection: Connection, key: bytes, admit: Admit) -> tuple[h.Hello, bytes]:
    """The acceptor's side: who came, and the key of what is said afterwards. Raises AuthError or ProtocolError for whom
    nothing is to be done, naming it; it got no more than the table of the handshake says.
    """
    remote = connection.remote
    try:
        return await within(HANDSHAKE_S, _receive_caller(connection, key, admit), "said nothing in time")
    except (AuthError, ProtocolError, Timeout) as error:
        raise type(error)(f"{remote} {error.message}") from None


async def _receive_caller(connection: Connection, key: bytes, admit: Admit) -> tuple[h.Hello, bytes]:
    said = await connection.read(h.HEAD.size)
    answer = h.challenge(os.urandom(h.NONCE_BYTES))
    try:
        h.check_head(said)
    except ProtocolError:
        if said.startswith(h.MAGIC):
            await connection.write(answer)  # another version: it shall learn ours
        raise
    said += await connection.read(h.HELLO.size - len(said))
    hello = h.unpack_hello(said)
    await connection.write(answer)
    said += answer
    if not h.proves(key, said, await connection.read(h.PROOF_BYTES)):
        await connection.write(h.verdict(key, said, h.Verdict.WRONG_SECRET))
        raise AuthError("does not know the secret, or means another run")
    decision = admit(hello)
    await connection.write(h.verdict(key, said, decision))
    if decision is not h.Verdict.WELCOME:
        raise ProtocolError(f"knows the secret, but was turned away: {decision.name.lower().replace('_', ' ')}")
    return hello, h.talk_key(key, said)


def _words(error: OSError) -> str:
    return error.strerror or str(error)
