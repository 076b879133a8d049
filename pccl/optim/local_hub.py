"""local_hub.py - the other side of all communicators of a LocalComm: who is a member, and how ops meet and end.

One lock guards everything, and whoever waits does so on `changed`. An op has no participants of its own: those of its
name's boundary are, at any moment, the members that have entered at it or before. It ends when all of them have called
it, on the thread of the last, who does the work of all: nobody has a result before everybody has one. A member that
goes takes its part of every unfinished op with it; the op goes on among the others (`retries` grows), or ends with
PeerLost where it cannot do without. That is what the real coordinator decides for an op that nobody has finished.

A growth is decided in one stroke, so nobody has to hold at a boundary: the newcomer enters at the boundary after the
newest that any member has reached, ops of earlier ones go on among those who were there.

What an op does to memory is what the engine would do, by its own kernels: an all-reduce is the mesh of csrc/mesh.c with
equal spans (so is "ring" and "two_level"), or one round of csrc/one_round.c when asked for. With a codec each
contribution is encoded once by its peer and each span of the result once by its owner.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pccl import _native
from pccl._codecs import encoded_bytes, quantized
from pccl._native import Kind, RedOp
from pccl.errors import Closed, Timeout
from pccl.runtime import Runtime
from pccl.transfer.target import Bytes
from pccl.types import (
    Algorithm,
    EpochView,
    Event,
    EventKind,
    MemberInfo,
    OpInfo,
    OpName,
    OpRequest,
    PlanInfo,
    Status,
    short_id,
)

__all__ = ["Hub", "Member"]

_ONE_ROUND_BYTES_MAX = 64 << 20
_PLAN = PlanInfo(
    algorithm=Algorithm.MESH, mesh_bytes_max=2**63 - 1, streams=1, predicted_s=0.0, reason="peers of one process"
)
_NOBODY = bytes(16)


@dataclass(slots=True)
class Member:
    """One peer. `entering`: it waits for the others to come to its first boundary. `committed` and so on count ops."""

    id: bytes
    since: int
    boundary: int
    entering: bool = False
    committed: int = 0
    failed: int = 0
    retried: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


@dataclass(slots=True)
class _Part:
    """One peer's call of an op."""

    runtime: Runtime
    request: OpRequest
    info: OpInfo
    posted_at: float
    member: Member


@dataclass(slots=True)
class _Call:
    """An op that somebody has called. After an error it is kept for those who have yet to call it."""

    name: OpName
    parts: dict[bytes, _Part] = field(default_factory=dict)
    called: set[bytes] = field(default_factory=set)
    retries: int = 0
    due: float = float("inf")
    verdict: tuple[Status, str, bytes] | None = None


