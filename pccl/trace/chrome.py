"""chrome.py - draws the traces of peers as one Chrome trace, the JSON that Perfetto opens. Pure.

A process is a peer. Its threads are the user's, with what they waited for; *membership*, with freezes, epochs and
links; and rows of ops: the untagged ones, those of each tag, sends, lists; and of fetches. What overlaps in a row gets
further rows.
An op that several peers have called is one id on all of them, with arrows from who called it first to who did last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pccl.trace.clocks import Clock, key_of
from pccl.trace.files import PeerTrace
from pccl.trace.records import Dropped, End, Epoch, Fault, Fetch, Freeze, Link, Submit, Wait

__all__ = ["chrome_trace"]

#: Tags of a peer that have a row of their own; the others share one.
TAGS_MAX = 16
_MEMBERSHIP = "membership"
_OTHER_TAGS = "other tags"

Json = dict[str, Any]


@dataclass(slots=True)
class _Bar:
    """Something that took time on one row. Times in nanoseconds; `key`: the op that it is."""

    begin: int
    end: int
    row: str
    name: str
    category: str
    args: Json
    key: Hashable | None = None
    pid: int = 0
    tid: int = 0


def chrome_trace(peers: Sequence[PeerTrace], clocks: Sequence[Clock]) -> Json:
    """All of it. Times are microseconds since the first record."""
    begins = [clock.common(peer.wall_ns(_first_ns(peer))) for peer, clock in zip(peers, clocks, strict=True)]
    origin = min(begins)
    events: list[Json] = []
    ops: dict[Hashable, list[_Bar]] = {}
    for pid, (peer, clock) in enumerate(zip(peers, clocks, strict=True), 1):
        drawing = _Drawing(peer, clock, pid, origin)
        events += drawing.events()
        for bar in drawing.ops:
            if bar.key is not None:
                ops.setdefault(bar.key, []).append(bar)
    events += _arrows(ops.values())
    about = {"pccl": "trace", "origin_unix_ns": origin, "peers": [peer.begin.peer for peer in peers]}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}


def _first_ns(peer: PeerTrace) -> int:
    return min([peer.begin.t, *(record.t for record in peer.records)])


def _arrows(ops: Iterable[list[_Bar]]) -> Iterator[Json]:
    """One chain for each op that several peers have called."""
    for number, bars in enumerate(ops, 1):
        if len({bar.pid for bar in bars}) < 2:
            continue
        bars.sort(key=lambda bar: bar.begin)
        for i, bar in enumerate(bars):
            phase: Json = {"ph": "s"} if i == 0 else {"ph": "t"} if i < len(bars) - 1 else {"ph": "f", "bp": "e"}
            yield {**phase, "cat": "op", "name": "op", "id": number, **_place(bar), "ts": bar.begin / 1000}


def _place(bar: _Bar) -> Json:
    return {"pid": bar.pid, "tid": bar.tid}


class _Drawing:
    """One peer's events."""

    def __init__(self, peer: PeerTrace, clock: Clock, pid: int, origin: int) -> None:
        self._peer, self._clock, self._pid, self._origin = peer, clock, pid, origin
        self._last = max([self._at(peer.begin.t), *(self._at(record.t) for record in peer.records)])
        self._epochs: dict[int, tuple[str, ...]] = {}
        self._open: dict[int, Submit] = {}
        self._names: dict[int, str] = {}
        self._frozen: Freeze | None = None
        self._own_rows = _tags_shown(peer)
        self._tids: dict[str, int] = {}
        self.ops: list[_Bar] = []
        self._others: list[_Bar] = []
        self._instants: list[tuple[int, str, Json]] = []
        for record in peer.records:
            self._take(record)
        for submit in list(self._open.values()):
            self._op(submit, None)

    def events(self) -> list[Json]:
        """Metadata, bars, instants."""
        bars = [*self._rows(self._others), *self._rows(self.ops)]
        found = [self._bar(bar) for bar in bars]
        for at, name, args in self._instants:
            place = {"pid": self._pid, "tid": self._tid(_MEMBERSHIP), "ts": at / 1000}
            found.append({"ph": "i", "s": "t", "cat": "membership", "name": name, **place, "args": args})
        return [*self._metadata(), *found]

    # -- records --

    def _at(self, t: int) -> int:
        return self._clock.common(self._peer.wall_ns(t)) - self._origin

    def _take(self, record: object) -> None:
        if isinstance(record, Submit):
            self._open[record.token] = record
            self._names[record.token] = f"{record.what} {_id(record.name)}"
        elif isinstance(record, End):
            self._op(self._open.pop(record.token, None), record)
        elif isinstance(record, Wait):
            args = {"op": self._names[record.token]} if record.token in self._names else {}
            self._others.append(
                _Bar(self._at(record.t), self._at(record.end), record.thread, record.what, "wait", args)
            )
        elif isinstance(record, Freeze):
            self._frozen = self._frozen or record
        elif isinstance(record, Epoch):
            self._epoch(record)
        elif isinstance(record, Link):
            what = f"link to {record.peer[:8]} {'down: ' + record.cause if record.cause else 'up'}"
            self._instants.append((self._at(record.t), what, {"peer": record.peer}))
        elif isinstance(record, Fetch):
            about: Json = {"peer": record.peer, "outcome": record.outcome, "bytes": record.nbytes}
            at = self._at(record.t)
            bar = _Bar(at - record.engine_ns, at, "fetches", f"from {record.peer[:8]}", "fetch", about)
            self._others.append(bar)
        elif isinstance(record, Fault):
            args = {"op": self._names.get(record.token, ""), "peer": record.peer}
            self._instants.append((self._at(record.t), record.kind, args))
        elif isinstance(record, Dropped):
            self._instants.append((self._at(record.t), f"{record.count} records dropped", {}))

    def _epoch(self, record: Epoch) -> None:
        """Also ends the freeze."""
        self._epochs[record.epoch] = record.members
        at = self._at(record.t)
        args: Json = {
            "members": [member[:8] for member in record.members],
            "from_boundary": record.from_boundary,
            "committed": record.committed,
            "failed": record.failed,
        }
        if record.change and self._frozen is not None:
            begin, self._frozen = self._at(self._frozen.t), None
            self._others.append(_Bar(begin, at, _MEMBERSHIP, f"freeze, epoch {record.epoch}", "membership", args))
        self._instants.append((at, f"epoch {record.epoch}: {len(record.members)} peers", args))

    def _op(self, submit: Submit | None, end: End | None) -> None:
        """A bar for an op: from its call to its end, if both are known."""
        known = submit or end
        assert known is not None
        args: Json = {"op": _id(known.name), "outcome": "in flight when the trace ends"}
        if submit is not None:
            args |= {"bytes": submit.nbytes, "thread": submit.thread}
        if end is not None:
            args |= {
                "outcome": end.outcome,
                "epoch": end.epoch,
                "retries": end.retries,
                "bytes_sent": end.sent_bytes,
                "bytes_received": end.received_bytes,
                "world_size": end.world_size,
                "algorithm": end.algorithm,
                "engine_ms": end.engine_ns / 1e6,
            }
        stop = self._last if end is None else self._at(end.t)
        start = stop - end.engine_ns if submit is None and end is not None else self._at(known.t)
        key = None if end is None else key_of(end, self._epochs)
        row = known.row if known.row in self._own_rows else _OTHER_TAGS
        self.ops.append(_Bar(start, stop, row, known.what, "op", args, key))

    # -- what is drawn --

    def _rows(self, bars: list[_Bar]) -> list[_Bar]:
        """Gives every bar a thread on which it overlaps none: Perfetto wants bars of a thread to be nested."""
        free: dict[str, list[int]] = {}
        for bar in sorted(bars, key=lambda bar: (bar.row, bar.begin, -bar.end)):
            ends = free.setdefault(bar.row, [])
            at = 0 if bar.category == "wait" else next((i for i, end in enumerate(ends) if end <= bar.begin), len(ends))
            if at >= len(ends):
                ends.append(bar.end)
            ends[at] = bar.end
            bar.pid, bar.tid = self._pid, self._tid(bar.row if at == 0 else f"{bar.row} ({at + 1})")
        return bars

    def _tid(self, row: str) -> int:
        return self._tids.setdefault(row, len(self._tids) + 1)

    def _bar(self, bar: _Bar) -> Json:
        times = {"ts": bar.begin / 1000, "dur": max(0, bar.end - bar.begin) / 1000}
        return {"ph": "X", "cat": bar.category, "name": bar.name, **_place(bar), **times, "args": bar.args}

    def _metadata(self) -> Iterator[Json]:
        begin = self._peer.begin
        name = f"peer {self._peer.short} ({begin.host}, pid {begin.pid}, run {begin.run}, group {begin.group})"
        yield {"ph": "M", "name": "process_name", "pid": self._pid, "tid": 0, "args": {"name": name}}
        for row, tid in self._tids.items():
            place = {"ph": "M", "pid": self._pid, "tid": tid}
            yield {**place, "name": "thread_name", "args": {"name": row}}
            yield {**place, "name": "thread_sort_index", "args": {"sort_index": tid}}


def _id(name: tuple[int, int, int]) -> str:
    boundary, lane, seq = name
    return f"{boundary}.{lane:x}.{seq}"


def _tags_shown(peer: PeerTrace) -> set[str]:
    rows = Counter(record.row for record in peer.records if isinstance(record, Submit | End))
    tags = [row for row, _ in rows.most_common() if row.startswith("tag ")]
    return set(rows) - set(tags[TAGS_MAX:])
