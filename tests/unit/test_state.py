"""sync_state over a communicator made of threads and a table: elections, plans, scalars, and losses at every step."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pccl import state
from pccl.errors import ArgumentError, MismatchError, PcclError, PeerLost
from pccl.work import Result


class Hub:
    """The other side of all fake communicators: meets calls by name, among those who live."""

    def __init__(self, world: int) -> None:
        self.changed = threading.Condition()
        self.alive = {bytes([rank]) * 16 for rank in range(world)}
        self.calls: dict[tuple[str, int], dict[bytes, np.ndarray[Any, Any]]] = {}
        self.results: dict[tuple[str, int], tuple[tuple[bytes, ...], np.ndarray[Any, Any]]] = {}
        self.mail: dict[tuple[bytes, bytes, str], bytes] = {}

    def wait(self, ready: Callable[[], bool]) -> None:
        assert self.changed.wait_for(ready, 10), "the fake communicator hangs"

    def kill(self, peer: bytes) -> None:
        with self.changed:
            self.alive.discard(peer)
            self.changed.notify_all()


class Dead(BaseException):
    """This peer's process is gone."""


class Transfer:
    """What async send and recv give."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self.wait = wait


class Fake:
    """One peer. `dies_at`: at which of its calls it vanishes."""

    op_timeout = 10.0
    boundary = 1

    def __init__(self, hub: Hub, rank: int, entered: int = 0, dies_at: int = -1) -> None:
        self.hub = hub
        self.peer_id = bytes([rank]) * 16
        self.entered = entered
        self.dies_at = dies_at
        self.calls = 0
        self.counts: dict[str, int] = {}

    def step(self) -> None:
        if self.calls == self.dies_at:
            self.hub.kill(self.peer_id)
            raise Dead
        self.calls += 1

    def all_gather(self, tensor: Any, *, tag: str, timeout: float) -> Result:
        assert timeout > 0
        self.step()
        hub = self.hub
        name = (tag, self.counts.get(tag, 0))
        self.counts[tag] = name[1] + 1
        with hub.changed:
            hub.calls.setdefault(name, {})[self.peer_id] = tensor.copy()
            hub.changed.notify_all()
            hub.wait(lambda: name in hub.results or hub.alive <= hub.calls[name].keys())
            if name not in hub.results:
                peers = tuple(sorted(hub.alive))
                hub.results[name] = peers, np.stack([hub.calls[name][peer] for peer in peers])
            peers, rows = hub.results[name]
        return Result(rows, len(peers), peers, 1, 0, 0, 0, 0.0)

    def send(self, tensor: Any, dst: bytes, *, tag: str, **options: Any) -> Any:
        self.step()
        hub, key = self.hub, (self.peer_id, dst, tag)
        with hub.changed:
            if dst not in hub.alive:
                raise PeerLost("gone")
            assert key not in hub.mail, "a tag was used twice at once"
            hub.mail[key] = tensor.tobytes()
            hub.changed.notify_all()

        def wait() -> None:
            with hub.changed:
                hub.wait(lambda: key not in hub.mail or dst not in hub.alive)
                if hub.mail.pop(key, None) is not None:
                    raise PeerLost("gone")

        return Transfer(wait)

    def recv(self, tensor: Any, src: bytes, *, tag: str, **options: Any) -> Any:
        self.step()
        hub, key = self.hub, (src, self.peer_id, tag)

        def wait() -> None:
            with hub.changed:
                hub.wait(lambda: key in hub.mail or src not in hub.alive)
                if key not in hub.mail:
                    raise PeerLost("gone")
                tensor[:] = np.frombuffer(hub.mail.pop(key), np.uint8)
                hub.changed.notify_all()

        return Transfer(wait)


def run(fakes: list[Fake], body: Callable[[Fake, int], Any]) -> list[Any]:
    """Outcomes by rank: the result, or the exception."""
    outcomes: list[Any] = [None] * len(fakes)

    def peer(rank: int) -> None:
        try:
            outcomes[rank] = body(fakes[rank], rank)
        except BaseException as error:  # noqa: BLE001 - judged by the test
            outcomes[rank] = error

    threads = [threading.Thread(target=peer, args=(rank,), daemon=True) for rank in range(len(fakes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    return outcomes


# -- pure parts ------------------------------------------------------------------------------------------------------


def summary(strategy: int, content: int, fresh: bool = False) -> state._Summary:
    return state._Summary(strategy, fresh, 1, 1, bytes(16), bytes([content]) * 16, bytes(16))


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
    ],
)
def test_elections(summaries: list[state._Summary], content: int) -> None:
    assert state.elect(summaries) == bytes([content]) * 16


def test_nobody_to_elect() -> None:
    assert state.elect([summary(RECEIVE, 1), summary(RECEIVE, 2)]) is None


def test_a_summary_goes_round() -> None:
    one = state._Summary(1, True, 5, 1 << 40, b"s" * 16, b"c" * 16, b"n" * 16)
    assert state._Summary.unpack(one.pack()) == one
    with pytest.raises(PcclError, match="version"):
        state._Summary.unpack(np.full(64, 9, np.uint8))


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters()),
    st.binary(),
    st.integers(0, 255).map(np.uint8),
)


@given(scalars)
def test_scalars_go_round(value: Any) -> None:
    back = state._decode_scalar(state._encode_scalar(value, "x"))
    assert type(back) is type(value)
    assert back == value or (math.isnan(back) and math.isnan(value))


@given(scalars, scalars)
def test_scalars_that_differ_differ_as_bytes(a: Any, b: Any) -> None:
    if state._encode_scalar(a, "x") == state._encode_scalar(b, "x"):
        assert type(a) is type(b) and (a == b or (math.isnan(a) and math.isnan(b)))


def test_other_numpy_scalars() -> None:
    for value in (np.float16(1.5), np.int64(-1), np.bool_(True), np.complex64(1j), np.int8(-1)):
        back = state._decode_scalar(state._encode_scalar(value, "x"))
        assert type(back) is type(value) and back == value


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 10), st.booleans()), max_size=6),
    st.integers(1, 4),
)
def test_plans_cover_every_byte_once(holders: int, outdated: int, entries: list[tuple[int, bool]], piece: int) -> None:
    right = [(b"right" * 3 + b".", nbytes) for nbytes, _ in entries]
    wrong = [
        (b"wrong" * 3 + b"." if differs else digest, n)
        for (digest, n), (_, differs) in zip(right, entries, strict=True)
    ]
    catalog = state._Catalog(
        tuple(bytes([i]) for i in range(holders + outdated)), [right] * holders + [wrong] * outdated
    )
    before, state._PIECE_BYTES = state._PIECE_BYTES, piece
    try:
        pieces = state.plan_pieces(catalog, range(holders), range(holders, holders + outdated), frozenset())
    finally:
        state._PIECE_BYTES = before
    moved = sorted((p.target, p.entry, byte) for p in pieces for byte in range(p.offset, p.offset + p.nbytes))
    expected = [
        (target, index, byte)
        for target in range(holders, holders + outdated)
        for index, (nbytes, differs) in enumerate(entries)
        if differs
        for byte in range(nbytes)
    ]
    assert moved == expected
    load = [sum(p.nbytes for p in pieces if p.source == rank) for rank in range(holders)]
    assert max(load) - min(load) <= piece


def test_differences_are_named_and_counted() -> None:
    many = {f"k{i}": "a" for i in range(20)}
    text = state.describe_differences([many, {}])
    assert text.startswith("'k0' is a at rank 0, missing at rank 1; ") and text.endswith("; and 12 more")


# -- whole calls -----------------------------------------------------------------------------------------------------


def test_arguments_are_checked() -> None:
    fake = Fake(Hub(1), 0)
    with pytest.raises(ArgumentError, match="strategy"):
        state.sync_state(fake, {}, "vote")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="allow_drift"):
        state.sync_state(fake, {}, allow_drift=["x"])
    with pytest.raises(TypeError, match="keys must be str"):
        state.sync_state(fake, {1: 2})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match=r"'x'.*got list"):
        state.sync_state(fake, {"x": []})
    with pytest.raises(TypeError, match=r"'x'.*Python objects"):
        state.sync_state(fake, {"x": np.array([None])})
    assert state.sync_state(fake, {}).rounds == 1


def entries_of(rank: int) -> dict[str, Any]:
    return {"a": np.full(50, float(rank)), "b": np.full(7, rank, np.int8), "same": np.ones(9), "step": rank * 10**20}


def is_whole(entries: dict[str, Any]) -> int:
    """Whose content it is; fails if it is a mixture."""
    rank = int(entries["a"][0])
    expected = entries_of(rank)
    assert all(np.array_equal(entries[name], expected[name]) for name in expected)
    return rank


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("dies_at", range(12))
def test_a_loss_at_any_step_leaves_every_survivor_whole_and_equal(
    victim: int, dies_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks 0 and 1 hold the same content; one peer vanishes at its n-th call."""
    monkeypatch.setattr(state, "_PIECE_BYTES", 128)
    hub = Hub(4)
    fakes = [Fake(hub, rank, dies_at=dies_at if rank == victim else -1) for rank in range(4)]
    held = [entries_of(max(rank, 1)) for rank in range(4)]
    outcomes = run(fakes, lambda fake, rank: state.sync_state(fake, held[rank]))
    survivors = [rank for rank in range(4) if not isinstance(outcomes[rank], Dead)]
    assert len(survivors) >= 3
    assert all(isinstance(outcomes[rank], state.SyncReport) for rank in survivors), outcomes
    assert {is_whole(held[rank]) for rank in survivors} == {1}
    is_whole(held[victim])


