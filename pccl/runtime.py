"""What lives behind a Communicator: the ops in flight, the engine, the control plane, and their common end.

`Runtime` names ops and submits them, turns the engine's events into Results and errors, and shuts everything down in
order. It is a separate object from the Communicator so that a communicator nobody holds any more can be noticed: the
control thread refers to this one only.

The op registry owns the tensors: an `Op` goes in before its submission and comes out with its event, and only then are
the buffers let go. Naming and submitting happen under `Control.lock`, so that the order of names is the order of
submissions. `on_op` takes no lock.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import os
import threading
import time
import warnings
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pccl import _native
from pccl import messages as m
from pccl.buffers import Buffer
from pccl.config import Settings, pinned_bytes_max
from pccl.contacts import Way
from pccl.control import Control
from pccl.errors import (
    ArgumentError,
    Cancelled,
    Closed,
    CoordinatorLost,
    ForkError,
    HungError,
    PcclError,
    ResourceError,
    TooFewPeers,
    error_of,
)
from pccl.lanes import Lanes, Tag
from pccl.logs import about
from pccl.peer import FAILED_MAX
from pccl.tally import Tally
from pccl.trace import ops as trace_of
from pccl.trace.recorder import Recorder
from pccl.transfer import Transfers
from pccl.types import EpochView, Event, EventKind, OpInfo, OpName, Status
from pccl.work import Result, Work

if TYPE_CHECKING:
    from pccl.device.pipeline import Stager
    from pccl.sharing.depot import Depot

__all__ = ["Named", "Op", "Runtime", "left_open", "shape_hash"]

log = logging.getLogger("pccl")

Finish = Callable[[Any, Event], Any]

#: An op that has not ended so many leases after its deadline is given up without the coordinator's word: one for a
#: silent peer to be out, one for another that is lost meanwhile, one for the words to be said.
GRACE_LEASES = 3
_WATCH_EVERY_S = 5.0  # or every lease, if that is shorter
#: With those that failed here alone they fit a Frozen message.
OPS_MAX = m.PENDING_MAX - FAILED_MAX
_CLOSE_POLL_S = 0.001
_GIVEN_UP = 3  # so often an overdue op was seen, and then the engine is not waited for any more
_STAGED = (b"", b"staged")  # in the place of a pair: lanes of ops that are handed over later than they are named

_live: weakref.WeakSet[Runtime] = weakref.WeakSet()


class Op:
    """One op in flight. Keeps its tensors alive; `tensor` is what the result shows, through `finish`."""

    __slots__ = (
        "buffers",
        "expires_ns",
        "finish",
        "given_up",
        "label",
        "needs",
        "needs_all",
        "pair",
        "request",
        "tag",
        "tensor",
        "work",
    )

    def __init__(
        self,
        request: _native.OpRequest,
        buffers: tuple[Buffer, ...],
        tensor: Any,
        finish: Finish,
        label: str,
        needs: tuple[bytes, ...] = (),
        pair: bool = False,
    ) -> None:
        self.request = request
        self.buffers = buffers
        self.tensor = tensor
        self.finish = finish
        self.label = label
        self.needs = needs
        self.needs_all = False
        self.pair = pair
        self.tag: Tag = None
        self.expires_ns = 0
        self.given_up = 0
        self.work: Work

    def describe(self) -> str:
        """The op in words, for people on other machines."""
        name = self.request.name
        tag = "" if self.tag is None else f" tag={self.tag!r}"
        shape = f" {self.buffers[0].dtype_name}{list(self.buffers[0].shape)}" if self.buffers else ""
        return f"{self.label}{shape}{tag} (boundary {name.boundary}, number {name.seq})"

    @property
    def is_lent(self) -> bool:
        """Whether it ended without a word from the engine, which may still be at its buffers."""
        return self.given_up >= _GIVEN_UP

    def info(self) -> OpInfo:
        """What the control plane tells the coordinator about it."""
        return OpInfo(self.describe(), self.needs, self.pair, self.request.name, self.needs_all and not self.pair)


@dataclass(slots=True, frozen=True)
class Named:
    """The names of the ops of a call that are handed over one after the other, later."""

    names: Sequence[OpName]
    tag: Tag
    deadline_ns: int

    @property
    def left_s(self) -> float:
        """Until their deadline."""
        return (self.deadline_ns - _native.now_ns()) / 1e9


class Runtime:
    """Engine, control plane and ops of one communicator. Any thread; see the header for locks."""

    def __init__(
        self,
        settings: Settings,
        engine: _native.Engine,
        control_of: Callable[[Runtime], Control],
        lane_key: bytes,
        trace: Recorder | None = None,
    ) -> None:
        self.settings = settings
        self.tally = Tally()
        self.trace = trace
        self.engine = engine
        self.peer_id = engine.peer_id
        self.pid = os.getpid()
        self._ops: dict[int, Op] = {}
        self._tokens = itertools.count(1)
        self._lanes = Lanes(lane_key)
        self._stop = threading.Event()
        self._closing = False
        self._close_lock = threading.Lock()
        self._joined = False
        self._participants: tuple[EpochView | None, int, tuple[bytes, ...]] = (None, 0, ())
        self.closed = False
        self.transfers = Transfers(self)
        self._depot: Depot | None = None
        self._stager: Stager | None = None
        self.control = control_of(self)
        self._watcher = threading.Thread(
            target=_watch, args=(weakref.ref(self), self._stop), name="pccl-watch", daemon=True
        )
        _live.add(self)

    def start(self, timeout: float) -> None:
        """Starts the threads and joins the run. Raises what Control.join raises; the caller then closes."""
        if self.trace is not None:
            self.trace.start()
        self.engine.start()
        self.control.start()
        if self.settings.enter:
            self.control.join(timeout)
        else:
            self.control.visit(timeout)
        self._joined = True
        self._watcher.start()

    # -- what every entry asks first --

    def is_foreign(self) -> bool:
        """Whether this is a forked child of the process that made the communicator."""
        return os.getpid() != self.pid

    def check_pid(self) -> None:
        """Raises ForkError in a forked child."""
        if os.getpid() != self.pid:
            raise ForkError(
                "this communicator belongs to the parent process; make one in the child with pccl.connect()"
            )

    def check(self) -> None:
        """Raises what forbids any further op: ForkError, Closed, or the reason why the control plane gave up."""
        self.check_pid()
        if self._closing:
            raise Closed("the communicator is closed")
        error = self.control.error
        if error is not None:
            raise error.with_traceback(None)

    def view(self) -> EpochView:
        """The epoch in which ops of the current boundary run."""
        return self.control.view()

    def participants(self) -> tuple[bytes, ...]:
        """The peers that take part in an op called now, in the order of their ranks. Refuses when there are too few."""
        return self._who(self._enough(), self.control.boundary)

    def _who(self, view: EpochView, boundary: int) -> tuple[bytes, ...]:
        """`view.participants(boundary)`, which is the same for one op after the other."""
        known = self._participants
        if known[0] is not view or known[1] != boundary:
            self._participants = known = (view, boundary, view.participants(boundary))
        return known[2]

    def _enough(self) -> EpochView:
        """The epoch, if it has the peers that the run asks for. Raises TooFewPeers."""
        view = self.control.view()
        if view.paused:
            raise TooFewPeers(
                f"only {len(view.members)} peers are left, fewer than the run asks for; advance() waits for more",
                epoch=view.epoch,
            )
        return view

    def way_to(self, peer: bytes) -> Way:
        """Whether there is a link to a peer."""
        return self.control.way_to(peer)

    def seek(self, peers: frozenset[bytes]) -> None:
        """Transfers name these peers of other groups, and no others."""
        self.control.seek(peers)

    def depot(self) -> Depot:
        """What is kept of this peer's state for others; made when it is first asked for."""
        from pccl.sharing.depot import Depot

        with self.control.lock:
            self._depot = self._depot or Depot(self.transfers)
            return self._depot

    def stager(self) -> Stager:
        """Through which tensors of devices go; made when it is first asked for."""
        from pccl.device.pipeline import Stager

        with self.control.lock:
            self._stager = self._stager or Stager(self, pinned_bytes_max())
            return self._stager

    def flush(self, timeout: float) -> None:
        """Blocks until the ops of all calls have been handed over to the engine, which is at once but for tensors of
        devices. Raises Timeout.
        """
        if self._stager is not None:
            self._stager.flush(timeout)

    # -- submission --

    def submit(self, op: Op, tag: Tag, pair: tuple[bytes, bytes] | None, timeout: float | None) -> Work:
        """Names the op and hands it to the engine.

        Raises TooFewPeers, MismatchError (the tag is in flight), ArgumentError, ResourceError or Closed: then nothing
        has happened.
        """
        lane = self._lanes.lane(tag, pair)
        deadline_ns = self._deadline_ns(timeout)
        with self.control.lock:
            (name,) = self._names(lane, tag, 1)
            self._prepare(op, name, tag, deadline_ns)
            self._hand_over(op)
        return op.work

    def submit_parts(self, ops: Sequence[Op], tag: Tag, timeout: float | None) -> None:
        """Names the ops that carry one call and hands them to the engine. Raises what `submit` does. Should the engine
        refuse a later one, when the first may be on its way, this and those after it end with that error.
        """
        lane = self._lanes.lane(tag)
        deadline_ns = self._deadline_ns(timeout)
        with self.control.lock:
            for op, name in zip(ops, self._names(lane, tag, len(ops)), strict=True):
                self._prepare(op, name, tag, deadline_ns)
            self._hand_over(ops[0])
            for number, op in enumerate(ops[1:], 1):
                try:
                    self._hand_over(op)
                except PcclError as error:
                    for unsent in ops[number:]:
                        unsent.work._resolve(None, error)
                    return

    def name_parts(self, tag: Tag, count: int, timeout: float | None) -> Named:
        """Names the ops of a call; `hand_over` takes or `forgo` drops each of them, in the order of the calls, before
        the next boundary. Raises what `submit` does.
        """
        lane = self._lanes.lane(tag, _STAGED)
        deadline_ns = self._deadline_ns(timeout)
        with self.control.lock:
            named = Named(self._names(lane, tag, count), tag, deadline_ns)
            for name in named.names:
                self._lanes.note(name)
                if tag is not None:
                    self._lanes.occupy(name.lane)
        return named

    def hand_over(self, op: Op, named: Named, number: int) -> None:
        """Submits an op that was named before. Raises what the engine does, and Closed."""
        name = named.names[number]
        with self.control.lock:
            self.check()
            if name.boundary != self.control.boundary:
                raise Cancelled("another thread passed the boundary before the op was begun", op=op.label)
            self._prepare(op, name, named.tag, named.deadline_ns)
            self._hand_over(op)

    def forgo(self, named: Named, number: int, what: str) -> None:
        """An op that was named is never submitted: its tag is free again. `what`, unless it is empty: the others, who
        do not know and would wait for it, are told in these words.
        """
        if named.tag is not None:
            self._lanes.free(named.names[number].lane)
        if what:
            self.control.forgo(named.names[number], what)

    def settle(self, ops: Iterable[Op]) -> None:
        """Asks the coordinator to end, on every peer, those of the ops that are in flight and have not been judged."""
        for op in ops:
            if not self.control.judged(op.request.name):
                self.cancel_token(op.request.token)

    def _deadline_ns(self, timeout: float | None) -> int:
        seconds = self.settings.op_timeout if timeout is None else timeout
        if not seconds > 0:
            raise ArgumentError(f"timeout must be a positive number of seconds, not {timeout!r}")
        return _native.now_ns() + int(seconds * 1e9)

    def _names(self, lane: int, tag: Tag, count: int) -> list[OpName]:
        """Names for so many ops called now, if they can be; under the lock."""
        self.check()
        self._enough()
        names = self._lanes.next_names(self.control.boundary, lane, tag, count)
        if len(self._ops) + count > OPS_MAX:
            raise ResourceError(f"{len(self._ops)} ops are in flight here, {OPS_MAX} at most can be; wait for some")
        return names

    def _prepare(self, op: Op, name: OpName, tag: Tag, deadline_ns: int) -> None:
        request = op.request
        request.name = name
        request.token = token = next(self._tokens)
        request.deadline_ns = op.expires_ns = deadline_ns
        op.tag = tag
        op.work = Work(self, token)

    def _hand_over(self, op: Op) -> None:
        """Into the registry first: the op may end before the engine's submit has returned."""
        request = op.request
        self._ops[request.token] = op
        if op.tag is not None:
            self._lanes.occupy(request.name.lane)
        if self.trace is not None:
            trace_of.submitted(self.trace, op)
        try:
            self.engine.submit(request)
        except BaseException:
            if self._forget(op):
                self._note_end(op, Event(kind=EventKind.OP, status=Status.EINVAL, token=request.token))
            raise
        self._lanes.note(request.name)

    def _forget(self, op: Op) -> bool:
        """Takes an op off the registry; False if it was not there."""
        if self._ops.pop(op.request.token, None) is None:
            return False
        if op.tag is not None:
            self._lanes.free(op.request.name.lane)
        return True

    # -- called by Control, on its thread --

    def describe(self, token: int) -> OpInfo | None:
        """What is known about a pending op."""
        op = self._ops.get(token)
        return None if op is None else op.info()

    def on_op(self, event: Event) -> None:
        """An op ended: its buffers are ours again. Or a transfer did, which is for `transfers` to say."""
        if event.kind != EventKind.OP:
            self.transfers.on_event(event)
            return
        op = self._ops.get(event.token)
        if op is None or not self._forget(op):
            return
        self._note_end(op, event)
        if event.status == Status.OK:
            op.work._resolve(self._result(op, event), None)
        else:
            op.work._resolve(None, self._error(op, event))

    def _note_end(self, op: Op, event: Event) -> None:
        self.tally.ended(op.request.kind, event.status)
        if self.trace is not None:
            trace_of.ended(self.trace, op, event)

    def on_view(self, view: EpochView) -> None:
        """A new epoch: ops ask when they are called; who was sought elsewhere may be a member now."""
        self.transfers.on_contacts()
        few = ", too few" if view.paused else ""
        log.debug("epoch %d: %d peers%s", view.epoch, len(view.members), few, extra=self._about(view.epoch))

    def _about(self, epoch: int, op: str | None = None) -> dict[str, object]:
        return about(self.settings.run, self.peer_id, epoch, op)

    def _result(self, op: Op, event: Event) -> Result:
        peers = op.needs
        if not op.pair:
            view = self.control.epoch_view(event.epoch)
            peers = () if view is None else self._who(view, op.request.name.boundary)
        return Result(
            tensor=op.finish(op.tensor, event),
            world_size=event.member_count,
            peers=peers,
            epoch=event.epoch,
            retries=event.retries,
            bytes_sent=event.sent_bytes,
            bytes_received=event.received_bytes,
            duration_s=event.duration_ns / 1e9,
            offset=event.span_offset,
        )

    def _error(self, op: Op, event: Event) -> PcclError:
        text = self.control.verdict_text(op.request.name)
        if not text and event.status in (Status.EEVICTED, Status.ELOST) and self.control.error is not None:
            text = self.control.error.message
        if not text and op.given_up:
            text = f"no end {self._grace_s:.3g} s after its deadline, and no word from the coordinator"
        peer = event.peer if any(event.peer) else None
        words = op.describe()
        error = error_of(
            event.status,
            text or _WORDS.get(event.status, _native.err_name(event.status)),
            peer=peer,
            epoch=event.epoch,
            op=words,
        )
        log.debug("an op failed: %s", error.message, extra=self._about(event.epoch, words))
        return error

    # -- called by Work --

    def describe_token(self, token: int) -> str:
        """The op in words."""
        op = self._ops.get(token)
        return f"number {token}" if op is None else op.describe()

    def cancel_token(self, token: int) -> bool:
        """Asks the coordinator to settle an op; False if it has ended."""
        if token not in self._ops:
            return False
        self.control.fault(token, "cancelled")
        return True

    def waited(self, token: int, begin_ns: int, what: str = "wait") -> None:
        """The calling thread was blocked since this time, by an op if the token is not 0."""
        end_ns = time.monotonic_ns()
        self.tally.waited(what, end_ns - begin_ns)
        if self.trace is not None:
            trace_of.waited(self.trace, what, token, begin_ns, end_ns)

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """The calling thread is blocked as long as this is open."""
        begin_ns = time.monotonic_ns()
        try:
            yield
        finally:
            self.waited(0, begin_ns, what)

    # -- the second net under deadlines --

    @property
    def _grace_s(self) -> float:
        return GRACE_LEASES * self.control.lease_s

    @property
    def watch_every_s(self) -> float:
        """How often to look for overdue ops."""
        return min(_WATCH_EVERY_S, self.control.lease_s)

    def give_up_overdue(self) -> None:
        """Ends ops long past their deadline: by the engine, and should even its event not come, by ourselves."""
        limit = _native.now_ns() - int(self._grace_s * 1e9)
        for token, op in list(self._ops.items()):
            if op.expires_ns > limit:
                continue
            op.given_up += 1
            if op.given_up == 1:
                self.engine.abandon(token, Status.ELOST)
            elif op.given_up == _GIVEN_UP and not op.work.done():
                # The registry keeps the buffers: without an event nobody knows that the engine has let go of them.
                op.work._resolve(None, CoordinatorLost("the engine does not answer", op=op.describe()))

    # -- the end --

    def close(self, timeout: float) -> None:
        """Leaves the run, ends every op, stops both threads, frees the engine. Bounded; idempotent; any thread."""
        if os.getpid() != self.pid:
            self.drop()
            return
        self._closing = True
        with self._close_lock:
            if self.closed:
                return
            self._stop.set()
            try:
                self._leave(timeout)
            finally:
                self.engine.close()
                freed = self._wait_closed(timeout)
                self._end_all_ops()
                if freed:
                    self.engine.free()
                if self.trace is not None:
                    self.trace.close()
                self.closed = True
                _live.discard(self)
                if self._stager is not None:
                    self._stager.close()

    def _leave(self, timeout: float) -> None:
        """HungError if the control thread does not end; everything else can be ended all the same."""
        try:
            if self._joined and self.control.error is None:
                self.control.leave(timeout)
        except PcclError as error:
            log.debug("left without goodbye: %s", error, extra=self._about(0))
        self.control.close()

    def _wait_closed(self, timeout: float) -> bool:
        """The engine has no descriptor for its own end, so this looks every millisecond."""
        pause = threading.Event()
        for _ in range(max(1, int(timeout / _CLOSE_POLL_S))):
            if self.engine.closed:
                return True
            pause.wait(_CLOSE_POLL_S)
        return self.engine.closed

    def _end_all_ops(self) -> None:
        """The control thread is gone: this one takes the last events, then resolves what is left."""
        for event in self.engine.events():
            self.on_op(event)
        for token in list(self._ops):
            self.on_op(Event(kind=EventKind.OP, status=Status.ECLOSED, token=token))
        self.transfers.end()

    def drop(self) -> None:
        """In a forked child: forgets the handles, frees nothing, waits for nobody."""
        self._closing = self.closed = True
        self.engine.drop()


