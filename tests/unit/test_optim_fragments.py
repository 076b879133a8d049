"""Fragments of models drawn by hand and by chance, and the schedule against two naive loops."""

from __future__ import annotations

import re
from itertools import combinations, islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pccl.errors import ArgumentError
from pccl.optim.fragments import Event, Schedule, split

GPT = [
    ("wte.weight", 640),
    ("wpe.weight", 64),
    *((f"h.{block}.{part}", 100) for block in range(5) for part in ("attn.weight", "mlp.weight")),
    ("ln_f.weight", 10),
    ("head.weight", 640),
]


def names(fragments: list[list[int]], parameters: list[tuple[str, int]] = GPT) -> list[set[str]]:
    """Blocks as "h.0", the others by their first word."""
    return [{re.sub(r"^(h\.\d)\..*", r"\1", parameters[i][0]) for i in part} for part in fragments]


def sizes(fragments: list[list[int]], parameters: list[tuple[str, int]] = GPT) -> list[int]:
    return [sum(parameters[i][1] for i in part) for part in fragments]


OUTSIDE = {"wte.weight", "wpe.weight", "ln_f.weight", "head.weight"}


def test_strided_takes_every_pth_block() -> None:
    assert names(split("strided:2", GPT)) == [OUTSIDE, {"h.0", "h.2", "h.4"}, {"h.1", "h.3"}]


def test_sequential_takes_even_runs_of_blocks() -> None:
    assert names(split("sequential:3", GPT)) == [OUTSIDE, {"h.0"}, {"h.1", "h.2"}, {"h.3", "h.4"}]


def test_no_parameter_outside_blocks_means_no_fragment_for_them() -> None:
    assert split("strided:2", [("0.weight", 4), ("0.bias", 1), ("2.weight", 4), ("4.weight", 4)]) == [[0, 1, 3], [2]]


def test_the_same_number_under_two_prefixes_is_two_blocks() -> None:
    model = [("encoder.0.weight", 1), ("encoder.1.weight", 1), ("decoder.0.weight", 1), ("decoder.1.layers.7.bias", 1)]
    assert split("sequential:4", model) == [[0], [1], [2], [3]]


def test_a_block_whose_parameters_lie_apart_stays_together() -> None:
    assert split("balanced:2", [("h.0.a", 1), ("h.1.a", 1), ("h.0.b", 1)]) == [[0, 2], [1]]


def test_one_fragment_is_the_whole_model() -> None:
    assert split(1, GPT) == split("balanced:1", GPT) == [list(range(len(GPT)))]


def test_balanced_by_number_keeps_the_largest_small() -> None:
    assert names(split(3, GPT)) == [
        {"wte.weight", "wpe.weight"},
        {"h.0", "h.1", "h.2", "h.3"},
        {"h.4", "ln_f.weight", "head.weight"},
    ]
    assert sizes(split(3, GPT)) == [704, 800, 850]
    assert split(3, GPT) == split("balanced:3", GPT)


@pytest.mark.parametrize(("spec", "limit"), [("balanced:900B", 900), ("balanced:0.9kB", 900), ("balanced:1KiB", 1024)])
def test_balanced_by_bytes_keeps_the_limit(spec: str, limit: int) -> None:
    fragments = split(spec, GPT)
    assert max(sizes(fragments)) <= limit
    assert [index for part in fragments for index in part] == list(range(len(GPT)))
    assert all(a + b > limit - 200 for a, b in zip(sizes(fragments), sizes(fragments)[1:], strict=False))


def test_a_block_above_the_limit_is_alone() -> None:
    assert split("balanced:64MB", [("h.0.w", 1), ("h.1.w", 65_000_000), ("h.2.w", 63_999_999), ("h.3.w", 1)]) == [
        [0],
        [1],
        [2, 3],
    ]


def test_a_callables_numbers_are_made_dense() -> None:
    assert split(lambda name, size: -7 if size == 640 else 10**9, GPT) == [[0, 13], list(range(1, 13))]


@pytest.mark.parametrize(
    ("spec", "culprit"),
    [
        ("strided:6", "'strided:6' needs 6 blocks, and the model has 5"),
        ("sequential:9", "'sequential:9' needs 9 blocks, and the model has 5"),
        (10, "10 fragments need .* the model has 9"),
        ("balanced:10", "10 fragments need .* the model has 9"),
        (0, "fragments=0"),
        (-1, "fragments=-1"),
        (True, "not True"),
        (2.0, "not 2.0"),
        (None, "not None"),
        ("strided", "not 'strided'"),
        ("random:3", "not 'random:3'"),
        ("strided:", "'strided:'"),
        ("strided:64MB", "'strided:64MB'"),
        ("sequential:0", "'sequential:0'"),
        ("balanced:64parsec", "'64parsec' is not a size"),
        ("balanced:-1MB", "'-1MB' is not a size"),
        (lambda name, size: "a", "'wte.weight'"),
    ],
)
def test_a_wrong_spec_is_named(spec: Any, culprit: str) -> None:
    with pytest.raises(ArgumentError, match=culprit):
        split(spec, GPT)


