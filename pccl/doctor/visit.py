"""visit.py - the listener's side of one examination: does what the client asks, in its order, within bounds."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable
from typing import TypeVar

from pccl.doctor.calls import call_all
from pccl.doctor.connection import Connection, within
from pccl.doctor.facts import Measurements, Place
from pccl.doctor.handshake import Hello, Purpose
from pccl.doctor.host import plain
from pccl.doctor.talk import (
    Bye,
    Called,
    CallMe,
    Done,
    Failed,
    FlowDone,
    FlowPlan,
    FlowReady,
    Open,
    Ping,
    Pong,
    Talk,
    Welcome,
)
from pccl.doctor.traffic import receive, send
from pccl.errors import PcclError, ProtocolError

__all__ = ["Visit"]

T = TypeVar("T")

#: How long the client may be silent beside a flow, and a message of ours may take.
IDLE_S = 20.0
SAY_S = 10.0
#: All streams of a flow must be there by then.
STREAMS_S = 10.0
#: The whole, beside four flows.
VISIT_S = 120.0


class Visit:
    """One client, from its first word to its last. `place`: this side, as the client is told of it."""

    def __init__(self, talk: Talk, key: bytes, place: Place, session: bytes) -> None:
        self.remote = talk.connection.remote
        self._talk = talk
        self._key = key
        self._place = place
        self._session = session
        self._wanted = 0
        self._streams: dict[int, Connection] = {}
        self._complete = asyncio.Event()

    # -- connections -----------------------------------------------------------------------------------------------

    def expects(self, hello: Hello) -> bool:
        """Whether a connection is part of this examination."""
        if hello.session != self._session:
            return False
        return hello.purpose is Purpose.CALL or (hello.index < self._wanted and hello.index not in self._streams)

    def enter(self, hello: Hello, connection: Connection) -> bool:
        """Takes a stream; False if it is not wanted (a call has done its work when it has been admitted)."""
        if hello.purpose is not Purpose.STREAM or not self.expects(hello):
            return False
        self._streams[hello.index] = connection
        if len(self._streams) == self._wanted:
            self._complete.set()
        return True

    def close(self) -> None:
        """Ends all connections of the client. Idempotent."""
        self._drop_streams()
        self._talk.connection.close()

    def _drop_streams(self) -> None:
        for connection in self._streams.values():
            connection.abort()
        self._streams.clear()
        self._wanted = 0
        self._complete.clear()

    # -- the examination -------------------------------------------------------------------------------------------

    async def run(self) -> Measurements:
        """To its end: what the client has found. Raises what went wrong, naming the client."""
        try:
            opening = await self._talk.hear(Open, IDLE_S)
            seen = plain(self._talk.connection.remote_host)
            await self._talk.say(Welcome(self._session, self._place, seen), SAY_S)
            whole_s = VISIT_S + 4 * opening.seconds
            endless = f"the examination by {self.remote} took more than {whole_s:g} s"
            return await within(whole_s, self._serve(opening.seconds), endless)
        except PcclError as error:
            with contextlib.suppress(PcclError):
                await self._talk.say(Failed(plain(error.message)), 1.0)
            raise
        finally:
            self.close()

    async def _serve(self, flow_s: float) -> Measurements:
        while True:
            message = await self._talk.hear_any(IDLE_S + flow_s)
            received_ns = time.time_ns()
            self._drop_streams()
            if isinstance(message, Done):
                await self._talk.say(Bye(), SAY_S)
                return message.measurements
            if isinstance(message, Ping):
                await self._talk.say(Pong(received_ns, time.time_ns()), SAY_S)
            elif isinstance(message, CallMe):
                calls = call_all("listener", message.addresses, self._key, self._session)
                await self._talk.say(Called(await self._while_there(calls)), SAY_S)
            elif isinstance(message, FlowPlan) and message.warm_up_s <= message.seconds <= flow_s:
                self._wanted = message.streams
                await self._talk.say(FlowReady(), SAY_S)
                await self._talk.say(await self._while_there(self._flow(message)), SAY_S)
            else:
                raise ProtocolError(f"{self.remote} said {type(message).__name__} out of turn")

    async def _while_there(self, work: Awaitable[T]) -> T:
        """Its result. The client is to be silent meanwhile: if it goes, the work ends too."""
        task = asyncio.ensure_future(work)
        heard = asyncio.ensure_future(self._talk.hear_any(VISIT_S))
        try:
            await asyncio.wait([task, heard], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise ProtocolError(f"{self.remote} said {type(heard.result()).__name__} out of turn")
        finally:
            for one in (task, heard):
                one.cancel()
            await asyncio.gather(task, heard, return_exceptions=True)

    async def _flow(self, plan: FlowPlan) -> FlowDone:
        missing = f"{self.remote} announced {plan.streams} connections and did not make all of them in {STREAMS_S:g} s"
        await within(STREAMS_S, self._complete.wait(), missing)
        connections = list(self._streams.values())
        if plan.by == "client":
            return FlowDone(None, await receive(connections, plan.seconds, plan.warm_up_s))
        return FlowDone(await send(connections, plan.seconds, plan.warm_up_s), None)