_WORDS: dict[int, str] = {
    Status.EPEER: "a peer that the op cannot do without is gone",
    Status.EFEW: "fewer peers are left than the run asks for",
    Status.ETIMEOUT: "the op's deadline passed",
    Status.ECLOSED: "the communicator was closed",
    Status.EEVICTED: "the coordinator removed this peer",
    Status.ELOST: "the coordinator could not be reached any more",
    Status.EMISMATCH: "peers called this op differently",
    Status.ECANCELLED: "the op was cancelled",
}


@lru_cache(maxsize=4096, typed=True)
def shape_hash(shape: tuple[int, ...], extra: bytes = b"") -> int:
    """What peers compare: the dimensions, and whatever else must be the same for all."""
    return zlib.crc32(repr(tuple(map(int, shape))).encode() + extra)


def left_open(runtime: Runtime, timeout: float) -> None:
    """A communicator was dropped without close(): says so and closes in the background; never blocks the collector."""
    if runtime.closed or runtime.is_foreign():
        return
    warnings.warn(
        f"pccl.Communicator {runtime.peer_id.hex()[:8]} was dropped without close()", ResourceWarning, stacklevel=2
    )
    threading.Thread(target=runtime.close, args=(timeout,), name="pccl-close", daemon=True).start()


def _watch(reference: weakref.ref[Runtime], stop: threading.Event) -> None:
    """The watcher's thread; holds the runtime only while it looks."""
    pause_s = 0.0
    while not stop.wait(pause_s):
        runtime = reference()
        if runtime is None:
            return
        try:
            runtime.give_up_overdue()
        except PcclError as error:
            log.debug("watching ended: %s", error)
            return
        pause_s = runtime.watch_every_s
        del runtime


def _after_fork_in_child() -> None:
    for runtime in list(_live):
        runtime.drop()
    _live.clear()


@atexit.register
def _close_leftovers() -> None:
    for runtime in list(_live):
        try:
            runtime.close(timeout=1.0)
        except HungError as error:
            log.error("at the end of the process: %s", error)


os.register_at_fork(after_in_child=_after_fork_in_child)
