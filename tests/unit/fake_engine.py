"""An engine for tests of the control plane: answers like the real one, moves no bytes, records every call."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from pccl.types import EpochConfig, Event, EventKind, Lanes, LineStats, LinkStats, MemberConfig, OpDesc, OpName, OpState


class FakeEngine:
    """Freezes at once; ops are put into `ops` by the test."""

    def __init__(self, peer_id: bytes | None = None, port: int = 4711) -> None:
        self.peer_id = os.urandom(16) if peer_id is None else peer_id
        self.port = port
        self.event_fd, self._ring = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.calls: list[tuple[object, ...]] = []
        self.configs: list[EpochConfig] = []
        self.ops: list[OpState] = []
        self.busy = False
        self.lanes: Lanes = {0: {}}
        self.link_stats: list[LinkStats] = []
        self.line_stats = LineStats()
        self.descs: dict[int, OpDesc] = {}
        self.boundary = 0
        self.auto_freeze = True
        self._events: list[Event] = []
        self._lock = threading.Lock()

    # -- for the test --

    def emit(self, event: Event) -> None:
        with self._lock:
            self._events.append(event)
        os.write(self._ring, b"!")

    def post(self, name: OpName, token: int, finished: bool = False) -> None:
        self.ops.append(OpState(name, token, finished))
        self.lanes[name.boundary][name.lane] = name.seq + 1

    def close(self) -> None:
        os.close(self.event_fd)
        os.close(self._ring)

    # -- pccl.types.Engine --

    def prepare(self, members: Sequence[MemberConfig], streams: int) -> None:
        self.calls.append(("prepare", tuple(members), streams))

    def acquaint(self, member: MemberConfig, streams: int) -> None:
        self.calls.append(("acquaint", member, streams))

    def unacquaint(self, peer: bytes) -> None:
        self.calls.append(("unacquaint", peer))

    def freeze(self, change: int) -> None:
        self.calls.append(("freeze", change))
        if self.auto_freeze:
            self.emit(Event(kind=EventKind.FROZEN, token=change))

    def frozen(self) -> tuple[list[OpState], Lanes]:
        return list(self.ops), {boundary: dict(lanes) for boundary, lanes in self.lanes.items()}

    def configure(self, config: EpochConfig) -> None:
        self.configs.append(config)
        judged = dict(config.verdicts)
        for op in [op for op in self.ops if op.name in judged]:
            self.ops.remove(op)
            self.emit(Event(kind=EventKind.OP, token=op.token, status=judged[op.name], epoch=config.epoch))

    def advance(self, boundary: int) -> None:
        self.boundary = boundary
        self.lanes[boundary] = {}

    def refusal(self) -> str:
        """As the engine's."""
        return "192.0.2.9:5000: it does not know the run's secret"

    def oldest_boundary(self) -> int:
        return min([self.boundary, *(op.name.boundary for op in self.ops)])

    def forget(self, boundary: int) -> None:
        self.calls.append(("forget", boundary))

    def fail_all(self, status: int) -> None:
        self.calls.append(("fail_all", status))
        for op in self.ops:
            self.emit(Event(kind=EventKind.OP, token=op.token, status=status))
        self.ops.clear()

    def abandon(self, token: int, status: int) -> None:
        self.calls.append(("abandon", token, status))

    def measure(self, peer: bytes, nbytes: int, timeout_s: float) -> None:
        self.calls.append(("measure", peer, nbytes, timeout_s))

    def is_busy(self) -> bool:
        return self.busy

    def events(self) -> list[Event]:
        with self._lock:
            events, self._events = self._events, []
            if events:
                os.read(self.event_fd, 65536)
        return events

    def links(self) -> Sequence[LinkStats]:
        return self.link_stats

    def line(self) -> LineStats:
        return self.line_stats

    def desc_text(self, desc: int) -> str:
        return f"op of description {desc}"

    def read_desc(self, desc: int) -> OpDesc | None:
        return self.descs.get(desc)
