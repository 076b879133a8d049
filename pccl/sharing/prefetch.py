"""prefetch.py - prefetch_state: a joiner fetches the others' state while they go on, before it enters the run.

Members keep what they synchronised last on offer, in the very memory that they go on to write to. So what is fetched
may be torn or out of date; a chunk counts only if it is what its digest says. As with a virtual machine that moves
while it runs, the state is copied again and again, each time only what has changed meanwhile, until that does not
become less; the rest is left to the first sync_state, which compares everything and stops the others only for that.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pccl.arguments import PRIORITIES
from pccl.errors import ArgumentError, Evicted, MismatchError, PeerLost, Timeout, TransferError
from pccl.sharing.content import Content, Share
from pccl.sharing.depot import Pull, Stock
from pccl.sharing.forecast import Forecast
from pccl.sharing.staging import InPlace
from pccl.transfer.transfers import Wish

__all__ = ["Guest", "Near", "Prefetch", "PrefetchReport", "prefetch_state"]

_PASSES_MAX = 8
_WORTH_IT = 0.5  # another pass, if this one has left so little of what it was to bring
_OFFERED_WITHIN_S = 30.0
_LOOK_S = 0.05


class Guest(Protocol):
    """What prefetch_state needs of a communicator."""

    @property
    def op_timeout(self) -> float: ...
    @property
    def depot(self) -> Stock: ...
    def sources(self) -> Sequence[bytes]: ...
    def stager(self) -> Any: ...


@dataclass(slots=True, frozen=True)
class PrefetchReport:
    """What a prefetch_state brought. `held_bytes` of `total_bytes` of the tensors here are what members held when they
    synchronised last; the others will be moved by the first sync_state, with all that has changed since. `passes`: how
    often the state was gone through. `why`: what ended it before everything was here; "" if nothing did.
    """

    received_bytes: int
    held_bytes: int
    total_bytes: int
    passes: int
    duration_s: float
    why: str

    def __str__(self) -> str:
        text = f"{self.held_bytes} of {self.total_bytes} bytes are here, {self.received_bytes} were received"
        return text + (f"; {self.why}" if self.why else "")


def prefetch_state(
    comm: Guest, entries: dict[str, Any], allow_drift: Sequence[str] = (), *, timeout: float | None = None
) -> PrefetchReport:
    """Fetches the tensors of `entries` from the members of the run, at low priority, from all of them at once, while
    they go on. Blocks, at most `timeout` seconds (default: the communicator's op_timeout); Ctrl-C interrupts.

    `entries`, `allow_drift`: as they will be given to `sync_state`. Tensors are overwritten, and may hold a mixture of
    old and new, after an error too: sync_state, which must follow, makes them right, and never takes them for a content
    of their own. Scalars, and what may drift, are left to it.

    Gives what it has brought: nothing if the run has no members yet, or none offers such entries, which is no error.
    Raises MismatchError if members offer entries of the same names and other sizes; ArgumentError and TypeError as
    sync_state does; Evicted, CoordinatorLost, Closed and ForkError.
    """
    seconds = seconds_of(comm, timeout)
    content = Content(entries, frozenset(allow_drift), False, comm.stager)
    return Prefetch(comm, content, time.monotonic() + seconds).run()


def seconds_of(comm: Guest, timeout: float | None) -> float:
    """What a `timeout` means. ArgumentError if nothing."""
    seconds = comm.op_timeout if timeout is None else timeout
    if not seconds > 0:
        raise ArgumentError(f"timeout must be a positive number of seconds, not {timeout!r}")
    return seconds


class Near(Protocol):
    """What is to be done when the end of a pass is near, while its last bytes are coming."""

    def is_near(self, left_s: float, read_s: float) -> bool:
        """Whether it is time. `left_s`: until the end, as it looks; `read_s`: what reading everything takes here."""

    def go(self) -> None:
        """Does it. What it raises ends the prefetch."""

    def go_on(self) -> None:
        """Goes on with it: what the pass will have brought is known by now, as far as it can be."""


class Prefetch:
    """One call of prefetch_state. `near`: what is to be done meanwhile; the pass in which it was is the last."""

    def __init__(self, comm: Guest, content: Content, deadline: float, near: Near | None = None) -> None:
        self.comm = comm
        self.content = content
        self.share: Share = content.fixed
        self.deadline = deadline
        self.started = time.monotonic()
        self.target = InPlace(self.share)
        self.missing = list(range(self.share.layout.count))
        self.near = near
        self.is_last = False
        self.received = 0
        self.passes = 0

    def run(self) -> PrefetchReport:
        """Passes until nothing is missing, or it does not become less."""
        return self._report(self._passes())

    def _passes(self) -> str:
        while True:
            before = len(self.missing)
            why = self._one_pass()
            if not self.missing or why or self.is_last or self.passes >= _PASSES_MAX:
                break
            if not self.target.is_new or len(self.missing) > before * _WORTH_IT:
                break
        if self.missing and not why:
            why = f"{len(self.missing)} chunks change faster than they come"
        return why

    def _one_pass(self) -> str:
        """Fetches what is not here; why it cannot go on, or ""."""
        sources = self.comm.sources()
        left = self.deadline - time.monotonic()
        if not sources or left <= 0:
            return "the time is up" if sources else "the run has no members yet"
        self.passes += 1
        name = self.content.name(self.share)
        wish = Wish(priority=PRIORITIES["low"], changing=True)
        self.comm.depot.mixed.add(name)
        pull = self.comm.depot.pull(name, self.target, sources, wish, left)
        try:
            why = self._awaited(pull)
            if why is None and self.near is not None:
                self.is_last = True
                self.near.go()
                self.target.expect(pull.report.changed)
                self.near.go_on()
                why = self._awaited(pull)
            return why or ""
        finally:
            pull.cancel()
            self._note(pull.have(), sum(pull.report.received.values()))

    def _awaited(self, pull: Pull) -> str | None:
        """Waits for the end of a pass: why it cannot go on, or ""; None if its end is near."""
        try:
            try:
                ended = self._watch(pull, min(self.deadline, time.monotonic() + _OFFERED_WITHIN_S))
            except Timeout:
                if self.target.manifest is None:
                    return "no member offers such entries"
                ended = self._watch(pull, self.deadline)
        except Timeout:
            return "the time is up"
        except (PeerLost, TransferError) as error:
            if isinstance(error, Evicted):
                raise
            if isinstance(error, TransferError) and error.cause == "size":
                raise MismatchError(f"prefetch_state: {error.message}") from error
            return error.message
        return "" if ended else None

    def _watch(self, pull: Pull, until: float) -> bool:
        """Waits for the end of a fetch, as its `wait` does; False if that is near."""
        forecast = Forecast()
        while self.near is not None and not self.is_last:
            left = until - time.monotonic()
            try:
                pull.wait(min(max(left, 0.0), _LOOK_S))
                return True
            except Timeout:
                if left <= 0:
                    raise
            said, now = pull.progress(), time.monotonic()
            if said.total_bytes is not None and self.near.is_near(
                forecast.left_s(now, said.done_bytes, said.total_bytes), self.target.read_s
            ):
                return False
        pull.wait(max(until - time.monotonic(), 0.0))
        return True

    def _note(self, have: bytes, received: int) -> None:
        self.received += received
        if self.target.manifest is not None and self.target.is_new:
            self.missing = self.target.keep(have)
            for part in {self.share.layout.part_of(chunk) for chunk in self.target.wanted}:
                self.content.finish(self.share.tensors[part])

    def _report(self, why: str) -> PrefetchReport:
        layout = self.share.layout
        lacking = sum(layout.start(chunk + 1) - layout.start(chunk) for chunk in self.missing)
        held = layout.nbytes - lacking if self.target.manifest is not None else 0
        took = time.monotonic() - self.started
        return PrefetchReport(self.received, held, layout.nbytes, self.passes, took, why)
