"""server.py - the coordinator as a process part: one ROUTER socket under CURVE, one thread, one Run.

Decides nothing about membership, and sends only what the ledger has written. Its own duty is to know which control
connection belongs to which peer: every message names the descriptor it came from (SRCFD), and the socket's monitor
names the descriptors that were accepted and closed. The monitor's event of a connection precedes its first message, so
the monitor is read before any message is looked at; a descriptor's number may be reused, and a message of a closed
connection may come late.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import zmq

from pccl import descriptors
from pccl import messages as m
from pccl.coordinator.admission import GUEST, Admission, check_open
from pccl.coordinator.dial_back import DialBacks
from pccl.coordinator.etcd import EtcdStore
from pccl.coordinator.events import DialBack, Effect, Record, Send
from pccl.coordinator.fixed import fixed_from
from pccl.coordinator.ledger import Ledger
from pccl.coordinator.links import GRACE_S, MENDED_S
from pccl.coordinator.places import is_loopback
from pccl.coordinator.plan import plan
from pccl.coordinator.run import Run
from pccl.coordinator.settings import REPLAN_GAP_S, Settings
from pccl.coordinator.spans import load_solver
from pccl.coordinator.store import SqliteStore, Store
from pccl.errors import ArgumentError, PcclError, ProtocolError
from pccl.keys import RunKeys, as_secret, run_keys
from pccl.loop import LoopThread, ZmqReader, monitor_event
from pccl.types import short_id

_log = logging.getLogger("pccl.coordinator")

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
HANDSHAKE_MS = 5000
SEND_QUEUE_MAX = 10000
BACKLOG = 1024
DESCRIPTORS_BESIDES = 128


@dataclass(frozen=True, slots=True)
class Spoke:
    """What a message says of connections. `lost`: a peer that must have lost this descriptor; `back`: the sender has
    another connection than before, `old` was its former one, if that is still open; `still_open`: that of the message.
    """

    lost: bytes | None = None
    back: bool = False
    old: int | None = None
    still_open: bool = True


class Connections:
    """Which peer speaks over which descriptor. Gives the peers whose connection is gone or new; decides no more."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._peer_of: dict[int, bytes] = {}
        self._fd_of: dict[bytes, int] = {}
        self._closed: dict[bytes, None] = {}

    def accepted(self, fd: int) -> bytes | None:
        """A connection was accepted. Gives a peer whose own connection had that number and must be gone."""
        self._open.add(fd)
        return self._forget(fd)

    def closed(self, fd: int) -> bytes | None:
        """A connection was closed. Gives the peer that spoke over it."""
        self._open.discard(fd)
        return self._forget(fd)

    def spoke(self, peer: bytes, fd: int) -> Spoke:
        """A message came."""
        if fd not in self._open:
            return Spoke(still_open=False)
        if self._fd_of.get(peer) == fd:
            return Spoke()
        lost = self._forget(fd)
        old = self._fd_of.get(peer)
        if old is not None:
            del self._peer_of[old]
        back = old is not None or peer in self._closed
        self._closed.pop(peer, None)
        self._fd_of[peer], self._peer_of[fd] = fd, peer
        return Spoke(lost, back, old)

    def _forget(self, fd: int) -> bytes | None:
        peer = self._peer_of.pop(fd, None)
        if peer is not None:
            del self._fd_of[peer]
            self._closed[peer] = None
            while len(self._closed) > SEND_QUEUE_MAX:
                del self._closed[next(iter(self._closed))]
        return peer


