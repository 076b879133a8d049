"""The Session machine and the Peer around it: what each message and each event of the engine leads to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from msgspec import structs
from unit.fake_engine import FakeEngine

from pccl import errors
from pccl import messages as m
from pccl import session as s
from pccl.measure import LineReporter, LinkReporter
from pccl.peer import LOOK_GAP_S, Peer
from pccl.types import (
    LOSS_UNKNOWN,
    Algorithm,
    Cause,
    Event,
    EventKind,
    Identity,
    LineStats,
    LinkStats,
    OpInfo,
    OpName,
    Status,
)

V = m.VERSION
ME, LOW, HIGH, NEW = (bytes([n]) * 16 for n in (5, 1, 9, 7))
PLAN = m.Plan(4, 256 << 10, 1 << 20)
X = OpName(0, 0, 0)


class Bench:
    """A Peer with a clock and a fake engine; `say` gives what it answers."""

    def __init__(self) -> None:
        self.engine = FakeEngine(ME)
        self.infos: dict[int, OpInfo] = {}
        identity = Identity(ME, "run", 0, ("10.0.0.5:1",), "host", 1)
        self.peer = Peer(identity, self.engine, self.infos.get)
        self.now = 50.0

    def sent(self) -> list[m.ToCoordinator]:
        messages = list(self.peer.outbox)
        self.peer.outbox.clear()
        return messages

    def say(self, *messages: m.ToPeer) -> list[m.ToCoordinator]:
        for message in messages:
            self.now += 0.001
            self.peer.on_message(self.now, message)
        return self.sent()

    def engine_says(self, *events: Event) -> list[m.ToCoordinator]:
        self.peer.on_engine(self.now, events)
        return self.sent()

    def tick_until(self, end: float) -> list[m.ToCoordinator]:
        while (due := self.peer.deadline) is not None and due <= end:
            self.now = max(self.now, due)
            self.peer.on_tick(self.now)
        self.now = end
        return self.sent()

    @property
    def state(self) -> s.State:
        return self.peer.state


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.engine.close()


@pytest.fixture
def member(bench: Bench) -> Bench:
    """In epoch 1 with LOW and HIGH, min_peers 2."""
    bench.peer.start(bench.now)
    bench.say(m.Welcome(V, 5.0, 2, 1), epoch(1))
    assert bench.state is s.State.MEMBER
    return bench


def epoch(
    number: int,
    boundary: int = 0,
    change: int = 0,
    peers: tuple[bytes, ...] = (LOW, ME, HIGH),
    verdicts: tuple[m.Verdict, ...] = (),
    since: int = 0,
) -> m.Epoch:
    late = NEW if NEW in peers else ME
    members = tuple(m.Member(p, since if p == late else 0, f"10.0.0.{p[0]}:1", "h") for p in peers)
    return m.Epoch(V, number, boundary, change, members, PLAN, verdicts, "why", 2, 5.0)


def hold(number: int, at: int = 1) -> m.Hold:
    return m.Hold(V, number, at, 4, (m.Member(NEW, 0, "10.0.0.7:1", "h"),))


# -- joining ------------------------------------------------------------------------------------------------------


def test_joining(bench: Bench) -> None:
    bench.peer.start(bench.now)
    (join,) = bench.sent()
    assert isinstance(join, m.Join) and join.peer == ME and join.addresses == ("10.0.0.5:1",)
    assert bench.tick_until(bench.now + s.JOIN_RETRY_S + 0.01) == [join], "repeated until answered"
    bench.say(m.Welcome(V, 5.0, 3, 2))
    assert bench.peer.session.waiting_for == 2
    assert [type(x) for x in bench.tick_until(bench.now + 1.1)] == [m.Heartbeat]
    bench.say(epoch(4, boundary=9, since=9))
    config = bench.engine.configs[0]
    assert bench.peer.boundary == 9 == bench.engine.boundary
    assert [(c.id, c.dial, c.address) for c in config.members] == [
        (LOW, False, "10.0.0.1:1"),
        (ME, False, ""),
        (HIGH, True, "10.0.0.9:1"),
    ]
    assert (config.epoch, config.from_boundary, config.streams) == (4, 9, 4)
    assert bench.peer.view(8) is None and bench.peer.view(9) is bench.peer.session.epoch_view(4)


@pytest.mark.parametrize(
    ("kind", "error"), [("version", errors.ProtocolError), ("run", errors.ProtocolError), ("closed", errors.Closed)]
)
def test_refused(bench: Bench, kind: str, error: type[errors.PcclError]) -> None:
    bench.peer.start(bench.now)
    bench.say(m.Refused(V, kind, "because"))  # type: ignore[arg-type]
    assert bench.state is s.State.FENCED and isinstance(bench.peer.error, error)


def test_a_rejected_handshake(bench: Bench, member: Bench) -> None:
    member.peer.on_rejected(member.now, "wrong secret")
    assert member.state is s.State.MEMBER, "who was let in before waits for the coordinator"
    other = Bench()
    other.peer.start(0.0)
    other.peer.on_rejected(0.1, "wrong secret")
    other.engine.close()
    assert isinstance(other.peer.error, errors.AuthError)


def test_who_missed_the_welcome_learns_the_lease_with_the_epoch(bench: Bench) -> None:
    bench.peer.start(bench.now)
    bench.say(structs.replace(epoch(1), lease_s=1.0))
    beats = [x for x in bench.tick_until(bench.now + 1.05) if isinstance(x, m.Heartbeat)]
    assert len(beats) == 5


def test_turned_away_while_joining_asks_again_and_then_gives_up(bench: Bench) -> None:
    bench.peer.start(bench.now)
    bench.sent()
    for _ in range(s.TURNED_AWAY_MAX - 1):
        assert [type(x) for x in bench.say(m.Evicted(V, "who?"))] == [m.Join]
    bench.say(m.Evicted(V, "who?"))
    assert isinstance(bench.peer.error, errors.Evicted)


# -- boundaries and growth ----------------------------------------------------------------------------------------


def test_advance_is_free_and_fresh(member: Bench) -> None:
    member.sent()
    assert member.peer.advance(member.now) == 1 and not member.sent()
    member.now += 2 * s.FRESH_S
    assert member.peer.advance(member.now) == 2 == member.engine.boundary
    assert member.sent() == [m.Heartbeat(V, 2, 1, 1, 0, 0)], "the engine was at boundary 1 when it was looked at"
    assert member.peer.advance(member.now) == 3 and not member.sent()


def test_the_oldest_op_is_told_and_the_settled_forgotten(member: Bench) -> None:
    member.engine.post(X, 1)
    for _ in range(3):
        member.peer.advance(member.now)
    member.now += LOOK_GAP_S
    assert [beat.oldest for beat in member.tick_until(member.now + 1.1) if isinstance(beat, m.Heartbeat)] == [0]
    member.engine.ops.clear()
    assert [beat.oldest for beat in member.tick_until(member.now + 1.1) if isinstance(beat, m.Heartbeat)] == [3]
    for settled in (0, 2, 2, 1, 3):
        member.say(m.Ack(V, 3, settled))
    assert [call for call in member.engine.calls if call[0] == "forget"] == [("forget", 2), ("forget", 3)]


def test_advance_is_silent_among_many(member: Bench) -> None:
    """A thousand peers that all told at once how far they are would keep the coordinator busy with nothing else."""
    many = tuple(number.to_bytes(16, "big") for number in range(1000))
    member.say(epoch(2, boundary=1, peers=(ME, *many)))
    member.now += 1000 * s.FRESH_EACH_S
    assert member.peer.advance(member.now) == 1 and not member.sent()
    member.now += s.FRESH_S
    assert member.peer.advance(member.now) == 2 and [type(x) for x in member.sent()] == [m.Heartbeat]


def test_hold_and_growth(member: Bench) -> None:
    member.peer.advance(member.now)
    assert member.say(hold(1)) == [m.Held(V, 1, 2)]
    ((_, joiners, streams),) = [call for call in member.engine.calls if call[0] == "prepare"]
    assert [c.id for c in joiners] == [NEW] and joiners[0].dial and streams == 4  # type: ignore[attr-defined]
    assert member.peer.advance(member.now) is None and "growth" in member.peer.session.waits_for
    assert member.say(hold(1)) == [m.Held(V, 1, 2)], "asked twice, answered twice, promised once"
    member.say(epoch(2, boundary=3, peers=(LOW, ME, HIGH, NEW), since=3))
    assert member.peer.advance(member.now) == 2
    assert member.peer.view().epoch == 1  # type: ignore[union-attr]
    assert member.peer.advance(member.now) == 3
    assert member.peer.view().epoch == 2 and member.peer.view(2).epoch == 1  # type: ignore[union-attr]


def test_links_that_were_prepared_for_nothing_are_not_kept(member: Bench) -> None:
    member.say(hold(1))
    member.say(m.Release(V, 1))
    assert [call for call in member.engine.calls if call[0] == "prepare"][-1] == ("prepare", (), 1)
    calls = len(member.engine.calls)
    member.say(m.Release(V, 7))
    assert len(member.engine.calls) == calls, "that of another hold"


def test_a_hold_for_a_new_plan(member: Bench) -> None:
    assert member.say(m.Hold(V, 1, 1, 4, ())) == [m.Held(V, 1, 1)]
    assert not [call for call in member.engine.calls if call[0] == "prepare"]
    assert member.peer.advance(member.now) is None and "new plan" in member.peer.session.waits_for
    plan = m.Plan(4, 64 << 10, 1 << 16, Algorithm.TWO_LEVEL, 1.5, "because", 4096)
    members = tuple(
        m.Member(p, 0, f"10.0.0.{p[0]}:1", "h", weight, region)
        for p, weight, region in ((LOW, 1, 0), (ME, 2, 1), (HIGH, 3, 1))
    )
    streams, detours = ((0, 1, 7), (0, 2, 5), (1, 2, 99)), ((0, 2, 1), (2, 1, 0), (1, 9, 0), (1, 1, 0), (1, 2, 0))
    member.say(m.Epoch(V, 2, 1, 0, members, plan, (), "why", 2, 5.0, streams, detours))
    assert member.peer.advance(member.now) == 1
    config = member.engine.configs[-1]
    assert [(c.weight, c.region, c.streams) for c in config.members] == [(1, 0, 7), (2, 1, 0), (3, 1, 0)]
    assert (config.one_round_bytes_max, config.mesh_bytes_max) == (4096, 1 << 16)
    assert config.large_algorithm == Algorithm.TWO_LEVEL
    assert [c.via for c in config.members] == [None, None, 0], "what is not this peer's, or nonsense, is left out"


def test_release(member: Bench) -> None:
    member.say(hold(1))
    member.say(m.Release(V, 99))
    assert member.peer.advance(member.now) is None
    member.say(m.Release(V, 1))
    assert member.peer.advance(member.now) == 1


def test_who_has_missed_an_epoch_says_so_instead_of_answering(member: Bench) -> None:
    for message in (hold(1, at=2), m.Freeze(V, 1, 2)):
        (beat,) = member.say(message)
        assert isinstance(beat, m.Heartbeat) and beat.epoch == 1 and member.state is s.State.MEMBER
    member.say(epoch(3, boundary=4))
    assert member.peer.session.epoch == 1, "an epoch out of turn is ignored"


# -- changes ------------------------------------------------------------------------------------------------------


def test_freeze_report_and_verdicts(member: Bench) -> None:
    member.infos[7] = OpInfo("broadcast", (LOW,), False, X)
    member.engine.post(X, 7, finished=True)
    assert member.say(hold(1)) and not member.say(m.Freeze(V, 1, 1))
    assert member.state is s.State.FROZEN and member.peer.advance(member.now) is None
    (frozen,) = member.engine_says(*member.engine.events())
    entry = m.Pending(m.OpRef(*X), True, False, (LOW,), "broadcast")
    assert frozen == m.Frozen(V, 1, 0, {0: {0: 1}}, (entry,))
    assert member.say(m.Freeze(V, 1, 1)) == [frozen], "asked twice, answered twice"
    verdict = m.Verdict(m.OpRef(*X), Status.EPEER, "it is gone")
    member.say(epoch(2, change=1, peers=(ME, HIGH), verdicts=(verdict,)))
    assert member.state is s.State.MEMBER and member.engine.configs[-1].verdicts == [(X, Status.EPEER)]
    assert member.peer.verdict_text(X) == "it is gone"
    assert [e.token for e in member.peer.on_engine(member.now, member.engine.events())] == [7]
    assert member.peer.advance(member.now) == 1, "the hold was forgotten with the change"
    assert member.peer.verdict_text(OpName(9, 9, 9)) == ""


def test_a_second_freeze_overtakes_the_first(member: Bench) -> None:
    member.engine.auto_freeze = False
    member.say(m.Freeze(V, 1, 1), m.Freeze(V, 2, 1))
    assert member.engine_says(Event(kind=EventKind.FROZEN, token=1)) == []
    (frozen,) = member.engine_says(Event(kind=EventKind.FROZEN, token=2))
    assert isinstance(frozen, m.Frozen) and frozen.change == 2
    assert member.say(m.Freeze(V, 1, 1)) == []
    member.say(epoch(2, change=1))
    assert member.state is s.State.FROZEN
    member.say(epoch(2, change=2))
    assert member.state is s.State.MEMBER


def test_an_epoch_nobody_froze_for_is_ignored(member: Bench) -> None:
    member.say(epoch(2, change=1))
    assert member.peer.session.epoch == 1


def test_too_few_peers_pause_until_a_growth(member: Bench) -> None:
    member.say(m.Freeze(V, 1, 1))
    member.engine_says(*member.engine.events())
    member.say(epoch(2, change=1, peers=(ME,)))
    view = member.peer.view()
    assert view is not None and view.paused and member.peer.session.paused
    assert member.peer.advance(member.now) is None and "asks for 2" in member.peer.session.waits_for
    assert member.say(hold(1, at=2))[-1] == m.Held(V, 1, 1)
    member.say(epoch(3, boundary=5, peers=(ME, NEW), since=5))
    assert member.peer.advance(member.now) == 5, "straight to where ops run again"


# -- links and faults ---------------------------------------------------------------------------------------------


def down(peer: bytes, cause: Cause) -> Event:
    return Event(kind=EventKind.LINK_DOWN, peer=peer, cause=cause, sys_errno=104)


def test_links(member: Bench) -> None:
    assert member.engine_says(down(NEW, Cause.EOF)) == [], "no member"
    assert member.engine_says(Event(kind=EventKind.LINK_UP, peer=LOW)) == [], "as was expected"
    assert member.engine_says(down(LOW, Cause.SILENT)) == [m.Suspect(V, LOW, Cause.SILENT, 104, 1)]
    assert member.engine_says(down(LOW, Cause.SILENT)) == []
    assert member.engine_says(down(LOW, Cause.EOF)) == [m.Suspect(V, LOW, Cause.EOF, 104, 1)]
    assert member.engine_says(down(LOW, Cause.REFUSED)) == [m.Suspect(V, LOW, Cause.REFUSED, 104, 1)]
    assert member.engine_says(down(LOW, Cause.UNREACHABLE)) == [], "it tells less"
    assert member.engine_says(Event(kind=EventKind.LINK_UP, peer=LOW)) == [m.Healed(V, LOW)]
    assert member.engine_says(Event(kind=EventKind.LINK_UP, peer=LOW)) == []
    assert member.say(m.Probe(V, 3)) == [m.ProbeReply(V, 3)]
    assert member.say(m.Measure(V, LOW, 1000, 0.5)) == []
    assert member.engine.calls == [("measure", LOW, 1000, 0.5)]


def test_faults(member: Bench) -> None:
    member.infos[7] = OpInfo("mine", (), False, X)
    mismatch = Event(kind=EventKind.MISMATCH, token=7, peer=LOW, desc=3)
    assert member.engine_says(mismatch) == [
        m.OpFault(V, "mismatch", m.OpRef(*X), 1, LOW, "mine", "op of description 3")
    ]
    assert member.engine_says(Event(kind=EventKind.OVERDUE, token=8)) == [], "ended meanwhile"
    member.peer.fault(member.now, 7, "cancelled")
    assert member.sent() == [m.OpFault(V, "cancelled", m.OpRef(*X), 1, b"", "mine", "")]
    with pytest.raises(ValueError, match="no such kind"):
        member.peer.fault(member.now, 7, "bored")


def test_a_fault_of_an_op_that_no_report_names_waits_for_the_next_epoch(member: Bench) -> None:
    """Its change would end without a verdict on it, and nobody would speak of it again."""
    known, late = X, OpName(0, 5, 0)
    member.infos |= {7: OpInfo("known", (), False, known), 8: OpInfo("late", (), False, late)}
    member.engine.post(known, 7)
    member.say(m.Freeze(V, 1, 1))
    member.engine_says(*member.engine.events())
    for token in (7, 8):
        member.peer.fault(member.now, token, "cancelled")
    assert member.sent() == [m.OpFault(V, "cancelled", m.OpRef(*known), 1, b"", "known", "")]
    member.peer.forgo(member.now, OpName(0, 6, 0), "never")
    assert member.sent() == [m.OpFault(V, "forgone", m.OpRef(0, 6, 0), 1, b"", "never", "")], "it needs no report"
    told = m.OpFault(V, "cancelled", m.OpRef(*late), 2, b"", "late", "")
    assert faults_of(member.say(epoch(2, change=1))) == [told]
    member.peer.on_connected(member.now)
    assert member.sent()[1:] == [told], "until it is judged"
    member.say(m.Freeze(V, 2, 2))
    member.engine_says(*member.engine.events())
    assert not faults_of(member.say(epoch(3, change=2)))


def faults_of(messages: list[m.ToCoordinator]) -> list[m.OpFault]:
    return [message for message in messages if isinstance(message, m.OpFault)]


def test_between_freeze_and_report_a_fault_waits_for_what_that_names(member: Bench) -> None:
    """An op may be called, and wanted no more, after the engine froze and before what it had is known."""
    known, over, late = (OpName(0, lane, 0) for lane in (5, 6, 7))
    names = dict(enumerate((known, over, late), 7))
    member.infos |= {token: OpInfo(f"op {token}", (), False, name) for token, name in names.items()}
    member.engine.post(known, 7)
    member.engine.lanes[0][over.lane] = 1
    member.say(m.Freeze(V, 1, 1))
    for token in names:
        member.peer.fault(member.now, token, "cancelled")
    faults = [m.OpFault(V, "cancelled", m.OpRef(*name), 1, b"", f"op {token}", "") for token, name in names.items()]
    assert member.sent() == []
    *told, frozen = member.engine_says(*member.engine.events())
    assert isinstance(frozen, m.Frozen) and told == faults[:2], "in time for the verdicts; what is over needs none"
    assert faults_of(member.say(epoch(2, change=1))) == [structs.replace(faults[2], epoch=2)]


def given_up_late(member: Bench) -> OpName:
    """An op that it has called, and gives up, since it answered the freeze; nothing is said of it yet."""
    late = OpName(0, 5, 0)
    member.infos[8] = OpInfo("late", (), False, late)
    member.say(m.Freeze(V, 1, 1))
    member.engine_says(*member.engine.events())
    member.peer.fault(member.now, 8, "cancelled")
    assert member.sent() == []
    return late


def test_a_fault_that_waits_is_for_the_first_change_whose_report_names_its_op(member: Bench) -> None:
    late = given_up_late(member)
    member.engine.post(late, 8)
    member.say(m.Freeze(V, 2, 1))
    told = m.OpFault(V, "cancelled", m.OpRef(*late), 1, b"", "late", "")
    assert faults_of(member.engine_says(*member.engine.events())) == [told]
    assert faults_of(member.say(epoch(2, change=2))) == []


def test_a_fault_of_an_op_that_was_judged_all_the_same_is_not_sent_again(member: Bench) -> None:
    late = given_up_late(member)
    verdict = m.Verdict(m.OpRef(*late), int(Status.ECANCELLED), "the other one cancelled it")
    assert faults_of(member.say(epoch(2, change=1, verdicts=(verdict,)))) == []


def test_what_awaits_an_answer_is_sent_again_after_a_reconnect(member: Bench) -> None:
    member.infos[7] = OpInfo("mine", (), False, X)
    first = member.engine_says(down(LOW, Cause.EOF), Event(kind=EventKind.OVERDUE, token=7)) + member.say(hold(1))
    member.peer.leave(member.now)
    first += member.sent()
    member.peer.on_connected(member.now)
    again = member.sent()
    assert isinstance(again[0], m.Heartbeat) and again[1:] == first
    assert [type(x) for x in first] == [m.Suspect, m.OpFault, m.Held, m.Leave]
    assert m.Leave(V, "closed by the user") in member.tick_until(member.now + 0.6), "and repeated"


def test_counters_reach_the_heartbeat(member: Bench) -> None:
    done = Event(kind=EventKind.OP, token=1, status=Status.OK, sent_bytes=10, received_bytes=20)
    failed = Event(kind=EventKind.OP, token=2, status=Status.EPEER, sent_bytes=1)
    assert member.peer.on_engine(member.now, [done, failed]) == [done, failed]
    member.sent()
    assert m.Heartbeat(V, 0, 1, 0, 1, 31) in member.tick_until(member.now + 1.1)
    member.engine.busy = True
    assert m.Heartbeat(V, 0, 1, 0, 1, 31, busy=True) in member.tick_until(member.now + 1.1)


def test_what_links_measure_reaches_the_heartbeat_once(member: Bench) -> None:
    member.tick_until(member.now + 1.1)
    stats = LinkStats(LOW, 4, 80_000, 10_000_000, 5, 1 << 30, 0, 0)
    told = m.LinkReport(LOW, 80_000, 10_000_000, 5)
    member.engine.link_stats = [stats, LinkStats(HIGH, 1, 0, 0, 0, 9, 9, 9)]

    def links(seconds: float) -> list[tuple[m.LinkReport, ...]]:
        return [beat.links for beat in member.tick_until(member.now + seconds) if isinstance(beat, m.Heartbeat)]

    assert links(3.2) == [(told,), (), ()], "what is not known is not told, what is known once"
    member.engine.link_stats = [replace(stats, rtt_us=85_000, bytes_per_s=10_500_000)]
    assert links(1.1) == [()], "a change of 5 % is none"
    member.engine.link_stats = [replace(stats, rtt_us=90_000)]
    assert links(1.1) == [(m.LinkReport(LOW, 90_000, 0, 5),)], "a rate that no traffic has confirmed"
    member.engine.link_stats = [replace(stats, rtt_us=90_000, bytes_per_s=5_000_000)]
    assert links(1.1) == [(m.LinkReport(LOW, 90_000, 5_000_000, 5),)]
    member.peer.on_connected(member.now)
    (beat,) = member.sent()
    assert isinstance(beat, m.Heartbeat) and len(beat.links) == 1, "a new connection, perhaps a new coordinator"
    member.peer.advance(member.now)
    member.engine.link_stats = [replace(stats, rtt_us=200_000)]
    told = m.LinkReport(LOW, 200_000, 10_000_000, 5)
    beats = []
    for _ in range(100):  # a loop that passes boundaries more often than a Heartbeat is due
        member.now += s.FRESH_S + 0.01
        member.peer.advance(member.now)
        beats += member.sent()
    assert [beat.links for beat in beats if isinstance(beat, m.Heartbeat) and beat.links] == [(told,)]


def test_loss_is_news_when_it_is_learned_and_when_it_changes_much() -> None:
    reporter = LinkReporter()
    stats = LinkStats(LOW, 4, 80_000, 10_000_000, LOSS_UNKNOWN, 1 << 20, 0, 0)
    losses = [LOSS_UNKNOWN, LOSS_UNKNOWN, 0, 20, 100, 140, 1000]
    told = [reporter.news(float(k), [replace(stats, loss_ppm=loss)]) for k, loss in enumerate(losses)]
    assert [news[0].loss_ppm if news else None for news in told] == [LOSS_UNKNOWN, None, 0, None, 100, None, 1000]


def test_what_is_confirmed_is_told_again_in_time() -> None:
    reporter = LinkReporter()
    stats = LinkStats(LOW, 4, 80_000, 10_000_000, 5, 1 << 20, 0, 0)
    assert reporter.news(0.0, [stats]) and not reporter.news(59.0, [stats])
    assert [r.bytes_per_s for r in reporter.news(60.0, [stats])] == [0], "nothing went over it since"
    assert [r.bytes_per_s for r in reporter.news(120.0, [replace(stats, sent_bytes=2 << 20)])] == [10_000_000]
    assert reporter.news(121.0, []) == []
    assert len(reporter.news(122.0, [stats])) == 1, "a link that was gone is a new one"


def test_a_line_is_told_when_it_is_learned_when_it_changes_and_when_it_is_refuted() -> None:
    reporter = LineReporter()
    assert reporter.news(0.0, LineStats(0, 0, 1 << 30)) is None, "nothing is known"
    assert reporter.news(1.0, LineStats(100, 150, 1 << 30)) == (100, 150, 0, 0)
    assert reporter.news(2.0, LineStats(110, 140, 2 << 30)) is None
    assert reporter.news(3.0, LineStats(111, 140, 2 << 30)) == (111, 140, 0, 0)
    assert reporter.news(4.0, LineStats(111, 160, 2 << 30)) == (111, 160, 0, 0)
    assert reporter.news(64.0, LineStats(112, 161, 2 << 30)) is None, "nothing went over it since"
    assert reporter.news(65.0, LineStats(112, 161, (2 << 30) + (1 << 20))) == (112, 161, 0, 0)
    assert reporter.news(66.0, LineStats(0, 0, 3 << 30)) == (0, 0, 0, 0)
    assert reporter.news(166.0, LineStats(0, 0, 4 << 30)) is None
    assert reporter.news(167.0, LineStats(112, 161, 4 << 30)) == (112, 161, 0, 0)
    reporter.forget()
    assert reporter.news(168.0, LineStats(112, 161, 4 << 30)) == (112, 161, 0, 0)
    assert reporter.news(167.0, LineStats(0, 0, 5 << 30, 40, 50)) == (0, 0, 40, 50), "what went over it"
    assert reporter.news(168.0, LineStats(0, 0, 6 << 30, 44, 54)) is None
    assert reporter.news(169.0, LineStats(0, 0, 6 << 30, 44, 60)) == (0, 0, 44, 60)
    assert reporter.news(230.0, LineStats(0, 0, 7 << 30, 44, 60)) == (0, 0, 44, 60), "once more, lest it is forgotten"


def test_what_is_known_of_the_line_reaches_the_heartbeat_once(member: Bench) -> None:
    def lines(seconds: float) -> list[m.Line | None]:
        return [beat.line for beat in member.tick_until(member.now + seconds) if isinstance(beat, m.Heartbeat)]

    assert lines(1.1) == [None]
    member.engine.line_stats = LineStats(15_000_000, 16_000_000, 1 << 30)
    assert lines(2.2) == [(15_000_000, 16_000_000, 0, 0), None]
    member.peer.on_connected(member.now)
    (beat,) = member.sent()
    assert isinstance(beat, m.Heartbeat) and beat.line == (15_000_000, 16_000_000, 0, 0)


# -- the end ------------------------------------------------------------------------------------------------------


def test_evicted(member: Bench) -> None:
    member.say(m.Evicted(V, "its lease ran out"))
    assert member.state is s.State.FENCED and ("fail_all", Status.EEVICTED) in member.engine.calls
    assert isinstance(member.peer.error, errors.Evicted) and member.peer.error.epoch == 1
    assert member.peer.advance(member.now) is None and member.peer.deadline is None
    assert member.say(epoch(2, change=1)) == [] and member.state is s.State.FENCED


@pytest.mark.parametrize(
    ("peers", "since", "flaw"),
    [((LOW, ME, HIGH, LOW), 0, "a member twice"), ((LOW, ME, HIGH), 7, "from boundary 7 on, which is at boundary 1")],
)
def test_an_epoch_that_cannot_be(member: Bench, peers: tuple[bytes, ...], since: int, flaw: str) -> None:
    member.peer.advance(member.now)
    member.say(m.Freeze(V, 1, 1))
    member.say(epoch(2, change=1, peers=peers, since=since))
    assert member.state is s.State.FENCED
    assert isinstance(member.peer.error, errors.ProtocolError) and flaw in str(member.peer.error)


def test_an_epoch_without_this_peer(member: Bench) -> None:
    member.say(epoch(2, boundary=1, peers=(LOW, HIGH)))
    assert isinstance(member.peer.error, errors.Evicted)


def test_the_coordinator_is_silent(member: Bench) -> None:
    beats = member.tick_until(member.now + 59.0)
    assert len(beats) >= 55 and member.state is s.State.MEMBER
    member.tick_until(member.now + 2.0)
    assert isinstance(member.peer.error, errors.CoordinatorLost)
    assert ("fail_all", Status.ELOST) in member.engine.calls


def test_a_peer_that_slept_blames_nobody(member: Bench) -> None:
    member.now += 500.0
    member.peer.on_tick(member.now)
    assert member.state is s.State.MEMBER
    member.say(m.Ack(V, 0, 0))
    member.tick_until(member.now + 59.0)
    assert member.state is s.State.MEMBER


def test_leaving(member: Bench) -> None:
    member.peer.leave(member.now)
    assert m.Leave(V, "closed by the user") in member.sent()
    member.say(m.Goodbye(V))
    assert member.state is s.State.CLOSED and ("fail_all", Status.ECLOSED) in member.engine.calls


def test_closing_before_anything(bench: Bench) -> None:
    bench.peer.close(bench.now)
    assert bench.state is s.State.CLOSED and isinstance(bench.peer.error, errors.Closed)
    bench.peer.start(bench.now)
    assert bench.sent() == []


# -- the coordinator's restarts -----------------------------------------------------------------------------------


def test_an_earlier_incarnation_decides_nothing(member: Bench) -> None:
    member.say(m.Ack(V, 0, 0, incarnation=3))
    assert member.peer.session.incarnation == 3
    stale: tuple[m.ToPeer, ...] = (
        m.Freeze(V, 1, 1, incarnation=2),
        structs.replace(epoch(2, boundary=4), incarnation=2),
        structs.replace(hold(1), incarnation=2),
        m.Probe(V, 1, incarnation=2),
        m.Goodbye(V, incarnation=2),
        m.Evicted(V, "by a dead hand", incarnation=2),
        m.Ack(V, 0, 9, incarnation=2),
    )
    heard = member.peer.session._heard
    assert not member.say(*stale)
    assert (member.state, member.peer.session.epoch) == (s.State.MEMBER, 1)
    assert member.peer.session._heard == heard, "it proves nothing about the present one"
    assert isinstance(member.say(structs.replace(hold(1), incarnation=3))[0], m.Held)
    member.say(m.Freeze(V, 1, 1, incarnation=4))
    assert member.state is s.State.FROZEN and member.peer.session.incarnation == 4


def test_without_durable_state_there_is_no_stale_one(member: Bench) -> None:
    member.say(m.Ack(V, 0, 0, incarnation=3))
    member.say(m.Evicted(V, "this coordinator does not know the peer"))
    assert member.state is s.State.FENCED and "does not know" in str(member.peer.error)


def test_a_change_that_is_begun_anew_freezes_again(member: Bench) -> None:
    """A frozen session takes the higher number; what the engine reports of the older change is not sent."""
    member.say(m.Freeze(V, 1, 1, incarnation=1))
    member.say(m.Freeze(V, 2, 1, incarnation=2))
    assert [call for call in member.engine.calls if call[0] == "freeze"] == [("freeze", 1), ("freeze", 2)]
    (answer,) = member.engine_says(Event(kind=EventKind.FROZEN, token=1), Event(kind=EventKind.FROZEN, token=2))
    assert isinstance(answer, m.Frozen) and answer.change == 2
    assert not member.say(epoch(2, change=1)) and member.state is s.State.FROZEN
    member.say(epoch(2, change=2))
    assert member.state is s.State.MEMBER


def acquaint(*peers: bytes, incarnation: int = 3) -> m.Acquaint:
    members = tuple(m.Member(peer, 0, f"10.0.0.{peer[0]}:1", "host") for peer in peers)
    return m.Acquaint(V, members, 2, True, incarnation=incarnation)


def test_a_guest_that_a_new_coordinator_takes_for_a_new_peer_is_out(bench: Bench) -> None:
    """Members close their links to it when they hear of the new one: what it sent then would not fit."""
    bench.peer.session.guest = True
    bench.peer.start(bench.now)
    bench.peer.on_connected(bench.now)
    bench.say(m.Welcome(V, 10.0, 1, 0, incarnation=3), acquaint(LOW, HIGH))
    bench.peer.enter(bench.now)
    assert isinstance(bench.sent()[-1], m.Join)
    bench.say(m.Welcome(V, 10.0, 1, 0, incarnation=3))
    assert bench.state is s.State.JOINING
    said = bench.say(m.Welcome(V, 10.0, 1, 0, incarnation=4))
    assert bench.state is s.State.FENCED and isinstance(bench.peer.error, errors.Evicted)
    assert [type(message) for message in said] == [m.Leave], "nobody waits for it"


def test_a_guest_that_knows_no_member_may_go_to_a_new_coordinator(bench: Bench) -> None:
    bench.peer.session.guest = True
    bench.peer.start(bench.now)
    bench.peer.on_connected(bench.now)
    bench.say(m.Welcome(V, 10.0, 1, 0, incarnation=3), acquaint())
    bench.say(m.Welcome(V, 10.0, 1, 0, incarnation=4))
    assert bench.state is s.State.JOINING and bench.peer.session.incarnation == 4


def test_a_member_closes_its_links_to_the_guests_of_a_coordinator_that_is_gone(member: Bench) -> None:
    member.say(acquaint(NEW))
    assert ("unacquaint", NEW) not in member.engine.calls
    member.say(m.Ack(V, 0, 0, incarnation=4))
    assert ("unacquaint", NEW) in member.engine.calls and member.state is s.State.MEMBER
