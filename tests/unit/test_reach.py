"""Who dials whom: the rule, what turns it round, who is taken to be apart, and the dial-back before all that."""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import sys

import msgspec
import pytest
from unit.group_table import A, B, C, D, Table, V, frozen, join, of
from unit.test_restart import restarted
from unit.test_session import HIGH, LOW, ME, NEW, Bench, bench, down, epoch, hold, member

from pccl import messages as m
from pccl.coordinator.dial_back import DialBacks
from pccl.coordinator.events import DialBack, Dialled, Disconnected, Effect
from pccl.coordinator.steps import State
from pccl.types import Cause, Event, EventKind, dials

__all__ = ["bench", "member"]  # fixtures

# -- the rule -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a_inbound", "b_inbound", "turned", "a_dials"),
    [
        (True, True, False, True),
        (False, True, False, True),
        (True, False, False, False),
        (False, False, False, True),
        (True, True, True, False),
        (False, True, True, False),
        (True, False, True, True),
        (False, False, True, False),
    ],
)
def test_who_dials(a_inbound: bool, b_inbound: bool, turned: bool, a_dials: bool) -> None:
    assert dials(A, B, a_inbound, b_inbound, turned) is a_dials


def test_just_one_of_two_dials() -> None:
    for a_inbound, b_inbound, turned in itertools.product((True, False), repeat=3):
        assert dials(A, B, a_inbound, b_inbound, turned) is not dials(B, A, b_inbound, a_inbound, turned)


# -- at the coordinator -------------------------------------------------------------------------------------------


def asked(effects: list[Effect]) -> list[DialBack]:
    return [effect for effect in effects if isinstance(effect, DialBack)]


def behind(peer: bytes, cause: Cause = Cause.UNREACHABLE, was_up: bool = False) -> m.Suspect:
    return m.Suspect(V, peer, cause, 110, 1, was_up)


def formed(*peers: bytes, hidden: tuple[bytes, ...] = ()) -> tuple[Table, m.Epoch]:
    table = Table(min_peers=len(peers), dial_back=True)
    sent = []
    for peer in peers:
        table.say(peer, join(peer))
    for peer in peers:
        sent = table(Dialled(peer, None if peer in hidden else f"10.0.0.{peer[0]}:1"))
    (message,) = {id(message): message for message in of(m.Epoch, sent).values()}.values()
    assert isinstance(message, m.Epoch) and table.state is State.STABLE
    return table, message


def changed(table: Table, *peers: bytes) -> m.Epoch:
    assert table.state is State.FREEZING and table.machine.change is not None
    number = table.machine.change.number
    for peer in peers:
        sent = table.say(peer, frozen(number))
    message = of(m.Epoch, sent)[peers[0]]
    assert isinstance(message, m.Epoch)
    return message


def test_a_joiner_enters_when_it_has_been_dialled_back() -> None:
    table = Table(dial_back=True)
    assert of(m.Welcome, table.say(A, join(A)))
    assert asked(table.effects) == [DialBack(A, ("10.0.0.1:1",))] and table.state is State.FORMING
    table.say(A, join(A))
    assert not asked(table.effects), "asked again, dialled once"
    sent = table(Dialled(A, "10.0.0.1:1"))
    assert set(of(m.Epoch, sent)) == {A} and not of(m.Welcome, sent)
    table.say(B, join(B))
    assert table.state is State.STABLE, "nobody is held for who cannot enter yet"
    assert of(m.Hold, table(Dialled(B, None)))
    assert not table(Dialled(D, "10.0.0.4:1")), "it has gone meanwhile"


def test_the_address_that_answers_is_the_one_that_peers_dial() -> None:
    table = Table(dial_back=True)
    two = ("192.0.2.7:1", "[2001:db8::7]:1")
    table.say(A, m.Join(V, "run", 0, A, two, "host", 1, 1))
    assert asked(table.effects) == [DialBack(A, two)]
    message = of(m.Epoch, table(Dialled(A, two[1])))[A]
    assert isinstance(message, m.Epoch) and message.members[0].address == two[1]


def test_who_cannot_be_dialled_is_told_and_named() -> None:
    table = Table(dial_back=True, min_peers=2)
    table.say(A, join(A))
    welcome = of(m.Welcome, table(Dialled(A, None)))[A]
    assert isinstance(welcome, m.Welcome)
    assert "10.0.0.1:1" in welcome.notice and "PCCL_ADVERTISE" in welcome.notice
    table.say(B, join(B))
    message = of(m.Epoch, table(Dialled(B, "10.0.0.2:1")))[B]
    assert isinstance(message, m.Epoch) and [p.inbound for p in message.members] == [False, True]
    status = table.machine.status(table.now)
    assert [peer.inbound for peer in status.members] == [False, True]
    assert any(entry.what == "dials only" and "10.0.0.1:1" in entry.reason for entry in status.log)