class Hub:
    """See the header. Every method may be called from any thread."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.members: dict[bytes, Member] = {}
        self._told = threading.local()  # `text`: why the op failed whose end this thread is telling
        self._views: list[EpochView] = [EpochView(0, 0, (), False, _PLAN)]
        self._calls: dict[OpName, _Call] = {}
        self._sooner = threading.Condition(self.lock)
        self._watcher: threading.Thread | None = None
        self._next_look = float("inf")

    # -- membership --------------------------------------------------------------------------------------------------

    def view(self, boundary: int) -> EpochView:
        """The epoch in which ops of a boundary run."""
        with self.lock:
            return next((v for v in reversed(self._views) if v.from_boundary <= boundary), self._views[0])

    def epoch_view(self, epoch: int) -> EpochView | None:
        """An epoch by its number; None if it is over."""
        with self.lock:
            return next((v for v in self._views if v.epoch == epoch), None)

    def form(self, peers: Sequence[bytes]) -> list[Member]:
        """The first members, at boundary 0."""
        with self.lock:
            self.members = {peer: Member(peer, 0, 0) for peer in peers}
            self._views = [self._new_view(0)]
            return list(self.members.values())

    def enter(self, peer: bytes) -> Member:
        """Makes a newcomer a member from the others' next boundary on; `entered` waits until they have come to it."""
        with self.lock:
            there = [m.boundary for m in self.members.values() if not m.entering]
            since = 1 + max(there) if there else max((m.since for m in self.members.values()), default=0)
            member = self.members[peer] = Member(peer, since, since, entering=True)
            self._views.append(self._new_view(since))
            self.changed.notify_all()
            return member

    def entered(self, member: Member, timeout: float) -> None:
        """Blocks until all others have come to the newcomer's boundary. Closed if it is removed meanwhile; Timeout."""
        with self.lock:
            settled = self.changed.wait_for(lambda: not self._awaits(member), timeout)
            if not settled:
                late = [short_id(m.id) for m in self.members.values() if m.boundary < member.since and not m.entering]
                text = f"join: not at boundary {member.since} within {timeout:g} s: peers {', '.join(late)}"
                raise Timeout(text, peer=member.id)
            if member.id not in self.members:
                raise Closed("join: the newcomer was removed before it had entered", peer=member.id)
            member.entering = False
            self.changed.notify_all()

    def _awaits(self, member: Member) -> bool:
        others = [m for m in self.members.values() if not m.entering]
        return member.id in self.members and any(m.boundary < member.since for m in others)

    def advance(self, member: Member) -> EpochView:
        """Passes a boundary. Never blocks."""
        with self.lock:
            if member.id not in self.members:
                raise Closed("the communicator is closed")
            member.boundary += 1
            oldest = min(m.boundary for m in self.members.values())
            while len(self._views) > 1 and self._views[1].from_boundary <= oldest:
                del self._views[0]
            for name in [n for n, call in self._calls.items() if n.boundary < oldest and call.verdict is not None]:
                del self._calls[name]
            self.changed.notify_all()
            return self.view(member.boundary)

    def remove(self, peer: bytes, how: str) -> None:
        """The peer is gone, at once. Its own ops are for its runtime to end. Of one that is no member: nothing."""
        with self.lock:
            member = self.members.pop(peer, None)
            if member is None:
                return
            oldest = min((m.boundary for m in self.members.values()), default=member.boundary)
            self._views = [self._new_view(oldest)]
            for call in list(self._calls.values()):
                self._lose(call, member, how)
            self.changed.notify_all()
            if not self.members:
                self._sooner.notify_all()

    def _new_view(self, from_boundary: int) -> EpochView:
        members = tuple(MemberInfo(m.id, m.since, "local", "local") for m in self.members.values())
        return EpochView(self._views[-1].epoch + 1, from_boundary, members, False, _PLAN)

    # -- ops ---------------------------------------------------------------------------------------------------------

    def post(self, member: Member, runtime: Runtime, request: OpRequest, info: OpInfo) -> None:
        """A peer calls an op. Its end is told by `runtime.on_op`, maybe before this returns."""
        with self.lock:
            if member.id not in self.members:
                raise Closed("the communicator is closed")
            self._expire()
            name, now = request.name, time.monotonic()
            call = self._calls.setdefault(name, _Call(name))
            call.called.add(member.id)
            part = _Part(runtime, request, info, now, member)
            if call.verdict is not None:
                self._fail(part, call.verdict)
                return
            first = next(iter(call.parts.values()), None)
            call.parts[member.id] = part
            call.due = min(call.due, request.deadline_ns / 1e9)
            if first is not None and _what(first.request) != _what(request):
                text = f"peer {short_id(member.id)} called {info.what}, peer {short_id(first.member.id)} called "
                self._end(call, Status.EMISMATCH, text + first.info.what, first.member.id)
                return
            self._try(call)
            if name in self._calls:
                self._watch(call.due)

    def cancel(self, member: Member, token: int) -> None:
        """Ends an op on every peer, if it has not ended."""
        with self.lock:
            for call in list(self._calls.values()):
                part = call.parts.get(member.id)
                if part is not None and part.request.token == token:
                    text = f"{part.info.what}: cancelled by peer {short_id(member.id)}"
                    self._end(call, Status.ECANCELLED, text)

    def pending(self, member: Member) -> int:
        """How many ops of a peer have not ended."""
        with self.lock:
            return sum(member.id in call.parts for call in self._calls.values())

    def is_over(self, name: OpName) -> bool:
        """Whether the op has ended."""
        with self.lock:
            call = self._calls.get(name)
            return call is None or call.verdict is not None

    def verdict_text(self) -> str:
        """Why the op failed whose end this thread is telling; "" if it tells none."""
        return str(getattr(self._told, "text", ""))

    def _participants(self, call: _Call) -> list[bytes]:
        info = next(iter(call.parts.values())).info
        return list(info.needs) if info.pair else [m.id for m in self.members.values() if m.since <= call.name.boundary]

    def _try(self, call: _Call) -> None:
        """Ends the op if all have called it, or if one is gone that it needs."""
        needs = [peer for part in call.parts.values() for peer in part.info.needs]
        gone = next((peer for peer in needs if peer not in self.members), None)
        if gone is not None:
            what = next(iter(call.parts.values())).info.what
            self._end(call, Status.EPEER, f"{what}: it needs peer {short_id(gone)}, which is gone", gone)
            return
        peers = self._participants(call)
        if all(peer in call.parts for peer in peers):
            self._commit(call, peers)

    def _lose(self, call: _Call, member: Member, how: str) -> None:
        """What becomes of an op when a member goes."""
        call.parts.pop(member.id, None)
        if call.verdict is not None:
            return
        if not call.parts:
            del self._calls[call.name]
            return
        first = next(iter(call.parts.values())).info
        if (first.pair and member.id not in first.needs) or member.since > call.name.boundary:
            return
        if any(part.info.everyone for part in call.parts.values()):
            self._end(call, Status.EPEER, f"{first.what}: peer {short_id(member.id)} {how}", member.id)
            return
        call.retries += 1
        self._try(call)

    def _commit(self, call: _Call, peers: list[bytes]) -> None:
        """All have called it: does what it does, and tells everybody."""
        parts = [call.parts[peer] for peer in peers]
        epoch, now = self.view(call.name.boundary).epoch, time.monotonic()
        spans = _equal_spans(parts[0].request.count, len(parts))
        try:
            _perform(peers, [part.request for part in parts], spans)
        except MemoryError:
            self._end(call, Status.ENOMEM, f"{parts[0].info.what}: no memory for its result")
            return
        del self._calls[call.name]
        for rank, part in enumerate(parts):
            sent, received = _traffic(part.request, rank, part.member.id, spans)
            member = part.member
            member.committed += 1
            member.retried += call.retries
            member.sent_bytes += sent
            member.received_bytes += received
            is_span = part.request.kind == Kind.REDUCE_SCATTER
            event = Event(
                kind=EventKind.OP,
                token=part.request.token,
                epoch=epoch,
                retries=call.retries,
                member_count=len(parts),
                span_offset=spans[rank] if is_span else 0,
                span_count=spans[rank + 1] - spans[rank] if is_span else 0,
                sent_bytes=sent,
                received_bytes=received,
                duration_ns=int((now - part.posted_at) * 1e9),
            )
            part.runtime.on_op(event)

    def _end(self, call: _Call, status: Status, text: str, peer: bytes = _NOBODY) -> None:
        """The op ends with an error, here and for whoever has yet to call it."""
        call.verdict = status, text, peer
        parts, call.parts = call.parts, {}
        for part in parts.values():
            self._fail(part, call.verdict)
        if call.called >= self.members.keys():
            del self._calls[call.name]

    def _fail(self, part: _Part, verdict: tuple[Status, str, bytes]) -> None:
        status, text, peer = verdict
        part.member.failed += 1
        epoch = self.view(part.request.name.boundary).epoch
        self._told.text = text
        part.runtime.on_op(Event(EventKind.OP, status, part.request.token, epoch, peer=peer))
        self._told.text = ""

    # -- deadlines ---------------------------------------------------------------------------------------------------

    def rest(self) -> None:
        """Ends the thread that watches deadlines, unless an op is pending; returns when it has ended."""
        with self.lock:
            watcher = self._watcher
            self._sooner.notify_all()
            if watcher is None or any(call.verdict is None for call in self._calls.values()):
                return
        watcher.join()

    def _watch(self, due: float) -> None:
        """Sees to it that somebody looks when a deadline passes."""
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._look, name="pccl-local", daemon=True)
            self._next_look = due
            self._watcher.start()
        elif due < self._next_look:
            self._sooner.notify_all()

    def _look(self) -> None:
        with self.lock:
            while True:
                self._expire()
                due = [call.due for call in self._calls.values() if call.verdict is None]
                if not due:
                    self._watcher = None
                    return
                self._next_look = min(due)
                self._sooner.wait(max(0.0, self._next_look - time.monotonic()))

    def _expire(self) -> None:
        now = time.monotonic()
        for call in [c for c in self._calls.values() if c.verdict is None and c.due <= now]:
            what = next(iter(call.parts.values())).info.what
            late = [short_id(peer) for peer in self._participants(call) if peer not in call.parts]
            self._end(call, Status.ETIMEOUT, f"{what}: overdue; not called by peers {', '.join(late)}")


