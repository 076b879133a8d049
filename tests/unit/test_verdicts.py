"""How ops end that were pending when the epochs froze: the rules one by one, and faults on their way to a verdict."""

from __future__ import annotations

import pytest
from unit.group_table import A, B, C, V, X, fault, frozen, group, of, pend, pid

from pccl import messages as m
from pccl.coordinator.verdicts import Fault, judge
from pccl.frozen import Report
from pccl.types import Lanes, OpName, Status


def verdict_of(
    reports: dict[bytes, Report],
    since: dict[bytes, int] | None = None,
    faults: dict[OpName, m.OpFault] | None = None,
    min_peers: int = 1,
    name: OpName = X,
) -> tuple[int, str] | None:
    known = {op: Fault(A, report) for op, report in (faults or {}).items()}
    verdicts = judge(since or dict.fromkeys(reports, 0), reports, known, min_peers, {})
    found = [v for v in verdicts if v.op == m.OpRef(*name)]
    return (found[0].status, found[0].text) if found else None


def report(boundary: int, lanes: Lanes, *pending: m.Pending) -> Report:
    return Report(boundary, lanes, {OpName(p.op.boundary, p.op.lane, p.op.seq): p for p in pending})


ONE: Lanes = {0: {0: 1}}
HAS, DONE = report(0, ONE, pend(X)), report(0, ONE, pend(X, finished=True))
OVER, UNCALLED = report(0, ONE), report(0, {0: {}})
#: Boundaries further: it called the op then, did not, did neither then nor since, or has forgotten what it called.
BEYOND, SKIPPED = report(2, {**ONE, 1: {}}), report(2, {0: {}, 2: {0: 1}})
IDLE, FORGOTTEN = report(2, {0: {}}), report(2, {1: {0: 1}})


@pytest.mark.parametrize("other", [DONE, OVER, BEYOND, FORGOTTEN])
def test_rule_1_committed(other: Report) -> None:
    assert verdict_of({A: DONE, B: other}) == (Status.OK, "")
    assert verdict_of({A: DONE, B: other}, faults={X: fault("overdue", X, 1)}) == (Status.OK, "")
    assert verdict_of({A: DONE, B: other}, min_peers=9) == (Status.OK, "")


MIXED = {X: fault("mismatch", X, 1)}


def test_rule_1_not_for_two_that_meant_different_ops() -> None:
    """Both broadcast their own data under one name: each has finished, and neither takes the other's FIN."""
    needy = report(0, ONE, pend(X, True, needs=(A,))), report(0, ONE, pend(X, True, needs=(B,)))
    for reports in ({A: DONE, B: DONE}, dict(zip((A, B), needy, strict=True))):
        status, text = verdict_of(reports, faults=MIXED) or (0, "")
        assert status == Status.EMISMATCH and "theirs" in text
    for over in (OVER, BEYOND):
        assert verdict_of({A: DONE, B: over}, faults=MIXED) == (Status.OK, ""), "it had everybody's FIN"
    assert verdict_of({A: DONE, B: DONE}, faults={X: fault("cancelled", X, 1)}) == (Status.OK, "")


def test_a_mismatch_outranks_what_was_said_before() -> None:
    table = group(A, B)
    table.say(A, fault("overdue", X, 1))
    table.say(B, fault("mismatch", X, 1, A))
    table.say(A, fault("overdue", X, 1))
    table.say(A, frozen(1, 0, {0: 1}, pend(X, True)))
    epoch = of(m.Epoch, table.say(B, frozen(1, 0, {0: 1}, pend(X, True))))[B]
    assert isinstance(epoch, m.Epoch) and [v.status for v in epoch.verdicts] == [Status.EMISMATCH]


