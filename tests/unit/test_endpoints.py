"""Which of several coordinators a peer tries, and when it goes on."""

from __future__ import annotations

import pytest

from pccl.config import settings_from
from pccl.endpoints import PATIENCE_HANDSHAKES, PATIENCE_MAX_S, PATIENCE_S, SILENCE_MIN_S, Endpoints
from pccl.errors import ArgumentError


def test_one_has_no_alternative() -> None:
    only = Endpoints(["a"])
    only.start(1.0)
    only.connected(2.0)
    assert only.due(5.0) is None and not only.broken(3.0) and only.current == "a"


def test_the_only_one_is_dialled_anew_when_a_handshake_takes_longer_than_they_do() -> None:
    only = Endpoints(["a"])
    only.start(1.0)
    assert only.due(4.0) == pytest.approx(1.0 + PATIENCE_MAX_S), "it may not be there yet"
    only.connected(1.2)
    only.heard(1.2)
    only.broken(10.0)
    assert only.due(4.0) == pytest.approx(10.6) and only.due(8.0) == pytest.approx(11.0)
    now, waits = 10.0, []
    for _ in range(9):
        due = only.due(4.0)
        assert due is not None and only.go_on(due) == "a"
        waits.append(due - now)
        now = due
    assert waits[:4] == pytest.approx([0.6, 0.6, 1.2, 1.2]) and waits[-1] == pytest.approx(2.0), "half a lease"
    only.connected(now + 1.0)
    only.broken(50.0)
    only.heard(50.0)
    assert only.due(1.0) == pytest.approx(50.0 + PATIENCE_HANDSHAKES * 0.2), "of the shortest"


def test_who_does_not_answer_is_left_for_the_next_with_growing_patience() -> None:
    some = Endpoints(["a", "b"])
    some.start(0.0)
    now, waits = 0.0, []
    for _ in range(12):
        due = some.due(5.0)
        assert due is not None
        waits.append(due - now)
        now = due
        some.go_on(now)
    assert waits[:4] == pytest.approx([PATIENCE_S, PATIENCE_S, 2 * PATIENCE_S, 2 * PATIENCE_S])
    assert max(waits) == pytest.approx(PATIENCE_MAX_S) and some.current == "a"
    some.connected(now)
    some.heard(now)
    assert some.go_on(now) == "b" and some.due(5.0) == pytest.approx(now + PATIENCE_S)


def test_who_was_a_member_has_tried_all_of_them_within_half_a_lease() -> None:
    some = Endpoints(["a", "b"])
    some.start(0.0)
    some.connected(0.1)
    some.heard(0.1)
    now = 5.0
    assert some.broken(now)
    for number in range(20):
        some.go_on(now)
        due = some.due(4.0)
        assert due is not None and due - now == pytest.approx(
            0.4 if number < 1 else min(1.0, 0.4 * 2 ** ((number + 1) // 2))
        )
        now = due


def test_a_broken_connection_is_left_at_once_but_not_one_of_before() -> None:
    some = Endpoints(["a", "b"])
    some.start(0.0)
    assert not some.broken(0.05), "of the one before: this one was not reached yet"
    some.connected(0.1)
    assert some.broken(0.2)


def test_silence_counts_from_the_last_word() -> None:
    some = Endpoints(["a", "b"])
    some.start(0.0)
    some.connected(0.1)
    some.heard(7.0)
    assert some.due(10.0) == pytest.approx(12.0)
    assert some.due(0.1) == pytest.approx(7.0 + SILENCE_MIN_S)


def test_several_addresses() -> None:
    made = settings_from("a, tcp://b:1,[::1]:2", environ={})
    assert made.coordinator == "tcp://a:29400,tcp://b:1,tcp://[::1]:2"
    with pytest.raises(ArgumentError, match="names no host"):
        settings_from("a,", environ={})
