"""crowd.py - sessions without engines: each has its own connection to the coordinator, all share one thread.

A Member is a real Session (pccl/session.py) behind a real DEALER under CURVE. What an engine would do is said at once:
it is frozen when it is told to, with the ops it is given. Nobody configures an engine, so what a session would make of
an epoch for it is left out, and an epoch that all are sent is decoded once: that is a peer's own time, not the
coordinator's, and a thousand of them share this thread.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import uvloop
import zmq

from pccl import control, session
from pccl import messages as m
from pccl.keys import RunKeys, run_keys
from pccl.loop import ZmqReader
from pccl.session import Session, State
from pccl.types import EpochConfig, EpochView, Identity, OpName

TICK_S = 0.02
DESCRIPTORS_EACH, DESCRIPTORS_BESIDES = 3, 200
LARGE_BYTES = 1024
NO_EPOCH = EpochConfig(0, 0, 0, [], [], 1, 64, 0)


class CrowdError(RuntimeError):
    """What was waited for did not come, or there is no room for so many."""


@dataclass(slots=True)
class Traffic:
    """Messages and bytes by type, both ways; heartbeats that were due anyway, and their answers, apart."""

    messages: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    due: int = 0
    due_bytes: int = 0
    first: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)

    def add(self, message: m.Message, count: int) -> None:
        name = type(message).__name__
        self.last[name] = time.monotonic()
        self.first.setdefault(name, self.last[name])
        self.messages[name] += 1
        self.bytes[name] += count

    def total(self) -> tuple[int, int]:
        """(messages, bytes) of what has happened, without the heartbeats of passing time and their Acks."""
        acks = min(self.due, self.messages["Ack"])
        ack_bytes = acks * self.bytes["Ack"] // max(1, self.messages["Ack"])
        return (
            self.messages.total() - self.due - acks,
            self.bytes.total() - self.due_bytes - ack_bytes,
        )


class Member:
    """One session and its connection."""

    def __init__(self, crowd: Crowd, number: int) -> None:
        self.crowd = crowd
        peer = number.to_bytes(4, "big") * 4
        address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}:4000"
        self.session = Session(Identity(peer, crowd.run, 0, (address,), f"host{number}", 1))
        self.pending: tuple[m.Pending, ...] = ()
        self.counted: int | None = None
        self.unanswered = 0
        self.beat_at = 0.0
        socket = control._dealer(crowd.context, crowd.keys, peer)
        socket.setsockopt(zmq.IMMEDIATE, 0)  # the Join waits for the connection, as a peer does that watches for it
        socket.connect(crowd.address)
        self.reader = ZmqReader(crowd.loop, socket, self.on_frames)
        self.tell(session.Start())

    @property
    def peer(self) -> bytes:
        return self.session.identity.peer

    def on_frames(self, frames: list[zmq.Frame]) -> None:
        message = self.crowd.decode(frames[0].bytes)
        if isinstance(message, m.Ack):
            self.unanswered -= 1
            self.crowd.unanswered -= 1
            self.crowd.ack_s.append(time.monotonic() - self.beat_at)
        self.tell(message)

    def tell(self, event: Any) -> None:
        """An event of the session; everything that follows from it."""
        epoch, state = self.session.epoch, self.session.state
        for effect in self.session.handle(time.monotonic(), event):
            if isinstance(effect, session.Send):
                self.send(effect.message, isinstance(event, session.Tick))
            elif isinstance(effect, session.FreezeEngine):
                self.tell(session.EngineFrozen(effect.change, {}, self.pending))
        if (self.session.epoch, self.session.state) != (epoch, state):
            self.crowd.moved(self)

    def send(self, message: m.ToCoordinator, due: bool) -> None:
        data = m.encode(message)
        self.crowd.traffic.add(message, len(data))
        if isinstance(message, m.Heartbeat):
            self.beat_at = time.monotonic()
            self.unanswered += 1
            self.crowd.unanswered += 1
            self.crowd.traffic.due += due
            self.crowd.traffic.due_bytes += due * len(data)
        self.reader.socket.send(data, zmq.NOBLOCK)
        self.reader.poke()

    def close(self) -> None:
        """The process is gone: its connections end, without a word."""
        self.reader.close()


class Crowd:
    """All sessions of a run, in the order of joining."""

    def __init__(self, address: str, run: str, secret: bytes) -> None:
        self.address, self.run = address, run
        self.keys: RunKeys = run_keys(secret, run)
        self.loop = uvloop.new_event_loop()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.context.set(zmq.MAX_SOCKETS, self.context.get(zmq.SOCKET_LIMIT))
        self.members: list[Member] = []
        self.leaving: list[Member] = []
        self.traffic = Traffic()
        self.ack_s: list[float] = []
        self.unanswered = 0
        self.at_epoch: Counter[int] = Counter()
        self._numbers = 0
        self._last: tuple[bytes, m.ToPeer] | None = None
        self._check: Callable[[], bool] | None = None
        self._found: asyncio.Future[None] | None = None
        self._timer = self.loop.call_later(TICK_S, self._tick)

    def add(self, count: int) -> list[Member]:
        """So many more connect and ask to enter."""
        room_for(len(self.members) + count)
        first = self._numbers + 1
        self._numbers += count
        joining = [Member(self, number) for number in range(first, first + count)]
        self.members += joining
        return joining

    def remove(self, member: Member) -> None:
        """Its connection is closed; it counts no more."""
        self.members.remove(member)
        self._count(member, None)
        self._close(member)

    def part(self, member: Member) -> None:
        """It says that it goes, and is closed once that was heard."""
        self.members.remove(member)
        self.leaving.append(member)
        member.tell(session.Quit("stress"))

    def moved(self, member: Member) -> None:
        """A session has another epoch or state."""
        if member.session.state is State.FENCED:
            raise CrowdError(f"a session gave up: {member.session.error}")
        self._count(member, member.session.epoch if member.session.state is State.MEMBER else None)
        if member in self.leaving and member.session.state is State.CLOSED:
            self.leaving.remove(member)
            self.loop.call_soon(self._close, member)
        if self._check is not None and self._found is not None and not self._found.done() and self._check():
            self._found.set_result(None)

    def all_at(self, epoch: int) -> bool:
        """Whether all are members, in this epoch."""
        return self.at_epoch[epoch] == len(self.members)

    def _close(self, member: Member) -> None:
        self.unanswered -= member.unanswered
        member.close()

    def _count(self, member: Member, epoch: int | None) -> None:
        if member.counted is not None:
            self.at_epoch[member.counted] -= 1
        if epoch is not None:
            self.at_epoch[epoch] += 1
        member.counted = epoch

    def decode(self, data: bytes) -> m.ToPeer:
        """A message; one that all are sent is decoded once."""
        if self._last is None or self._last[0] != data:
            message = m.decode_at_peer(data)
            self.traffic.add(message, len(data))
            if len(data) > LARGE_BYTES:
                self._last = data, message
            return message
        self.traffic.add(self._last[1], len(data))
        return self._last[1]

    def wait(self, check: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Runs until it holds; looked at when a session has another epoch or state."""
        if check():
            return
        self._check, self._found = check, self.loop.create_future()
        try:
            self.loop.run_until_complete(asyncio.wait_for(self._found, timeout_s))
        except (TimeoutError, asyncio.TimeoutError):
            epochs = {epoch: count for epoch, count in self.at_epoch.items() if count}
            raise CrowdError(f"{what}: not within {timeout_s:g} s; sessions by epoch: {epochs}") from None
        finally:
            self._check = None

    def pass_time(self, seconds: float) -> None:
        """Lets the sessions and the coordinator do what they do."""
        self.loop.run_until_complete(asyncio.sleep(seconds))

    def close(self) -> None:
        for member in [*self.members, *self.leaving]:
            member.close()
        self._timer.cancel()
        self.context.destroy(linger=0)
        self.loop.close()

    def _tick(self) -> None:
        now = time.monotonic()
        for member in self.members:
            due = member.session.deadline
            if due is not None and due <= now:
                member.tell(session.Tick())
        self._timer = self.loop.call_later(TICK_S, self._tick)


# -- around it -------------------------------------------------------------------------------------------------------


@contextmanager
def without_engines() -> Iterator[None]:
    """Sessions make nothing of an epoch for an engine, and the same view of it for all."""
    view_of, views = session.view_of, dict[int, tuple[m.Epoch, EpochView]]()

    def shared(epoch: m.Epoch) -> EpochView:
        if epoch.epoch not in views or views[epoch.epoch][0] is not epoch:
            views[epoch.epoch] = epoch, view_of(epoch)
        return views[epoch.epoch][1]

    def nothing(own: bytes, epoch: m.Epoch) -> tuple[EpochConfig, dict[OpName, str]]:
        return NO_EPOCH, {}

    with mock.patch.object(session, "view_of", shared), mock.patch.object(session, "configuration", nothing):
        yield


def room_for(sessions: int) -> None:
    """Raises this process's limit of descriptors; CrowdError if that may not be."""
    needed = DESCRIPTORS_EACH * sessions + DESCRIPTORS_BESIDES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise CrowdError(f"{sessions} sessions need {needed} descriptors, and the limit is {hard} (ulimit -Hn)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