def test_two_that_cannot_be_dialled_are_apart_from_the_start() -> None:
    table, message = formed(A, B, C, D, hidden=(A, C))
    ranks = {member.peer: rank for rank, member in enumerate(message.members)}
    around = {(a, b) for a, b, _ in message.detours}
    assert around == {(ranks[A], ranks[C]), (ranks[C], ranks[A])}
    assert all(message.members[via].inbound for _, _, via in message.detours)
    table.wait(8.0, A, B, C, D)
    assert table.state is State.STABLE and table.machine.epoch == 1
    table.say(A, m.Healed(V, C))
    table.wait(8.0, A, B, C, D)
    assert table.state is State.HOLDING, "they reach each other all the same: a plan with their link"
    for peer in (A, B, C, D):
        sent = table.say(peer, m.Held(V, table.machine.growth.number, 1))  # type: ignore[union-attr]
    last = of(m.Epoch, sent)[A]
    assert isinstance(last, m.Epoch) and not last.detours


def test_where_nobody_can_be_dialled_the_coordinator_stands_apart() -> None:
    _, message = formed(A, B, C, hidden=(A, B, C))
    assert not message.detours and not any(member.inbound for member in message.members)


def test_a_dial_in_vain_turns_the_pair() -> None:
    table, message = formed(A, B, C)
    assert not message.turned
    table.say(A, behind(B))
    table.wait(2.0, A, B, C)
    last = changed(table, A, B, C)
    ranks = {member.peer: rank for rank, member in enumerate(last.members)}
    assert {frozenset(pair) for pair in last.turned} == {frozenset((ranks[A], ranks[B]))}
    assert not last.detours and "other side" in last.reason
    table.say(B, m.Healed(V, A))
    table.say(A, m.Healed(V, B))
    table.wait(9.0, A, B, C)
    assert table.machine.epoch == 2


def test_who_dials_whom_outlives_the_coordinator() -> None:
    before, _ = formed(A, B, C, hidden=(C,))
    before.say(A, behind(B))
    before.wait(2.0, A, B, C)
    last = changed(before, A, B, C)
    table = restarted(before, dial_back=True)
    table.say(A, m.OpFault(V, "timeout", m.OpRef(0, 1, 0), 2, b"", "mine", ""))
    again = changed(table, A, B, C)
    assert again.turned == last.turned != ()
    assert {member.peer for member in again.members if not member.inbound} == {C}


def test_a_pair_that_fails_both_ways_is_broken() -> None:
    table, _ = formed(A, B, C)
    table.say(A, behind(B))
    table.wait(2.0, A, B, C)
    changed(table, A, B, C)
    table.say(B, behind(A))
    table.wait(8.0, A, B, C)
    assert len(changed(table, A, B, C).detours) == 2


def test_a_link_that_was_up_is_not_turned() -> None:
    table, _ = formed(A, B, C)
    table.say(A, behind(B, was_up=True))
    table.wait(4.0, A, B, C)
    assert table.state is State.STABLE and table.machine.epoch == 1
    table.wait(4.0, A, B, C)
    assert len(changed(table, A, B, C).detours) == 2


@pytest.mark.parametrize("hidden", [(), (B,)])
def test_a_port_that_never_answered_proves_nothing_by_refusing(hidden: tuple[bytes, ...]) -> None:
    table, _ = formed(A, B, C, hidden=hidden)
    table.say(A, behind(B, Cause.REFUSED, was_up=True))
    table(Disconnected(B))
    assert (B in table.machine.members) == bool(hidden)
    table.wait(11.0, A, C)
    assert B not in table.machine.members, "its lease has run out"


# -- at a peer ----------------------------------------------------------------------------------------------------


def with_reach(message: m.Epoch, hidden: tuple[bytes, ...], turned: tuple[tuple[int, int], ...] = ()) -> m.Epoch:
    members = tuple(
        m.Member(p.peer, p.since, p.address, p.host, p.weight, p.region, p.peer not in hidden) for p in message.members
    )
    detours = ((1, 2, 0), (2, 1, 0)) if ME in hidden and HIGH in hidden else ()
    return msgspec.structs.replace(message, members=members, detours=detours, turned=turned)


def dialled(bench: Bench) -> set[bytes]:
    return {member.id for member in bench.engine.configs[-1].members if member.dial}


def prepared(bench: Bench) -> list[bool]:
    (joiners,) = (call[1] for call in bench.engine.calls[-1:] if call[0] == "prepare")
    assert isinstance(joiners, tuple)
    return [joiner.dial for joiner in joiners]