class Coordinator:
    """Serves one run. `start()` returns once it listens; `close()` once the thread and all sockets are gone.

    `form_peers`: how many a group waits for before it begins; default 0: `min_peers`, the fewest that may go on.
    `state`: a file (made if there is none) in which the run survives this process: started again on the same address
    with the same file, another one goes on where this one ended. Without it peers are lost with their coordinator.
    `ha`: instead, "etcd://host:2379": several coordinators, of which one leads and serves. `start()` waits until that
    is this one, or `end` is set (StateError); `deposed` is set when it leads no more: close it, and make another.
    """

    def __init__(
        self,
        bind: str = "tcp://127.0.0.1:0",
        *,
        run: str = "default",
        secret: bytes | str | None = None,
        min_peers: int = 1,
        form_peers: int = 0,
        lease_s: float = 5.0,
        probe: bool = True,
        peers_max: int = 1024,
        streams: int | None = None,
        algorithm: str = "auto",
        link_grace_s: float = GRACE_S,
        link_mended_s: float = MENDED_S,
        replan_gap_s: float = REPLAN_GAP_S,
        dial_back: bool = True,
        measure: bool = True,
        insecure: bool = False,
        state: str | Path | None = None,
        ha: str | None = None,
        end: threading.Event | None = None,
    ) -> None:
        """`dial_back`: whether joiners are dialled at the addresses that they advertise; of no use where this process
        stands in another network than they. `measure`: whether far paths of which nothing is known are measured with
        filler while no member calls ops. `insecure`: a run without a secret may be open to other hosts. `streams` of
        every link and `algorithm` ("ring", "mesh", "two_level") of all-reduces: the planner's to choose unless they are
        given. Raises ArgumentError for what is no such number or name, and where a secret is missing.
        """
        self._bind = bind if "://" in bind else f"tcp://{bind}"
        check_open(self._host, as_secret(secret), insecure)
        self._keys = run_keys(as_secret(secret), run)
        self._admission = Admission(as_secret(secret), run)
        settings = Settings(
            min_peers,
            form_peers,
            lease_s,
            probe,
            peers_max,
            link_grace_s=link_grace_s,
            link_mended_s=link_mended_s,
            replan_gap_s=replan_gap_s,
            dial_back=dial_back,
            measure=measure,
            planner=partial(plan, fixed=fixed_from(streams, algorithm)),
        )
        self.deposed = threading.Event()
        self._store = _store(state, ha, end or threading.Event(), self.deposed)
        self._run = Run(run, settings, time.monotonic())
        self._ledger = Ledger(self._run, self._store)
        self._lock = threading.Lock()  # guards both: status() comes from other threads
        self._connections = Connections()
        self._thread: LoopThread | None = None
        self._ticking = False
        self._encoded: tuple[m.ToPeer | None, bytes] = None, b""
        self.port = 0

    # -- life -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listens and serves. PcclError if the address cannot be had, StateError if the state cannot."""
        if self._thread is not None:
            raise PcclError("the coordinator was started before")
        _make_room(self._run.settings.peers_max)
        descriptors.make_sure(descriptors.COORDINATOR, "a coordinator")
        try:
            self._carry_out(self._ledger.open(time.monotonic))
            self._listen()
        except PcclError:
            self._close_store()
            raise
        self._thread = LoopThread("pccl-coordinator", self._setup, self._teardown)
        self._thread.start()
        if not is_loopback(self._host.strip("[]")):  # peers of several hosts will want spans by a linear program
            threading.Thread(target=load_solver, name="pccl-solver", daemon=True).start()

    def _listen(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._zap = self._context.socket(zmq.REP)
            self._zap.bind(ZAP_ENDPOINT)
            self._router = _router(self._context, self._keys)
            self._monitor = self._router.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
            self.port = _bind(self._router, self._bind)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise PcclError(f"cannot listen at {self._bind}: {error}") from error

    def _close_store(self) -> None:
        if self._store is not None:
            self._store.close()

    @property
    def address(self) -> str:
        """Where peers reach it."""
        own = self._host in ("*", "0.0.0.0", "[::]")
        return f"tcp://{_own_address() if own else self._host}:{self.port}"

    @property
    def incarnation(self) -> int:
        """How many processes have led this run, by its state; 0 without one."""
        return self._run.incarnation

    @property
    def _host(self) -> str:
        return self._bind.split("://", 1)[1].rpartition(":")[0]

    def status(self, links: bool = True) -> m.Status:
        """What `pccl status` shows. Any thread. `links`: of each link, too, which takes longer."""
        with self._lock:
            return self._run.status(time.monotonic(), links)

    def close(self) -> None:
        """Ends; the peers carry on without until they give up on it. Idempotent."""
        if self._thread is not None:
            self._thread.stop()

    def __enter__(self) -> Coordinator:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- the loop's thread ------------------------------------------------------------------------------------

    def _setup(self) -> None:
        assert self._thread is not None
        loop = self._thread.loop
        self._dial_backs = DialBacks(loop)
        self._zap_reader = ZmqReader(loop, self._zap, self._on_zap)
        self._monitor_reader = ZmqReader(loop, self._monitor, self._on_monitor)
        self._reader = ZmqReader(loop, self._router, self._on_frames)

    def _teardown(self) -> None:
        self._dial_backs.close()
        self._router.disable_monitor()
        for reader in (self._reader, self._monitor_reader, self._zap_reader):
            reader.close()
        self._context.destroy(linger=0)
        self._close_store()

    def _on_zap(self, frames: list[zmq.Frame]) -> None:
        self._zap.send_multipart(self._admission.zap([frame.bytes for frame in frames]))

    def _on_monitor(self, frames: list[zmq.Frame]) -> None:
        event, fd = monitor_event(frames)
        accepted = event == zmq.EVENT_ACCEPTED
        gone = self._connections.accepted(fd) if accepted else self._connections.closed(fd)
        if gone is not None:
            self._tell(lambda now: self._ledger.disconnected(now, gone))

    def _on_frames(self, frames: list[zmq.Frame]) -> None:
        self._monitor_reader.drain()
        if len(frames) != 2:
            self._run.malformed += 1
            return
        peer = frames[0].bytes
        if frames[1].get("User-Id") == GUEST:
            self._on_guest(peer, frames[1])
            return
        spoke = self._connections.spoke(peer, int(frames[1].get(zmq.SRCFD)))
        if (lost := spoke.lost) is not None:
            self._tell(lambda now: self._ledger.disconnected(now, lost))
        if spoke.old is not None:
            hang_up(spoke.old)
        if spoke.back:
            self._tell(lambda now: self._ledger.reconnected(now, peer))
        self._tell(lambda now: self._ledger.bytes_from(now, peer, frames[1].bytes))
        if not spoke.still_open:  # a late message of a connection that is closed: it proves nothing about now
            self._tell(lambda now: self._ledger.disconnected(now, peer))

    def _on_guest(self, guest: bytes, frame: zmq.Frame) -> None:
        """Who has but a token: nobody to the run."""
        answer = self._admission.answer(frame.bytes, str(frame.get("Peer-Address")))
        if answer is None:
            self._run.malformed += 1
        else:
            self._router.send_multipart([guest, m.encode(answer)], zmq.NOBLOCK)

    def _on_time(self) -> None:
        """Messages that wait already are heard before anybody's lease is looked at."""
        self._ticking = False
        self._reader.drain()
        self._tell(self._ledger.tick)
        self._reader.poke()

    def _on_dialled(self, peer: bytes, address: str | None) -> None:
        self._tell(lambda now: self._ledger.dialled(now, peer, address))

    def _tell(self, step: Callable[[float], list[Effect]]) -> None:
        with self._lock:
            effects = step(time.monotonic())
            deadline = None if self._ticking and not self._run.trouble else self._ledger.next_deadline()
        self._carry_out(effects)
        if deadline is not None:  # leases only grow: a timer that fires early is set anew
            assert self._thread is not None
            self._ticking = True
            self._thread.arm(deadline, self._on_time)

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Record):
                _show(effect)
                continue
            if isinstance(effect, DialBack):
                self._dial_backs.start(effect.addresses, partial(self._on_dialled, effect.peer))
                continue
            if effect.message is not self._encoded[0]:  # an epoch goes to all, and now and then again to somebody
                self._encoded = effect.message, _encode(effect, self._run.incarnation)
            if self._encoded[1] and self._thread is not None:
                self._router.send_multipart([effect.peer, self._encoded[1]], zmq.NOBLOCK)


