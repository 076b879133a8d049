"""schedule.py - which chunks are asked of which source next. Pure: no clock, no memory, no network.

The caller asks for what `next` gives, verifies what comes, and tells how each ask ended; every ask ends exactly once.
Memory obeys one rule: of the asks for a chunk at most one writes to its place (the *owner*), and a chunk is given to
another owner only when the ask before has ended. A second ask for a chunk whose owner is slow is a *spare*: it is
received beside the place, and put there when the owner has ended.

How it is decided:

* A source has bytes in flight for twice its round trip at the rate that it was measured at, and a little more, so that
  the rate can be found to be higher. Asks take about ASK_S, so that little depends on any one. It begins with what
  earlier fetches have learned of it.
* Towards the end a source is asked only for what it can bring before the others together would have brought all.
* When nothing is left to be asked for, what is outstanding at a slow source is asked of a faster one again.
* A source that has been silent for much longer than expected, while another answers, is asked for a chunk now and then
  only, and what it had not brought is asked of the others. One that brought two chunks with wrong digests is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from pccl.transfer.layout import Layout

__all__ = ["Ask", "Path", "Schedule", "Step", "bitmap", "chunks_of"]

ASK_BYTES = 1 << 20  # or one chunk, if that is more
ASK_S = 0.01
START_BYTES = 256 << 10  # of a first ask, while the rate is not known
WINDOW_BYTES_FIRST = 2 << 20  # in flight, while the rate is not known
WINDOW_BYTES_MIN = 1 << 20
WINDOW_BYTES_MAX = 256 << 20
QUEUE_S = 0.02
SPAN_S = 0.02  # or the time from ask to end, if that is more
SPANS = 4  # of which the best says how much may be in flight: a pause of anybody's does not empty the link
SILENCE_S = 0.5
SILENCE_UNKNOWN_S = 2.0  # of a source that has brought nothing yet
SILENCE_FACTOR = 4.0
PROBE_S = 1.0
SPARE_GAIN = 0.7  # a spare must be expected to take so little of what the owner will still need,
SPARE_S = 0.02  # and so much less
SPARE_LOOK_S = 0.05
LATENCY_UNKNOWN_S = 0.2
SPARE_BYTES_MAX = 64 << 20
STRIKES = 2


@dataclass(slots=True, eq=False)
class Ask:
    """Chunks `first` to `first + count - 1`, asked of one source. `spare`: to be received beside their place."""

    number: int
    source: bytes
    first: int
    count: int
    nbytes: int
    asked_at: float
    received_before: int = 0  # what its source had brought when it was asked for,
    filled: bool = False  # and whether that had then about as much to bring as it may
    spare: bool = False
    cancelled: bool = False
    behind: Ask | None = None  # the ask that it stands in for, while that has not ended
    stand_in: Ask | None = None
    held: bool = False  # it has brought good chunks, and waits for the end of the one before

    @property
    def chunks(self) -> range:
        """Their numbers."""
        return range(self.first, self.first + self.count)


@dataclass(slots=True, frozen=True)
class Path:
    """What was learned of a source. `rate`: bytes per second. `latency`: seconds, the shortest from ask to end."""

    rate: float
    latency: float


@dataclass(slots=True)
class Step:
    """What follows from the end of an ask. `cancel`: asks to be ended. `place`: spares whose chunks are to be copied to
    their places now, those that are not there yet: (ask, chunks). `drop`: spares whose memory is not needed any more.
    `struck`: the source of the ask is lost, for wrong digests.
    """

    cancel: list[Ask] = field(default_factory=list)
    place: list[tuple[Ask, list[int]]] = field(default_factory=list)
    drop: list[Ask] = field(default_factory=list)
    struck: bool = False


class Source:
    """What is known of one source."""

    __slots__ = (
        "asks", "bests", "heard_at", "in_flight", "latency", "lost", "measured", "probes", "rate", "received",
        "span_best", "span_filled", "span_since", "strikes", "suspect_until", "suspected",
    )  # fmt: skip

    def __init__(self, now: float, path: Path | None) -> None:
        self.asks: dict[int, Ask] = {}
        self.in_flight = 0
        self.rate = 0.0 if path is None else path.rate  # 0: not known
        self.latency = 0.0 if path is None else path.latency  # 0: not known
        self.measured = False  # here, not only before
        self.span_since = now
        self.span_best = 0.0  # of the rates of asks that have ended in this span; 0: none has
        self.span_filled = False
        self.bests: deque[float] = deque(maxlen=SPANS)
        self.heard_at = now
        self.received = 0
        self.strikes = 0
        self.suspected = False
        self.suspect_until = 0.0
        self.probes = 0
        self.lost = False

    def window(self, chunk_bytes: int) -> float:
        """How many bytes it may have in flight."""
        wanted = max([self.rate, *self.bests]) * (2 * self.latency + QUEUE_S)
        least = WINDOW_BYTES_MIN if self.rate else WINDOW_BYTES_FIRST
        return max(min(wanted, WINDOW_BYTES_MAX), least, 2 * chunk_bytes)

    def expected(self, nbytes: int) -> float:
        """Seconds until so much more would be here."""
        return self.latency + (self.in_flight + nbytes) / self.rate if self.rate else LATENCY_UNKNOWN_S

    def patience(self) -> float:
        """Seconds of silence that are still nothing to wonder at; twice as many after each that was too long."""
        usual = max(SILENCE_S, SILENCE_FACTOR * self.expected(0)) if self.measured else SILENCE_UNKNOWN_S
        return usual * 2.0 ** min(self.probes, 8)

    @property
    def waited_for(self) -> bool:
        """Whether an ask is out that nobody has ended."""
        return any(not ask.cancelled for ask in self.asks.values())

    def silent_at(self) -> float:
        """When its patience ends."""
        oldest = next(iter(self.asks.values())).asked_at
        return max(oldest, self.heard_at) + self.patience()

    def take(self, ask: Ask, now: float, chunk_bytes: int) -> None:
        """An ask goes out."""
        if not self.asks:
            self.heard_at = now
        ask.received_before = self.received
        ask.filled = self.in_flight >= self.window(chunk_bytes) / 2
        self.asks[ask.number] = ask
        self.in_flight += ask.nbytes

    def ended(self, ask: Ask) -> None:
        """It came back, one way or another."""
        del self.asks[ask.number]
        self.in_flight -= ask.nbytes

    def brought(self, ask: Ask, now: float, chunk_bytes: int) -> None:
        """It came back with bytes. Less than a chunk in all (a few scalars) says nothing of a rate."""
        took = max(now - ask.asked_at, 1e-6)
        self.latency = min(self.latency, took) if self.latency and self.measured else took
        self.heard_at = now
        self.received += ask.nbytes
        self.suspected, self.probes = False, 0
        if not self.measured and self.received < chunk_bytes:
            return
        rate = (self.received - ask.received_before) / took
        self.span_best = max(self.span_best, rate)
        self.span_filled |= ask.filled
        self.rate = max(self.rate, rate)
        self.measured = True

    def look(self, now: float) -> None:
        """The rate is what came from an ask to its end, in time. Where there was little to bring that says how long the
        way is, and nothing against what is known; else the best of a span counts.
        """
        if not self.span_best or now - self.span_since < max(self.latency, SPAN_S):
            return
        if self.span_filled and self.span_best < self.rate:
            self.rate = (self.rate + self.span_best) / 2
        self.bests.append(self.span_best)
        self.span_since, self.span_best, self.span_filled = now, 0.0, False


class Schedule:
    """The chunks of one fetch, and who brings them. `have`: those that are not to be asked for. `parts`: the sizes of
    what the bytes are made of; no ask is for chunks of two of them.
    """

    def __init__(self, nbytes: int, chunk_bytes: int, have: Iterable[int] = (), parts: Sequence[int] = ()) -> None:
        self._layout = Layout(chunk_bytes, parts or (nbytes,))
        self.count = self._layout.count
        self.sources: dict[bytes, Source] = {}
        self.retries = 0  # chunks asked for more than once, spares included
        self._nbytes = nbytes
        self._chunk_bytes = chunk_bytes
        self._done = bytearray(self.count)
        self._refused: dict[int, set[bytes]] = {}
        self._next_number = 1
        self._spare_bytes = 0
        for chunk in have:
            self._done[chunk] = 1
        self._missing = self.count - sum(self._done)
        self._left = sum(self._bytes_of(c, 1) for c in range(self.count) if not self._done[c])
        self._free: list[tuple[int, int]] = list(self._runs_missing())[::-1]  # (first, end), the next one last

    # -- facts --

    @property
    def done(self) -> bool:
        """Whether every chunk is in its place, verified."""
        return self._missing == 0

    @property
    def done_bytes(self) -> int:
        """Of the chunks that are."""
        return self._nbytes - self._left

    @property
    def hopeless(self) -> bool:
        """Whether something is missing and no source is left."""
        return not self.done and not any(True for _ in self._live())

    @property
    def running(self) -> int:
        """Asks that have not ended."""
        return sum(len(source.asks) for source in self.sources.values())

    def is_done(self, chunk: int) -> bool:
        """Whether that chunk is in its place, verified."""
        return bool(self._done[chunk])

    def bitmap(self) -> bytes:
        """One bit for each chunk, the first in the lowest bit of the first byte."""
        return bitmap(self._done)

    def deadline(self, now: float) -> float | None:
        """When `overdue` and `next` want to be called again, if nothing happens before."""
        live = list(self._live())
        times = [source.silent_at() for key, source in live if source.waited_for and self._others(key)]
        times += [source.suspect_until for _, source in live if source.suspected and source.suspect_until > now]
        if not self._free and self.running and len(live) > 1:
            times.append(now + SPARE_LOOK_S)
        return min(times, default=None)

    def _live(self) -> Iterator[tuple[bytes, Source]]:
        return ((key, source) for key, source in self.sources.items() if not source.lost)

    def _bytes_of(self, first: int, count: int) -> int:
        return self._layout.start(first + count) - self._layout.start(first)

    def _runs_missing(self) -> Iterator[tuple[int, int]]:
        ends = set(self._layout.firsts)
        first = None
        for chunk in range(self.count + 1):
            missing = chunk < self.count and not self._done[chunk]
            if first is not None and (not missing or chunk in ends):
                yield first, chunk
                first = None
            if missing and first is None:
                first = chunk

    # -- sources --

    def learned(self) -> dict[bytes, Path]:
        """Of the sources that have brought something."""
        found = ((key, source) for key, source in self.sources.items() if source.measured)
        return {key: Path(source.rate, source.latency) for key, source in found}

    def add(self, source: bytes, now: float, path: Path | None = None) -> None:
        """One more that has everything, or will have. One that was lost begins anew. `path`: as `learned` before."""
        known = self.sources.get(source)
        if known is None:
            self.sources[source] = Source(now, path)
        elif known.lost:
            known.lost, known.strikes, known.suspected = False, 0, False

    def lose(self, source: bytes) -> list[Ask]:
        """It is asked for nothing any more; gives the asks to be ended."""
        known = self.sources[source]
        known.lost = True
        self._trust_if_alone()
        return self._cancel(known.asks.values())

    def overdue(self, now: float) -> list[Ask]:
        """Asks to be ended because their source has been silent for too long while there are others."""
        cancel: list[Ask] = []
        for key, source in list(self._live()):
            if source.waited_for and self._others(key) and now >= source.silent_at():
                source.suspected = True
                source.probes += 1
                source.suspect_until = now + PROBE_S * 2 ** min(source.probes - 1, 5)
                cancel += self._cancel(source.asks.values())
        return cancel

    def _others(self, key: bytes) -> bool:
        """Whether there are others to turn to."""
        return any(not source.suspected for other, source in self._live() if other != key)

    def _trust_if_alone(self) -> None:
        if all(source.suspected for _, source in self._live()):
            for _, source in self._live():
                source.suspected = False

    def _cancel(self, asks: Iterable[Ask]) -> list[Ask]:
        found = [ask for ask in asks if not ask.cancelled and not ask.held]
        for ask in found:
            ask.cancelled = True
        return found

    # -- asking --

    def next(self, now: float) -> list[Ask]:
        """What to ask for now."""
        asks: list[Ask] = []
        live = [key for key, _ in self._live()]
        for key in live:
            self.sources[key].look(now)
        while live and not self.done:
            still = []
            for key in live:
                ask = self._ask_of(key, now)
                if ask is not None:
                    asks.append(ask)
                    still.append(key)
            live = still
        return asks

    def adopt(self, key: bytes, chunk: int, asked_at: float) -> Ask:
        """One that is missing has been asked of a source already."""
        at = next(i for i, (first, end) in enumerate(self._free) if first <= chunk < end)
        first, end = self._free[at]
        self._free[at : at + 1] = [(a, b) for a, b in ((chunk + 1, end), (first, chunk)) if a < b]
        return self._made(key, self.sources[key], chunk, 1, asked_at)

    def _ask_of(self, key: bytes, now: float) -> Ask | None:
        source = self.sources[key]
        limit = self._ask_bytes(source)
        if source.suspected:
            if source.asks or now < source.suspect_until:
                return None
            limit = self._chunk_bytes
        room = source.window(self._chunk_bytes) - source.in_flight
        if source.asks and room < self._chunk_bytes:
            return None
        at = self._free_for(key)
        if at is None:
            return None if source.suspected else self._spare_of(key, source, now)
        first, end = self._free[at]
        count = min(end - first, max(1, min(limit, int(room) if source.asks else limit) // self._chunk_bytes))
        if first not in self._refused and not self._in_time(source, self._bytes_of(first, count)):
            return None
        self._cut(at, first + count)
        return self._made(key, source, first, count, now)

    def _ask_bytes(self, source: Source) -> int:
        wanted = int(source.rate * ASK_S) if source.rate else START_BYTES
        return max(min(wanted, ASK_BYTES), self._chunk_bytes)

    def _free_for(self, key: bytes) -> int | None:
        """Where in `_free` there is something that this source may be asked for."""
        for at in range(len(self._free) - 1, -1, -1):
            refused = self._refused.get(self._free[at][0])
            if refused is None or key not in refused or all(other in refused for other, _ in self._live()):
                return at
        return None

    def _cut(self, at: int, begin: int) -> None:
        end = self._free[at][1]
        if begin < end:
            self._free[at] = (begin, end)
        else:
            del self._free[at]

    def _in_time(self, source: Source, nbytes: int) -> bool:
        """Whether it brings so much before the others together would have brought everything, or sooner than any."""
        rivals = [other for _, other in self._live() if not other.suspected]
        if len(rivals) < 2 or source.suspected or not all(other.rate for other in rivals):
            return True
        mine = source.expected(nbytes)
        everything = self._left / sum(other.rate for other in rivals) + source.latency
        return mine <= everything or mine <= min(other.expected(nbytes) for other in rivals)

    def _made(self, key: bytes, source: Source, first: int, count: int, now: float) -> Ask:
        ask = Ask(self._next_number, key, first, count, self._bytes_of(first, count), now)
        self._next_number += 1
        source.take(ask, now, self._chunk_bytes)
        return ask

    def _spare_of(self, key: bytes, source: Source, now: float) -> Ask | None:
        """What another source will bring later than this one could."""
        best: Ask | None = None
        worst = 0.0
        room = source.window(self._chunk_bytes) - source.in_flight
        for other in (other for other_key, other in self.sources.items() if other_key != key):
            ahead = 0
            for ask in other.asks.values():
                ahead += ask.nbytes
                if source.asks and ask.nbytes > room:
                    continue
                if ask.cancelled or ask.stand_in is not None or ask.behind is not None or self._refuses(ask, key):
                    continue
                needs = self._still_needs(other, ask, ahead, now)
                if needs > worst and source.expected(ask.nbytes) + SPARE_S < SPARE_GAIN * needs:
                    best, worst = ask, needs
        if best is None or self._spare_bytes + best.nbytes > SPARE_BYTES_MAX:
            return None
        spare = self._made(key, source, best.first, best.count, now)
        spare.spare, spare.behind, best.stand_in = True, best, spare
        self._spare_bytes += spare.nbytes
        self.retries += spare.count
        return spare

    def _refuses(self, ask: Ask, key: bytes) -> bool:
        return bool(self._refused) and any(key in self._refused.get(chunk, ()) for chunk in ask.chunks)

    def _still_needs(self, source: Source, ask: Ask, ahead: int, now: float) -> float:
        """Seconds that an ask will still take: by its source's rate, or as long again as it is late already."""
        so_far = now - ask.asked_at
        if not source.rate:
            return so_far
        due = max(ask.asked_at + source.latency, source.heard_at + ahead / source.rate)
        return due - now if due > now else max(now - due, 1e-3)

    # -- how asks end --

    def arrived(self, ask: Ask, now: float, good: list[int], bad: list[int]) -> Step:
        """All of its bytes came; `good` and `bad`: its chunks by what their digests said (those that are in their
        places already may be in neither).
        """
        step = Step()
        source = self._end(ask)
        source.brought(ask, now, self._chunk_bytes)
        for chunk in bad:
            self._refused.setdefault(chunk, set()).add(ask.source)
            source.strikes += 1
        if ask.spare:
            self._spare_arrived(ask, step, not bad)
        else:
            for chunk in good:
                self._set_done(chunk)
            self._owner_ended(ask, step)
        if source.strikes >= STRIKES and not source.lost:
            step.struck = True
            step.cancel += self.lose(ask.source)
        return step

    def failed(self, ask: Ask) -> Step:
        """It ended without its bytes: cancelled, or its source is gone."""
        step = Step()
        self._end(ask)
        if ask.spare:
            self._spare_failed(ask, step)
        else:
            self._owner_ended(ask, step)
        return step

    def _end(self, ask: Ask) -> Source:
        source = self.sources[ask.source]
        source.ended(ask)
        return source

    def _set_done(self, chunk: int) -> None:
        if not self._done[chunk]:
            self._done[chunk] = 1
            self._missing -= 1
            self._left -= self._bytes_of(chunk, 1)

    def _owner_ended(self, ask: Ask, step: Step) -> None:
        """Nobody writes to its places any more: a spare that is here goes there, one that is not takes over."""
        spare, ask.stand_in = ask.stand_in, None
        missing = [chunk for chunk in ask.chunks if not self._done[chunk]]
        if spare is None:
            self._release(missing)
            return
        spare.behind = None
        if spare.held:
            spare.held = False
            self._place(spare, missing, step)
        elif not missing:
            step.cancel += self._cancel([spare])

    def _spare_arrived(self, spare: Ask, step: Step, whole: bool) -> None:
        if not whole:
            self._spare_failed(spare, step)
            return
        owner = spare.behind
        if owner is None:
            self._place(spare, [chunk for chunk in spare.chunks if not self._done[chunk]], step)
            return
        spare.held = True
        step.cancel += self._cancel([owner])

    def _spare_failed(self, spare: Ask, step: Step) -> None:
        owner, spare.behind = spare.behind, None
        if owner is not None:
            owner.stand_in = None
        else:
            self._owner_ended(spare, step)
        self._drop(spare, step)

    def _place(self, spare: Ask, chunks: list[int], step: Step) -> None:
        """Into their places; whoever stands in for this one is not needed any more."""
        step.place.append((spare, chunks))
        for chunk in chunks:
            self._set_done(chunk)
        heir, spare.stand_in = spare.stand_in, None
        if heir is not None:
            heir.behind = None
            if heir.held:
                heir.held = False
                self._drop(heir, step)
            else:
                step.cancel += self._cancel([heir])
        self._drop(spare, step)

    def _drop(self, spare: Ask, step: Step) -> None:
        """Its memory is not needed any more."""
        self._spare_bytes -= spare.nbytes
        step.drop.append(spare)

    def _release(self, chunks: list[int]) -> None:
        """They can be asked of anybody again, before all others; alone if somebody brought them wrong."""
        self.retries += len(chunks)
        start = 0
        for i in range(1, len(chunks) + 1):
            breaks = i == len(chunks) or chunks[i] != chunks[i - 1] + 1
            if breaks or chunks[i] in self._refused or chunks[i - 1] in self._refused:
                self._free.append((chunks[start], chunks[i - 1] + 1))
                start = i


# -- sets of chunks --


def bitmap(flags: bytes | bytearray) -> bytes:
    """One bit for each flag, the first in the lowest bit of the first byte."""
    return bytes(np.packbits(np.frombuffer(flags, np.uint8), bitorder="little"))


def chunks_of(bits: bytes, count: int) -> list[int]:
    """The chunks of a bitmap whose bit is set. ValueError if it is not one of so many chunks."""
    if len(bits) != -(-count // 8):
        raise ValueError(f"a bitmap of {count} chunks has {-(-count // 8)} bytes, not {len(bits)}")
    flags = np.unpackbits(np.frombuffer(bits, np.uint8), count=None, bitorder="little")
    if flags[count:].any():
        raise ValueError(f"a bitmap of {count} chunks has bits beyond them")
    return [int(chunk) for chunk in np.flatnonzero(flags[:count])]
