"""program.py - what a simulated peer's program sees: `async def program(peer): ...`, driven by the virtual clock.

    async def program(peer):
        while peer.boundary < 10:
            gradient = numpy.ones(1000, "f4")
            result = await peer.all_reduce(gradient)         # Result; or keep the Work, await it later
            await peer.advance()

Ops are named, described and refused as by the real Communicator. Whoever awaits gets the real exceptions. Every op is
written down in its Work, which the checkers read; nothing of it is of use to a program but `await work`.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Awaitable, Callable
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from pccl import _native as native
from pccl.errors import MismatchError, TooFewPeers, error_of
from pccl.session import State
from pccl.testing.clock import Future, ns
from pccl.types import EpochView, Event, OpInfo, OpName, Status
from pccl.work import Result

if TYPE_CHECKING:
    from pccl.testing.cluster import Node
    from pccl.testing.moving import Moves

Array = np.ndarray[Any, Any]
Program = Callable[["SimPeer"], Awaitable[None]]

DTYPES = {
    "float64": 0, "float32": 1, "float16": 2, "int8": 4, "int16": 5, "int32": 6, "int64": 7, "uint8": 8,
    "uint16": 9, "uint32": 10, "uint64": 11,
}  # fmt: skip
REDOPS = {"sum": 0, "avg": 1, "prod": 2, "min": 3, "max": 4}
ALGORITHMS = {"auto": 0, "ring": 1, "mesh": 2, "one_round": 4}
PRIORITIES = ("normal", "high", "low")


class Work(Future):
    """One op in flight, and afterwards all that is known about it."""

    def __init__(self, node: Node, request: native.OpRequest, label: str, source: Array | None, out: Array | None):
        super().__init__()
        self.node = node
        self.request = request
        self.label = label
        self.source = source
        self.out = out
        self.source_before = b"" if source is None else source.tobytes()
        self.needs: tuple[bytes, ...] = ()
        self.pair = False
        self.tag: str | None = None
        self.guarded = False
        self.called_ns = 0
        self.boundary_of_call = 0
        self.changes_before = 0
        self.ended_ns = 0
        self.status: int | None = None
        self.result = b""
        self.out_at_freeze: bytes | None = None
        self.text = ""
        self.peers: tuple[bytes, ...] = ()
        self.epoch = 0
        self.retries = 0
        self.span = (0, 0)
        self.algorithm = ""

    @property
    def name(self) -> OpName:
        """The same on every peer."""
        return self.request.name

    @property
    def in_place(self) -> bool:
        """Whether the result takes the place of the input."""
        return self.source is not None and self.source is self.out

    def info(self) -> OpInfo:
        """What the control plane tells the coordinator about it."""
        return OpInfo(self.describe(), self.needs, self.pair, self.name)

    def describe(self) -> str:
        """The op in words."""
        count = self.request.count
        tag = f" tag={self.tag!r}" if self.tag is not None else ""
        return f"{self.label} x {count}{tag} (boundary {self.name.boundary}, number {self.name.seq})"


class SimPeer:
    """The face of one simulated process: the Communicator's words, and a clock."""

    def __init__(self, node: Node, random: Random) -> None:
        self.node = node
        self.random = random

    # -- facts ------------------------------------------------------------------------------------------------

    @property
    def index(self) -> int:
        """Which node of the simulation this is; never reused."""
        return self.node.index

    @property
    def id(self) -> bytes:
        """The 16 bytes."""
        return self.node.id

    @property
    def now(self) -> float:
        """Virtual seconds."""
        return self.node.cluster.clock.now

    @property
    def boundary(self) -> int:
        """How many boundaries this group has passed."""
        return self.node.peer.boundary

    @property
    def peers(self) -> tuple[bytes, ...]:
        """Who takes part in an op called now, by rank."""
        return self._view().participants(self.boundary)

    @property
    def world_size(self) -> int:
        """How many take part."""
        return len(self.peers)

    @property
    def rank(self) -> int:
        """This peer's place among them."""
        return self.peers.index(self.id)

    @property
    def epoch(self) -> int:
        """The epoch in which an op called now runs."""
        return self._view().epoch

    def _view(self) -> EpochView:
        self._check()
        view = self.node.peer.view()
        assert view is not None
        return view

    def _check(self) -> None:
        error = self.node.peer.error
        if error is not None:
            raise error.with_traceback(None)

    @property
    def moves(self) -> Moves:
        """Offers and fetches."""
        return self.node.moves

    # -- time and boundaries ----------------------------------------------------------------------------------

    def compute(self, seconds: float) -> Future:
        """Computes for so long."""
        future = Future()
        self.node.cluster.clock.after(seconds, lambda: self.node.resolve(future))
        return future

    def advance(self, timeout: float = 20.0) -> Future:
        """Passes to the next boundary; gives its number."""
        self._check()
        return self.node.advance(timeout)

    def enter(self) -> Future:
        """From a guest to a member; what it awaits raises what fenced the peer."""
        self._check()
        return self.node.enter()

    def leave(self) -> Future:
        """Leaves the run in good order."""
        return self.node.leave()

    # -- ops --------------------------------------------------------------------------------------------------

    def give_up(self, work: Work) -> None:
        """Nobody wants the op any more: it soon ends on every peer, one way or the other."""
        self.node.give_up(work.request.token)

    def all_reduce(
        self,
        array: Array,
        *,
        op: str = "sum",
        out: Array | None = None,
        algorithm: str = "auto",
        priority: str = "normal",
        tag: str | None = None,
        timeout: float = 10.0,
        guard: bool = False,
    ) -> Work:
        """Folds everybody's array, in place unless `out` is another one. `guard`: nobody touches it afterwards."""
        target = array if out is None else out
        work = self._work(native.Kind.ALL_REDUCE, f"all_reduce {op}", array, target, array.size)
        work.request.redop, work.request.algorithm = REDOPS[op], ALGORITHMS[algorithm]
        work.request.priority = PRIORITIES.index(priority)
        return self._submit(work, tag, None, timeout, guard)

    def reduce_scatter(
        self, array: Array, out: Array, *, tag: str | None = None, timeout: float = 10.0, guard: bool = False
    ) -> Work:
        """Folds everybody's array; each keeps its span, at `Result.offset` of `out`."""
        work = self._work(native.Kind.REDUCE_SCATTER, "reduce_scatter", array, out, array.size)
        return self._submit(work, tag, None, timeout, guard)

    def all_gather(
        self, array: Array, out: Array, *, tag: str | None = None, timeout: float = 10.0, guard: bool = False
    ) -> Work:
        """`out` gets everybody's array by rank: it has room for all who can take part."""
        work = self._work(native.Kind.ALL_GATHER, "all_gather", array, out, array.size)
        return self._submit(work, tag, None, timeout, guard)

    def all_to_all(
        self, array: Array, out: Array, *, tag: str | None = None, timeout: float = 10.0, guard: bool = False
    ) -> Work:
        """Row k of `array` is for the k-th of `peers`; `out` gets a row from everybody, by rank."""
        origin = self.peers
        work = self._work(native.Kind.ALL_TO_ALL, "all_to_all", array, out, array.size // len(origin))
        work.request.origin = origin
        return self._submit(work, tag, None, timeout, guard)

    def broadcast(
        self,
        array: Array,
        root: bytes,
        *,
        algorithm: str = "auto",
        tag: str | None = None,
        timeout: float = 10.0,
        guard: bool = False,
    ) -> Work:
        """Everybody gets the root's array."""
        is_root = root == self.id
        work = self._work(native.Kind.BROADCAST, "broadcast", array if is_root else None, array, array.size)
        work.request.root, work.needs = root, (root,)
        work.request.shape = zlib.crc32(root, work.request.shape)
        work.request.algorithm = ALGORITHMS[algorithm]
        if is_root:
            work.out = None
        return self._submit(work, tag, None, timeout, guard)

    def send(self, array: Array, to: bytes, *, tag: str | None = None, timeout: float = 10.0) -> Work:
        """To one peer, which calls `receive`."""
        work = self._work(native.Kind.SEND_RECV, "send", array, None, array.size)
        return self._pair(work, self.id, to, tag, timeout)

    def receive(self, array: Array, source: bytes, *, tag: str | None = None, timeout: float = 10.0) -> Work:
        """From one peer, which calls `send`."""
        work = self._work(native.Kind.SEND_RECV, "receive", None, array, array.size)
        return self._pair(work, source, self.id, tag, timeout)

    def barrier(self, *, tag: str | None = None, timeout: float = 10.0) -> Work:
        """Ends when all have called it."""
        work = self._work(native.Kind.BARRIER, "barrier", None, None, 0)
        return self._submit(work, tag, None, timeout, False)

    # -- the inside -------------------------------------------------------------------------------------------

    def _pair(self, work: Work, root: bytes, target: bytes, tag: str | None, timeout: float) -> Work:
        work.request.root, work.request.target = root, target
        work.needs, work.pair = (root, target), True
        return self._submit(work, tag, (root, target), timeout, False)

    def _work(self, kind: int, label: str, source: Array | None, out: Array | None, count: int) -> Work:
        arrays = [array for array in (source, out) if array is not None]
        dtype = arrays[0].dtype.name if arrays else "uint8"
        shape = zlib.crc32(repr(arrays[0].shape if kind == native.Kind.ALL_REDUCE else count).encode())
        request = native.OpRequest(
            token=0,
            kind=int(kind),
            dtype=DTYPES[dtype],
            redop=0,
            algorithm=0,
            shape=shape,
            count=count,
            input=0 if source is None else source.ctypes.data,
            output=0 if out is None else out.ctypes.data,
        )
        return Work(self.node, request, label, source, out)

    def _submit(
        self, work: Work, tag: str | None, pair: tuple[bytes, bytes] | None, timeout: float, guard: bool
    ) -> Work:
        if self._view().paused:
            raise TooFewPeers("fewer peers are left than the run asks for", epoch=self.epoch)
        work.tag, work.guarded = tag, guard
        self.node.ops.submit(work, lane_of(tag, pair), timeout)
        return work


def lane_of(tag: str | None, pair: tuple[bytes, bytes] | None) -> int:
    """The lane of a tag and of a pair; 0 for what is matched by order."""
    if tag is None and pair is None:
        return 0
    digest = hashlib.blake2b(b"".join(pair or ()) + b"|" + repr(tag).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


class Ops:
    """The ops of one node: names them, submits them, takes their ends. What Runtime is to a Communicator."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.pending: dict[int, Work] = {}
        self._lanes: dict[int, int] = {}
        self._lanes_boundary = -1
        self._busy: set[int] = set()

    def submit(self, work: Work, lane: int, timeout: float) -> None:
        """Names the op and hands it to the engine."""
        node = self.node
        if work.tag is not None and lane in self._busy:
            raise MismatchError(f"tag {work.tag!r} is already in flight here")
        if node.peer.boundary != self._lanes_boundary:
            self._lanes, self._lanes_boundary = {}, node.peer.boundary
        seq = self._lanes.get(lane, 0)
        self._lanes[lane] = seq + 1
        request = work.request
        request.name = OpName(node.peer.boundary, lane, seq)
        request.token = node.cluster.next_token()
        request.deadline_ns = node.cluster.clock.now_ns + ns(timeout)
        work.called_ns = node.cluster.clock.now_ns
        work.changes_before = node.changes
        self.pending[request.token] = work
        if work.tag is not None:
            self._busy.add(lane)
        node.cluster.watch.called(work)
        node.engine.submit(request)
        node.wake()

    def describe(self, token: int) -> OpInfo | None:
        """For the Peer."""
        work = self.pending.get(token)
        return None if work is None else work.info()

    def ended(self, event: Event) -> None:
        """The op's one event."""
        work = self.pending.pop(event.token, None)
        if work is None:
            self.node.cluster.watch.broke("P1", f"a second end of op token {event.token} at {self.node}")
            return
        self._busy.discard(work.name.lane)
        self._write_down(work, event)
        self.node.cluster.watch.ended(work)
        if event.status == Status.OK:
            work.resolve(self._result(work, event))
        else:
            error = error_of(event.status, work.text or "the op failed", epoch=event.epoch, op=work.describe())
            work.resolve(None, error)

    def _write_down(self, work: Work, event: Event) -> None:
        node = self.node
        view = node.peer.session.epoch_view(event.epoch)
        work.ended_ns = node.cluster.clock.now_ns
        work.status, work.epoch, work.retries = event.status, event.epoch, event.retries
        work.text = node.peer.verdict_text(work.name)
        work.span = (event.span_offset, event.span_count)
        work.algorithm = _algorithm_of(native.describe_op(event.desc))
        if work.pair:
            work.peers = work.needs
        elif view is not None:
            work.peers = view.participants(work.name.boundary)
        if work.out is not None:
            work.result = work.out.tobytes()

    def _result(self, work: Work, event: Event) -> Result:
        return Result(
            tensor=work.out,
            world_size=event.member_count,
            peers=work.peers,
            epoch=event.epoch,
            retries=event.retries,
            bytes_sent=event.sent_bytes,
            bytes_received=event.received_bytes,
            duration_s=event.duration_ns / 1e9,
            offset=event.span_offset,
        )


def _algorithm_of(words: str) -> str:
    return next((name for name in ("ring", "one round") if f"({name})" in words), "mesh")


def is_over(state: State) -> bool:
    """Whether a peer in this state does nothing more."""
    return state in (State.FENCED, State.CLOSED)
