"""client.py - the side that comes: measures one thing after another, each bounded in time.

Round trips and clocks first, while the path is idle; then who can dial whom; then flows, one stream and many, one
direction after the other, each after a round trip that finds the queues of the one before it empty.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from pccl.addresses import joined, split
from pccl.doctor.calls import CALL_S, call_all
from pccl.doctor.connection import Connection, connect, introduce
from pccl.doctor.door import Door, Note
from pccl.doctor.errors import Gone
from pccl.doctor.facts import Call, Clock, Flow, Measurements, Place, Role
from pccl.doctor.handshake import NO_SESSION, NONCE_BYTES, Hello, Purpose, Verdict
from pccl.doctor.host import this_host
from pccl.doctor.talk import Bye, Called, CallMe, Done, FlowDone, FlowPlan, FlowReady, Open, Ping, Pong, Talk, Welcome
from pccl.doctor.traffic import receive, send, warm_up_s
from pccl.errors import ProtocolError, Timeout

__all__ = ["Wishes", "examine"]

CONNECT_S = 5.0
ANSWER_S = 10.0
PINGS = 20
PINGS_LEAST = 3
PINGS_S = 3.0
#: A flow's end may be late by so much.
FLOW_GRACE_S = 15.0


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user asked for. `seconds`: of each of the four flows. `listens`: the "host:port" that `door` was opened
    for; `advertise`: numeric addresses under which runs would dial this machine, empty: where the listener sees it.
    """

    seconds: float
    streams: int
    door: socket.socket
    listens: str
    advertise: Sequence[str]


async def examine(target: str, key: bytes, wishes: Wishes, note: Note) -> Measurements:
    """Examines the path to the listener at "host:port"; takes some 15 seconds and four times `wishes.seconds` at most.

    Raises Unreachable, Timeout, AuthError, ProtocolError, Busy, Gone or GaveUp, each naming the other side.
    """
    host, port = split(target)
    connection = await connect(host, port, CONNECT_S)
    try:
        talk_key = await introduce(connection, key, Hello(Purpose.SESSION, NO_SESSION, 0, os.urandom(NONCE_BYTES)))
        talk = Talk(connection, talk_key, "client")
        await talk.say(Open(this_host(), wishes.seconds), ANSWER_S)
        welcome = await talk.hear(Welcome, ANSWER_S)
        return await _Examination(talk, key, welcome, port, wishes, note).run()
    finally:
        connection.close()


