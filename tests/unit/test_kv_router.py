"""DualMap: candidates hardly move, affinity holds until the SLO breaks, hotspots are relieved, bad input is named."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pccl.errors import ArgumentError
from pccl.kv.model.profile import Curve
from pccl.kv.ring import TwoRings
from pccl.kv.router import Move, Node, Queued, Router

SECOND_PER_1000 = Curve("prefill_s", ((0, 0.0), (1000, 1.0)))
KEYS = [number.to_bytes(4, "big") for number in range(2000)]
NODES = tuple("abcdefgh")


def router(**how: Any) -> Router:
    return Router(NODES, SECOND_PER_1000, **how)


def idle(**queued: int) -> dict[str, Node]:
    return {name: Node(queued.get(name, 0)) for name in NODES}


@settings(max_examples=15)
@given(st.sets(st.text(min_size=1, max_size=8), min_size=2, max_size=20), st.text(min_size=9, max_size=12))
def test_one_node_more_moves_few_keys(names: set[str], new: str) -> None:
    """A key's KV cache is at one of its candidates, here at either in turn: it moves if that is none any more."""
    before, after = TwoRings(names), TwoRings([*names, new])
    moved = changed = 0
    for number, key in enumerate(KEYS):
        old, now = before.candidates(key), after.candidates(key)
        assert set(now) <= set(old) | {new}, "only the new node takes keys"
        moved += old[number % 2] not in now
        changed += set(now) != set(old)
    assert moved <= 2 / len(names) * len(KEYS)
    assert changed <= 3.2 / (len(names) + 1) * len(KEYS)


def test_candidates_are_two_independent_and_spread() -> None:
    rings = TwoRings(NODES)
    pairs = [rings.candidates(key) for key in KEYS]
    assert all(first != second for first, second in pairs)
    for places in zip(*pairs, strict=True):
        assert max(Counter(places).values()) < 1.5 * len(KEYS) / len(NODES)
    beside_a = Counter(second for first, second in pairs if first == "a")
    assert len(beside_a) == len(NODES) - 1
    assert TwoRings(reversed(NODES)).candidates(KEYS[0]) == pairs[0]
    assert TwoRings(["a"]).candidates(KEYS[0]) == ("a",)


def test_prompts_that_begin_alike_have_the_same_candidates() -> None:
    route = router().route("r", [b"1", b"2", b"3"], 100, {}, idle())
    assert router().route("s", [b"1", b"2", b"4", b"5"], 100, {}, idle()).candidates == route.candidates
    assert router().route("t", [b"1"], 100, {}, idle()).candidates == TwoRings(NODES).candidates(b"1")


def test_the_longer_hit_is_taken_until_the_slo_breaks() -> None:
    one, other = TwoRings(NODES).candidates(b"2")
    ask = router(slo_s=5.0, key_blocks=2)
    warm = ask.route("r", [b"1", b"2"], 2000, {one: 1000, other: 500}, idle(**{one: 3000}))
    assert (warm.node, warm.reason) == (one, "the longer hit")
    assert warm.predicted == pytest.approx({one: 4.0, other: 1.5})
    full = ask.route("r", [b"1", b"2"], 2000, {one: 1000, other: 500}, idle(**{one: 4500}))
    assert (full.node, full.reason) == (other, "the longer hit would break the SLO: sooner")
    late = ask.route("r", [b"1", b"2"], 2000, {one: 1000}, idle(**{one: 3000}), now_s=10.0, deadline_s=13.0)
    assert late.node == other
    both = ask.route("r", [b"1", b"2"], 2000, {one: 1000}, idle(**{one: 9000, other: 20000}))
    assert both.node == one, "both break it: the sooner one"


def test_equal_hits_go_where_it_is_sooner() -> None:
    one, other = TwoRings(NODES).candidates(b"2")
    assert router().route("r", [b"1", b"2"], 2000, {}, idle(**{one: 1})).node == other
    assert router().route("r", [b"1", b"2"], 2000, {}, idle(**{other: 1})).node == one


