"""agreement.py - checks one op on all peers: who says "committed", of whose inputs, and with which bytes (P1, P6).

Pure functions over the Works of one op. The expected bytes are computed from the inputs as they were at the call, in
the order that the plan fixes: by rank (mesh), or around the ring from the rank that owns the span.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pccl._native import Kind
from pccl.errors import PcclError
from pccl.testing.clock import Future
from pccl.types import Status

if TYPE_CHECKING:
    from pccl.testing.cluster import Cluster
    from pccl.testing.program import Work

#: What a program may end with: pccl's own errors, which say that this peer or its group is no more.
Expected = PcclError

OUTSIDE = frozenset({Status.ECLOSED, Status.EEVICTED, Status.ELOST})
ELEMENTS_EXPLAINED = 1
TIMES_MAX = 3

Array = np.ndarray[Any, Any]
Finding = tuple[str, str]
_FOLDS = {0: np.add, 2: np.multiply, 3: np.minimum, 4: np.maximum}


def findings(cluster: Cluster, works: Sequence[Work]) -> Iterator[Finding]:
    """Everything that is wrong with one op."""
    committed = [work for work in works if work.status == Status.OK]
    if not committed:
        return
    first = committed[0]
    for work in committed[1:]:
        if (work.peers, work.epoch) != (first.peers, first.epoch):
            yield (
                "P1",
                f"{first.describe()} was committed by {first.node} in epoch {first.epoch} with "
                f"{_people(cluster, first.peers)}, by {work.node} in epoch {work.epoch} with "
                f"{_people(cluster, work.peers)}",
            )
    yield from _others(cluster, works, first)
    called = {work.node.id: work for work in works}
    missing = [peer for peer in first.peers if peer not in called and not _may_miss(cluster, first, peer)]
    if missing:
        yield "P1", f"{first.describe()} was committed, but {_people(cluster, missing)} never called it"
        return
    for work in committed:
        yield from _bytes(work, [called[peer] for peer in work.peers if peer in called])


def _may_miss(cluster: Cluster, work: Work, peer: bytes) -> bool:
    """What needs nobody's bytes may be committed without a peer that is gone, by those who are left."""
    node = cluster.by_id[peer]
    survives = node.alive and peer in cluster.coordinator.group(node.group).members
    return work.request.kind in (Kind.BROADCAST, Kind.BARRIER) and not survives


def _others(cluster: Cluster, works: Sequence[Work], committed: Work) -> Iterator[Finding]:
    """No survivor may have another outcome than who says "committed"."""
    for work in works:
        if work.status is None and work.node.alive and not work.node.frozen:
            yield "P1", f"{work.describe()}: committed by {committed.node}, no end at {work.node}"
        elif work.status is not None and work.status != Status.OK and work.status not in OUTSIDE:
            status = Status(work.status).name
            yield "P1", f"{work.describe()}: committed by {committed.node}, ended with {status} at {work.node}"
        if work.status == Status.OK and work.node.id not in committed.peers:
            yield "P1", f"{work.describe()}: committed by {work.node}, which took no part"


def _bytes(work: Work, parts: Sequence[Work]) -> Iterator[Finding]:
    """The result is what the plan makes of the inputs."""
    wanted = _wanted(work, parts)
    if wanted is None or work.out is None:
        return
    got = np.frombuffer(work.result, work.out.dtype)
    if work.request.kind == Kind.REDUCE_SCATTER:
        begin, count = work.span
        got, wanted = got[begin : begin + count], wanted[begin : begin + count]
    got = got[: wanted.size]
    if got.tobytes() == wanted.tobytes():
        return
    wrong = np.flatnonzero(got.view(np.uint8).reshape(got.size, -1) != wanted.view(np.uint8).reshape(got.size, -1))
    index = int(wrong[0]) // got.itemsize
    promise, why = _explain(work, parts, got[index], index)
    yield promise, f"{work.describe()} at {work.node}, element {index}: {got[index]} for {wanted[index]}; {why}"


def _input(work: Work) -> Array:
    assert work.source is not None
    return np.frombuffer(work.source_before, work.source.dtype)


def _wanted(work: Work, parts: Sequence[Work]) -> Array | None:
    kind, redop = work.request.kind, work.request.redop
    if kind in (Kind.ALL_REDUCE, Kind.REDUCE_SCATTER):
        if redop not in _FOLDS:
            return None
        inputs = [_input(part) for part in parts]
        return _ring(inputs, redop) if work.algorithm == "ring" else _fold(inputs, redop)
    if kind == Kind.ALL_GATHER:
        return np.concatenate([_input(part) for part in parts])
    if kind == Kind.ALL_TO_ALL:
        return np.concatenate([_row_for(part, work.node.id) for part in parts])
    if kind in (Kind.BROADCAST, Kind.SEND_RECV):
        sources = [part for part in parts if part.node.id == work.request.root]
        return _input(sources[0]) if sources else None
    return None


def _row_for(work: Work, peer: bytes) -> Array:
    rows = work.request.origin
    row: Array = _input(work).reshape(len(rows), -1)[rows.index(peer)]
    return row


def _fold(inputs: Sequence[Array], redop: int) -> Array:
    total: Array = inputs[0].copy()
    for one in inputs[1:]:
        _FOLDS[redop](total, one, out=total)
    return total


def _ring(inputs: Sequence[Array], redop: int) -> Array:
    """Span j is folded from rank j around the ring."""
    n, count = len(inputs), inputs[0].size
    bounds = [count // n * i + count % n * i // n for i in range(n + 1)]
    spans = []
    for j in range(n):
        order = [inputs[(j + k) % n][bounds[j] : bounds[j + 1]] for k in range(n)]
        spans.append(_fold(order, redop))
    return np.concatenate(spans)


def _explain(work: Work, parts: Sequence[Work], got: Any, index: int) -> Finding:
    """Which inputs, how often, would give this element?"""
    if work.request.kind not in (Kind.ALL_REDUCE, Kind.REDUCE_SCATTER) or not isinstance(got, np.integer):
        return "P1", "other bytes than the inputs give"
    terms = [int(_input(part)[index]) for part in parts]
    for times in itertools.product(range(TIMES_MAX + 1), repeat=len(terms)):
        if sum(count * term for count, term in zip(times, terms, strict=True)) == int(got):
            said = ", ".join(f"{part.node} x {count}" for part, count in zip(parts, times, strict=True))
            return "P1", f"it is the sum of {said}"
    return "P6", "no combination of the inputs gives it: bytes were believed that nobody sent for this op"


def _people(cluster: Cluster, peers: Sequence[bytes]) -> str:
    return "{" + ", ".join(repr(cluster.by_id[peer]) for peer in peers) + "}"


__all__ = ["Expected", "Future", "findings"]
