"""Prediction and reality: what a peer times, what the coordinator makes of it, and when it warns."""

from __future__ import annotations

import logging
from itertools import groupby

import pytest
from unit.fake_engine import FakeEngine
from unit.group_table import A, B, C, D, Table, V, group, of

from pccl import messages as m
from pccl.achieved import LARGE_BYTES, STRETCH_MAX_S, Stopwatch
from pccl.coordinator.events import Record, Tick
from pccl.coordinator.reality import FAR, SLOWER, WARN_AFTER_S, Reality, Remark
from pccl.coordinator.server import _show
from pccl.coordinator.settings import REPLAN_GAP_S
from pccl.peer import Peer
from pccl.types import Algorithm, EpochConfig, Event, EventKind, Identity, OpDesc, Status

MIB = 1 << 20


# -- the peer's stopwatch --------------------------------------------------------------------------------------------


def config(epoch: int = 1, algorithm: Algorithm = Algorithm.MESH, mesh_max: int = 0) -> EpochConfig:
    return EpochConfig(epoch, 0, 0, [], [], 1, 1 << 18, mesh_max, algorithm)


def watch(**options: object) -> Stopwatch:
    stopwatch = Stopwatch()
    stopwatch.configure(config(**options))  # type: ignore[arg-type]
    return stopwatch


def desc(nbytes: int = 64 * MIB, algorithm: Algorithm = Algorithm.MESH, codec: int = 0, reduces: bool = True) -> OpDesc:
    return OpDesc(reduces, algorithm, codec, nbytes)


def op(seconds: float, epoch: int = 1, retries: int = 0, status: int = 0, sent: int = 64 * MIB) -> Event:
    return Event(
        EventKind.OP, status=status, epoch=epoch, retries=retries, sent_bytes=sent, duration_ns=round(seconds * 1e9)
    )


def test_ops_one_after_the_other_are_stretches_of_their_own() -> None:
    stopwatch = watch()
    stopwatch.ended(10.0, op(1.0), desc())
    assert stopwatch.take() is None, "another may have begun meanwhile"
    stopwatch.ended(12.0, op(1.5), desc())
    assert stopwatch.take() == m.Achieved(1, 1, 64 * MIB, 1_000_000)
    assert stopwatch.take() is None
    stopwatch.ended(13.0, op(0.5), desc(8 * MIB))
    stopwatch.ended(14.0, op(0.1), desc())
    assert stopwatch.take() == m.Achieved(1, 2, 72 * MIB, 2_000_000)


def test_ops_at_the_same_time_are_one_stretch() -> None:
    stopwatch = watch()
    stopwatch.ended(10.0, op(2.0), desc())
    stopwatch.ended(11.0, op(2.5), desc())  # 8.5 to 11
    stopwatch.ended(11.0, op(3.5), desc())  # 7.5 to 11
    stopwatch.ended(20.0, op(1.0), desc())
    assert stopwatch.take() == m.Achieved(1, 1, 192 * MIB, 3_500_000)


def test_a_stretch_without_end_is_cut() -> None:
    """Two ops in flight at any time: what is told covers the time once."""
    stopwatch = watch()
    told_s = 0.0
    for second in range(1, 101):
        stopwatch.ended(float(second), op(2.0), desc())
        told = stopwatch.take()
        told_s += told.busy_us / 1e6 if told else 0.0
    assert 100 - STRETCH_MAX_S - 1 <= told_s <= 101


@pytest.mark.parametrize(
    "unlike",
    [
        desc(LARGE_BYTES - 1),
        desc(codec=3),
        desc(reduces=False),
        desc(algorithm=Algorithm.RING),
    ],
)
def test_what_is_not_as_planned_does_not_count(unlike: OpDesc) -> None:
    stopwatch = watch()
    stopwatch.ended(10.0, op(1.0), unlike)
    stopwatch.ended(20.0, op(1.0), desc())
    assert stopwatch.take() is None


def test_what_the_plan_says_depends_on_the_size() -> None:
    for options, algorithm in (
        ({"algorithm": Algorithm.RING, "mesh_max": 128 * MIB}, Algorithm.MESH),
        ({"algorithm": Algorithm.AUTO}, Algorithm.RING),
        ({"algorithm": Algorithm.TWO_LEVEL}, Algorithm.TWO_LEVEL),
    ):
        stopwatch = watch(**options)
        for at in (10.0, 20.0):
            stopwatch.ended(at, op(1.0), desc(algorithm=algorithm))
        assert stopwatch.take() == m.Achieved(1, 1, 64 * MIB, 1_000_000), options