def _what(request: OpRequest) -> tuple[Any, ...]:
    """What all participants must agree about."""
    return (
        request.kind,
        request.dtype,
        request.redop,
        request.algorithm,
        request.codec,
        request.count,
        request.shape,
        request.root,
        request.target,
    )


# -- what ops do to memory -------------------------------------------------------------------------------------------

_FLOAT_BYTES = 4
_ITEM_BYTES = (8, 4, 2, 2, 1, 2, 4, 8, 1, 2, 4, 8)  # in the order of pccl.buffers.DTYPE_NAMES


def _perform(peers: Sequence[bytes], requests: Sequence[OpRequest], spans: Sequence[int]) -> None:
    """Fills the outputs of all participants, which are in the order of ranks."""
    first = requests[0]
    if not first.count:
        return
    by_kind: dict[int, Callable[[Sequence[bytes], Sequence[OpRequest], Sequence[int]], None]] = {
        Kind.ALL_REDUCE: _all_reduce,
        Kind.REDUCE_SCATTER: _reduce_scatter,
        Kind.ALL_GATHER: _all_gather,
        Kind.ALL_TO_ALL: _all_to_all,
        Kind.BROADCAST: _from_root,
        Kind.SEND_RECV: _from_root,
    }
    by_kind[first.kind](peers, requests, spans)