@pytest.mark.parametrize("other", [HAS, UNCALLED, SKIPPED, IDLE, OVER])
@pytest.mark.parametrize("forgoes", [UNCALLED, OVER])
def test_rule_3_an_op_that_somebody_will_never_call(forgoes: Report, other: Report) -> None:
    """`OVER`: it has called the next one of the lane since. Whoever calls the op later ends with the verdict."""
    for since in ({A: 0, B: 0}, {B: 0, A: 0}):
        status, text = verdict_of({A: forgoes, B: other}, since, {X: fault("forgone", X, 1)}) or (0, "")
        assert status == Status.ECANCELLED and text.endswith(f"peer {A.hex()[:8]} could not take part")


def test_what_is_forgone_amid_a_change_is_judged_by_it_or_starts_another() -> None:
    for after in (False, True):
        table = group(A, B)
        table.say(A, fault("overdue", OpName(0, 0, 7), 1))
        for peer in (A, B)[: 1 + after]:
            said = table.say(peer, frozen(1, 0, {}))
        told = table.say(A, fault("forgone", X, 1))
        if after:
            assert of(m.Epoch, said) and of(m.Freeze, told)
            table.say(A, frozen(2, 0, {}))
        epoch = of(m.Epoch, table.say(B, frozen(1 + after, 0, {})))[B]
        assert [(v.op, v.status) for v in epoch.verdicts] == [(m.OpRef(*X), Status.ECANCELLED)]


@pytest.mark.parametrize("other", [HAS, UNCALLED, SKIPPED, IDLE])
def test_rule_5_starts_again(other: Report) -> None:
    assert verdict_of({A: DONE, B: other}) is None


def test_a_member_that_came_later_takes_no_part() -> None:
    assert verdict_of({A: DONE, B: UNCALLED}, since={A: 0, B: 1}) == (Status.OK, "")


def test_rule_2_a_needed_peer_is_gone() -> None:
    needy = report(0, ONE, pend(X, needs=(C,)))
    status, text = verdict_of({A: needy, B: needy}, faults={X: fault("overdue", X, 1)}) or (0, "")
    assert status == Status.EPEER and C[:4].hex() in text
    done = report(0, ONE, pend(X, True, needs=(C,)))
    assert verdict_of({A: done, B: done}) == (Status.OK, ""), "it was finished before"


def test_an_op_that_cannot_do_without_anybody() -> None:
    """However many they are: the group of 100 loses its last."""
    peers = [pid(number) for number in range(1, 101)]
    table = group(*peers)
    table.say(peers[-1], m.Leave(V, ""))
    for peer in peers[:-1]:
        sent = table.say(peer, frozen(1, 0, {0: 1}, pend(X, everyone=True)))
    epoch = of(m.Epoch, sent)[A]
    assert isinstance(epoch, m.Epoch)
    assert [(v.status, peers[-1][:4].hex() in v.text) for v in epoch.verdicts] == [(Status.EPEER, True)]
    table.say(B, fault("overdue", OpName(0, 0, 1), 2))
    for peer in peers[:-1]:
        sent = table.say(peer, frozen(2, 0, {0: 2}, pend(OpName(0, 0, 1), True, everyone=True)))
    epoch = of(m.Epoch, sent)[A]
    assert isinstance(epoch, m.Epoch) and [v.status for v in epoch.verdicts] == [Status.OK], "a loss of earlier"


def test_who_came_after_the_op_is_not_missed_in_it() -> None:
    everyone = report(1, {0: {0: 1}, 1: {}}, pend(X, everyone=True))
    for since, status in ((0, Status.EPEER), (1, None)):
        verdicts = judge({A: 0, B: 0}, {A: everyone, B: everyone}, {}, 1, {C: since})
        assert [v.status for v in verdicts] == ([] if status is None else [status])


def test_only_the_two_of_a_pair_count() -> None:
    pair = report(0, ONE, pend(X, True, pair=True, needs=(A, B)))
    assert verdict_of({A: pair, B: pair, C: UNCALLED}) == (Status.OK, "")
    half = report(0, ONE, pend(X, False, pair=True, needs=(A, B)))
    assert verdict_of({A: half, B: pair, C: UNCALLED}) is None
    assert (verdict_of({A: half, C: UNCALLED}) or (0,))[0] == Status.EPEER


