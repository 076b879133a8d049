"""sync_state over communicators made of threads and a table: elections, scalars, what moves, losses at every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.fake_state import Dead, Fake, Hub, run

from pccl.errors import ArgumentError, MismatchError, PcclError
from pccl.sharing import SyncReport, chunks, scalars, sync_state
from pccl.sharing.election import Summary, describe_differences, elect
from pccl.transfer.manifest import Manifest
from pccl.transfer.target import Bytes

# -- pure parts ------------------------------------------------------------------------------------------------------


def summary(strategy: int, content: int, fresh: bool = False, whole: bool = True) -> Summary:
    return Summary(strategy, fresh, whole, 1, 1, 1, bytes(16), bytes([content]) * 16, bytes(16))


MAJORITY, SEND, RECEIVE = range(3)


@pytest.mark.parametrize(
    ("summaries", "content"),
    [
        ([summary(MAJORITY, 1)], 1),
        ([summary(MAJORITY, 1), summary(MAJORITY, 2)], 1),
        ([summary(MAJORITY, 1), summary(MAJORITY, 2), summary(MAJORITY, 2)], 2),
        ([summary(MAJORITY, 1), summary(MAJORITY, 1), summary(SEND, 2)], 2),
        ([summary(SEND, 3), summary(SEND, 2), summary(SEND, 2)], 2),
        ([summary(RECEIVE, 1), summary(RECEIVE, 1), summary(MAJORITY, 2)], 2),
        ([summary(MAJORITY, 1, fresh=True), summary(MAJORITY, 1, fresh=True), summary(MAJORITY, 2)], 2),
        ([summary(MAJORITY, 1, fresh=True), summary(MAJORITY, 2, fresh=True), summary(MAJORITY, 2, fresh=True)], 2),
        ([summary(MAJORITY, 1, fresh=True), summary(RECEIVE, 2)], 1),
        ([summary(SEND, 1, fresh=True), summary(MAJORITY, 2)], 1),
        ([summary(SEND, 1, whole=False), summary(MAJORITY, 1, whole=False), summary(MAJORITY, 2)], 2),
    ],
)
def test_elections(summaries: list[Summary], content: int) -> None:
    assert elect(summaries) == bytes([content]) * 16


def test_nobody_to_elect() -> None:
    assert elect([summary(RECEIVE, 1), summary(RECEIVE, 2)]) is None
    assert elect([summary(MAJORITY, 1, whole=False)]) is None


def test_a_summary_goes_round() -> None:
    one = Summary(1, True, False, 5, 1 << 40, 1 << 60, b"s" * 16, b"c" * 16, b"n" * 16)
    assert Summary.unpack(one.pack()) == one
    with pytest.raises(PcclError, match="version"):
        Summary.unpack(np.full(72, 9, np.uint8))


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters()),
    st.binary(),
    st.integers(0, 255).map(np.uint8),
)


@given(values)
def test_scalars_go_round(value: Any) -> None:
    back = scalars.decode(scalars.encode(value, "x"))
    assert type(back) is type(value)
    assert back == value or (math.isnan(back) and math.isnan(value))


@given(values, values)
def test_scalars_that_differ_differ_as_bytes(a: Any, b: Any) -> None:
    if scalars.encode(a, "x") == scalars.encode(b, "x"):
        assert type(a) is type(b) and (a == b or (math.isnan(a) and math.isnan(b)))


def test_other_numpy_scalars() -> None:
    for value in (np.float16(1.5), np.int64(-1), np.bool_(True), np.complex64(1j), np.int8(-1)):
        back = scalars.decode(scalars.encode(value, "x"))
        assert type(back) is type(value) and back == value


def test_differences_are_named_and_counted() -> None:
    many = {f"k{i}": "a" for i in range(20)}
    text = describe_differences([many, {}])
    assert text.startswith("'k0' is a at rank 0, missing at rank 1; ") and text.endswith("; and 12 more")


# -- whole calls -----------------------------------------------------------------------------------------------------


def test_arguments_are_checked() -> None:
    fake = Fake(Hub(1), 0)
    with pytest.raises(ArgumentError, match="strategy"):
        sync_state(fake, {}, "vote")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="allow_drift"):
        sync_state(fake, {}, allow_drift=["x"])
    with pytest.raises(TypeError, match="keys must be str"):
        sync_state(fake, {1: 2})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match=r"'x'.*got list"):
        sync_state(fake, {"x": []})
    with pytest.raises(TypeError, match=r"'x'.*Python objects"):
        sync_state(fake, {"x": np.array([None])})
    assert sync_state(fake, {}).rounds == 1


def entries_of(rank: int) -> dict[str, Any]:
    return {"a": np.full(50, float(rank)), "b": np.full(7, rank, np.int8), "same": np.ones(9), "step": rank * 10**20}


def is_whole(entries: dict[str, Any]) -> int:
    """Whose content it is; fails if it is a mixture."""
    rank = int(entries["a"][0])
    expected = entries_of(rank)
    assert all(np.array_equal(entries[name], expected[name]) for name in expected)
    return rank


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("dies_at", range(16))
def test_a_loss_at_any_step_leaves_every_survivor_whole_and_equal(
    victim: int, dies_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks 0 and 1 hold the same content; one peer vanishes at its n-th call."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1024)
    hub = Hub(4)
    fakes = [Fake(hub, rank, dies_at=dies_at if rank == victim else -1) for rank in range(4)]
    held = [entries_of(max(rank, 1)) for rank in range(4)]
    outcomes = run(fakes, lambda fake, rank: sync_state(fake, held[rank]))
    survivors = [rank for rank in range(4) if not isinstance(outcomes[rank], Dead)]
    assert len(survivors) >= 3
    assert all(isinstance(outcomes[rank], SyncReport) for rank in survivors), outcomes
    assert {is_whole(held[rank]) for rank in survivors} == {1}
    is_whole(held[victim])


def test_when_the_only_source_is_lost_the_survivors_elect_another() -> None:
    hub = Hub(3)
    fakes = [Fake(hub, rank, dies_at=2 if rank == 0 else -1) for rank in range(3)]
    held = [entries_of(rank) for rank in range(3)]
    outcomes = run(fakes, lambda fake, rank: sync_state(fake, held[rank], "send" if rank == 0 else "majority"))
    assert [is_whole(entries) for entries in held] == [0, 1, 1]
    assert outcomes[1].rounds == outcomes[2].rounds == 2


def test_content_that_changes_while_it_is_sent_is_never_taken() -> None:
    class Liar(Fake):
        def show(self, manifest: Manifest, parts: Sequence[Bytes], holds: Sequence[Any]) -> None:
            super().show(manifest, [np.zeros_like(part) for part in parts], holds)

    hub = Hub(2)
    held = [entries_of(rank + 1) for rank in range(2)]
    outcomes = run([Liar(hub, 0), Fake(hub, 1)], lambda fake, rank: sync_state(fake, held[rank]))
    assert all(isinstance(outcome, PcclError) and "kept changing" in str(outcome) for outcome in outcomes)
    assert [is_whole(entries) for entries in held] == [1, 2]


def test_read_only_entries_of_a_sender_that_was_outvoted() -> None:
    hub = Hub(3)
    held = [entries_of(max(rank, 1)) for rank in range(3)]
    held[2]["a"].flags.writeable = False
    fakes = [Fake(hub, rank) for rank in range(3)]
    outcomes = run(fakes, lambda fake, rank: sync_state(fake, held[rank], "send"))
    assert all(isinstance(outcome, MismatchError) and "rank 2" in str(outcome) for outcome in outcomes)
    assert [is_whole(entries) for entries in held] == [1, 1, 2]


def test_only_what_differs_is_moved() -> None:
    hub = Hub(3)
    held = [entries_of(max(rank, 1)) for rank in range(3)]
    outcomes = run([Fake(hub, rank) for rank in range(3)], lambda fake, rank: sync_state(fake, held[rank]))
    assert outcomes[2].entries_received == ("a", "b", "step")
    assert outcomes[2].received_bytes == outcomes[0].sent_bytes + outcomes[1].sent_bytes > 400
    assert len({outcome.digest for outcome in outcomes}) == 1