def test_candidates_that_are_down_are_passed_over() -> None:
    one, other = TwoRings(NODES).candidates(b"2")
    nodes = idle()
    nodes[one] = Node(0, up=False)
    assert router().route("r", [b"1", b"2"], 100, {one: 90}, nodes).node == other
    nodes[other] = Node(0, up=False)
    route = router().route("r", [b"1", b"2"], 100, {one: 90}, nodes)
    assert route.node not in (one, other)
    assert route.reason.startswith("both candidates are down")
    del nodes[one]
    assert router().route("r", [b"1", b"2"], 100, {one: 90}, nodes).node == route.node


def test_without_a_whole_block_the_fewer_queued_tokens_decide() -> None:
    one, other = TwoRings(NODES).candidates(b"r")
    route = router().route("r", [], 100, {}, idle(**{one: 200, other: 100}))
    assert (route.node, set(route.candidates)) == (other, {one, other})
    spread = Counter(router().route(f"r{n}", [], 100, {}, idle()).node for n in range(400))
    assert set(spread) == set(NODES)


def test_a_hotspot_gives_waiting_requests_to_their_other_candidates() -> None:
    ask = router(hot=1.5)
    keys = [key for key in KEYS if ask.rings.candidates(key)[0] == "a"][:6]
    queued = [Queued(f"r{n}", "a", key, 1000, {}) for n, key in enumerate(keys)]
    nodes = idle(a=6000)
    moves = ask.rebalance(queued, nodes)
    assert moves, "6000 tokens at one of eight nodes"
    assert [move.request_id for move in moves] == [f"r{n}" for n in range(5, 5 - len(moves), -1)], "the last first"
    tokens = {name: node.queued_tokens for name, node in nodes.items()}
    for move in moves:
        assert move.gain_s > 0
        assert tokens["a"] > 1.5 * 6000 / 8
        assert move.target in ask.rings.candidates(keys[int(move.request_id[1:])])
        tokens["a"], tokens[move.target] = tokens["a"] - 1000, tokens[move.target] + 1000
    assert ask.rebalance(queued, idle(**dict.fromkeys(NODES, 6000))) == []
    assert ask.rebalance(queued, {}) == []


def test_what_is_cached_here_keeps_a_request_here() -> None:
    ask = router()
    other = ask.rings.candidates(b"k")[1]
    here = ask.rings.candidates(b"k")[0]
    warm = Queued("r", here, b"k", 9000, {here: 8900})
    assert ask.rebalance([warm], idle(**{here: 3000})) == []
    cold = Queued("r", here, b"k", 1000, {})
    assert ask.rebalance([cold], idle(**{here: 3000})) == [Move("r", here, other, pytest.approx(2.0))]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Router([], SECOND_PER_1000), "nodes is empty"),
        (lambda: Router(["a", "a"], SECOND_PER_1000), "nodes has a name twice"),
        (lambda: router(slo_s=math.nan), "slo_s"),
        (lambda: router(key_blocks=0), "key_blocks"),
        (lambda: Node(-1), "queued_tokens"),
        (lambda: router().route("r", [], 0, {}, idle()), "total_tokens"),
        (lambda: router().route("r", [], 1, {}, {"a": Node(0, up=False)}), "nodes has none"),
        (lambda: router().route("r", [], 1, {}, idle(), now_s=2.0, deadline_s=1.0), "deadline_s is in the past"),
        (lambda: router().route("r", [], 1, {}, idle(), deadline_s=math.nan), "deadline_s"),
        (lambda: router().route("r", [b"k"], 1, dict.fromkeys(NODES, -1), idle()), "hits"),
    ],
)
def test_what_is_wrong_is_named(make: Any, named: str) -> None:
    with pytest.raises(ArgumentError, match=named):
        make()