class _Examination:
    """One path, from the first word to the last."""

    def __init__(self, talk: Talk, key: bytes, welcome: Welcome, port: int, wishes: Wishes, note: Note) -> None:
        self._talk = talk
        self._key = key
        self._session = welcome.session
        self._port = port
        self._wishes = wishes
        self._note = note
        self._remote = talk.connection.remote_host
        self._door = Door(wishes.door, key, self._admit, lambda hello, caller, key: caller.close(), note)
        own = talk.connection.own_host
        advertised = tuple(wishes.advertise) or (joined(own, self._door.port),)
        self._client = Place(this_host(), own, welcome.client_seen, wishes.listens, advertised)
        theirs = welcome.listener
        self._listener = Place(theirs.host, theirs.own, self._remote, theirs.listens, theirs.advertised)

    async def run(self) -> Measurements:
        self._note("round trips and clocks")
        rtts_us, clock = await self._ping()
        rtt_s = statistics.median(rtts_us) / 1e6
        self._note("who can dial whom")
        calls = await self._calls()
        down, up = await self._flow("listener", 1, rtt_s), await self._flow("client", 1, rtt_s)
        many = self._wishes.streams
        down_many, up_many = await self._flow("listener", many, rtt_s), await self._flow("client", many, rtt_s)
        dialled = joined(self._remote, self._port)
        found = Measurements(self._client, self._listener, dialled, calls, rtts_us, clock, up, down, up_many, down_many)
        await self._tell(found)
        return found

    async def _ping(self) -> tuple[tuple[int, ...], Clock]:
        """Round-trip times without the listener's own, and the clocks' difference by the quickest of them."""
        rtts_us: list[int] = []
        clock = Clock(0, 1 << 60)
        end = time.monotonic() + PINGS_S
        while len(rtts_us) < PINGS and (len(rtts_us) < PINGS_LEAST or time.monotonic() < end):
            begun_ns, begun_wall_ns = time.monotonic_ns(), time.time_ns()
            await self._talk.say(Ping(), ANSWER_S)
            pong = await self._talk.hear(Pong, ANSWER_S)
            took_ns, ended_wall_ns = time.monotonic_ns() - begun_ns, time.time_ns()
            rtt_ns = max(0, took_ns - max(0, pong.sent_ns - pong.received_ns))
            rtts_us.append(min(rtt_ns // 1000, (1 << 32) - 1))
            offset_ns = (pong.received_ns - begun_wall_ns + pong.sent_ns - ended_wall_ns) // 2
            clock = min(clock, Clock(offset_ns // 1000, rtt_ns // 2000 + 1), key=lambda one: one.bound_us)
        return tuple(rtts_us), clock

    # -- who can dial whom -------------------------------------------------------------------------------------------

    def _admit(self, hello: Hello) -> Verdict:
        ours = hello.purpose is Purpose.CALL and hello.session == self._session
        return Verdict.WELCOME if ours else Verdict.NOT_EXPECTED

    async def _calls(self) -> tuple[Call, ...]:
        async with AsyncExitStack() as stack:
            serving = asyncio.ensure_future(self._door.serve())
            stack.push_async_callback(_ended, serving)
            addresses = _unlike((joined(self._client.seen, self._door.port), *self._client.advertised))
            await self._talk.say(CallMe(addresses), ANSWER_S)
            called = (await self._talk.hear(Called, 2 * CALL_S + ANSWER_S)).calls
        if [call.address for call in called] != list(addresses) or any(call.by != "listener" for call in called):
            raise ProtocolError(f"{self._remote} did not dial the addresses that it was asked to")
        known = joined(self._remote, self._port)
        others = [address for address in self._listener.advertised if address != known]
        return (*called, Call("client", known, "ok", ""), *await call_all("client", others, self._key, self._session))

    # -- flows -------------------------------------------------------------------------------------------------------

    async def _flow(self, by: Role, streams: int, rtt_s: float) -> Flow:
        seconds = self._wishes.seconds
        self._note(f"bandwidth {'from' if by == 'listener' else 'to'} {self._remote}, streams: {streams}")
        await self._talk.say(Ping(), ANSWER_S)
        await self._talk.hear(Pong, ANSWER_S)
        plan = FlowPlan(by, streams, seconds, warm_up_s(rtt_s, seconds))
        await self._talk.say(plan, ANSWER_S)
        await self._talk.hear(FlowReady, ANSWER_S)
        connections = await self._dial(streams)
        try:
            received = await receive(connections, seconds, plan.warm_up_s) if by == "listener" else None
            sent = await send(connections, seconds, plan.warm_up_s) if by == "client" else None
            done = await self._talk.hear(FlowDone, seconds + FLOW_GRACE_S)
        finally:
            for connection in connections:
                connection.abort()
        sent, received = sent or done.sent, received or done.received
        if sent is None or received is None:
            raise ProtocolError(f"{self._remote} did not tell its side of a flow")
        return Flow(streams, sent, received)

    async def _dial(self, streams: int) -> list[Connection]:
        """All at once; none is left open if one fails."""
        outcomes = await asyncio.gather(*(self._stream(index) for index in range(streams)), return_exceptions=True)
        connections = [outcome for outcome in outcomes if isinstance(outcome, Connection)]
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if failures:
            for connection in connections:
                connection.abort()
            raise failures[0]
        return connections

    async def _stream(self, index: int) -> Connection:
        connection = await connect(self._remote, self._port, CONNECT_S, numeric=True)
        try:
            hello = Hello(Purpose.STREAM, self._session, index, os.urandom(NONCE_BYTES))
            await introduce(connection, self._key, hello)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _tell(self, found: Measurements) -> None:
        """So that the listener's user sees it too; ours sees it whatever becomes of that."""
        try:
            await self._talk.say(Done(found), ANSWER_S)
            await self._talk.hear(Bye, ANSWER_S)
        except (Gone, Timeout) as error:
            self._note(f"the listener could not be told of the findings: {error}")


async def _ended(task: asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _unlike(addresses: Sequence[str]) -> tuple[str, ...]:
    """Each once, in their order."""
    return tuple(dict.fromkeys(addresses))
