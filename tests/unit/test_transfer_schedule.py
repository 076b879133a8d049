"""The schedule of a fetch under a fluid model of its sources: nothing is lost, nothing asked in vain, and it ends."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pccl.transfer.schedule import Ask, Path, Schedule, Step, bitmap, chunks_of

KIB, MIB = 1 << 10, 1 << 20


@dataclass
class Line:
    """A source that serves its asks one after the other. `dies_at`, `freezes_at`: in seconds. `wrong`: one in so many
    chunks comes with wrong bytes.
    """

    rate: float
    delay: float = 0.01
    dies_at: float = float("inf")
    freezes_at: float = float("inf")
    wrong: float = 0.0
    free_at: float = 0.0


@dataclass
class Run:
    """A schedule and its sources under a virtual clock, and what memory would hold."""

    lines: dict[bytes, Line]
    schedule: Schedule
    chunk_bytes: int
    seed: int = 0
    now: float = 0.0
    outcomes: list[tuple[float, int, str, Ask]] = field(default_factory=list)
    ended: set[int] = field(default_factory=set)
    writers: dict[int, int] = field(default_factory=dict)  # chunk -> number of the ask that may write to its place
    place: dict[int, bool] = field(default_factory=dict)  # chunk -> whether its place holds the right bytes
    beside: dict[int, set[int]] = field(default_factory=dict)  # spare -> its chunks, all right
    carried: dict[bytes, int] = field(default_factory=dict)
    paths: dict[bytes, Path] = field(default_factory=dict)

    def go(self, limit_s: float = 1e6) -> float:
        """Until everything is there; the time that it took. Fails if it hangs."""
        self.random = random.Random(self.seed)
        for key in self.lines:
            self.schedule.add(key, 0.0, self.paths.get(key))
        self.ask()
        turns = 0
        while not self.schedule.done and not self.schedule.hopeless:
            turns += 1
            assert turns < 20_000 and self.now < limit_s, "it goes on for ever"
            deadline = self.schedule.deadline(self.now)
            if self.outcomes and (deadline is None or self.outcomes[0][0] <= max(deadline, self.now)):
                at, _, kind, ask = heapq.heappop(self.outcomes)
                self.now = max(self.now, at)
                self.end(kind, ask)
            else:
                assert deadline is not None, "nothing will ever happen"
                self.now = max(self.now + 1e-4, deadline)
                self.cancel(self.schedule.overdue(self.now))
            self.ask()
        took = self.now
        while self.outcomes:
            self.end(*heapq.heappop(self.outcomes)[2:])
        assert self.schedule.running == 0
        return took

    def ask(self) -> None:
        for ask in self.schedule.next(self.now):
            source, line = self.schedule.sources[ask.source], self.lines[ask.source]
            first = source.in_flight == ask.nbytes
            assert first or source.in_flight <= source.window(self.chunk_bytes), "more than its window"
            assert 0 <= ask.first < ask.first + ask.count <= self.schedule.count
            if not ask.spare:
                for chunk in ask.chunks:
                    assert not self.schedule.is_done(chunk), "asked again for what is there"
                    assert chunk not in self.writers, "two may write to one place"
                    self.writers[chunk] = ask.number
            begins = max(self.now + line.delay / 2, line.free_at)
            ends = begins + ask.nbytes / line.rate
            line.free_at = ends
            arrives = ends + line.delay / 2
            if ends >= line.freezes_at:
                continue
            if ends >= line.dies_at:
                heapq.heappush(self.outcomes, (max(self.now, line.dies_at), ask.number, "lost", ask))
            else:
                heapq.heappush(self.outcomes, (arrives, ask.number, "ok", ask))

    def cancel(self, asks: list[Ask]) -> None:
        for ask in asks:
            heapq.heappush(self.outcomes, (self.now + 1e-4, ask.number, "cancelled", ask))

    def end(self, kind: str, ask: Ask) -> None:
        if ask.number in self.ended:
            return
        self.ended.add(ask.number)
        if kind == "ok":
            self.follow(ask, self.arrive(ask))
        else:
            self.free(ask)
            self.follow(ask, self.schedule.failed(ask))
            if kind == "lost" and not self.schedule.sources[ask.source].lost:
                self.cancel(self.schedule.lose(ask.source))

    def free(self, ask: Ask) -> None:
        if not ask.spare:
            for chunk in ask.chunks:
                del self.writers[chunk]

    def arrive(self, ask: Ask) -> Step:
        self.free(ask)
        bad = [chunk for chunk in ask.chunks if self.random.random() < self.lines[ask.source].wrong]
        good = [chunk for chunk in ask.chunks if chunk not in bad]
        if ask.spare:
            self.beside[ask.number] = set(good)
        else:
            for chunk in ask.chunks:
                assert not self.place.get(chunk), "a chunk that was right was written to"
                self.place[chunk] = chunk not in bad
        self.carried[ask.source] = self.carried.get(ask.source, 0) + ask.nbytes
        return self.schedule.arrived(ask, self.now, good, bad)

    def follow(self, ask: Ask, step: Step) -> None:
        self.cancel(step.cancel)
        for spare, chunks in step.place:
            for chunk in chunks:
                assert chunk in self.beside[spare.number], "put in place what was not verified"
                assert chunk not in self.writers, "somebody else may still write there"
                self.place[chunk] = True
        for spare in step.drop:
            self.beside.pop(spare.number, None)


def run_of(lines: list[Line], nbytes: int, chunk_bytes: int, have: list[int] | None = None, seed: int = 0) -> Run:
    named = {bytes([i] * 16): line for i, line in enumerate(lines)}
    run = Run(named, Schedule(nbytes, chunk_bytes, have or []), chunk_bytes, seed)
    run.place = dict.fromkeys(have or [], True)
    return run


def check(run: Run) -> None:
    assert run.schedule.done
    assert sorted(run.place) == list(range(run.schedule.count)) and all(run.place.values())
    assert not run.beside, "memory beside the target is left over"


lines = st.builds(
    Line,
    rate=st.floats(1e5, 1e9),
    delay=st.floats(1e-4, 0.3),
    dies_at=st.one_of(st.just(float("inf")), st.floats(0, 3)),
    freezes_at=st.one_of(st.just(float("inf")), st.floats(0, 3)),
    wrong=st.sampled_from([0.0, 0.0, 0.05, 1.0]),
)
good_lines = st.builds(Line, rate=st.floats(1e6, 1e9), delay=st.floats(1e-4, 0.3))


@settings(max_examples=60)
@given(
    good=good_lines,
    others=st.lists(lines, max_size=4),
    chunk_bytes=st.sampled_from([16 * KIB, 64 * KIB, MIB]),
    nbytes=st.integers(0, 8 * MIB),
    seed=st.integers(0, 1000),
)
def test_with_one_good_source_it_always_ends_well(
    good: Line, others: list[Line], chunk_bytes: int, nbytes: int, seed: int
) -> None:
    run = run_of([*others, good], nbytes, chunk_bytes, seed=seed)
    run.go()
    check(run)


@settings(max_examples=40)
@given(others=st.lists(lines, min_size=1, max_size=4), seed=st.integers(0, 1000))
def test_with_any_sources_it_ends_or_says_that_it_cannot(others: list[Line], seed: int) -> None:
    for line in others:  # what is frozen for ever ends by the deadline of the fetch, which is not the schedule's
        line.freezes_at = float("inf")
    run = run_of(others, 4 * MIB, 64 * KIB, seed=seed)
    run.go()
    assert run.schedule.done or all(source.lost for source in run.schedule.sources.values())
    assert all(run.place[chunk] for chunk in range(run.schedule.count) if run.schedule.is_done(chunk))


@settings(max_examples=50)
@given(have=st.sets(st.integers(0, 99)), rate=st.floats(1e6, 1e9))
def test_what_is_there_is_not_asked_for(have: set[int], rate: float) -> None:
    nbytes = 99 * 16 * KIB + 5
    run = run_of([Line(rate)], nbytes, 16 * KIB, sorted(have))
    assert chunks_of(run.schedule.bitmap(), 100) == sorted(have)
    run.go()
    check(run)
    missing = sum(5 if chunk == 99 else 16 * KIB for chunk in set(range(100)) - have)
    assert sum(run.carried.values()) == missing
    assert run.schedule.done_bytes == nbytes


@pytest.mark.parametrize("rates", [(1, 1, 2, 4), (1,), (1, 1), (1, 10), (1, 30, 30)])
@pytest.mark.parametrize("chunk_bytes", [64 * KIB, MIB])
@pytest.mark.parametrize("delay", [0.001, 0.05])
def test_faster_sources_carry_more_and_the_whole_takes_little_longer_than_it_must(
    rates: tuple[int, ...], chunk_bytes: int, delay: float
) -> None:
    nbytes, unit = 256 * MIB, 12.5e6
    run = run_of([Line(rate * unit, delay) for rate in rates], nbytes, chunk_bytes)
    took = run.go()
    check(run)
    learning = 0.0 if rates == (1, 1, 2, 4) else 5 * delay  # until it is known how fast the fastest are
    assert took <= 1.15 * (nbytes / (sum(rates) * unit) + delay) + learning
    for key, line in run.lines.items():
        share = run.carried[key] / nbytes
        assert share == pytest.approx(line.rate / (sum(rates) * unit), rel=0.35, abs=0.02)


@pytest.mark.parametrize("chunk_bytes", [16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB])
def test_asks_that_end_together_do_not_hide_how_fast_a_source_is(chunk_bytes: int) -> None:
    schedule, now, flights = Schedule(1024 * MIB, chunk_bytes), 0.0, []
    schedule.add(b"a source", now)
    for _ in range(8):
        asks = schedule.next(now)
        flights.append(sum(ask.nbytes for ask in asks))
        now += 0.1
        for ask in asks:
            schedule.arrived(ask, now, list(ask.chunks), [])
    assert all(later >= min(1.9 * flight, 64 * MIB) for flight, later in pairwise(flights))


def test_what_was_learned_of_a_source_serves_the_next_fetch() -> None:
    first, second = (run_of([Line(60e6, 0.08)], 64 * MIB, MIB) for _ in range(2))
    first.go()
    second.paths = first.schedule.learned()
    assert second.go() <= 1.02 * 64 * MIB / 60e6 + 2 * 0.08 < first.now
    check(second)


def test_what_is_not_so_any_more_is_soon_forgotten() -> None:
    run = run_of([Line(1e6, 0.08), Line(1e6, 0.08)], 4 * MIB, 64 * KIB)
    run.paths = dict.fromkeys(run.lines, Path(1e9, 1e-4))
    assert run.go() <= 1.3 * 4 * MIB / 2e6
    check(run)


def test_a_source_that_freezes_costs_little_more_than_its_silence() -> None:
    run = run_of([Line(50e6), Line(50e6, freezes_at=0.5)], 128 * MIB, MIB)
    took = run.go()
    check(run)
    assert took < 128 * MIB / 50e6 + 1.0


def test_the_last_chunk_of_a_slow_source_is_asked_of_a_fast_one() -> None:
    run = run_of([Line(1e8), Line(1e5)], 8 * MIB, MIB)
    took = run.go()
    check(run)
    assert took < 1.0, "the slow one alone would take ten seconds for a chunk"
    assert run.schedule.retries >= 1


def test_wrong_chunks_are_asked_of_others_and_twice_is_enough() -> None:
    run = run_of([Line(1e7), Line(1e7, wrong=1.0)], 16 * MIB, 64 * KIB)
    run.go()
    check(run)
    assert run.schedule.sources[bytes([1] * 16)].lost
    assert not run.schedule.sources[bytes(16)].lost


def test_the_only_source_with_wrong_bytes_is_given_up() -> None:
    run = run_of([Line(1e7, wrong=1.0)], MIB, MIB)
    run.go()
    assert run.schedule.hopeless and not run.schedule.done


def test_a_source_that_comes_later_helps() -> None:
    run = run_of([Line(1e6)], 16 * MIB, 64 * KIB)
    late = bytes([9] * 16)
    run.lines[late] = Line(1e8)
    run.schedule.add(late, 0.0)
    assert run.go() < 2.0
    check(run)


def test_a_few_bytes_say_nothing_of_a_rate() -> None:
    """Scalars that are here after 40 ms: their source is not one of a few bytes per second."""
    schedule = Schedule(10 * 1024 + 5, 1024, parts=[10 * 1024, 5])
    schedule.add(b"a", 0.0)
    ask = schedule.adopt(b"a", 10, 0.0)
    schedule.arrived(ask, 0.04, [10], [])
    assert not schedule.learned() and schedule.sources[b"a"].rate == 0.0
    (ask,) = schedule.next(0.04)
    schedule.arrived(ask, 0.08, list(ask.chunks), [])
    assert schedule.learned()[b"a"].rate > 100_000


def test_bitmaps() -> None:
    assert bitmap(b"\1\0\0\0\0\0\0\0\1") == b"\1\1"
    assert chunks_of(b"\1\1", 9) == [0, 8]
    assert chunks_of(b"", 0) == []
    for bits, count in ((b"\1", 9), (b"\1\2", 9), (b"\1\1\0", 9)):
        with pytest.raises(ValueError):
            chunks_of(bits, count)