def test_only_whole_ops_of_the_newest_epoch_are_looked_at() -> None:
    stopwatch = Stopwatch()
    assert not stopwatch.could_count(op(1.0)), "no epoch yet"
    stopwatch.configure(config(2))
    assert stopwatch.could_count(op(1.0, epoch=2))
    for event in (op(1.0), op(1.0, 2, retries=1), op(1.0, 2, status=Status.EPEER), op(1.0, 2, sent=1024)):
        assert not stopwatch.could_count(event)
    stopwatch.ended(10.0, op(1.0, 2), desc())
    stopwatch.ended(20.0, op(1.0, 2), desc())
    stopwatch.configure(config(3))
    assert stopwatch.take() is None, "an older plan's"


def test_a_heartbeat_takes_the_times_along_once() -> None:
    engine = FakeEngine(A)
    try:
        engine.descs[5] = desc()
        peer = Peer(Identity(A, "run", 0, ("10.0.0.1:1",), "host", 1), engine, lambda token: None)
        peer.start(0.0)
        peer.on_message(0.0, m.Welcome(V, 10.0, 1, 0))
        members = tuple(m.Member(other, 0, "10.0.0.1:1", "host") for other in (A, B))
        plan = m.Plan(3, 1 << 18, 0, Algorithm.MESH, 0.7, "because")
        peer.on_message(0.0, m.Epoch(V, 1, 0, 0, members, plan, (), "", 2, 5.0))
        view = peer.view()
        assert view is not None and view.plan.predicted_s == 0.7 and view.plan.reason == "because"
        assert (view.plan.algorithm, view.plan.streams, view.plan.mesh_bytes_max) == (Algorithm.MESH, 3, 0)
        for at in (1.0, 1.9):
            event = Event(EventKind.OP, epoch=1, desc=5, sent_bytes=64 * MIB, duration_ns=800_000_000)
            peer.on_engine(at, [event])
        peer.outbox.clear()
        for at in (2.5, 4.6, 6.7):
            peer.on_tick(at)
        told = [message.achieved for message in peer.outbox if isinstance(message, m.Heartbeat)]
        assert told == [m.Achieved(1, 1, 64 * MIB, 800_000), None, None]
    finally:
        engine.close()


# -- the coordinator's look ------------------------------------------------------------------------------------------


def linear(nbytes: float) -> float:
    """A second for 64 MiB, a tenth of it delay."""
    return 0.1 + 0.9 * nbytes / (64 * MIB)


def told(seconds: float, nbytes: int = 64 * MIB, stretches: int = 1, epoch: int = 1) -> m.Achieved:
    return m.Achieved(epoch, stretches, nbytes * stretches, round(seconds * stretches * 1e6))


def begun() -> Reality:
    reality = Reality()
    reality.begin(1, "the mesh, for a reason")
    return reality


def test_the_peer_that_waited_least_counts() -> None:
    reality = begun()
    reality.report(A, told(1.9))
    reality.report(B, told(1.2, stretches=3))
    reality.report(B, told(1.2))
    (remark,) = reality.look(10.0, linear)
    assert remark == Remark("reality", "64 MiB: 1.2 s achieved, 1 s expected")
    assert reality.status() == m.Reality(1.0, pytest.approx(1.2), 256 * MIB)


def test_other_sizes_are_measured_by_their_own_prediction() -> None:
    """16 MiB take 0.325 s by the model: 0.65 s are twice as much, as would be 2 s for 64 MiB."""
    reality = begun()
    reality.report(A, told(0.65, 16 * MIB))
    reality.look(10.0, linear)
    assert reality.status() == m.Reality(1.0, pytest.approx(2.0), 16 * MIB)


def test_nothing_heard_nothing_said() -> None:
    reality = begun()
    assert reality.status() is None and reality.look(10.0, linear) == []
    assert reality.status() == m.Reality(1.0, 0.0, 0), "expected is known"
    reality.report(A, told(1.0, epoch=7))
    reality.report(A, m.Achieved(1, 0, 0, 0))
    assert reality.look(20.0, linear) == []
    reality.report(A, told(1.0))
    assert reality.look(20.0, lambda nbytes: 0.0) == [], "no prediction, no comparison"


def test_only_news_is_said() -> None:
    reality = begun()
    said = []
    for number, seconds in enumerate((1.0, 1.2, 1.4, 1.6, 1.7)):
        reality.report(A, told(seconds))
        said.append([remark.text for remark in reality.look(10.0 * number, linear)])
    assert [len(texts) for texts in said] == [1, 0, 0, 1, 0] and "1.6 s achieved" in said[3][0]


def warnings_of(reality: Reality, times: list[tuple[float, float]]) -> list[tuple[float, str]]:
    """(when, text) of each warning when at each time so many seconds were told."""
    found = []
    for now, seconds in times:
        reality.report(A, told(seconds))
        found += [(now, remark.text) for remark in reality.look(now, linear) if remark.warning]
    return found


