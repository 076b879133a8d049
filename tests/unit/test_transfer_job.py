"""One fetch, driven by hand: every path to its end, and that it is over only when nothing touches its memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from unit.fake_port import FakePort

from pccl.errors import Cancelled, Closed, PeerLost, Timeout, TransferError
from pccl.transfer.job import Job
from pccl.transfer.layout import Layout
from pccl.transfer.manifest import HEAD_GENERATION, Head, Manifest, data_key, head_key, manifest_key
from pccl.transfer.schedule import Path
from pccl.transfer.target import Ahead, Into
from pccl.types import Status

A, B = b"a" * 16, b"b" * 16
DATA = bytes(np.random.default_rng(1).integers(0, 256, 10_000, np.uint8))


def job(port: FakePort, *sources: bytes, **options: Any) -> Job:
    given = {"into": None, "have": None, "generation": None, "root": None, "priority": 1, "relay": False}
    given |= {"now": port.now, "deadline_at": 10.0} | options
    into, have = given.pop("into"), given.pop("have")
    made = Job(port, "x", sources, Into(None if into is None else [into], have), **given)
    made.pump(port.now)
    return made


def whole(made: Job) -> Any:
    """What it was fetched into."""
    assert isinstance(made.target, Into)
    return made.target.whole


def until_data(port: FakePort) -> None:
    """Answers heads and manifest."""
    while keys := [t for t, asked in port.asked.items() if asked.key != data_key("x")]:
        port.answer(keys[0])


def test_it_is_fetched_and_verified() -> None:
    port = FakePort()
    port.offer(A, "x", DATA, 5)
    made = job(port, A)
    port.answer_all()
    assert made.over and made.error is None and whole(made).tobytes() == DATA
    assert made.manifest is not None and made.manifest.generation == 5
    assert made.report.received == {A: len(DATA)} and made.deadline(0.0) == float("inf")


def test_what_is_learned_of_a_source_is_known_to_the_next_fetch() -> None:
    port = FakePort()
    port.offer(A, "x", DATA)
    job(port, A)
    port.now = 0.5
    port.answer_all()
    assert port.paths[A].latency > 0 and port.paths[A].rate > 0
    port.paths[A] = Path(1e9, 0.1)
    again = job(port, A)
    until_data(port)
    port.now = 1.0
    assert again.schedule is not None and again.schedule.sources[A].window(1024) == pytest.approx(0.22e9)
    port.answer_all()
    assert port.paths[A].rate == 1e9, "so little tells nothing"


def test_no_bytes_need_no_source() -> None:
    port = FakePort()
    port.offer(A, "x", b"")
    made = job(port, A)
    port.answer_all()
    assert made.over and made.error is None and whole(made).size == 0


def test_a_wrong_chunk_comes_from_another() -> None:
    port = FakePort()
    port.offer(A, "x", DATA)
    port.offer(B, "x", DATA)
    port.regions[B, data_key("x"), 1] = bytes(len(DATA))
    made = job(port, A, B)
    port.answer_all()
    assert made.over and made.error is None and whole(made).tobytes() == DATA
    assert {source for _, source in made.report.refused} <= {B}


def test_nobody_has_it_right() -> None:
    port = FakePort()
    port.offer(A, "x", DATA)
    port.regions[A, data_key("x"), 1] = bytes(len(DATA))
    made = job(port, A)
    port.answer_all()
    assert made.over and isinstance(made.error, TransferError)
    assert (made.error.cause, made.error.peer, made.error.name) == ("digest", A, "x") and made.error.chunk is not None


def test_a_lost_source_leaves_its_part_to_the_other() -> None:
    port = FakePort()
    port.offer(A, "x", DATA)
    port.offer(B, "x", DATA)
    made = job(port, A, B)
    until_data(port)
    for token in port.of(A):
        port.end(token, Status.EPEER)
    port.answer_all()
    assert made.over and made.error is None and made.report.lost == {A: "is lost"}


def test_all_sources_lost() -> None:
    port = FakePort()
    made = job(port, A, B)
    for token in list(port.asked):
        port.end(token, Status.EPEER)
    assert made.over and isinstance(made.error, PeerLost)


def test_it_is_over_only_when_its_asks_have_ended() -> None:
    port = FakePort()
    port.offer(A, "x", DATA)
    made = job(port, A)
    until_data(port)
    tokens = list(port.asked)
    assert tokens
    made.cancel()
    made.pump(0.0)
    assert not made.over and all(asked.cancelled for asked in port.asked.values())
    made.fail(Closed("later"))
    for token in tokens:
        assert not made.over
        port.answer(token)
    assert made.over and isinstance(made.error, Cancelled), "the first error counts"


def test_its_deadline() -> None:
    port = FakePort()
    made = job(port, A)
    port.end(next(iter(port.asked)), Status.EGONE)
    due = made.deadline(0.0)
    assert 0.0 < due < 1.0, "it asks again"
    made.pump(due)
    assert port.asked and made.deadline(due) == 10.0
    port.now = 10.0
    made.pump(10.0)
    assert not made.over
    port.answer_all()
    assert made.over and isinstance(made.error, Timeout)


def test_a_target_of_another_size_is_not_touched() -> None:
    port = FakePort()
    port.offer(A, "x", DATA)
    target = np.full(5, 7, np.uint8)
    made = job(port, A, into=target)
    port.answer_all()
    assert made.over and isinstance(made.error, TransferError) and made.error.cause == "size"
    assert (target == 7).all()


def test_what_is_there_is_verified_and_not_fetched() -> None:
    port = FakePort()
    port.offer(A, "x", DATA)
    target = np.frombuffer(bytearray(DATA), np.uint8)
    target[3000] ^= 1  # in chunk 2, which is said to be there
    made = job(port, A, into=target, have=b"\xff\x03")
    port.answer_all()
    assert made.over and made.error is None and target.tobytes() == DATA
    assert made.report.received == {A: 1024} and made.report.resumed_bytes == len(DATA) - 1024


def test_a_bitmap_of_something_else() -> None:
    port = FakePort()
    port.offer(A, "x", DATA)
    made = job(port, A, into=np.zeros(len(DATA), np.uint8), have=b"\xff")
    port.answer_all()
    assert made.over and isinstance(made.error, TransferError) and made.error.cause == "size"


@pytest.mark.parametrize("what", ["head", "manifest"])
def test_what_cannot_be_read_ends_a_source(what: str) -> None:
    port = FakePort()
    port.offer(A, "x", DATA)
    key = (A, head_key("x"), HEAD_GENERATION) if what == "head" else (A, manifest_key("x"), 1)
    port.regions[key] = bytes(len(port.regions[key]))
    made = job(port, A)
    port.answer_all()
    assert made.over and isinstance(made.error, TransferError) and made.error.cause == "protocol"


def test_a_manifest_that_is_replaced_meanwhile() -> None:
    port = FakePort()
    port.offer(A, "x", DATA, 1)
    made = job(port, A)
    port.answer(next(iter(port.asked)))
    del port.regions[A, manifest_key("x"), 1]
    port.offer(A, "x", DATA[::-1], 2)
    for _ in range(5):
        port.answer_all()
        port.now = min(made.deadline(port.now), port.now + 1.0)
        made.pump(port.now)
    assert made.over and made.error is None and whole(made).tobytes() == DATA[::-1]


def test_a_relay_serves_what_is_verified_and_nothing_else() -> None:
    port = FakePort()
    port.offer(A, "x", DATA)
    made = job(port, A, relay=True)
    until_data(port)
    assert port.log.parts == []
    port.answer_all()
    assert made.over and not port.log.withdrawn
    assert sum(end - first for first, end in port.log.parts) == len(DATA)


def test_a_relay_that_failed_is_withdrawn_before_the_end() -> None:
    port = FakePort()
    port.offer(A, "x", DATA)
    made = job(port, A, relay=True)
    until_data(port)
    made.cancel()
    made.pump(0.0)
    port.answer_all()
    assert port.log.withdrawn and not made.over
    made.on_withdrawn()
    made.pump(0.0)
    assert made.over and isinstance(made.error, Cancelled)


def test_a_source_that_is_named_later() -> None:
    port = FakePort()
    port.offer(B, "x", DATA)
    made = job(port)
    assert not port.asked and not made.over, "a fetch without sources waits for one"
    made.add_source(B)
    made.pump(0.0)
    port.answer_all()
    assert made.over and made.error is None


def test_a_closed_engine() -> None:
    port = FakePort()
    made = job(port, A)
    port.end(next(iter(port.asked)), Status.ECLOSED)
    assert made.over and isinstance(made.error, Closed)


class Eager(Into):
    """Wants its first chunks at once, and thinks that it has one of them. Notes when it is written to by two."""

    def __init__(self) -> None:
        super().__init__([np.zeros(len(DATA), np.uint8)])
        self.layout = Layout(1024, (len(DATA),))

    def ahead(self, head: Head | None) -> Ahead | None:
        return None if head is None else Ahead(range(4), self.layout, head.generation)

    def begin(self, manifest: Manifest) -> Iterable[int]:
        super().begin(manifest)
        return [9]

    def place(self, first: int, count: int) -> Any:
        start = self.layout.start(first)
        return self._given[0][start : self.layout.start(first + count)]  # type: ignore[index]


def eager(port: FakePort, *sources: bytes, **options: Any) -> Job:
    given = {"generation": None, "root": None, "priority": 1, "relay": False, "now": 0.0, "deadline_at": 10.0}
    made = Job(port, "x", sources, Eager(), **(given | options))
    made.pump(port.now)
    return made


def spans_of_data(port: FakePort) -> list[tuple[int, int]]:
    return [asked.span for asked in port.asked.values() if asked.key == data_key("x")]


def answer_heads(port: FakePort) -> None:
    for token in [token for token, asked in port.asked.items() if asked.key == head_key("x")]:
        port.answer(token)


def by_key(port: FakePort, key: bytes) -> int:
    return next(token for token, asked in port.asked.items() if asked.key == key)


@pytest.mark.parametrize("first", ["data", "manifest"])
def test_what_is_wanted_anyway_is_asked_for_before_the_manifest_and_once(first: str) -> None:
    port = FakePort()
    for source in (A, B):
        port.offer(source, "x", DATA, 3)
    made = eager(port, A, B)
    answer_heads(port)
    assert spans_of_data(port) == [(0, 1024), (1024, 1024), (2048, 1024), (3072, 1024)]
    assert {len(port.of(source)) for source in (A, B)} == {2, 3}, "of both, and the manifest of one"
    if first == "data":
        for _ in range(4):
            port.answer(by_key(port, data_key("x")))
        assert made.have() == b""
    port.answer(by_key(port, manifest_key("x")))
    assert (made.have() == b"\x0f\x02") == (first == "data")
    port.answer_all()
    assert made.over and made.error is None
    assert sum(made.report.received.values()) == len(DATA) - (len(DATA) - 9 * 1024), "nothing twice"
    assert made.target.place(0, 9).tobytes() == DATA[: 9 * 1024]


class Hasty(Eager):
    """Wants them before it knows of any offer."""

    def ahead(self, head: Head | None) -> Ahead | None:
        return Ahead(range(4), self.layout, 3) if head is None else None


def test_what_is_wanted_of_any_offer_is_asked_for_with_the_heads() -> None:
    """Of all sources, in turns; what B does not have is asked for again, once it is known that A has it."""
    port = FakePort()
    port.offer(A, "x", DATA, 3)
    made = Job(port, "x", (A, B), Hasty(), generation=None, root=None, priority=1, relay=False, now=0.0, deadline_at=10)
    made.pump(port.now)
    assert spans_of_data(port) == [(0, 1024), (1024, 1024), (2048, 1024), (3072, 1024)]
    assert [len(port.of(source)) for source in (A, B)] == [3, 3], "and their heads"
    for token in port.of(B):
        port.answer(token)
    answer_heads(port)
    port.now = 0.3
    made.pump(port.now)
    assert len(spans_of_data(port)) == 2, "not again before the manifest"
    port.answer_all()
    assert made.over and made.error is None and made.target.place(0, 9).tobytes() == DATA[: 9 * 1024]
    assert made.report.received == {A: 9 * 1024}, "nothing twice"


def test_what_was_asked_of_one_that_offers_nothing_leaves_no_trace() -> None:
    port = FakePort()
    made = Job(port, "x", (A, B), Hasty(), generation=None, root=None, priority=1, relay=False, now=0.0, deadline_at=10)
    made.pump(port.now)
    for token in list(port.asked):
        port.end(token, Status.EPEER)
    assert made.over and isinstance(made.error, PeerLost) and not made.target.place(0, 9).any()


def test_what_came_before_the_manifest_is_judged_by_it() -> None:
    port = FakePort()
    for source in (A, B):
        port.offer(source, "x", DATA, 3)
    port.regions[A, data_key("x"), 3] = bytes(len(DATA))
    made = eager(port, A, B)
    answer_heads(port)
    port.answer_all()
    assert made.over and made.error is None and made.target.place(0, 9).tobytes() == DATA[: 9 * 1024]
    assert A in made.report.lost and {source for _, source in made.report.refused} == {A}


def test_changed_chunks_that_came_before_the_manifest_are_told() -> None:
    port = FakePort()
    port.offer(A, "x", DATA, 3)
    port.regions[A, data_key("x"), 3] = bytes(1024) + DATA[1024:]
    made = eager(port, A, changing=True)
    answer_heads(port)
    port.answer_all()
    assert made.over and made.error is None and made.report.changed == [0]
    assert not made.have()[0] & 1 and made.have()[0] & 2


def test_an_ask_before_the_manifest_of_a_source_that_is_out_writes_alone() -> None:
    """The manifest of what A has is gone; B, with something newer, is chosen. What A was asked for is still under way:
    its places are nobody else's until it has ended.
    """
    port = FakePort()
    port.offer(A, "x", DATA, 3)
    made = eager(port, A, B)
    answer_heads(port)
    port.now = 0.3
    made.pump(port.now)  # B has nothing yet: A it is
    assert len(spans_of_data(port)) == 4
    port.offer(B, "x", DATA, 4)
    port.end(by_key(port, manifest_key("x")), Status.EPEER)
    while not [asked for asked in port.asked.values() if asked.key == manifest_key("x")]:
        port.now += 0.3
        made.pump(port.now)
        answer_heads(port)
    port.answer(by_key(port, manifest_key("x")))
    under_way = [asked for asked in port.asked.values() if asked.key == data_key("x")]
    assert all(asked.cancelled for asked in under_way if asked.peer == A)
    places = [span[0] // 1024 + i for span in spans_of_data(port) for i in range(span[1] // 1024)]
    assert len(places) == len(set(places))
    port.answer_all()
    assert made.over and made.error is None and made.target.place(0, 9).tobytes() == DATA[: 9 * 1024]


def test_a_job_that_ends_before_its_manifest_waits_for_what_it_asked_for() -> None:
    port = FakePort()
    port.offer(A, "x", DATA, 3)
    made = eager(port, A)
    answer_heads(port)
    made.cancel()
    made.pump(port.now)
    assert not made.over and all(asked.cancelled for asked in port.asked.values())
    port.answer_all()
    assert made.over and isinstance(made.error, Cancelled)


def test_a_manifest_that_the_target_has_is_not_read_again() -> None:
    port = FakePort()
    port.offer(A, "x", DATA, 3)
    target = Eager()
    given = {"generation": None, "root": None, "priority": 1, "relay": False, "deadline_at": 10.0}

    def again() -> Job:
        made = Job(port, "x", (A,), target, now=port.now, **given)
        made.pump(port.now)
        answer_heads(port)
        return made

    target.manifest = Manifest.of("x", 3, DATA, 1024)
    known = again()
    assert known.manifest is target.manifest and not any(a.key == manifest_key("x") for a in port.asked.values())
    known.cancel()
    for token in list(port.asked):
        port.end(token, Status.ECANCELLED)
    port.offer(A, "x", DATA, 4)
    assert again().manifest is None, "that is another offer"
    assert any(asked.key == manifest_key("x") for asked in port.asked.values())


def test_a_target_that_does_not_know_yet_what_it_wants_is_waited_for() -> None:
    """The manifest is read, and what was wanted in any case; then the fetch waits until it is told to go on."""

    class Later(Eager):
        ready = False

        def begin(self, manifest: Manifest) -> Iterable[int] | None:  # type: ignore[override]
            return super().begin(manifest) if self.ready else None

    port = FakePort()
    port.offer(A, "x", DATA, 3)
    target = Later()
    made = Job(port, "x", (A,), target, generation=None, root=None, priority=1, relay=False, now=0.0, deadline_at=10.0)
    made.pump(port.now)
    port.answer_all()
    made.pump(port.now)
    assert not made.over and not port.asked and made.have() == b"" and made.manifest is not None
    assert made.target.place(0, 4).tobytes() == DATA[: 4 * 1024]
    target.ready = True
    made.pump(port.now)
    assert spans_of_data(port) == [(4 * 1024, 5 * 1024)]
    port.answer_all()
    assert made.over and made.error is None and made.target.place(0, 9).tobytes() == DATA[: 9 * 1024]


def test_a_fetch_that_waits_for_its_target_ends_in_time() -> None:
    class Never(Eager):
        def begin(self, manifest: Manifest) -> None:  # type: ignore[override]
            return None

    port = FakePort()
    port.offer(A, "x", DATA, 3)
    made = Job(port, "x", (A,), Never(), generation=None, root=None, priority=1, relay=False, now=0.0, deadline_at=10.0)
    made.pump(port.now)
    port.answer_all()
    assert not made.over and made.deadline(port.now) == 10.0
    made.pump(10.0)
    assert made.over and isinstance(made.error, Timeout)


def test_a_fetch_of_which_nothing_is_wanted_ends_with_the_head() -> None:
    class Sated(Eager):
        def begin(self, manifest: Manifest) -> Iterable[int]:
            return range(manifest.count)

    port = FakePort()
    port.offer(A, "x", DATA, 3)
    target = Sated()
    target.manifest = Manifest.of("x", 3, DATA, 1024)
    made = Job(port, "x", (A,), target, generation=None, root=None, priority=1, relay=False, now=0.0, deadline_at=10.0)
    made.pump(port.now)
    answer_heads(port)
    assert made.over and made.error is None and not port.asked