@pytest.mark.parametrize(
    ("hidden", "turned", "whom"),
    [
        ((), (), {HIGH}),
        ((ME,), (), {LOW, HIGH}),
        ((LOW,), (), {HIGH}),
        ((HIGH,), (), set()),
        ((ME, LOW), (), {HIGH}),
        ((), ((0, 1),), {LOW, HIGH}),
        ((), ((2, 1),), set()),
        ((), ((0, 2),), {HIGH}),
        ((HIGH,), ((1, 2),), {HIGH}),
    ],
)
def test_whom_a_peer_dials(
    bench: Bench, hidden: tuple[bytes, ...], turned: tuple[tuple[int, int], ...], whom: set[bytes]
) -> None:
    bench.peer.start(bench.now)
    bench.say(m.Welcome(V, 5.0, 2, 1), with_reach(epoch(1), hidden, turned))
    assert dialled(bench) == whom


def test_members_dial_a_joiner_by_the_same_rule(member: Bench) -> None:
    member.say(hold(1))
    assert prepared(member) == [True]
    member.say(m.Hold(V, 2, 1, 4, (m.Member(NEW, 1, "10.0.0.7:1", "h", inbound=False),)))
    assert prepared(member) == [False]


def test_a_link_says_whether_it_was_ever_up(member: Bench) -> None:
    (first,) = member.engine_says(down(HIGH, Cause.UNREACHABLE))
    assert isinstance(first, m.Suspect) and not first.was_up
    member.engine_says(Event(EventKind.LINK_UP, peer=LOW))
    (second,) = member.engine_says(down(LOW, Cause.RESET))
    assert isinstance(second, m.Suspect) and second.was_up


def test_what_a_hold_could_not_dial_is_told_when_it_is_a_member(member: Bench) -> None:
    member.say(hold(1))
    assert not member.engine_says(down(NEW, Cause.REFUSED))
    sent = member.say(epoch(2, 1, peers=(LOW, ME, HIGH, NEW), since=1))
    assert [(s.peer, s.cause, s.was_up) for s in sent if isinstance(s, m.Suspect)] == [(NEW, Cause.REFUSED, False)]


def test_a_link_that_nobody_expected_is_told(bench: Bench) -> None:
    bench.peer.start(bench.now)
    bench.say(m.Welcome(V, 5.0, 2, 1), with_reach(epoch(1), (ME, HIGH)))
    assert bench.engine_says(Event(EventKind.LINK_UP, peer=HIGH)) == [m.Healed(V, HIGH)]
    assert not bench.engine_says(Event(EventKind.LINK_UP, peer=LOW))
    sent = bench.say(with_reach(epoch(2, 1), (ME, HIGH)))
    assert m.Healed(V, HIGH) in sent, "in every epoch that does without it"


# -- the dial-back itself -----------------------------------------------------------------------------------------


def tried(*addresses: str, dial_s: float = 5.0) -> str | None:
    found: list[str | None] = []

    async def main() -> None:
        done = asyncio.Event()

        def take(address: str | None) -> None:
            found.append(address)
            done.set()

        DialBacks(asyncio.get_running_loop(), dial_s).start(addresses, take)
        await asyncio.wait_for(done.wait(), 30)

    asyncio.run(main())
    return found[0]


def test_dial_back_finds_the_address_that_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        good, bad = (f"127.0.0.1:{s.getsockname()[1]}" for s in (server, closed))
        assert tried(good) == good and tried(bad) is None
        assert tried(bad, good) == good and tried(good, bad) == good
        assert tried("host.invalid:1", "sim:3", good) == good, "names are nobody's business here"
        assert tried("host.invalid:1") is None


def test_dial_back_gives_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf, socket.socket() as first, socket.socket() as second:
        for filler in (first, second):  # its queue is full: further dials are not answered
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        assert tried(f"127.0.0.1:{deaf.getsockname()[1]}", dial_s=0.3) is None


DIALS = """
import asyncio, os, socket, uvloop
from pccl.coordinator.dial_back import DialBacks

async def main():
    before, answer = os.listdir("/proc/self/task"), asyncio.get_running_loop().create_future()
    with socket.create_server(("127.0.0.1", 0)) as server:
        DialBacks(asyncio.get_running_loop()).start([f"127.0.0.1:{server.getsockname()[1]}"], answer.set_result)
        assert await answer
    assert os.listdir("/proc/self/task") == before

uvloop.new_event_loop().run_until_complete(main())
"""


def test_dialling_back_makes_no_threads() -> None:
    """Those of uvloop's resolver would stay, and the end of the process would wait for them."""
    done = subprocess.run([sys.executable, "-c", DIALS], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_joiner_that_leaves_before_it_was_dialled_changes_nothing() -> None:
    table, _ = formed(A, B)
    table.say(C, join(C))
    assert m.Goodbye in {type(message) for _, message in table.say(C, m.Leave(V, "bye"))}
    assert table.state is State.STABLE and not table.machine.waiting
