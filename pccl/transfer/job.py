"""job.py - one fetch from its first question to its last byte: lookup, manifest, chunks, verification, and the end.

No thread, no clock, no network: whoever drives it (pccl/transfer/worker.py) tells it the time and how its asks ended,
and gives it a `Port` to ask by. A job is over only when every ask has ended and its relayed offer, if it failed, is
withdrawn: then nothing touches its memory any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, Protocol

import numpy as np

from pccl import _native
from pccl.errors import Cancelled, Closed, PcclError, PeerLost, ProtocolError, Timeout, TransferError
from pccl.transfer.lookup import Lookup
from pccl.transfer.manifest import (
    HEAD_BYTES,
    HEAD_GENERATION,
    Head,
    Manifest,
    data_key,
    digest_of,
    head_key,
    manifest_key,
)
from pccl.transfer.schedule import Ask, Path, Schedule, Step, bitmap
from pccl.transfer.target import Bytes, Into, Target
from pccl.transfer.task import Asks
from pccl.types import Status, short_id

__all__ = ["Job", "Port", "Relay", "TransferReport"]

_LOOKUP_PRIORITY = 1  # pccl_priority HIGH: a few bytes that everything waits for
_SOURCE_LOST = {
    Status.EPEER: ("lost", "is lost"),
    Status.EGONE: ("gone", "has withdrawn it"),
    Status.ENOMEM: ("memory", "or this peer has no memory for it"),
}


class Relay(Protocol):
    """The offer of what a job has so far."""

    def extend(self, first: int, end: int) -> None:
        """Bytes `first` to `end` are there and verified."""

    def withdraw(self) -> None:
        """Ends the offer; the job hears of it by `on_withdrawn`."""


class Port(Asks, Protocol):
    """How a job reaches the world. Nothing blocks. `paths`: what fetches have learned of their sources."""

    paths: dict[bytes, Path]

    def relay(self, job: Job, manifest: Manifest, parts: Sequence[Bytes]) -> Relay:
        """Offers what the job will have, none of it yet."""


@dataclass(slots=True)
class TransferReport:
    """What a fetch did. `received`: bytes by source, wrong ones and those brought twice included. `retries`: chunks
    that were asked for again. `refused`: (chunk, source) of those that came with a wrong digest. `lost`: what became of
    sources that were given up, in words. `resumed_bytes`: found in the target before, or not wanted. `changed`: chunks
    that were not what their digests say, where that was to be expected: their places hold anything. `first_byte_s`,
    `duration_s`: from the call to the first verified chunk and to the end.
    """

    received: dict[bytes, int] = field(default_factory=dict)
    retries: int = 0
    refused: list[tuple[int, bytes]] = field(default_factory=list)
    lost: dict[bytes, str] = field(default_factory=dict)
    resumed_bytes: int = 0
    changed: list[int] = field(default_factory=list)
    first_byte_s: float = 0.0
    duration_s: float = 0.0


@dataclass(slots=True)
class _Out:
    """An ask that has not ended: for a head, the manifest, chunks, or `chunk` before the manifest was there."""

    what: str
    source: bytes
    memory: Any = None
    ask: Ask | None = None
    chunk: int = -1
    asked_at: float = 0.0
    ended_at: float = 0.0


class Job:
    """See the header. `target`: where it goes, and what is wanted. `changing`: what is offered may be written to
    meanwhile: a chunk that is not what its digest says is not asked for again, and speaks against nobody.
    `offered_as`: what the sources call it, where that is not `name`.
    """

    def __init__(
        self,
        port: Port,
        name: str,
        sources: tuple[bytes, ...],
        target: Target,
        *,
        generation: int | None,
        root: bytes | None,
        priority: int,
        relay: bool,
        now: float,
        deadline_at: float,
        changing: bool = False,
        offered_as: str | None = None,
    ) -> None:
        self.name = name
        self.priority = priority
        self.deadline_at = deadline_at
        self.report = TransferReport()
        self.manifest: Manifest | None = None
        self.schedule: Schedule | None = None
        self.relay: Relay | None = None
        self.over = False
        self.error: PcclError | None = None
        self.target = target
        self.lookup = Lookup(sources, generation, root, self.report.lost)
        self._port = port
        self._offered_as = name if offered_as is None else offered_as
        self._relaying = relay
        self._changing = changing
        self._started = now
        self._ending = False
        self._relay_gone = False
        self._out: dict[int, _Out] = {}
        self._tokens: dict[int, int] = {}  # number of an ask -> token
        self._beside: dict[int, Bytes] = {}
        self._looked = False
        self._waits = False  # the target does not know yet what is wanted
        self._is_ahead = False  # chunks have been asked for that the manifest will judge,
        self._ahead: list[_Out] = []  # and these are here

    # -- what the driver calls --

    def pump(self, now: float) -> None:
        """Asks for whatever can be asked for; call it after everything else."""
        if not self._ending:
            self._check(now)
        if not self._ending:
            self._look(now)
        if not self._ending and self._waits and self.manifest is not None:
            self._begin(self.manifest, now)
        if not self._ending and self.schedule is not None:
            self._cancel(self.schedule.overdue(now))
            for ask in self.schedule.next(now):
                self._ask(ask)
            if self.schedule.done:  # nothing of it is wanted
                self._end()
        if self._ending and not self._out and (self.error is None or self.relay is None or self._relay_gone):
            self.over = True
            self.report.duration_s = now - self._started

    def deadline(self, now: float) -> float:
        """When `pump` is due if nothing happens before."""
        times = [self.deadline_at]
        if self._ending:
            return float("inf")
        for time in (self.lookup.deadline(), self.schedule.deadline(now) if self.schedule is not None else None):
            if time is not None:
                times.append(time)
        return min(times)

    def on_ended(self, token: int, status: int, now: float) -> None:
        """An ask has ended: nothing is written to its memory any more."""
        out = self._out.pop(token)
        if status == Status.ECLOSED:
            self.fail(Closed("the communicator was closed", op=self.describe()))
        if out.ask is not None:
            self._chunks_ended(out.ask, status, now)
        elif not self._ending:
            {"head": self._head_ended, "manifest": self._manifest_ended, "ahead": self._ahead_ended}[out.what](
                out, status, now
            )

    def on_withdrawn(self) -> None:
        """The relayed offer is no more."""
        self._relay_gone = True

    def cancel(self) -> None:
        """Ends it with Cancelled, unless it is ending already."""
        self.fail(Cancelled("the fetch was cancelled", op=self.describe()))

    def fail(self, error: PcclError) -> None:
        """Ends it with an error, unless it is ending already."""
        if not self._ending:
            self.error = error
            self._end()

    def add_source(self, source: bytes) -> None:
        """One more source."""
        self.lookup.add(source)

    def describe(self) -> str:
        """In words."""
        generation = self.manifest.generation if self.manifest is not None else None
        return f"fetch {self.name!r}" + ("" if generation is None else f" generation {generation}")

    # -- the end --

    def _end(self) -> None:
        self._ending = True
        for token in self._out:
            self._port.cancel(token)
        if self.schedule is not None:
            self._port.paths.update(self.schedule.learned())
        if self.relay is not None and self.error is not None:
            self.relay.withdraw()

    def _check(self, now: float) -> None:
        """Whether it has come to an end."""
        if self.schedule is not None and self.schedule.done:
            self._end()
        elif now >= self.deadline_at:
            self.fail(Timeout(f"not all of {self.name!r} came in time: {self._words()}", op=self.describe()))
        elif self.lookup.hopeless and not (self.schedule is not None and self.schedule.running):
            self.fail(self._hopeless())

    def _words(self) -> str:
        return self.lookup.words({source: f"peer {short_id(source)}" for source in self.lookup.found})

    def _hopeless(self) -> PcclError:
        causes = {found.cause for found in self.lookup.found.values()}
        last = next(reversed(self.lookup.found))
        text = f"no source of {self.name!r} is left: {self._words()}"
        if causes == {"lost"}:
            return PeerLost(text, peer=last, op=self.describe())
        chunk, peer = self.report.refused[-1] if self.report.refused else (None, last)
        cause = next(cause for cause in ("digest", "protocol", "gone", "memory", "lost") if cause in causes)
        return TransferError(text, peer=peer, op=self.describe(), name=self.name, chunk=chunk, cause=cause)

    # -- lookup --

    def _look(self, now: float) -> None:
        for source in self.lookup.to_ask(now):
            self._ask_small("head", source, head_key(self._offered_as), HEAD_GENERATION, HEAD_BYTES)
        if not self._looked:
            self._looked = True
            self._ask_ahead(None, list(self.lookup.found), now)
        head = self.lookup.choose(now)
        if head is None:
            return
        if self.manifest is None and not any(out.what == "manifest" for out in self._out.values()):
            ready = self.lookup.ready()
            known = self.target.manifest
            if ready and known is not None and (known.generation, known.root) == (head.generation, head.root):
                self.manifest = known
                self._begin(known, now)
            elif ready:
                self._ask_ahead(head, ready, now)
                key = manifest_key(self._offered_as)
                self._ask_small("manifest", ready[0], key, head.generation, head.manifest_bytes)
            else:
                self.lookup.forget_choice()
        self._take_sources(now)

    def _take_sources(self, now: float) -> None:
        if self.schedule is not None:
            for source in self.lookup.ready():
                self.lookup.join(source)
                self.schedule.add(source, now, self._port.paths.get(source))

    def _ask_small(self, what: str, source: bytes, key: bytes, generation: int, nbytes: int) -> None:
        memory = np.empty(nbytes, np.uint8)
        address, hold = _native.pin(memory)
        token = self._port.ask(self, source, key, generation, (0, nbytes), address, _LOOKUP_PRIORITY)
        self._out[token] = _Out(what, source, (memory, hold))

    def _head_ended(self, out: _Out, status: int, now: float) -> None:
        if status in (Status.EGONE, Status.ENOMEM):
            self.lookup.later(out.source, now)
        elif status != Status.OK:
            self.lookup.out(out.source, *_SOURCE_LOST.get(Status(status), ("lost", "did not answer")))
        else:
            try:
                self.lookup.told(out.source, Head.decode(out.memory[0].tobytes()), now)
            except ProtocolError as error:
                self.lookup.out(out.source, "protocol", error.message)

    def _manifest_ended(self, out: _Out, status: int, now: float) -> None:
        head = self.lookup.chosen
        assert head is not None
        if status == Status.EGONE:  # replaced between the two questions: its next head tells by what
            self.lookup.later(out.source, now)
        elif status != Status.OK:
            self.lookup.out(out.source, *_SOURCE_LOST.get(Status(status), ("lost", "did not answer")))
        else:
            try:
                self.manifest = Manifest.decode(out.memory[0], head, self._offered_as)
            except ProtocolError as error:
                self.lookup.out(out.source, "protocol", error.message)
            else:
                self._begin(self.manifest, now)

    def _begin(self, manifest: Manifest, now: float) -> None:
        """What is wanted is known: where it goes, and what of it is there."""
        unwanted = self.target.begin(manifest)
        self._waits = unwanted is None
        if unwanted is None:
            return
        have = list(unwanted)
        self.schedule = Schedule(manifest.nbytes, manifest.chunk_bytes, have, manifest.parts)
        self.report.resumed_bytes = self.schedule.done_bytes
        if self._relaying and isinstance(self.target, Into):
            self.relay = self._port.relay(self, manifest, self.target.parts)
            for chunk in have:
                self.relay.extend(*manifest.span(chunk))
        self._take_sources(now)
        self._adopt(now)

    def have(self) -> bytes:
        """Bitmap of the chunks that are in their places, verified."""
        if self.schedule is None or self.manifest is None:
            return b""
        flags = bytearray(map(self.schedule.is_done, range(self.manifest.count)))
        for chunk in self.report.changed:
            flags[chunk] = 0
        return bitmap(flags)

    def _is_right(self, chunk: int, memory: Bytes, base: int) -> bool:
        assert self.manifest is not None
        start, end = self.manifest.span(chunk)
        return digest_of(memory[start - base : end - base]) == self.manifest.digest(chunk)

    # -- before the manifest is there --

    def _ask_ahead(self, head: Head | None, sources: Sequence[bytes], now: float) -> None:
        ahead = None if self._is_ahead else self.target.ahead(head)
        if ahead is None:
            return
        self._is_ahead = True
        for chunk, source in zip(ahead.chunks, cycle(sources), strict=False):
            memory = self.target.place(chunk, 1)
            address, hold = _native.pin(memory)
            part, offset = ahead.layout.place(chunk)
            key, span = data_key(self._offered_as, part), (offset, memory.size)
            token = self._port.ask(self, source, key, ahead.generation, span, address, self.priority)
            self._out[token] = _Out("ahead", source, (memory, hold), chunk=chunk, asked_at=now)

    def _ahead_ended(self, out: _Out, status: int, now: float) -> None:
        """Kept until the manifest can judge it. One that failed is asked for again, as if it had not been."""
        if status == Status.OK and self.schedule is None:
            out.ended_at = now
            self._ahead.append(out)

    def _adopt(self, now: float) -> None:
        """The manifest is here: what was asked for before it becomes part of the schedule."""
        assert self.schedule is not None
        under_way = [(token, out) for token, out in self._out.items() if out.what == "ahead"]
        ended = [(0, out) for out in self._ahead]
        sources = {out.source for _, out in under_way + ended} - self.schedule.sources.keys()
        for source in sources:
            self.schedule.add(source, now)
        for token, out in under_way + ended:
            out.ask = self.schedule.adopt(out.source, out.chunk, out.asked_at)
            self._tokens[out.ask.number] = token
        for _, out in ended:
            assert out.ask is not None
            self._chunks_ended(out.ask, Status.OK, out.ended_at)
        for source in sources:  # it has something else by now, or is gone
            self._cancel(self.schedule.lose(source))

    # -- chunks --

    def _ask(self, ask: Ask) -> None:
        assert self.manifest is not None
        if ask.spare:
            self._beside[ask.number] = np.empty(ask.nbytes, np.uint8)
        memory = self._memory(ask)
        address, hold = _native.pin(memory)
        part, offset = self.manifest.layout.place(ask.first)
        key, generation = data_key(self._offered_as, part), self.manifest.data_generation
        token = self._port.ask(self, ask.source, key, generation, (offset, ask.nbytes), address, self.priority)
        self._out[token] = _Out("chunks", ask.source, (memory, hold), ask)
        self._tokens[ask.number] = token

    def _memory(self, ask: Ask) -> Bytes:
        return self._beside[ask.number] if ask.spare else self.target.place(ask.first, ask.count)

    def _cancel(self, asks: list[Ask]) -> None:
        for ask in asks:
            self._port.cancel(self._tokens[ask.number])

    def _chunks_ended(self, ask: Ask, status: int, now: float) -> None:
        assert self.schedule is not None and self.manifest is not None
        del self._tokens[ask.number]
        if status != Status.OK:
            self._follow(self.schedule.failed(ask))
            self._blame(ask.source, status)
            return
        memory, base = self._memory(ask), self.manifest.span(ask.first)[0]
        good: list[int] = []
        bad: list[int] = []
        for chunk in ask.chunks:
            if not self.schedule.is_done(chunk):
                (good if self._is_right(chunk, memory, base) else bad).append(chunk)
        self.report.received[ask.source] = self.report.received.get(ask.source, 0) + ask.nbytes
        if self._changing:
            self.report.changed += bad
        else:
            self.report.refused += [(chunk, ask.source) for chunk in bad]
        if good and not self.report.first_byte_s:
            self.report.first_byte_s = now - self._started
        step = (
            self.schedule.arrived(ask, now, good + bad, [])
            if self._changing
            else self.schedule.arrived(ask, now, good, bad)
        )
        if not ask.spare:
            self._serve(good)
        self._follow(step)
        if step.struck:
            self.lookup.out(ask.source, "digest", f"brought wrong bytes, as of chunk {bad[-1]}")
        self.report.retries = self.schedule.retries

    def _blame(self, source: bytes, status: int) -> None:
        """A source that cannot go on is asked no more; one that is offered anew may come back by its head."""
        assert self.schedule is not None
        lost = _SOURCE_LOST.get(Status(status))
        if lost is not None and not self.schedule.sources[source].lost and not self._ending:
            self.lookup.out(source, *lost)
            self._cancel(self.schedule.lose(source))

    def _follow(self, step: Step) -> None:
        if not self._ending:
            self._cancel(step.cancel)
        assert self.manifest is not None
        for spare, chunks in step.place:
            base = self.manifest.span(spare.first)[0]
            for chunk in chunks:
                start, end = self.manifest.span(chunk)
                self.target.place(chunk, 1)[:] = self._beside[spare.number][start - base : end - base]
            self._serve(chunks)
        for spare in step.drop:
            self._beside.pop(spare.number, None)

    def _serve(self, chunks: list[int]) -> None:
        """Chunks that are in their places, to whoever fetches from here; in as few calls as there are runs."""
        if self.relay is None or self.manifest is None or not chunks or (self._ending and self.error is not None):
            return
        first = last = chunks[0]
        for chunk in [*chunks[1:], -1]:
            if chunk == last + 1:
                last = chunk
                continue
            self.relay.extend(self.manifest.span(first)[0], self.manifest.span(last)[1])
            first = last = chunk