def test_when_the_only_source_is_lost_the_survivors_elect_another() -> None:
    hub = Hub(3)
    fakes = [Fake(hub, rank, dies_at=2 if rank == 0 else -1) for rank in range(3)]
    held = [entries_of(rank) for rank in range(3)]
    outcomes = run(fakes, lambda fake, rank: state.sync_state(fake, held[rank], "send" if rank == 0 else "majority"))
    assert [is_whole(entries) for entries in held] == [0, 1, 1]
    assert outcomes[1].rounds == outcomes[2].rounds == 2


def test_content_that_changes_while_it_is_sent_is_never_taken() -> None:
    class Liar(Fake):
        def send(self, tensor: Any, dst: bytes, *, tag: str, **options: Any) -> Any:
            return super().send(np.zeros_like(tensor), dst, tag=tag, **options)

    hub = Hub(2)
    held = [entries_of(rank + 1) for rank in range(2)]
    outcomes = run([Liar(hub, 0), Fake(hub, 1)], lambda fake, rank: state.sync_state(fake, held[rank]))
    assert all(isinstance(outcome, PcclError) and "kept changing" in str(outcome) for outcome in outcomes)
    assert [is_whole(entries) for entries in held] == [1, 2]


def test_read_only_entries_of_a_sender_that_was_outvoted() -> None:
    hub = Hub(3)
    held = [entries_of(max(rank, 1)) for rank in range(3)]
    held[2]["a"].flags.writeable = False
    fakes = [Fake(hub, rank) for rank in range(3)]
    outcomes = run(fakes, lambda fake, rank: state.sync_state(fake, held[rank], "send"))
    assert all(isinstance(outcome, MismatchError) and "rank 2" in str(outcome) for outcome in outcomes)
    assert [is_whole(entries) for entries in held] == [1, 1, 2]


def test_only_what_differs_is_moved() -> None:
    hub = Hub(3)
    held = [entries_of(max(rank, 1)) for rank in range(3)]
    outcomes = run([Fake(hub, rank) for rank in range(3)], lambda fake, rank: state.sync_state(fake, held[rank]))
    assert outcomes[2].entries_received == ("a", "b", "step")
    assert outcomes[2].received_bytes == outcomes[0].sent_bytes + outcomes[1].sent_bytes > 400
    assert len({outcome.digest for outcome in outcomes}) == 1
