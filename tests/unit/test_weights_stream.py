"""Streams of weights without a network: whom slots are asked of, and what when one fails."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.weights_reads import Reads, slots_of

from pccl.types import Status
from pccl.weights.stream import SLOT_BYTES, STRIKES, StreamIn, StreamOut

DATA = np.random.default_rng(1).integers(0, 256, 5 * SLOT_BYTES + 77, np.uint8).tobytes()
SLOTS = slots_of(DATA)
RELAY, TRAINER, NEAR, FAR = b"relay", b"trainer", b"near", b"far"


class In:
    """A stream and what it said."""

    def __init__(self, sources: list[bytes], held: list[bytes] = [], partly: list[bytes] = []) -> None:  # noqa: B006
        self.reads = Reads()
        self.held, self.partly = list(held), list(partly)
        self.slots: list[int] = []
        self.failed: list[str] = []
        self.stream = StreamIn(
            self.reads, "s", 1, 20, sources,  # type: ignore[arg-type]
            on_grown=lambda stream: None, on_failed=lambda stream, why: self.failed.append(why),
            on_slot=lambda stream, index, slot: self.slots.append(index),
            helpers=lambda: (self.held, self.partly),
        )  # fmt: skip

    def peers(self) -> set[bytes]:
        return {peer for peer, _ in self.reads.asked()}

    def serve(self, peer: bytes, indices: Any = range(20)) -> None:
        """That peer answers what it is asked, of these slots."""
        for index in indices:
            if (peer, index) in self.reads.asked() and index < len(SLOTS):
                self.reads.take(peer, index).answer(SLOTS[index])

    def whole(self) -> bool:
        return self.stream.complete and bytes(self.stream.memory[: self.stream.total]) == DATA


def test_one_source_is_asked_for_all_of_it() -> None:
    one = In([RELAY, TRAINER], held=[NEAR])
    assert one.peers() == {RELAY}
    one.serve(RELAY)
    assert one.whole() and sorted(one.slots) == list(range(6)) and not one.reads.asked()


def test_the_rest_is_asked_of_all_neighbours_that_hold_it_side_by_side() -> None:
    one = In([RELAY, TRAINER], held=[NEAR, FAR])
    one.serve(RELAY, range(2))
    one.reads.take(RELAY).done(Status.EPEER)
    assert one.peers() == {NEAR, FAR}
    assert {(NEAR, 2), (FAR, 3), (NEAR, 4), (FAR, 5)} <= one.reads.asked() and (FAR, 1) not in one.reads.asked()
    one.serve(NEAR)
    one.serve(FAR)
    assert one.whole() and one.slots.count(0) == 1


def test_the_next_source_is_taken_where_no_neighbour_holds_it() -> None:
    one = In([RELAY, TRAINER], partly=[NEAR])
    one.reads.take(RELAY).done(Status.EPEER)
    assert one.peers() == {TRAINER}


def test_without_a_source_each_slot_is_asked_of_all_who_may_come_to_have_it() -> None:
    one = In([RELAY], partly=[NEAR, FAR])
    one.serve(RELAY, [0])
    one.reads.take(RELAY).done(Status.EPEER)
    assert {(NEAR, 1), (FAR, 1), (NEAR, 5), (FAR, 5)} <= one.reads.asked()
    one.serve(FAR, [3])
    assert (NEAR, 3) not in one.reads.asked()
    one.serve(NEAR, [1, 5])
    one.held = [FAR]
    one.stream.reconsider()
    assert one.peers() == {FAR}
    one.serve(FAR)
    assert one.whole() and sorted(one.slots) == list(range(6))


def test_a_source_that_comes_back_is_asked_again() -> None:
    one = In([RELAY], partly=[NEAR])
    one.reads.take(RELAY).done(Status.EGONE)
    assert one.peers() == {NEAR} and one.stream.stranded_s > 0
    one.stream.reconsider(RELAY)
    assert one.peers() == {RELAY} and one.stream.stranded_s == 0
    one.serve(RELAY)
    assert one.whole()


def test_what_its_source_has_withdrawn_is_not_completed_by_others() -> None:
    """The source begins anew, with another payload: what others have of the old one does not fit."""
    one = In([RELAY, TRAINER], held=[NEAR], partly=[FAR])
    one.serve(RELAY, [0])
    one.reads.take(RELAY).done(Status.EGONE)
    assert one.failed == ["EGONE"] and not one.reads.asked()


def test_who_sends_damaged_slots_again_and_again_is_left() -> None:
    one = In([RELAY], held=[NEAR])
    for _ in range(STRIKES):
        wrong = SLOTS[1].copy()
        wrong[1000] ^= 1
        one.reads.take(RELAY, 1).answer(wrong)
    assert one.peers() == {NEAR} and not one.slots
    one.serve(NEAR)
    assert one.whole()


def test_it_fails_once_when_nobody_is_left() -> None:
    one = In([RELAY], held=[NEAR])
    one.reads.take(RELAY).done(Status.EPEER)
    one.reads.take(NEAR).done(Status.EGONE)
    for asked in list(one.reads.waiting):
        asked.done(Status.EPEER)
    assert one.failed == ["EGONE"]


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_whoever_fails_in_whatever_order_it_is_the_payload_or_a_failure(data: Any) -> None:
    """Answers, damage, losses and news in any order: each slot is told once, and what is complete is right."""
    one = In([RELAY, TRAINER], partly=[NEAR, FAR])
    while not one.stream.complete and not one.failed:
        waiting = sorted(one.reads.asked())
        what = data.draw(st.sampled_from(["answer"] * 8 + ["damage", "lose", "late", "news"]))
        peer, index = data.draw(st.sampled_from(waiting))
        if what == "news":
            one.held = data.draw(st.lists(st.sampled_from([NEAR, FAR]), unique=True))
            one.stream.reconsider(data.draw(st.sampled_from([None, RELAY])))
            continue
        asked = one.reads.take(peer, index)
        if what == "answer" and index < len(SLOTS):
            asked.answer(SLOTS[index])
        elif what == "damage" and index < len(SLOTS):
            asked.answer(np.roll(SLOTS[index], 1))
        else:
            asked.done({"lose": Status.EPEER, "damage": Status.EGONE}.get(what, Status.ETIMEOUT))
    assert len(set(one.slots)) == len(one.slots)
    assert one.failed or one.whole()


def test_a_slot_that_is_served_is_never_written_to_again() -> None:
    region = SimpleNamespace(gone=SimpleNamespace(wait=lambda _: True))
    offers = SimpleNamespace(offer_region=lambda *_, **__: region, quietly=lambda *_: None)
    out = StreamOut(SimpleNamespace(offers=offers), "s", 1, 6)  # type: ignore[arg-type]
    out.put(3, SLOTS[3])
    with pytest.raises(AssertionError, match="slot 3 is being served"):
        out.put(3, SLOTS[2])
    assert np.array_equal(out._memory[3 * SLOT_BYTES : 4 * SLOT_BYTES], SLOTS[3])
