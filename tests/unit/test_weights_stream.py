"""Streams of weights without a network: whom slots are asked of, and what when one fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.weights_reads import Offered, Reads, slots_of

from pccl.types import Status
from pccl.weights.layout import END, SPECIAL, place, room, slots_for, start_of
from pccl.weights.stream import AHEAD, STRIKES, StreamIn, StreamOut

DATA = np.random.default_rng(1).integers(0, 256, start_of(SPECIAL + 6) + 20_000, np.uint8).tobytes()
SLOTS = slots_of(DATA)
BODY = range(SPECIAL, SPECIAL + 6)
ONE, TWO, THREE, FOUR, FIVE, SIX = BODY
RELAY, TRAINER, NEAR, FAR = b"relay", b"trainer", b"near", b"far"


class In:
    """A stream and what it said."""

    def __init__(
        self,
        sources: list[bytes],
        held: list[bytes] = [],  # noqa: B006
        partly: list[bytes] = [],  # noqa: B006
        slots: int = 30,
        expected: int | None = None,
    ) -> None:
        self.reads = Reads()
        self.held, self.partly = list(held), list(partly)
        self.slots: list[int] = []
        self.failed: list[str] = []
        self.stream = StreamIn(
            self.reads, "s", 1, slots, sources,  # type: ignore[arg-type]
            on_grown=lambda stream: None, on_failed=lambda stream, why: self.failed.append(why),
            on_slot=lambda stream, index, slot: self.slots.append(index),
            helpers=lambda: (self.held, self.partly),
            expected=expected,
        )  # fmt: skip

    def peers(self) -> set[bytes]:
        return {peer for peer, _ in self.reads.asked()}

    def serve(self, peer: bytes, indices: Any = range(30)) -> None:
        """That peer answers what it is asked, of these slots."""
        for index in indices:
            if (peer, index) in self.reads.asked() and index in SLOTS:
                self.reads.take(peer, index).answer(SLOTS[index])

    def whole(self) -> bool:
        return self.stream.complete and bytes(self.stream.memory[: self.stream.total]) == DATA


def test_one_source_is_asked_for_all_of_it() -> None:
    one = In([RELAY, TRAINER], held=[NEAR])
    assert one.peers() == {RELAY}
    one.serve(RELAY)
    assert one.whole() and sorted(one.slots) == sorted(SLOTS)
    one.stream.cancel()
    assert not one.reads.asked()


def test_the_rest_is_asked_of_all_neighbours_that_hold_it_side_by_side() -> None:
    one = In([RELAY, TRAINER], held=[NEAR, FAR])
    one.serve(RELAY, [ONE, TWO])
    one.reads.take(RELAY).done(Status.EPEER)
    assert one.peers() == {NEAR, FAR}
    assert {(FAR, THREE), (NEAR, FOUR), (FAR, FIVE), (NEAR, END)} <= one.reads.asked()
    assert (FAR, ONE) not in one.reads.asked()
    one.serve(NEAR)
    one.serve(FAR)
    assert one.whole() and one.slots.count(ONE) == 1


def test_the_next_source_is_taken_where_no_neighbour_holds_it() -> None:
    one = In([RELAY, TRAINER], partly=[NEAR])
    one.reads.take(RELAY).done(Status.EPEER)
    assert one.peers() == {TRAINER}


def test_without_a_source_each_slot_is_asked_of_all_who_may_come_to_have_it() -> None:
    one = In([RELAY], partly=[NEAR, FAR])
    one.serve(RELAY, [ONE])
    one.reads.take(RELAY).done(Status.EPEER)
    assert {(NEAR, TWO), (FAR, TWO), (NEAR, END), (FAR, END)} <= one.reads.asked()
    one.serve(FAR, [FOUR])
    assert (NEAR, FOUR) not in one.reads.asked()
    one.serve(NEAR, [TWO, END])
    one.held = [FAR]
    one.stream.reconsider()
    assert one.peers() == {FAR}
    one.serve(FAR)
    assert one.whole() and sorted(one.slots) == sorted(SLOTS)


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
    one.serve(RELAY, [ONE])
    one.reads.take(RELAY).done(Status.EGONE)
    assert one.failed == ["EGONE"] and not one.reads.asked()


def test_hardly_more_is_asked_for_than_the_payload_may_well_have() -> None:
    """What is asked in vain is taken back; a payload that is longer than was thought comes all the same."""
    data = bytes(start_of(SPECIAL + 100) + 5)
    slots = slots_of(data)
    for expected, first in [(len(data), 125), (0, AHEAD), (start_of(SPECIAL + 40), 50)]:
        one = In([RELAY], slots=1000, expected=expected)
        assert first - 3 <= len(one.reads.asked()) - SPECIAL <= first + 3
        for index in [*range(SPECIAL, SPECIAL + 100), *range(SPECIAL)]:
            if index in slots:
                one.reads.take(RELAY, index).answer(slots[index])
        assert one.stream.complete and len(one.slots) == len(slots)
        assert len(one.reads.asked()) <= 50 + AHEAD + SPECIAL


def test_long_payloads_have_larger_slots_and_little_waits_for_a_slot_to_be_full() -> None:
    for index in range(SPECIAL, 3000):
        assert room(index) < max(1 << 17, start_of(index) / 60)
    assert slots_for(1 << 30) < 1600


def test_who_sends_damaged_slots_again_and_again_is_left() -> None:
    one = In([RELAY], held=[NEAR])
    for _ in range(STRIKES):
        wrong = SLOTS[ONE].copy()
        wrong[1000] ^= 1
        one.reads.take(RELAY, ONE).answer(wrong)
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
@settings(max_examples=25)
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
        if what == "answer" and index in SLOTS:
            asked.answer(SLOTS[index])
        elif what == "damage" and index in SLOTS:
            asked.answer(np.roll(SLOTS[index], 1))
        else:
            asked.done({"lose": Status.EPEER, "damage": Status.EGONE}.get(what, Status.ETIMEOUT))
    assert len(set(one.slots)) == len(one.slots)
    assert one.failed or one.whole()


def test_a_slot_that_is_served_is_never_written_to_again() -> None:
    out = StreamOut(Offered(), "s", 1, 20)  # type: ignore[arg-type]
    out.put(FOUR, SLOTS[FOUR])
    with pytest.raises(AssertionError, match=f"slot {FOUR} is being served"):
        out.put(FOUR, SLOTS[FIVE])
    at, nbytes = place(FOUR)
    assert np.array_equal(out._memory[at : at + nbytes], SLOTS[FOUR])


def test_all_goes_as_it_is_written_and_the_end_alone_waits_for_the_word() -> None:
    transfers = Offered()
    out = StreamOut(transfers, "s", 1, slots_for(len(DATA)))  # type: ignore[arg-type]
    cut = start_of(THREE)
    out.write(DATA[:cut])
    assert len(transfers.extended) == 1, "the last bytes of what is written may be the end"
    out.write(DATA[cut:])
    assert [place(index) for index in BODY] == transfers.extended
    out.conclude()
    assert place(END) not in transfers.extended and len(transfers.extended) == len(SLOTS) - 1
    out.finish()
    assert {place(index) for index in SLOTS} == set(transfers.extended)
    assert out.sent_bytes <= len(DATA) + 10_000


@pytest.mark.parametrize("nbytes", [0, 1, 8, 9, 8_200, 40_000, start_of(FOUR) + 8, start_of(FOUR) + 7, len(DATA)])
def test_payloads_of_all_sizes_come_as_they_are(nbytes: int) -> None:
    slots = slots_of(DATA[:nbytes])
    one = In([RELAY])
    for index in sorted(slots, reverse=True):
        assert not one.stream.complete
        one.reads.take(RELAY, index).answer(slots[index])
    assert one.stream.complete and bytes(one.stream.memory[: one.stream.total]) == DATA[:nbytes]
    told = list(one.slots)
    for asked in list(one.reads.waiting):  # what is more than the payload has
        asked.done(Status.OK)
    assert one.slots == told and not one.stream.damaged


def test_bytes_that_have_come_are_never_written_to_again() -> None:
    """A source that says of two slots that they hold the same bytes: the second of them is damage."""
    one = In([RELAY], held=[NEAR])
    other = slots_of(DATA[: start_of(TWO) + 20_000])  # the tail of this is where a slot of the body is
    one.serve(RELAY, [ONE, TWO])
    before = one.stream.memory.copy()
    for index in sorted(other.keys() - {ONE, END}):
        one.reads.take(RELAY, index).answer(other[index])
    assert np.array_equal(one.stream.memory, before) and one.stream.damaged
    two = In([RELAY])
    tail = min(index for index in other if END < index < SPECIAL)
    two.reads.take(RELAY, tail).answer(other[tail])
    two.serve(RELAY, [ONE, TWO])
    assert two.slots == [tail, ONE] and two.stream.damaged == 1


def test_a_slot_that_says_more_than_fits_is_damage() -> None:
    one = In([RELAY])
    far = slots_of(bytes(start_of(80)))
    one.reads.take(RELAY, END).answer(far[END])
    assert one.stream.damaged == 1 and one.stream.total is None and room(END) == 8


def test_a_source_that_says_too_few_slots_is_no_more_than_a_source_that_fails() -> None:
    reads = Reads()
    failed: list[str] = []
    StreamIn(
        reads, "s", 1, 0, [RELAY],  # type: ignore[arg-type]
        on_grown=lambda stream: None, on_slot=lambda *_: None, on_failed=lambda stream, why: failed.append(why),
    )  # fmt: skip
    reads.take(RELAY).done(Status.EGONE)
    assert failed == ["EGONE"]