def test_no_parameters_is_an_error() -> None:
    with pytest.raises(ArgumentError, match="no parameters"):
        split(1, [])


@st.composite
def models(draw: st.DrawFn) -> list[tuple[str, int]]:
    place = st.sampled_from(["embed", "h.0", "h.1", "h.2", "h.3", "x.0.h.1", "tail"])
    places = draw(st.lists(place, min_size=1, max_size=12))
    return [(f"{where}.p{chr(97 + i)}", draw(st.integers(0, 50))) for i, where in enumerate(places)]


@settings(max_examples=60)
@given(
    models(),
    st.one_of(
        st.integers(1, 8),
        st.builds("{}:{}".format, st.sampled_from(["strided", "sequential"]), st.integers(1, 4)),
        st.builds("balanced:{}B".format, st.integers(1, 99)),
    ),
)
def test_every_parameter_is_in_exactly_one_fragment(model: list[tuple[str, int]], spec: int | str) -> None:
    try:
        fragments = split(spec, model)
    except ArgumentError as error:
        assert "the model has" in str(error)
        return
    assert sorted(index for part in fragments for index in part) == list(range(len(model)))
    assert all(part and part == sorted(part) for part in fragments)
    if isinstance(spec, int):
        assert len(fragments) == spec


@settings(max_examples=60)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=7), st.data())
def test_balanced_is_as_good_as_trying_all_cuts(weights: list[int], data: st.DataObject) -> None:
    number = data.draw(st.integers(1, len(weights)))
    model = [(f"w{'abcdefghi'[i]}", weight) for i, weight in enumerate(weights)]
    best = min(
        max(sum(weights[a:b]) for a, b in zip((0, *cuts), (*cuts, len(weights)), strict=True))
        for cuts in combinations(range(1, len(weights)), number - 1)
    )
    fragments = split(number, model)
    assert len(fragments) == number
    assert max(sizes(fragments, model)) == best


# -- the schedule ----------------------------------------------------------------------------------------------------


def naive(every: int, fragments: int, overlap: int, steps: int) -> list[Event]:
    """Two loops over steps and fragments, straight from the definition."""
    found = []
    for t in range(steps + 1):
        sends, lands = [], []
        for p in range(fragments):
            start = p * every // fragments
            if t > start and (t - start) % every == 0:
                sends.append(Event(t, "send", p, (t - start) // every - 1))
            sent = t - overlap
            if sent > start and (sent - start) % every == 0:
                lands.append(Event(t, "land", p, (sent - start) // every - 1))
        found += lands + sends if overlap else [event for pair in zip(sends, lands, strict=True) for event in pair]
    return found


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    every = draw(st.integers(1, 12))
    return Schedule(every, draw(st.integers(1, 15)), draw(st.integers(0, every)))


@settings(max_examples=60)
@given(schedules())
def test_the_sequence_is_that_of_the_naive_loops(schedule: Schedule) -> None:
    expected = naive(schedule.every, schedule.fragments, schedule.overlap, 6 * schedule.every)
    assert len(expected) > 0
    assert list(islice(schedule.events(), len(expected))) == expected
    # Every peer finds any event from its number alone, wherever it begins.
    peer = Schedule(schedule.every, schedule.fragments, schedule.overlap)
    assert [peer.event(k) for k in reversed(range(len(expected)))] == expected[::-1]
    assert list(islice(peer.events(3), len(expected) - 3)) == expected[3:]


def test_the_papers_example() -> None:
    """H = 100, P = 2: fragment 0 at 100, 200, ...; fragment 1 at 150, 250, ..."""
    assert list(islice(Schedule(100, 2, 5).events(), 5)) == [
        (100, "send", 0, 0),
        (105, "land", 0, 0),
        (150, "send", 1, 0),
        (155, "land", 1, 0),
        (200, "send", 0, 1),
    ]


def test_a_delayed_round_lands_before_the_next_is_sent() -> None:
    assert list(islice(Schedule(7, 1, 7).events(), 5)) == [
        (7, "send", 0, 0),
        (14, "land", 0, 0),
        (14, "send", 0, 1),
        (21, "land", 0, 1),
        (21, "send", 0, 2),
    ]


def test_far_events_cost_nothing() -> None:
    """With 24 fragments and H = 500, a period has 48 events; the first lacks none."""
    assert Schedule(500, 24, 2).event(48 * 10**15) == (500 * (10**15 + 1), "send", 0, 10**15)


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ((0,), "every .* not 0"),
        ((5, 0), "fragments .* not 0"),
        ((5, 1, 6), "every=5 steps, not 6"),
        ((5, 1, -1), "not -1"),
    ],
)
def test_a_wrong_schedule_is_named(arguments: tuple[int, ...], culprit: str) -> None:
    with pytest.raises(ArgumentError, match=culprit):
        Schedule(*arguments)


def test_no_event_before_the_first() -> None:
    with pytest.raises(ArgumentError, match="-1"):
        Schedule(5).event(-1)
