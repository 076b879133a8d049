"""Memory to convert into: who has it, who waits for it in which order, and until when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pccl.errors import ArgumentError
from pccl.kv.staging import WORD_S, Staging, give_up_at


def test_who_does_not_fit_waits_in_the_order_of_arrival() -> None:
    staging = Staging(100)
    assert staging.take(b"a", 60, 9.0) and staging.take(b"nothing", 0, 9.0)
    assert not staging.take(b"b", 50, 5.0)
    assert not staging.take(b"c", 10, 7.0)  # it would fit, but does not overtake
    assert staging.waits(b"b") and staging.waits(b"c") and not staging.waits(b"a")
    assert staging.admitted() == [] and staging.deadline() == 5.0
    staging.leave(b"a")
    staging.leave(b"a")
    assert staging.admitted() == [b"b", b"c"] and staging.held_bytes == 60
    assert staging.deadline() == float("inf")


def test_who_waits_for_too_long_or_gives_up_holds_nobody_up() -> None:
    staging = Staging(100)
    staging.take(b"a", 100, 9.0)
    staging.take(b"b", 100, 3.0)
    staging.take(b"c", 20, 8.0)
    assert staging.expired(2.9) == [] and staging.expired(3.0) == [b"b"]
    staging.give_up(b"b")
    assert staging.expired(3.0) == []
    staging.leave(b"a")
    assert staging.admitted() == [b"c"]


def test_what_never_fits_is_refused_and_so_is_a_size_that_is_none() -> None:
    with pytest.raises(ArgumentError, match=r"101 bytes .* staging_bytes_max is 100"):
        Staging(100).check(101)
    Staging(100).check(100)
    for wrong in (-1, 1.5, "1"):
        with pytest.raises(ArgumentError, match="staging_bytes_max"):
            Staging(wrong)  # type: ignore[arg-type]


def test_there_is_time_left_to_say_why() -> None:
    assert give_up_at(10.0, 20.0) == 20.0 - WORD_S
    assert give_up_at(10.0, 11.0) == 10.8


@given(st.lists(st.tuples(st.integers(1, 100), st.booleans()), max_size=60))
def test_never_more_than_there_is_and_everybody_gets_a_turn(steps: list[tuple[int, bool]]) -> None:
    staging, held, waiting = Staging(100), [], []
    for number, (nbytes, leaves) in enumerate(steps):
        name = number.to_bytes(4, "big")
        (held if staging.take(name, nbytes, 1.0) else waiting).append(name)
        if leaves and held:
            staging.leave(held.pop(0))
        for admitted in staging.admitted():
            assert admitted == waiting.pop(0)
            held.append(admitted)
        assert staging.held_bytes <= 100
    while waiting:
        staging.leave(held.pop(0))
        for admitted in staging.admitted():
            assert admitted == waiting.pop(0)
            held.append(admitted)