def _all_reduce(peers: Sequence[bytes], requests: Sequence[OpRequest], spans: Sequence[int]) -> None:
    first, inputs = requests[0], [_memory(r.input, r) for r in requests]
    if len(requests) == 1:
        result = inputs[0]
    elif first.codec and _in_one_round(first, len(requests)):
        result = np.empty_like(inputs[0])
        _fold(result, [quantized(first.codec, data) for data in inputs], first)
    elif first.codec:
        result = np.empty_like(inputs[0])
        for owner, (start, end) in enumerate(itertools.pairwise(spans)):
            cut = slice(start * _FLOAT_BYTES, end * _FLOAT_BYTES)
            _reduce_span(result[cut], [data[cut] for data in inputs], owner, first)
    else:
        result = np.empty_like(inputs[0])
        _fold(result, inputs, first)
    for request in requests:
        _memory(request.output, request)[:] = result


def _reduce_span(result: Bytes, inputs: Sequence[Bytes], owner: int, request: OpRequest) -> None:
    """One span of the mesh: its owner folds its own values and what it decodes of the others', and encodes the sum."""
    if result.size:
        heard = [data if rank == owner else quantized(request.codec, data) for rank, data in enumerate(inputs)]
        _fold(result, heard, request)
        result[:] = quantized(request.codec, result)


