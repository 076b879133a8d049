"""New plans without new members: a better one at a boundary, one around a dead link at once, back when it is mended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from unit.group_table import A, B, C, D, Table, V, frozen, group, join, of, pid, suspect

from pccl import messages as m
from pccl.coordinator.cost import Measurements
from pccl.coordinator.events import Tick
from pccl.coordinator.links import FIGURES_AGE_S, MENDED_S
from pccl.coordinator.plan import Pair, Plan, plan
from pccl.coordinator.settings import REPLAN_GAP_S
from pccl.coordinator.steps import State
from pccl.types import LOSS_UNKNOWN, Algorithm, Cause, MemberInfo

E = pid(5)


def beat(table: Table, sender: bytes, rates: dict[bytes, int]) -> list[tuple[bytes, m.ToPeer]]:
    links = tuple(m.LinkReport(peer, 80_000, rate, 0) for peer, rate in rates.items())
    return table.say(sender, m.Heartbeat(V, 0, table.machine.epoch, 0, 0, 0, links))


def measured(table: Table, slow: tuple[bytes, ...] = (), rate: int = 60_000_000) -> list[tuple[bytes, m.ToPeer]]:
    sent = []
    for sender in table.members:
        others = [peer for peer in table.members if peer != sender]
        figures = {peer: rate // 12 if {sender, peer} == set(slow) else rate for peer in others}
        sent += beat(table, sender, figures)
    return sent


def test_a_better_plan_waits_for_a_boundary() -> None:
    table = group(A, B, C, D)
    assert table.machine.plan is not None and table.machine.plan.large_algorithm == Algorithm.MESH
    assert not of(m.Hold, measured(table)), "as good as it was"
    assert not of(m.Hold, measured(table, (A, B))), "not so soon after the last epoch"
    table.now += REPLAN_GAP_S
    sent = measured(table, (A, B))
    assert set(of(m.Hold, sent)) == {A, B, C, D} and table.state is State.HOLDING
    hold = of(m.Hold, sent)[A]
    assert isinstance(hold, m.Hold) and hold.joiners == ()
    for peer in (A, B, C):
        assert not of(m.Epoch, table.say(peer, m.Held(V, hold.hold, 4)))
    epoch = of(m.Epoch, table.say(D, m.Held(V, hold.hold, 6)))[A]
    assert isinstance(epoch, m.Epoch) and (epoch.change, epoch.from_boundary) == (0, 6)
    assert [member.peer for member in epoch.members] == [A, B, C, D] and table.state is State.STABLE
    assert epoch.members[0].weight < epoch.members[2].weight and epoch.plan.predicted_s > 0
    assert "instead of" in epoch.reason and "mesh" in epoch.plan.reason
    assert [entry.what for entry in table.machine.log][-2:] == ["epoch", "plan"]
    table.now += REPLAN_GAP_S
    assert not of(m.Hold, measured(table, (A, B))), "it has what it wanted"


def test_a_step_draws_its_plan_once() -> None:
    """The wish, the hold and the epoch mean the same plan, unless members or figures are others by then."""
    asked: list[int] = []

    def counting(members: Sequence[MemberInfo], known: Measurements, broken: frozenset[Pair]) -> Plan:
        asked.append(len(members))
        return plan(members, known, broken)

    def grow(*news: bytes) -> None:
        hold = table.machine.growth
        assert hold is not None
        for peer in news:
            beat(table, peer, {A: 60_000_000})
        for peer in table.members:
            table.say(peer, m.Held(V, hold.number, 1))

    table = group(A, B, C, planner=counting)
    assert asked == [3]
    table.say(D, join(D))
    grow()
    assert len(table.members) == 4 and asked == [3, 4], "drawn for the hold"
    table.say(E, join(E))
    grow(B)
    assert len(table.members) == 5 and asked == [3, 4, 5, 5], "figures have come since"


def test_two_levels_are_untried_until_they_were_in_use() -> None:
    untried: list[frozenset[Algorithm]] = []
    use = Algorithm.MESH

    def recording(members: Sequence[MemberInfo], known: Measurements, broken: frozenset[Pair]) -> Plan:
        untried.append(known.untried)
        return replace(plan(members, known, broken), large_algorithm=use, mesh_bytes_max=0, predicted_s=1.0)

    table = group(A, B, C, D, planner=recording)
    table.now += REPLAN_GAP_S
    measured(table)
    assert set(untried) == {frozenset((Algorithm.TWO_LEVEL,))}
    use = Algorithm.TWO_LEVEL
    table = group(A, B, C, D, planner=recording)
    table.now += REPLAN_GAP_S
    measured(table)
    assert untried[-1] == frozenset()


def test_a_loss_during_a_hold_for_a_plan_forgets_it() -> None:
    table = group(A, B, C, D)
    table.now += REPLAN_GAP_S
    assert of(m.Hold, measured(table, (A, B)))
    assert of(m.Freeze, table.say(D, m.Leave(V, "")))
    for peer in (A, B):
        table.say(peer, frozen(1))
    sent = table.say(C, frozen(1))
    assert set(of(m.Epoch, sent)) == {A, B, C} and not of(m.Hold, sent) and table.state is State.STABLE


def test_a_loss_that_is_not_known_is_no_figure() -> None:
    table = group(A, B)
    for loss, known in ((LOSS_UNKNOWN, {}), (0, {(A, B): 0}), (LOSS_UNKNOWN, {(A, B): 0})):
        table.say(A, m.Heartbeat(V, 0, table.machine.epoch, 0, 0, 0, (m.LinkReport(B, 80_000, 60_000_000, loss),)))
        assert table.machine._links.measured(table.now).loss_ppm == known


def test_figures_grow_old() -> None:
    table = group(A, B, C, D)
    measured(table, (A, B))
    assert len(table.machine._links.measured(table.now).bytes_per_s) == 12
    table.now += FIGURES_AGE_S
    assert not table.machine._links.measured(table.now + 1.0).rtt_s


def test_a_line_is_known_until_it_is_old_or_refuted_or_its_peer_is_gone() -> None:
    table = group(A, B, C)
    links = table.machine._links

    def lines() -> tuple[dict[bytes, float], dict[bytes, float]]:
        return links.measured(table.now).up, links.measured(table.now).down

    def tell(peer: bytes, line: m.Line | None) -> None:
        before = links.reports
        table.say(peer, m.Heartbeat(V, 0, table.machine.epoch, 0, 0, 0, (), None, line))
        assert (links.reports > before) == (line is not None), "what is new is looked at"

    tell(A, (15_000_000, 20_000_000, 14_000_000, 0))
    tell(B, (60_000_000, 60_000_000, 0, 0))
    tell(A, None)
    assert lines() == ({A: 15e6, B: 60e6}, {A: 20e6, B: 60e6})
    tell(B, (0, 0, 50_000_000, 40_000_000))
    assert lines() == ({A: 15e6}, {A: 20e6})
    measured = links.measured(table.now)
    assert (measured.went_up, measured.went_down) == ({A: 14e6, B: 50e6}, {B: 40e6})
    tell(B, (0, 0, 0, 0))
    links.forget(A)
    assert lines() == ({}, {})
    tell(C, (15_000_000, 15_000_000, 0, 0))
    table.now += FIGURES_AGE_S
    assert lines() == ({C: 15e6}, {C: 15e6})
    assert links.measured(table.now + 1.0).up == {}


def broken(table: Table, a: bytes, b: bytes) -> list[tuple[bytes, m.ToPeer]]:
    """Both ends lose the link, and answer probes after the grace."""
    sent = table.say(a, suspect(b, Cause.SILENT)) + table.say(b, suspect(a, Cause.EOF))
    assert not of(m.Freeze, sent)
    for _ in range(2):  # in one go it would look as if the coordinator had slept
        table.now += table.machine.settings.link_grace_s / 2
        sent = table(Tick())
    assert set(of(m.Probe, sent)) == {a, b} and not of(m.Freeze, sent)
    assert not of(m.Freeze, table.say(a, m.ProbeReply(V, 1))), "the other has not been heard yet"
    return table.say(b, m.ProbeReply(V, 1))


def refreeze(table: Table, sent: list[tuple[bytes, m.ToPeer]]) -> m.Epoch:
    (change,) = {message.change for message in of(m.Freeze, sent).values() if isinstance(message, m.Freeze)}
    for peer in table.members:
        sent = table.say(peer, frozen(change))
    epoch = of(m.Epoch, sent)[table.members[0]]
    assert isinstance(epoch, m.Epoch)
    return epoch


def test_a_dead_link_between_live_peers_is_done_without() -> None:
    table = group(A, B, C, D)
    epoch = refreeze(table, broken(table, A, B))
    assert sorted(member.peer for member in epoch.members) == [A, B, C, D] and epoch.change == 1, "nobody is evicted"
    assert detours(epoch) in ({(A, B, C), (B, A, C)}, {(A, B, D), (B, A, D)})
    assert "dead between live peers" in epoch.reason and "around the broken link" in epoch.plan.reason
    assert not of(m.Freeze, table.wait(5.0, A, B, C, D)), "once is enough"
    epoch = refreeze(table, table.say(D, m.Leave(V, "")))
    assert detours(epoch) == {(A, B, C), (B, A, C)}
    epoch = refreeze(table, table.say(C, m.Leave(V, "")))
    assert not epoch.detours and "no way around the broken link" in epoch.plan.reason


def detours(epoch: m.Epoch) -> set[tuple[bytes, ...]]:
    return {tuple(epoch.members[rank].peer for rank in detour) for detour in epoch.detours}


def test_two_links_are_enough_for_three_and_one_is_not() -> None:
    table = group(A, B, C)
    assert detours(refreeze(table, broken(table, A, B))) == {(A, B, C), (B, A, C)}
    assert not of(m.Freeze, broken(table, B, C)), "then nobody reaches B"
    assert [entry.what for entry in table.machine.log].count("dead link") == 2
    for one, other in ((A, B), (B, A)):
        table.say(one, m.Healed(V, other))
    hold = of(m.Hold, table.wait(MENDED_S + 2, A, B, C))[A]
    assert isinstance(hold, m.Hold) and hold.joiners == ()
    for peer in table.members:
        sent = table.say(peer, m.Held(V, hold.hold, 1))
    assert not detours(of(m.Epoch, sent)[A])  # type: ignore[arg-type]
    table.now += 1.0
    freezes = [of(m.Freeze, table.say(peer, m.ProbeReply(V, 1))) for peer in table.members]
    assert any(freezes), "now B is reached through A"


def test_a_mended_link_is_used_again() -> None:
    table = group(A, B, C, D)
    refreeze(table, broken(table, A, B))
    table.say(A, m.Healed(V, B))
    assert not of(m.Hold, table.wait(MENDED_S + 2, A, B, C, D)), "one end still says that it is dead"
    table.say(B, m.Healed(V, A))
    assert not of(m.Hold, table.wait(MENDED_S - 2, A, B, C, D)), "not yet"
    hold = of(m.Hold, table.wait(3.0, A, B, C, D))[A]
    assert isinstance(hold, m.Hold) and hold.joiners == ()
    for peer in table.members:
        sent = table.say(peer, m.Held(V, hold.hold, 3))
    epoch = of(m.Epoch, sent)[A]
    assert isinstance(epoch, m.Epoch) and not epoch.detours and "can be used again" in epoch.reason
    refreeze(table, broken(table, A, B))
    for one, other in ((A, B), (B, A)):
        table.say(one, m.Healed(V, other))
    assert not of(m.Hold, table.wait(MENDED_S + 2, A, B, C, D)), "the second time it takes longer"
    assert of(m.Hold, table.wait(MENDED_S + 2, A, B, C, D))


def test_a_link_that_heals_in_time_is_no_matter() -> None:
    table = group(A, B, C, D)
    table.say(A, suspect(B, Cause.RESET))
    table.say(A, m.Healed(V, B))
    assert not of(m.Freeze, table.wait(5.0, A, B, C, D))


def test_what_nothing_can_avoid_is_left_alone() -> None:
    peers = (A, B)
    table = group(*peers)
    assert not of(m.Freeze, broken(table, A, B)) and table.state is State.STABLE
    assert not of(m.Freeze, table.wait(5.0, *peers))
    assert [entry.what for entry in table.machine.log].count("dead link") == 1
    table.say(D, join(D))
    hold = table.machine.growth
    assert hold is not None
    for peer in peers:
        table.say(peer, m.Held(V, hold.number, 1))
    table.now += 1.0
    freezes = [of(m.Freeze, table.say(peer, m.ProbeReply(V, 1))) for peer in table.members]
    assert any(freezes), "with a third there is a way around"


def test_a_peer_that_does_not_answer_is_no_dead_link() -> None:
    table = group(A, B, C, D)
    for peer in (A, C, D):
        table.say(peer, suspect(B, Cause.SILENT))
    assert not of(m.Freeze, table.wait(8.0, A, C, D)) and table.state is State.STABLE
    assert of(m.Evicted, table.wait(4.0, A, C, D)), "its lease decides"


def test_two_levels_are_tried_without_a_promise() -> None:
    table = group(A, B, C, D)
    table.now += REPLAN_GAP_S
    sent = []
    for sender in table.members:
        near = {A: B, B: A, C: D, D: C}[sender]
        links = [m.LinkReport(peer, 80_000, 8_000_000, 0) for peer in table.members if peer not in (sender, near)]
        links.append(m.LinkReport(near, 400, 300_000_000, 0))
        sent += table.say(sender, m.Heartbeat(V, 0, table.machine.epoch, 0, 0, 0, tuple(links)))
    assert set(of(m.Hold, sent)) == {A, B, C, D}
    for peer in table.members:
        sent = table.say(peer, m.Held(V, table.machine._holds, 1))
    epoch = of(m.Epoch, sent)[A]
    assert isinstance(epoch, m.Epoch) and epoch.plan.large_algorithm == Algorithm.TWO_LEVEL
    assert [member.region for member in epoch.members] == [0, 0, 1, 1]
    table.now += REPLAN_GAP_S
    assert not of(m.Hold, table(Tick())), "it has what it wanted"
