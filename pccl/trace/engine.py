"""engine.py - an engine that records what happens to the membership and to its links, as the control plane sees it.

A class of its own, so that a peer without a trace runs none of this.
"""

from __future__ import annotations

import time

from pccl import _native
from pccl.trace.recorder import Recorder
from pccl.trace.records import Epoch, Fault, Fetch, Freeze, Link, Record
from pccl.types import Cause, EpochConfig, Event, EventKind, Status

__all__ = ["TracedEngine"]

_FAULTS = {EventKind.OVERDUE: "overdue", EventKind.MISMATCH: "mismatch"}


class TracedEngine(_native.Engine):
    """See _native.Engine."""

    __slots__ = ("_recorder",)

    def __init__(self, config: _native.EngineConfig, recorder: Recorder) -> None:
        super().__init__(config)
        self._recorder = recorder

    def freeze(self, change: int) -> None:
        """As there, and recorded."""
        self._recorder.put(Freeze(time.monotonic_ns(), change))
        super().freeze(change)

    def configure(self, config: EpochConfig) -> None:
        """As there, and recorded."""
        super().configure(config)
        committed = sum(status == Status.OK for _, status in config.verdicts)
        self._recorder.put(
            Epoch(
                time.monotonic_ns(),
                config.epoch,
                config.change,
                config.from_boundary,
                tuple(member.id.hex() for member in config.members),
                committed,
                len(config.verdicts) - committed,
            )
        )

    def events(self) -> list[Event]:
        """As there; those of links, of fetches, and of ops that cannot end by themselves, are recorded."""
        taken = super().events()
        for event in taken:
            record = _record_of(event)
            if record is not None:
                self._recorder.put(record)
        return taken


def _record_of(event: Event) -> Record | None:
    now, peer = time.monotonic_ns(), event.peer.hex()
    if event.kind == EventKind.LINK_UP:
        return Link(now, peer, "")
    if event.kind == EventKind.LINK_DOWN:
        return Link(now, peer, Cause(event.cause).name.lower())
    if event.kind == EventKind.FETCH:
        return Fetch(now, peer, Status(event.status).name.lower(), event.received_bytes, event.duration_ns)
    if event.kind in _FAULTS:
        return Fault(now, _FAULTS[EventKind(event.kind)], event.token, peer if any(event.peer) else "")
    return None