def test_a_warning_comes_late_and_once() -> None:
    slow = [(10.0 * number, 1.1 * FAR) for number in range(12)]
    ((at, text),) = warnings_of(begun(), slow)
    assert at == WARN_AFTER_S and "for 60 s 64 MiB: 2.2 s achieved, 1 s expected" in text
    assert text.endswith("the plan: the mesh, for a reason")
    fast = [(10.0 * number, 0.9 / FAR) for number in range(12)]
    assert len(warnings_of(begun(), fast)) == 1, "too good is as wrong"
    mixed = [(now, 1.0 if now == 50.0 else seconds) for now, seconds in slow[:11]]
    assert not warnings_of(begun(), mixed), "not all the time"


def test_a_new_plan_begins_anew() -> None:
    reality = begun()
    assert not warnings_of(reality, [(0.0, 3.0), (50.0, 3.0)])
    reality.begin(2, "another")
    assert reality.status() is None
    reality.report(A, told(3.0, epoch=2))
    assert not [remark for remark in reality.look(90.0, linear) if remark.warning]


def test_an_algorithm_is_slower_after_two_slow_looks_and_as_expected_after_one_good_one() -> None:
    reality = begun()
    seen = []
    for seconds in (1.4 * SLOWER, 1.2 * SLOWER, 1.0, 1.2 * SLOWER, 1.3 * SLOWER):
        reality.report(A, told(seconds))
        reality.look(0.0, linear)
        seen.append(reality.slower)
    assert seen == [None, pytest.approx(1.2 * SLOWER), 1.0, 1.0, pytest.approx(1.3 * SLOWER)]
    reality.begin(2, "another")
    assert reality.slower is None


# -- in a group ------------------------------------------------------------------------------------------------------


def beat(table: Table, achieved_s: float | None) -> None:
    """Every member tells the same rates, and how long its all-reduces took."""
    for sender in (A, B, C, D):
        links = tuple(m.LinkReport(peer, 80_000, 60_000_000, 0) for peer in (A, B, C, D) if peer != sender)
        achieved = None if achieved_s is None else told(achieved_s, epoch=table.machine.epoch)
        table.say(sender, m.Heartbeat(V, 0, table.machine.epoch, 0, 0, 0, links, achieved))


def test_a_group_says_what_its_plan_achieves() -> None:
    table = group(A, B, C, D)
    assert table.machine.status(table.now).reality is None
    for _ in range(9):
        table.now += REPLAN_GAP_S
        beat(table, 2.0)
        table(Tick())
    reality = table.machine.status(table.now).reality
    assert reality is not None and 0.6 < reality.expected_s < 0.8 and reality.achieved_s == pytest.approx(2.0, rel=0.01)
    entries = {entry.what: entry for entry in table.machine.log}
    assert "2 s achieved" in entries["reality"].reason and not entries["reality"].warning
    assert entries["far from the prediction"].warning and "tries them all" in entries["far from the prediction"].reason


def test_a_warning_is_one_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="pccl.coordinator"):
        _show(Record(0.0, 0, 1, b"", "reality", "as expected"))
        _show(Record(0.0, 0, 1, b"", "far from the prediction", "slow", warning=True))
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]


def told_by_all(table: Table, achieved: m.Achieved) -> None:
    """A comparison later. By the figures a ring is as quick as the mesh: each member's line is three times a path."""
    table.now += REPLAN_GAP_S
    for sender in (A, B, C, D):
        links = tuple(m.LinkReport(peer, 80_000, 48_000_000, 0) for peer in (A, B, C, D) if peer != sender)
        beat = m.Heartbeat(V, 0, table.machine.epoch, 0, 0, 0, links, achieved, (144_000_000,) * 4)
        holds = of(m.Hold, table.say(sender, beat))
        for peer, hold in holds.items():
            assert isinstance(hold, m.Hold)
            table.say(peer, m.Held(V, hold.hold, 4))


def test_a_ring_that_its_figures_flatter_is_left_and_tried_again_later_and_later() -> None:
    """Seen with losses: lines that were not there (64 MiB by the ring: 0.78 s expected, 1.84 s achieved)."""
    table = group(A, B, C, D)
    used = [Algorithm.MESH]
    for _ in range(120):
        told_by_all(table, told(1.84 if used[-1] == Algorithm.RING else 0.8, epoch=table.machine.epoch))
        assert table.machine.plan is not None
        used.append(table.machine.plan.algorithm_of(64 * MIB))
    assert Algorithm.RING in used[:4]
    stretches = [(algorithm, len(list(group_))) for algorithm, group_ in groupby(used)]
    meshes = [length for algorithm, length in stretches[1:-1] if algorithm == Algorithm.MESH]
    assert len(meshes) >= 3 and meshes == sorted(meshes) and meshes[2] >= 3 * meshes[0], stretches
    assert all(length <= 3 for algorithm, length in stretches if algorithm == Algorithm.RING), stretches
    assert any("times what its figures say, as was seen" in entry.reason for entry in table.machine.log)