# -- small functions ------------------------------------------------------------------------------------------


def _store(state: str | Path | None, ha: str | None, end: threading.Event, deposed: threading.Event) -> Store | None:
    if ha is None:
        return SqliteStore(state) if state is not None else None
    if state is not None:
        raise ArgumentError("the state is in a file or in etcd, not in both: leave out --state or --ha")
    return EtcdStore(ha, end, deposed.set)


def hang_up(fd: int) -> None:
    """Ends a connection that a newer one of the same peer has replaced. libzmq would read on until a message comes that
    it has nobody to give to, and then keep the descriptor for ever.
    """
    with suppress(OSError), socket.socket(fileno=os.dup(fd)) as old:
        old.shutdown(socket.SHUT_RDWR)


def _router(context: zmq.Context[zmq.Socket[bytes]], keys: RunKeys) -> zmq.Socket[bytes]:
    """No heartbeats of its own: libzmq 4.3.5 aborts when one falls due on a connection that was handed over and then
    reset. Those of the peers say how long a connection may be silent (HEARTBEAT_TTL), and it is closed after that.
    """
    router = context.socket(zmq.ROUTER)
    options = {
        zmq.LINGER: 0,
        zmq.IPV6: 1,
        zmq.ROUTER_HANDOVER: 1,
        zmq.MAXMSGSIZE: m.MESSAGE_BYTES_MAX,
        zmq.SNDHWM: SEND_QUEUE_MAX,
        zmq.BACKLOG: BACKLOG,
        zmq.HANDSHAKE_IVL: HANDSHAKE_MS,
        zmq.CURVE_SERVER: 1,
    }
    for option, value in options.items():
        router.setsockopt(option, value)
    router.setsockopt(zmq.CURVE_SECRETKEY, keys.coordinator.secret)
    router.setsockopt(zmq.CURVE_PUBLICKEY, keys.coordinator.public)
    router.setsockopt(zmq.ZAP_DOMAIN, b"pccl")
    return router


