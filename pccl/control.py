"""control.py - the peer's control thread: drives a Peer by the coordinator's messages, the engine's events and a clock.

Decides nothing about membership. `lock` guards the Peer; user threads take it for `advance`, and the communicator
holds it while it names and submits an op, so that no op is named at one boundary and submitted at the next. Sockets
belong to the loop's thread alone: what other threads want sent waits in the Peer's outbox until the loop is woken.

Callbacks, without the lock: `on_op` for every op that ended; on the loop's thread `on_view` for every new epoch, and
`on_error` once, when `error` is there, and `on_contacts` when links to peers of other groups have come or gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence

import zmq

from pccl import messages as m
from pccl.contacts import Way
from pccl.endpoints import Endpoints
from pccl.errors import (
    Closed,
    CoordinatorLost,
    ForkError,
    PcclError,
    ProtocolError,
    Timeout,
    TooFewPeers,
)
from pccl.keys import RunKeys
from pccl.loop import LoopThread, ZmqReader, monitor_event
from pccl.peer import Describe, Peer
from pccl.session import State
from pccl.types import Engine, EpochView, Event, Identity, OpName, short_id

_log = logging.getLogger("pccl.control")

WIRE_VERSION = 1
RECONNECT_MS = 20
RECONNECT_MAX_MS = 1000
HANDSHAKE_MS = 5000
HEARTBEAT_MS = 1000
SILENCE_MS = 4000
FAILED_HANDSHAKES_MAX = 2
#: So long, or half a lease if that is longer, nothing is heard before another socket is tried; twice as long each time.
DEAF_S = 1.0

_FAILED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL


class Control:
    """One peer's place in one group. Life: start, join, ... leave, close."""

    def __init__(
        self,
        endpoint: str,
        run: str,
        keys: RunKeys,
        group: int,
        engine: Engine,
        advertise: Sequence[str] | None,
        describe: Describe,
        on_op: Callable[[Event], None],
        on_view: Callable[[EpochView], None],
        *,
        coordinator_timeout_s: float = 60.0,
        wire: int = WIRE_VERSION,
        guest: bool = False,
        on_error: Callable[[PcclError], None] | None = None,
        on_contacts: Callable[[], None] | None = None,
    ) -> None:
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        parts = [part.strip() for part in endpoint.split(",")]
        self._endpoints = Endpoints([part if "://" in part else f"tcp://{part}" for part in parts])
        self._keys = keys
        self._engine = engine
        self._on_op = on_op
        self._on_view = on_view
        self._on_error = on_error
        self._on_contacts = on_contacts
        addresses = tuple(advertise) if advertise else (local_address(self._endpoints.current, engine.port),)
        identity = Identity(
            peer=engine.peer_id,
            run=run,
            group=group,
            addresses=addresses,
            host=socket.gethostname(),
            pid=os.getpid(),
            wire=wire,
            guest=guest,
            coordinator_timeout_s=coordinator_timeout_s,
        )
        self._peer = Peer(identity, engine, describe)
        self._shown = 0
        self._failed_handshakes = 0
        self._redialling = False
        self._heard = time.monotonic()
        self._deaf_s = DEAF_S
        self._thread: LoopThread | None = None
        self._process = os.getpid()

    # -- facts ------------------------------------------------------------------------------------------------

    @property
    def peer_id(self) -> bytes:
        """The 16 bytes."""
        return self._peer.id

    @property
    def boundary(self) -> int:
        """The boundary that this peer has reached."""
        return self._peer.boundary

    @property
    def state(self) -> State:
        """Where the session is."""
        return self._peer.state

    @property
    def lease_s(self) -> float:
        """How long the run's coordinator waits for a silent peer."""
        return self._peer.session.lease_s

    @property
    def error(self) -> PcclError | None:
        """Why every op fails from now on, or None."""
        return self._peer.error

    def view(self, boundary: int | None = None) -> EpochView:
        """The epoch in which ops of a boundary (default: the present one) run. Raises what fenced the peer."""
        with self.lock:
            view = self._peer.view(boundary)
            if view is None:
                raise self._peer.error or PcclError("this peer is not a member yet: call enter()")
            return view

    def epoch_view(self, epoch: int) -> EpochView | None:
        """An epoch by number, for ops that ended in it; None if it is too long ago."""
        with self.lock:
            return self._peer.session.epoch_view(epoch)

    def verdict_text(self, name: OpName) -> str:
        """The words of a verdict; "" if there was none."""
        with self.lock:
            return self._peer.verdict_text(name)

    def judged(self, name: OpName) -> bool:
        """Whether the coordinator has said how the op ends."""
        with self.lock:
            return self._peer.judged(name)

    # -- life -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the thread, which connects and asks to enter."""
        if self._thread is not None:
            raise PcclError("the control thread was started before")
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._dealer, self._monitor = self._dial()
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise PcclError(f"no address of a coordinator: {self._endpoints.current!r}: {error}") from error
        self._thread = LoopThread("pccl-control", self._setup, self._teardown)
        self._thread.loop.set_exception_handler(self._on_bug)
        self._thread.start()
        self._thread.call(self._start_peer)

    def join(self, timeout: float | None = None) -> EpochView:
        """Waits until this peer is a member. AuthError, ProtocolError, Timeout, CoordinatorLost."""
        self._check_process()
        with self.lock:
            if not self._wait(lambda: self._peer.state is State.MEMBER, timeout):
                raise self._join_timeout(timeout or 0.0)
            return self.view()

    def visit(self, timeout: float | None = None) -> None:
        """Waits until this peer is a guest, and the run's members, if any, know it. Raises what `join` does."""
        self._check_process()
        with self.lock:
            if not self._wait(lambda: self._peer.session.acquaintances is not None, timeout):
                raise self._join_timeout(timeout or 0.0)

    def enter(self, timeout: float | None = None) -> EpochView:
        """A guest becomes a member. Raises what `join` does."""
        self._check_process()
        with self.lock:
            if self._peer.session.guest:
                self._peer.enter(time.monotonic())
                self._wake()
            return self.join(timeout)

    @property
    def hosts(self) -> tuple[bytes, ...] | None:
        """Of a guest: the run's members; of a member None."""
        with self.lock:
            return self._peer.session.acquaintances or () if self._peer.state is State.JOINING else None

    def advance(self, timeout: float | None = None, *, wait_for_peers: bool = True) -> EpochView:
        """Passes to the next boundary and gives the epoch that runs there.

        At once, unless a growth awaits the coordinator's word, a change is under way, or the epoch has too few peers.
        Raises Timeout, TooFewPeers (if that was the reason; at once unless `wait_for_peers`), or what fenced the peer.
        """
        peer = self._peer
        with self.lock:
            if peer.advance(time.monotonic()) is None:
                self._wait_to_advance(timeout, wait_for_peers)
            if peer.outbox:
                self._wake()
            view = peer.view()
            assert view is not None
            return view

    def fault(self, token: int, kind: str) -> None:
        """Asks the coordinator to settle an op: kind "cancelled", "overdue" or "mismatch"."""
        with self.lock:
            self._peer.fault(time.monotonic(), token, kind)
            self._wake()

    def forgo(self, name: OpName, what: str) -> None:
        """Asks the coordinator to end, on every peer, an op that this one was to call and never will."""
        with self.lock:
            self._peer.forgo(time.monotonic(), name, what)
            self._wake()

    def seek(self, peers: frozenset[bytes]) -> None:
        """Transfers name these peers of other groups, and no others."""
        with self.lock:
            self._peer.seek(peers)
            self._wake()

    def way_to(self, peer: bytes) -> Way:
        """Whether there is a link to a peer."""
        with self.lock:
            return self._peer.way_to(peer)

    def leave(self, timeout: float | None = None) -> bool:
        """Leaves gracefully. False if the coordinator did not say Goodbye in time."""
        self._check_process()
        with self.lock:
            if self._peer.error is not None:
                return False
            self._peer.leave(time.monotonic())
            self._wake()
            ended = (State.CLOSED, State.FENCED)
            deadline = None if timeout is None else time.monotonic() + timeout
            while self._peer.state not in ended:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)
            return self._peer.state is State.CLOSED

    def close(self) -> None:
        """Ends the thread. Every pending op ends with ECLOSED; take its event from the engine. Idempotent."""
        if os.getpid() != self._process:
            return  # a forked child has neither the thread nor a right to the sockets
        with self.lock:
            self._guarded(lambda: self._peer.close(time.monotonic()))
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.stop()

    # -- waiting ----------------------------------------------------------------------------------------------

    def _wait(self, ready: Callable[[], bool], timeout: float | None) -> bool:
        """Holds `lock`. True when ready, False when time is up; raises what fenced the peer. Ctrl-C gets through."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not ready():
            error = self._peer.error
            if error is not None:
                raise error.with_traceback(None)
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            self._changed.wait(left)
        return True

    def _wait_to_advance(self, timeout: float | None, wait_for_peers: bool) -> None:
        self._check_process()
        peer = self._peer

        def passed() -> bool:
            if peer.session.paused and not wait_for_peers:
                raise TooFewPeers(f"waits for {peer.session.waits_for}", epoch=peer.session.epoch)
            return peer.advance(time.monotonic()) is not None

        if not self._wait(passed, timeout):
            kind = TooFewPeers if peer.session.paused else Timeout
            reason = f"advance() did not pass boundary {peer.boundary} within {timeout:g} s: waits for"
            raise kind(f"{reason} {peer.session.waits_for}", peer=self.peer_id, epoch=peer.session.epoch)

    def _join_timeout(self, timeout: float) -> PcclError:
        session = self._peer.session
        if not session.met:
            return CoordinatorLost(f"no coordinator answered at {self._endpoints} within {timeout:g} s")
        missing = f"{session.waiting_for} more peers" if session.waiting_for else "the others' next boundary"
        return Timeout(f"not a member within {timeout:g} s: waits for {missing}", peer=self.peer_id)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise ForkError("a forked child must make its own communicator", peer=self.peer_id)

    def _wake(self) -> None:
        if self._thread is not None:
            self._thread.call(self._flush)

    # -- the loop's thread ------------------------------------------------------------------------------------

    def _dial(self) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        dealer = _dealer(self._context, self._keys, self.peer_id)
        try:
            events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | _FAILED
            monitor = dealer.get_monitor_socket(events)
            dealer.connect(self._endpoints.current)
        except zmq.ZMQError:
            dealer.close(linger=0)
            raise
        return dealer, monitor

    def _setup(self) -> None:
        assert self._thread is not None
        self._read()
        self._thread.loop.add_reader(self._engine.event_fd, self._on_engine)

    def _read(self) -> None:
        assert self._thread is not None
        self._monitor_reader = ZmqReader(self._thread.loop, self._monitor, self._on_monitor)
        self._reader = ZmqReader(self._thread.loop, self._dealer, self._on_frames)

    def _hang_up(self) -> None:
        self._dealer.disable_monitor()
        self._reader.close()
        self._monitor_reader.close()

    def _redial(self) -> None:
        """Another socket: after a wrong byte libzmq dials no more, or hears nothing more and aborts us in the end."""
        assert self._thread is not None
        try:
            fresh = self._dial()
        except zmq.ZMQError as error:  # no descriptor to be had, for one
            _log.warning("cannot dial the coordinator: %s", error, extra=self._peer.about())
            self._thread.loop.call_later(RECONNECT_MAX_MS / 1000, self._redial)
            return
        self._redialling = False
        self._endpoints.start(time.monotonic())
        self._hang_up()
        self._dealer, self._monitor = fresh
        self._read()

    def _teardown(self) -> None:
        assert self._thread is not None
        self._thread.loop.remove_reader(self._engine.event_fd)
        self._hang_up()
        self._context.destroy(linger=0)

    def _start_peer(self) -> None:
        self._endpoints.start(time.monotonic())
        self._act(self._peer.start)

    def _on_frames(self, frames: list[zmq.Frame]) -> None:
        try:
            if len(frames) != 1:
                raise ProtocolError(f"a message of {len(frames)} frames")
            message = m.decode_at_peer(frames[0].bytes)
        except ProtocolError as error:
            _log.warning("dropped what the coordinator sent: %s", error, extra=self._peer.about())
            return
        self._endpoints.heard(time.monotonic())
        self._heard, self._deaf_s = time.monotonic(), max(DEAF_S, self.lease_s / 2)
        if isinstance(message, m.Welcome) and message.notice:
            _log.warning("%s: %s", who(self._peer.session.identity), message.notice, extra=self._peer.about())
        self._act(lambda now: self._peer.on_message(now, message))
        if isinstance(message, m.Contacts) and self._on_contacts is not None:
            self._on_contacts()

    def _on_monitor(self, frames: list[zmq.Frame]) -> None:
        event, _ = monitor_event(frames)
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._failed_handshakes = 0
            self._endpoints.connected(time.monotonic())
            self._act(self._peer.on_connected)
        elif event == zmq.EVENT_DISCONNECTED:
            if self._endpoints.broken(time.monotonic()):
                self._try_next()
        elif event & _FAILED:
            self._failed_handshakes += 1
            if self._failed_handshakes >= FAILED_HANDSHAKES_MAX:
                reason = (
                    f"{self._endpoints.current} refuses the handshake: another run or secret, or no pccl coordinator"
                )
                self._act(lambda now: self._peer.on_rejected(now, reason))
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and not self._redialling:
            assert self._thread is not None
            self._redialling = True
            delay_ms = min(RECONNECT_MAX_MS, RECONNECT_MS << min(self._failed_handshakes, 6))
            self._thread.loop.call_later(delay_ms / 1000, self._redial)

    def _try_next(self) -> None:
        """Leaves a coordinator that does not serve for the next one, or dials the only one anew."""
        before, after = self._endpoints.current, self._endpoints.go_on(time.monotonic())
        _log.log(
            logging.INFO if after != before else logging.DEBUG,
            "%s does not serve: trying %s",
            before,
            after,
            extra=self._peer.about(),
        )
        self._dealer.disconnect(before)
        self._dealer.connect(after)
        self._act(lambda now: None)

    def _on_engine(self) -> None:
        """Its descriptor is readable."""
        ended: list[Event] = []
        self._act(lambda now: ended.extend(self._peer.on_engine(now, self._engine.events())))
        for event in ended:
            self._on_op(event)

    def _flush(self) -> None:
        self._act(lambda now: None)

    def _on_time(self) -> None:
        self._reader.drain()  # what waits already is heard before silence is judged
        due = self._endpoints.due(self.lease_s)
        if due is not None and time.monotonic() >= due and self._peer.error is None:
            self._try_next()
        self._act(self._peer.on_tick)
        if time.monotonic() - self._heard >= self._deaf_s and not self._redialling:
            self._deaf_s *= 2
            self._redialling = True
            self._redial()

    def _act(self, step: Callable[[float], None]) -> None:
        """One step of the Peer, and everything that follows from it."""
        assert self._thread is not None
        peer = self._peer
        with self.lock:
            self._guarded(lambda: step(time.monotonic()))
            messages = list(peer.outbox)
            peer.outbox.clear()
            news = peer.view() if peer.configured != self._shown else None
            self._shown = peer.configured
            self._changed.notify_all()
        for message in messages:
            self._send(message)
        if messages:
            self._reader.poke()
        self._thread.arm(self._deadline(), self._on_time)
        if news is not None:
            self._on_view(news)
        self._tell_error()

    def _tell_error(self) -> None:
        """Once."""
        if self._peer.error is not None and self._on_error is not None:
            tell, self._on_error = self._on_error, None
            tell(self._peer.error)

    def _deadline(self) -> float | None:
        own, next_one = self._peer.deadline, self._endpoints.due(self.lease_s)
        return own if own is None or next_one is None else min(own, next_one)

    def _guarded(self, step: Callable[[], None]) -> None:
        """An engine that was closed under our feet ends the session; nobody is left to be told."""
        try:
            step()
        except Closed:
            self._peer.session.state = State.CLOSED
            self._peer.session.error = self._peer.session.error or Closed("the engine was closed")

    def _send(self, message: m.ToCoordinator) -> None:
        """Drops it while there is no connection: the session sends again what matters once there is one."""
        try:
            self._dealer.send(m.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            _log.debug("no connection: %s dropped", type(message).__name__)

    def _on_bug(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """An error of ours in the thread: nobody shall wait for a peer that cannot go on."""
        error = context.get("exception")
        words = who(self._peer.session.identity), context.get("message")
        _log.error("%s: %s", *words, exc_info=_as_exc_info(error), extra=self._peer.about())
        with self.lock:
            if self._peer.error is None:
                self._peer.session.error = PcclError(f"the control thread failed: {error!r}", peer=self.peer_id)
            self._guarded(lambda: self._peer.close(time.monotonic()))
            self._changed.notify_all()
        self._tell_error()


# -- small functions ------------------------------------------------------------------------------------------


def local_address(endpoint: str, port: int) -> str:
    """The address of this host towards the coordinator, with a port of ours. Nothing is sent."""
    host, _, service = endpoint.split("://", 1)[-1].rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(service), type=socket.SOCK_DGRAM)
    except (OSError, ValueError) as error:
        raise PcclError(f"no address of a coordinator: {endpoint!r}: {error}") from error
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.connect(address)
            except OSError:
                continue
            own = str(probe.getsockname()[0])
            return f"[{own}]:{port}" if ":" in own else f"{own}:{port}"
    raise PcclError(f"no way from here to the coordinator at {endpoint}")


def _dealer(context: zmq.Context[zmq.Socket[bytes]], keys: RunKeys, peer: bytes) -> zmq.Socket[bytes]:
    dealer = context.socket(zmq.DEALER)
    options = {
        zmq.LINGER: 0,
        zmq.IPV6: 1,
        zmq.IMMEDIATE: 1,
        zmq.MAXMSGSIZE: m.MESSAGE_BYTES_MAX,
        zmq.RECONNECT_IVL: RECONNECT_MS,
        zmq.RECONNECT_IVL_MAX: RECONNECT_MAX_MS,
        zmq.HANDSHAKE_IVL: HANDSHAKE_MS,
        zmq.HEARTBEAT_IVL: HEARTBEAT_MS,
        zmq.HEARTBEAT_TIMEOUT: SILENCE_MS,
        zmq.HEARTBEAT_TTL: SILENCE_MS,  # after which the coordinator closes its end
        zmq.RCVHWM: 0,  # a full queue makes libzmq 4.3.5 abort if its connection is reset before a heartbeat
    }
    for option, value in options.items():
        dealer.setsockopt(option, value)
    dealer.setsockopt(zmq.ROUTING_ID, peer)
    dealer.setsockopt(zmq.CURVE_SERVERKEY, keys.coordinator.public)
    dealer.setsockopt(zmq.CURVE_PUBLICKEY, keys.peer.public)
    dealer.setsockopt(zmq.CURVE_SECRETKEY, keys.peer.secret)
    return dealer


def who(identity: Identity) -> str:
    """The peer in words, for logs."""
    return f"peer {short_id(identity.peer)} on {identity.host}, pid {identity.pid}"


def _as_exc_info(error: object) -> BaseException | None:
    return error if isinstance(error, BaseException) else None
