"""Which content a fetch is about, when its sources differ, are late, or do not answer."""

from __future__ import annotations

from pccl.transfer.lookup import GRACE_S, Lookup, Place
from pccl.transfer.manifest import Head

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16


def head(generation: int, root: bytes) -> Head:
    return Head(generation, 10, 1024, 50, bytes(16), root * 16)


def asked(
    *sources: bytes, generation: int | None = None, root: bytes | None = None, lost: dict[bytes, str] | None = None
) -> Lookup:
    lookup = Lookup(sources, generation, root, {} if lost is None else lost)
    assert lookup.to_ask(0.0) == list(sources)
    assert lookup.to_ask(0.0) == []
    return lookup


def test_the_newest_generation_wins_and_older_sources_are_asked_again() -> None:
    lookup = asked(A, B)
    lookup.told(A, head(1, b"x"), 0.0)
    assert lookup.choose(0.0) is None, "B may know of a newer one"
    lookup.told(B, head(2, b"y"), 0.1)
    chosen = lookup.choose(0.1)
    assert chosen is not None and chosen.generation == 2
    assert lookup.ready() == [B]
    assert lookup.found[A].place is Place.LATER and lookup.to_ask(1.0) == [A]
    lookup.told(A, head(2, b"y"), 1.0)
    assert lookup.ready() == [A, B]


def test_who_does_not_answer_is_not_waited_for_long() -> None:
    lookup = asked(A, B)
    lookup.told(B, head(1, b"x"), 5.0)
    assert lookup.deadline() == 5.0 + GRACE_S
    assert lookup.choose(5.0 + GRACE_S / 2) is None
    assert lookup.choose(5.0 + GRACE_S) == head(1, b"x")


def test_most_decide_and_the_first_among_equals() -> None:
    lost: dict[bytes, str] = {}
    lookup = asked(A, B, C, lost=lost)
    for source, root in ((A, b"x"), (B, b"y"), (C, b"y")):
        lookup.told(source, head(1, root), 0.0)
    assert lookup.choose(0.0) == head(1, b"y")
    assert lost == {A: "offers other content as generation 1"}
    assert lookup.found[A].place is Place.OUT and "other content" in lookup.words({A: "a", B: "b", C: "c"})
    tied = asked(A, B)
    tied.told(B, head(1, b"y"), 0.0)
    tied.told(A, head(1, b"x"), 0.0)
    assert tied.choose(0.0) == head(1, b"x")


def test_what_is_wanted_is_all_that_counts() -> None:
    lookup = asked(A, B, C, generation=2, root=b"x" * 16)
    lookup.told(A, head(1, b"x"), 0.0)
    lookup.told(B, head(3, b"x"), 0.0)
    lookup.told(C, head(2, b"y"), 0.0)
    places = [lookup.found[source].place for source in (A, B, C)]
    assert places == [Place.LATER, Place.OUT, Place.OUT]
    assert lookup.choose(9.0) is None and not lookup.hopeless
    lookup.out(A, "lost", "is lost")
    assert lookup.hopeless
    lookup.add(A)
    assert not lookup.hopeless and lookup.to_ask(9.0) == [A]


def test_questions_come_ever_later() -> None:
    lookup = asked(A)
    waits, now = [], 0.0
    for _ in range(8):
        lookup.later(A, now)
        deadline = lookup.deadline()
        assert deadline is not None
        waits.append(deadline - now)
        now = deadline
        assert lookup.to_ask(now) == [A]
    assert waits[0] < 0.03 and waits == sorted(waits) and waits[-1] == waits[-2]
