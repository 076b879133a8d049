"""The prefix index: gaps, replays, restarts and digests lead to the truth; answers are contiguous and clamped."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pccl.errors import ArgumentError
from pccl.kv.prefix.context import KeyContext
from pccl.kv.prefix.events import Batch, Contents, Digest, Event, Journal, Kind, Snapshot
from pccl.kv.prefix.index import Hit, Instance, PrefixIndex, Replay

CONTEXT = KeyContext("llama", "f00d", "sha256/7")
EAST = Instance("east", "a", CONTEXT)
PROMPT = [bytes([number]) for number in range(1, 13)]


def stored(*hashes: bytes, kind: Kind = Kind.STORED) -> Event:
    return Event(kind, hashes)


def hits(index: PrefixIndex, prompt: list[bytes] = PROMPT, **how: Any) -> list[tuple[str, int]]:
    return [(hit.dc, hit.n_blocks) for hit in index.lookup(0.0, CONTEXT, prompt, **how)]


def answered(index: PrefixIndex, journal: Journal, wanted: Replay | None) -> None:
    """Replays until the index wants no more."""
    for _ in range(3):
        if wanted is None:
            return
        told = journal.replay(wanted.first)
        take = index.restore if isinstance(told, Snapshot) else index.apply
        wanted = take(0.0, wanted.instance, told)  # type: ignore[arg-type]
    raise AssertionError("the index is never content")


events = st.lists(
    st.builds(
        Event,
        st.sampled_from(Kind),
        st.lists(st.sampled_from(PROMPT), min_size=1, max_size=4, unique=True).map(tuple),
    ),
    min_size=1,
    max_size=30,
)


@given(events, st.randoms(), st.integers(1, 40), st.data())
def test_lost_repeated_and_reordered_batches_end_like_all_of_them(
    told: list[Event], luck: Any, keep: int, data: st.DataObject
) -> None:
    journal, index, whole = Journal(5, keep), PrefixIndex(), PrefixIndex()
    batches: list[Batch] = []
    while told:
        size = data.draw(st.integers(1, 3))
        batches.append(journal.record(*told[:size]))
        del told[:size]
        assert whole.apply(0.0, EAST, batches[-1]) is None
    arriving = [batch for batch in batches * 2 if luck.random() < 0.5]
    luck.shuffle(arriving)
    for batch in arriving:
        index.apply(0.0, EAST, batch)
    answered(index, journal, index.check(0.0, EAST, journal.digest()))
    for start, hybrid in itertools.product(range(len(PROMPT)), (False, True)):
        assert hits(index, PROMPT[start:], hybrid=hybrid) == hits(whole, PROMPT[start:], hybrid=hybrid)
    assert index.check(0.0, EAST, journal.digest()) is None


@given(
    st.dictionaries(st.sampled_from(["east", "west"]), st.sets(st.sampled_from(PROMPT))),
    st.sets(st.sampled_from(PROMPT)),
)
def test_an_answer_is_contiguous_from_the_first_block(held: dict[str, set[bytes]], states: set[bytes]) -> None:
    index = PrefixIndex()
    for dc, blocks in held.items():
        journal = Journal(1)
        index.apply(
            0.0,
            Instance(dc, "x", CONTEXT),
            journal.record(stored(*blocks), stored(*(states & blocks), kind=Kind.STATE)),
        )
    for hybrid in (False, True):
        found = dict(hits(index, hybrid=hybrid))
        for dc in ("east", "west"):
            depth = next((n for n, block in enumerate(PROMPT) if block not in held.get(dc, ())), len(PROMPT))
            if hybrid:
                depth = max((n for n in range(depth + 1) if n and PROMPT[n - 1] in states), default=0)
            assert found.get(dc, 0) == depth


def test_a_gap_is_seen_at_once_and_names_where_it_begins() -> None:
    journal, index = Journal(1), PrefixIndex()
    first, second, third = (journal.record(stored(block)) for block in PROMPT[:3])
    assert index.apply(0.0, EAST, first) is None
    assert index.apply(0.0, EAST, third) == Replay(EAST, 2)
    assert hits(index) == [("east", 1)]
    assert index.apply(0.0, EAST, second) is None
    assert hits(index) == [("east", 3)]


def test_who_missed_too_much_gets_a_snapshot() -> None:
    journal, index = Journal(1, keep=2), PrefixIndex()
    for block in PROMPT[:6]:
        late = journal.record(stored(block))
    wanted = index.apply(0.0, EAST, late)
    assert wanted == Replay(EAST, 1)
    assert isinstance(journal.replay(1), Snapshot)
    answered(index, journal, wanted)
    assert hits(index) == [("east", 6)]


def test_a_restarted_instance_has_nothing_and_its_past_is_ignored() -> None:
    index, old, new = PrefixIndex(), Journal(1), Journal(2)
    past = old.record(stored(*PROMPT))
    index.apply(0.0, EAST, past)
    index.apply(0.0, EAST, new.record(stored(PROMPT[0])))
    assert hits(index) == [("east", 1)]
    assert index.apply(0.0, EAST, past) is None
    assert index.check(0.0, EAST, old.digest()) is None
    assert index.restore(0.0, EAST, Snapshot(1, 99, frozenset(PROMPT), frozenset())) is None
    assert hits(index) == [("east", 1)]


def test_a_digest_that_differs_starts_from_nothing() -> None:
    journal, index = Journal(1), PrefixIndex()
    index.apply(0.0, EAST, Batch(1, 1, (stored(PROMPT[0], PROMPT[5]),)))
    journal.record(stored(PROMPT[0]))
    wanted = index.check(0.0, EAST, journal.digest())
    assert wanted == Replay(EAST, 1)
    assert hits(index) == []
    answered(index, journal, wanted)
    assert hits(index) == [("east", 1)]
    assert index.check(0.0, EAST, Digest(1, 3, 0)) == Replay(EAST, 2)


def test_datacenters_add_up_their_instances_and_are_sorted_by_length() -> None:
    index = PrefixIndex()
    for instance, blocks in (
        (EAST, PROMPT[:2]),
        (replace(EAST, name="b"), PROMPT[2:4]),
        (replace(EAST, dc="west"), PROMPT[:3]),
    ):
        index.apply(0.0, instance, Journal(1).record(stored(*blocks)))
    assert hits(index) == [("east", 4), ("west", 3)]
    index.forget(replace(EAST, name="b"))
    assert hits(index) == [("west", 3), ("east", 2)]
    index.forget(replace(EAST, name="b"))


def test_an_answer_says_how_old_it_is() -> None:
    journal, index = Journal(1), PrefixIndex()
    index.apply(10.0, EAST, journal.record(stored(*PROMPT)))
    assert index.lookup(15.0, CONTEXT, PROMPT) == [Hit("east", 12, 5.0)]
    index.check(20.0, EAST, journal.digest())
    assert index.lookup(21.0, CONTEXT, PROMPT) == [Hit("east", 12, 1.0)]


@pytest.mark.parametrize("field", ["tenant", "model", "lora", "salt", "fingerprint", "hash_scheme"])
def test_another_context_shares_nothing(field: str) -> None:
    index, other = PrefixIndex(), replace(CONTEXT, **{field: "other"})
    index.apply(0.0, EAST, Journal(1).record(stored(*PROMPT)))
    assert index.lookup(0.0, other, PROMPT) == []
    assert index.lookup(0.0, replace(CONTEXT), PROMPT) == [Hit("east", 12, 0.0)]


def test_a_state_goes_with_its_block() -> None:
    contents = Contents()
    contents.apply(stored(PROMPT[0], kind=Kind.STATE))
    contents.apply(Event(Kind.REMOVED, (PROMPT[0],)))
    contents.apply(stored(PROMPT[0]))
    once = Contents()
    once.apply(stored(PROMPT[0]))
    assert (contents.states, contents.digest) == (set(), once.digest)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Event(Kind.STORED, (b"",)), "hashes"),
        (lambda: Event(Kind.STORED, ("x",)), "hashes"),  # type: ignore[arg-type]
        (lambda: Journal(-1), "epoch"),
        (lambda: Journal(1).replay(0), "first"),
        (lambda: PrefixIndex().apply(0.0, EAST, Batch(1, 0, ())), "first"),
        (lambda: PrefixIndex().apply(0.0, EAST, Batch(-1, 1, ())), "epoch"),
        (lambda: KeyContext("", "f", "h"), "model"),
        (lambda: KeyContext("m", "f", 3), "hash_scheme"),  # type: ignore[arg-type]
    ],
)
def test_what_is_none_is_refused_by_name(make: Any, named: str) -> None:
    with pytest.raises(ArgumentError, match=named):
        make()
