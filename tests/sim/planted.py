"""Planted defects of the control plane: subclasses that break one promise on purpose."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pccl import messages as m
from pccl import session as s
from pccl.coordinator import events
from pccl.coordinator import membership as c
from pccl.coordinator.ledger import Ledger
from pccl.session import Session
from pccl.transfer.job import Job
from pccl.transfer.manifest import Manifest
from pccl.transfer.named import Named
from pccl.transfer.schedule import Schedule
from pccl.transfer.target import Bytes
from pccl.transfer.task import Task
from pccl.types import Cause


class IgnoresHold(Session):
    """Passes a boundary that it has promised not to pass."""

    def handle(self, now: float, event: s.Event) -> list[s.Effect]:
        promise = self._promise
        if isinstance(event, s.Advance):
            self._promise = None
            effects = super().handle(now, event)
            self._promise = promise
            return effects
        return super().handle(now, event)


class OffByOne(Session):
    """Promises not to pass a boundary that it has passed already."""

    def _send_held(self) -> None:
        assert self._promise is not None
        self._send(m.Held(m.VERSION, self._hold, max(1, self._promise - 1)))


class CommitsUnfinished(c.Membership):
    """Takes an op for finished by all when one has finished it."""

    def _try_judge(self) -> bool:
        change = self.change
        assert change is not None
        finished = {
            name
            for report in change.reports.values()
            for name, entry in report.pending.items()
            if entry.finished and not entry.pair
        }
        for report in change.reports.values():
            pending: Any = report.pending
            for name in finished & set(pending):
                old = pending[name]
                pending[name] = m.Pending(old.op, True, old.pair, old.needs, old.what)
        return super()._try_judge()


class WaitsForDeadLinks(c.Membership):
    """Leaves a dead link to re-dialling, whatever ways there are around it."""

    def _avoid_dead_links(self) -> bool:
        return False


class BelievesBrokenStreams(c.Membership):
    """Takes a broken stream for proof that nobody lives at its other end."""

    def handle(self, now: float, event: c.Event) -> list[c.Effect]:
        if isinstance(event, c.From) and isinstance(event.message, m.Suspect):
            said = event.message
            if said.cause in (Cause.EOF, Cause.RESET):
                event = c.From(event.peer, m.Suspect(m.VERSION, said.peer, Cause.REFUSED, said.errno, said.epoch))
        return super().handle(now, event)


class EvictsOnLinkFault(BelievesBrokenStreams):
    """Believes that who has a dead link is dead."""

    def handle(self, now: float, event: events.Event) -> list[events.Effect]:
        if isinstance(event, events.From) and isinstance(event.message, m.Suspect):
            target = self.members.get(event.message.peer)
            if target is not None:
                target.connected = False
        return super().handle(now, event)


class ForgetsBoundaries(Session):
    """Reports what it called at its present boundary only: whatever is older counts as called."""

    def handle(self, now: float, event: s.Event) -> list[s.Effect]:
        if isinstance(event, s.EngineFrozen):
            event = replace(event, lanes={self.boundary: event.lanes[self.boundary]})
        return super().handle(now, event)


class DeniesCalls(Session):
    """Reports that it has called nothing before its present boundary, whatever has ended there."""

    def handle(self, now: float, event: s.Event) -> list[s.Effect]:
        if isinstance(event, s.EngineFrozen):
            event = replace(event, lanes={0: {}, self.boundary: event.lanes[self.boundary]})
        return super().handle(now, event)


class SpeaksTooSoon(Session):
    """Says that an op is wanted no more before it knows whether its report for the change names that op."""

    def handle(self, now: float, event: s.Event) -> list[s.Effect]:
        if not isinstance(event, s.Faulted) or self.state is not s.State.FROZEN or self._answer is not None:
            return super().handle(now, event)
        self.state = s.State.MEMBER
        effects = super().handle(now, event)
        self.state = s.State.FROZEN
        return effects


class ForgetsToWrite(Ledger):
    """Says what it has not written: the next process knows of the first decision and nothing since."""

    def _write(self) -> None:
        if not self._written:
            super()._write()


class WritesTooLate(Ledger):
    """Writes what it has decided only when something else happens, and says it meanwhile."""

    def _write(self) -> None:
        late = getattr(self, "_late", 0)
        newest = sum(group.revision for group in self.run.groups.values())
        if newest == late:
            super()._write()
        self._late = newest


class BelievesSources(Job):
    """Takes whatever chunk comes for the one that was offered."""

    def _is_right(self, chunk: int, memory: Bytes, base: int) -> bool:
        return True


class AsksForAll(Job):
    """Fetches what it has already."""

    def _begin(self, manifest: Manifest, now: float) -> None:
        self.target.begin(manifest)
        self.schedule = Schedule(manifest.nbytes, manifest.chunk_bytes, (), manifest.parts)
        self._take_sources(now)


class KeepsRelay(Job):
    """Leaves on offer what a failed fetch would have passed on."""

    def _end(self) -> None:
        self.relay, self._relay_gone = None, True
        super()._end()


class NeverForgets(Named):
    """Names for ever whom it has named once."""

    def tick(self, now: float) -> None:
        return

    def deadline(self) -> float:
        return float("inf")


class ForgetsAtOnce(Named):
    """Names nobody any more when the first of its transfers is over, whoever else needs the link."""

    def over(self, task: Task, now: float) -> None:
        super().over(task, now)
        self._names.clear()
        self._links.seek(frozenset())