def _reduce_scatter(peers: Sequence[bytes], requests: Sequence[OpRequest], spans: Sequence[int]) -> None:
    inputs = [_memory(r.input, r) for r in requests]
    result = inputs[0]
    if len(requests) > 1:
        result = np.empty_like(inputs[0])
        _fold(result, inputs, requests[0])
    size = result.size // requests[0].count
    for rank, request in enumerate(requests):
        cut = slice(spans[rank] * size, spans[rank + 1] * size)
        _memory(request.output, request)[cut] = result[cut]


def _all_gather(peers: Sequence[bytes], requests: Sequence[OpRequest], spans: Sequence[int]) -> None:
    rows = [_memory(r.input, r) for r in requests]
    for request in requests:
        for rank, row in enumerate(rows):
            _memory(request.output + rank * row.size, request)[:] = row


def _all_to_all(peers: Sequence[bytes], requests: Sequence[OpRequest], spans: Sequence[int]) -> None:
    size = _nbytes(requests[0])
    for own, target in zip(peers, requests, strict=True):
        for rank, source in enumerate(requests):
            row = _memory(source.input + source.origin.index(own) * size, source)
            _memory(target.output + rank * size, target)[:] = row


def _from_root(peers: Sequence[bytes], requests: Sequence[OpRequest], spans: Sequence[int]) -> None:
    root = requests[peers.index(requests[0].root)]
    data = _memory(root.input, root)
    for request in requests:
        if request is not root:
            _memory(request.output, request)[:] = data


def _nbytes(request: OpRequest) -> int:
    return request.count * _ITEM_BYTES[request.dtype]


def _memory(address: int, request: OpRequest) -> Bytes:
    return _native.byte_array(address, _nbytes(request))


def _fold(result: Bytes, inputs: Sequence[Bytes], request: OpRequest) -> None:
    count = result.size // _ITEM_BYTES[request.dtype]
    _native.reduce(result, inputs, dtype=request.dtype, redop=RedOp(request.redop), count=count, divisor=len(inputs))


# -- spans and traffic -----------------------------------------------------------------------------------------------


def _equal_spans(count: int, peers: int) -> list[int]:
    """Where the spans of the mesh begin, and the end: as csrc/op_memory.c cuts them."""
    return [count // peers * i + count % peers * i // peers for i in range(peers + 1)]


def _in_one_round(request: OpRequest, peers: int) -> bool:
    asked = request.kind == Kind.ALL_REDUCE and request.algorithm == Algorithm.ONE_ROUND
    return asked and (peers - 1) * _nbytes(request) <= _ONE_ROUND_BYTES_MAX


def _wire_bytes(request: OpRequest, count: int) -> int:
    return encoded_bytes(request.codec, count) if request.codec else count * _ITEM_BYTES[request.dtype]


def _traffic(request: OpRequest, rank: int, own: bytes, spans: Sequence[int]) -> tuple[int, int]:
    """(sent, received): payload that the op would have cost this peer over a network, by the same algorithm."""
    others = len(spans) - 2
    whole = _wire_bytes(request, request.count)
    if request.kind in (Kind.ALL_REDUCE, Kind.REDUCE_SCATTER) and not _in_one_round(request, others + 1):
        pieces = [_wire_bytes(request, end - start) for start, end in itertools.pairwise(spans)]
        away, home = sum(pieces) - pieces[rank], others * pieces[rank]
        return (away + home, home + away) if request.kind == Kind.ALL_REDUCE else (away, home)
    if request.kind in (Kind.BROADCAST, Kind.SEND_RECV):
        return (others * whole, 0) if own == request.root else (0, whole)
    return others * whole, others * whole
