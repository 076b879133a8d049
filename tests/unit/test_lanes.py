"""Names of ops: equal on all peers that call the same, apart for everything else; limits, with the limit included."""

from __future__ import annotations

import pytest

from pccl.errors import ArgumentError, MismatchError, ResourceError
from pccl.lanes import Lanes
from pccl.types import OpName

KEY = b"k" * 32


def call(lanes: Lanes, count: int = 1, boundary: int = 0, tag: str | None = None) -> list[OpName]:
    names = lanes.next_names(boundary, lanes.lane(tag), tag, count)
    for name in names:
        lanes.note(name)
    return names


def test_calls_stay_matched_however_many_ops_they_take() -> None:
    """They disagree about the first three calls and agree about the fourth."""
    ours, theirs = Lanes(KEY), Lanes(KEY)
    for mine, other in ((1, 3), (4, 1), (2, 3)):
        assert call(ours, mine)[0] == call(theirs, other)[0]
    assert call(ours, 3) == call(theirs, 3)
    assert call(ours, 3, tag="a") == call(theirs, 3, tag="a")
    assert (
        call(ours, 2, boundary=1)
        == call(theirs, 2, boundary=1)
        == [(1, 0, 0), (1, ours.next_names(1, 0, None, 2)[1].lane, 0)]
    )


def test_no_two_ops_have_one_name() -> None:
    lanes = Lanes(KEY)
    names = [name for tag in (None, "a", None, "b", "a") for name in call(lanes, 4, tag=tag)]
    names += [OpName(0, lanes.lane(tag, pair), 9) for tag in (None, "a") for pair in ((b"x", b"y"), (b"y", b"x"))]
    assert len(set(names)) == len(names) == 24
    assert Lanes(b"another run").lane("a") != lanes.lane("a") != lanes.lane(b"a")
    with pytest.raises(ArgumentError, match="tag must be"):
        lanes.lane(1.5)  # type: ignore[arg-type]


def test_a_tag_is_in_flight_until_its_last_op_has_ended() -> None:
    lanes = Lanes(KEY)
    names = call(lanes, 3, tag="a")
    for name in names:
        lanes.occupy(name.lane)
    for name in names:
        with pytest.raises(MismatchError, match="'a' is already in flight"):
            lanes.next_names(0, lanes.lane("a"), "a", 3)
        lanes.free(name.lane)
    assert call(lanes, 3, tag="a")[0].seq == 1


def test_the_lanes_of_a_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pccl.lanes.LANES_MAX", 4)
    lanes = Lanes(KEY)
    call(lanes, 3)
    with pytest.raises(ResourceError, match="4 tags"):
        lanes.next_names(0, lanes.lane("a"), "a", 2)
    call(lanes, tag="a")
    call(lanes, 3)
    with pytest.raises(ResourceError):
        lanes.next_names(0, 0, None, 4)
    call(lanes, 4, boundary=1)