def _make_room(peers: int) -> None:
    """Raises this process's limit of descriptors as far as so many connections ask for it, and as it may."""
    needed = peers + DESCRIPTORS_BESIDES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        _log.warning(
            "%d descriptors allow for %d peers, not %d: see ulimit -Hn", hard, hard - DESCRIPTORS_BESIDES, peers
        )


def _bind(router: zmq.Socket[bytes], endpoint: str) -> int:
    """Binds; a host without IPv6 gets the IPv4 wildcard instead of [::]."""
    try:
        router.bind(endpoint)
    except zmq.ZMQError as error:
        if "//[::]:" not in endpoint or error.errno not in (errno.EAFNOSUPPORT, errno.ENODEV, errno.EADDRNOTAVAIL):
            raise
        router.setsockopt(zmq.IPV6, 0)
        router.bind(endpoint.replace("//[::]:", "//0.0.0.0:"))
    last = router.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(last, bytes)
    return int(last.rstrip(b"\0").rpartition(b":")[2])


def _own_address() -> str:
    """This host's address towards the outside; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _encode(effect: Send, incarnation: int) -> bytes:
    try:
        return m.encode(m.signed(effect.message, incarnation))
    except ProtocolError as error:
        _log.error("to peer %s: %s", short_id(effect.peer), error)
        return b""


def _show(entry: Record) -> None:
    about = f" peer {short_id(entry.peer)}" if entry.peer else ""
    level = logging.WARNING if entry.warning else logging.INFO
    _log.log(level, "group %d epoch %d%s: %s: %s", entry.group, entry.epoch, about, entry.what, entry.reason)