@pytest.mark.parametrize(
    ("kind", "status", "words"),
    [
        ("mismatch", Status.EMISMATCH, "called mine, peer 03030303 called theirs"),
        ("overdue", Status.ETIMEOUT, "not called by peer 02020202, not finished by peer 01010101"),
        ("cancelled", Status.ECANCELLED, "cancelled by peer 01010101"),
    ],
)
def test_rule_3_faults(kind: str, status: Status, words: str) -> None:
    found = verdict_of({A: HAS, B: UNCALLED}, faults={X: fault(kind, X, 1, C)}, min_peers=9)
    assert found is not None and found[0] == status and words in found[1]


def test_a_mismatch_in_the_other_ones_own_words() -> None:
    """The reporter has seen a packed description; what the other says of its own op is better, if it says more."""
    theirs = report(0, ONE, m.Pending(m.OpRef(*X), False, False, (), "all_reduce of 3 tensors"))
    faults = {X: fault("mismatch", X, 1, B)}
    status, text = verdict_of({A: HAS, B: theirs}, faults=faults) or (0, "")
    assert (status, text) == (
        Status.EMISMATCH,
        "peer 01010101 called mine, peer 02020202 called all_reduce of 3 tensors",
    )
    alike = report(0, ONE, m.Pending(m.OpRef(*X), False, False, (), "mine"))
    for other in (UNCALLED, alike):
        assert (verdict_of({A: HAS, B: other}, faults=faults) or (0, ""))[1].endswith("peer 02020202 called theirs")


@pytest.mark.parametrize("absent", [UNCALLED, SKIPPED, IDLE])
def test_a_boundary_passed_is_no_op_called(absent: Report) -> None:
    """Both callers of a barrier have finished it; the third has long gone on without."""
    found = verdict_of({A: DONE, B: DONE, C: absent}, faults={X: fault("overdue", X, 1)})
    assert found is not None and found[0] == Status.ETIMEOUT
    assert found[1].endswith("not called by peer 03030303")


def test_an_entry_holds_up_to_the_next() -> None:
    far = report(9, {2: {0: 1, 5: 3}, 7: {}, 9: {5: 1}})
    called = [OpName(2, 0, 0), OpName(6, 5, 2), OpName(1, 0, 7), OpName(9, 5, 0)]
    uncalled = [OpName(6, 0, 1), OpName(7, 0, 0), OpName(8, 5, 0), OpName(9, 5, 1), OpName(10, 0, 0)]
    assert all(far.over(name) for name in called) and not any(far.over(name) for name in uncalled)


def test_rule_4_too_few() -> None:
    assert (verdict_of({A: HAS}, min_peers=2) or (0,))[0] == Status.EFEW


def test_a_fault_starts_a_change_once() -> None:
    table = group(A, B)
    assert set(of(m.Freeze, table.say(A, fault("mismatch", X, 1, B)))) == {A, B}
    assert not table.say(B, fault("mismatch", X, 1, A)), "it joins the change under way"
    table.say(A, frozen(1, 0, {0: 1}, pend(X)))
    epoch = of(m.Epoch, table.say(B, frozen(1, 0, {0: 1}, pend(X))))[B]
    assert isinstance(epoch, m.Epoch) and [v.status for v in epoch.verdicts] == [Status.EMISMATCH]
    assert not table.say(B, fault("overdue", X, 1)), "said before it knew the verdict"
    assert of(m.Freeze, table.say(B, fault("overdue", X, 2))), "it called the op after the others were told"


def test_a_fault_survives_a_second_change() -> None:
    table = group(A, B, C)
    table.say(A, fault("overdue", X, 1))
    table.say(C, m.Leave(V, ""))
    table.say(A, frozen(2, 0, {0: 1}, pend(X)))
    epoch = of(m.Epoch, table.say(B, frozen(2)))[A]
    assert isinstance(epoch, m.Epoch) and [v.status for v in epoch.verdicts] == [Status.ETIMEOUT]
