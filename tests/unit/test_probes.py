"""Which paths are measured with filler: when the coordinator asks for it, and when it leaves the members alone."""

from __future__ import annotations

import struct
import zlib

import msgspec
from unit.group_table import A, B, C, D, Table, V, frozen, group, join, of, suspect

from pccl import messages as m
from pccl.coordinator import snapshot
from pccl.coordinator.links import FIGURES_AGE_S
from pccl.coordinator.probes import PROBE_BYTES, PROBE_S
from pccl.coordinator.snapshot import GroupState
from pccl.types import Cause

FAR_US = 20_000
LEASE_S = 5.0
SLOT_S = PROBE_S + 2 * LEASE_S / 5


class Crowd:
    """A group whose members send heartbeats every second, with the times of all their paths in the first."""

    def __init__(self, *peers: bytes, **options: object) -> None:
        self.table: Table = group(*peers, lease_s=LEASE_S, **options)
        self.rtt_us = {(a, b): FAR_US for a in peers for b in peers if a != b}
        self.rates: dict[tuple[bytes, bytes], int] = {}
        self.lines: dict[bytes, tuple[int, int, int, int]] = {}
        self.ops = dict.fromkeys(peers, 0)
        self.busy: set[bytes] = set()
        self.told = False

    def live(self, seconds: float, *silent: bytes) -> list[tuple[bytes, bytes]]:
        """Time passes; the (from, to) that are to be measured."""
        asked: list[tuple[bytes, bytes]] = []
        end = self.table.now + seconds
        while self.table.now < end:
            self.table.now += 1.0
            for peer in [peer for peer in self.table.members if peer not in silent]:
                news = () if self.told and not self.rates else tuple(self.reports(peer))
                line, busy = self.lines.get(peer), peer in self.busy
                beat = m.Heartbeat(V, 0, self.table.machine.epoch, 0, self.ops.get(peer, 0), 0, news, None, line, busy)
                for sender, message in self.table.say(peer, beat):
                    if isinstance(message, m.Measure):
                        assert (message.bytes, message.timeout_s) == (PROBE_BYTES, PROBE_S)
                        asked.append((sender, message.peer))
            self.told, self.rates = True, {}
        return asked

    def restart(self, state: GroupState) -> None:
        """Another process leads, which has nothing but the bytes."""
        other = Table(lease_s=LEASE_S)
        other.now = self.table.now + 1.0
        other.machine.restore(other.now, snapshot.decode(snapshot.encode(state), "a file"))
        self.table, self.told = other, False

    def reports(self, peer: bytes) -> list[m.LinkReport]:
        return [m.LinkReport(b, us, self.rates.get((a, b), 0), 0) for (a, b), us in self.rtt_us.items() if a == peer]

    def log(self) -> list[str]:
        return [entry.what for entry in self.table.machine.log]


def test_pairs_take_turns_and_no_two_share_a_site() -> None:
    crowd = Crowd(A, B, C, D)
    assert crowd.live(1.0) == [], "nobody is known to be quiet"
    first = crowd.live(2.0)
    assert first == [(A, B), (C, D)], "at once"
    assert crowd.live(SLOT_S - 3.0) == [], "their lines are in use"
    crowd.rates = {(A, B): 10**7, (C, D): 10**7}
    second = [(A, C), (B, D)]
    assert crowd.live(2.0) == second, "free as soon as the rates are there; before the other directions of these"
    assert crowd.live(SLOT_S - 3.0) == []
    third = crowd.live(3.0)
    assert third == [(A, D), (B, C)], "free after a time, although nothing came of it"
    rest = crowd.live(6 * (SLOT_S + 2.0))
    assert len(rest) == 6 and sorted(rest) == sorted((b, a) for a, b in [*first, *second, *third])
    assert crowd.log().count("measure") == 1


def test_each_path_is_tried_once_until_its_figures_would_be_forgotten() -> None:
    crowd = Crowd(A, B)
    assert crowd.live(20.0) == [(A, B), (B, A)]
    assert crowd.live(100.0) == []
    crowd.told = False
    assert crowd.live(FIGURES_AGE_S - 140.0) == []
    crowd.told = False  # the times of the paths would be too old else
    assert crowd.live(40.0) == [(A, B), (B, A)]
    assert crowd.log().count("measure") == 2


def test_nobody_is_asked_while_somebody_calls_ops() -> None:
    crowd = Crowd(A, B, C)
    for _ in range(5):
        crowd.ops[C] += 1
        assert crowd.live(1.0) == []
    assert crowd.live(1.0) == [(A, B)]
    crowd.ops[A] += 1
    assert crowd.live(1.0, B) == []
    crowd = Crowd(A, B, C)
    assert crowd.live(4.0, C) == [], "of C nothing is known"


def test_nobody_is_asked_while_a_long_op_or_a_transfer_is_under_way() -> None:
    crowd = Crowd(A, B, C)
    crowd.busy = {C}
    assert crowd.live(5.0) == []
    crowd.busy = set()
    assert crowd.live(1.0) == [(A, B)], "quiet since C's last heartbeat but one"


def test_where_the_lines_of_both_ends_are_known_so_is_the_path() -> None:
    crowd = Crowd(A, B, C)
    crowd.lines = {A: (10**7, 10**7, 0, 0), B: (10**6, 10**6, 0, 0)}
    asked = crowd.live(60.0)
    assert len(asked) == 4 and {frozenset(path) for path in asked} == {frozenset((A, C)), frozenset((B, C))}


def test_what_is_known_near_dead_or_not_wanted_is_left_alone() -> None:
    known = Crowd(A, B)
    known.rates = {(A, B): 10**7, (B, A): 10**7}
    assert known.live(10.0) == []
    near = Crowd(A, B)
    near.rtt_us = {(A, B): 900, (B, A): 1100}
    assert near.live(10.0) == []
    unknown = Crowd(A, B)
    unknown.rtt_us = {}
    assert unknown.live(10.0) == []
    dead = Crowd(A, B, C, link_grace_s=1000.0)
    dead.table.say(A, suspect(B, Cause.EOF))
    assert {frozenset(path) for path in dead.live(30.0)} == {frozenset((A, C)), frozenset((B, C))}
    assert Crowd(A, B, measure=False).live(10.0) == []


def test_a_site_is_measured_by_one_member_at_a_time() -> None:
    """A and B are next door: only one of them has a probe under way, and none to the other."""
    crowd = Crowd(A, B, C, D)
    crowd.rtt_us[A, B] = crowd.rtt_us[B, A] = 400
    assert crowd.live(3.0) == [(A, C)], "B-D would share the line"
    crowd.rtt_us[C, D] = crowd.rtt_us[D, C] = FAR_US
    asked = crowd.live(100.0)
    assert len(asked) == 9 and (A, B) not in asked and (B, A) not in asked


def test_only_a_settled_group_measures() -> None:
    crowd = Crowd(A, B, C)
    crowd.table.say(D, join(D))
    assert crowd.live(3.0) == [], "holding for D"
    crowd = Crowd(A, B, C)
    sent = crowd.table.say(C, m.Leave(V, "bye"))
    change = of(m.Freeze, sent)[A]
    assert isinstance(change, m.Freeze) and crowd.live(3.0) == []
    for peer in (A, B):
        crowd.table.say(peer, frozen(change.change))
    assert crowd.live(3.0) == [(A, B)]


def test_after_a_restart_nothing_is_measured_twice() -> None:
    crowd = Crowd(A, B, C)
    assert crowd.live(3.0) == [(A, B)]
    crowd.rates = {(A, B): 10**7}
    assert crowd.live(3.0) == [(A, C)]
    before = crowd.table.machine.revision
    assert crowd.live(1.0) == [] and crowd.table.machine.revision == before, "nothing to write"
    crowd.restart(crowd.table.machine.export())
    crowd.rates = {(A, B): 10**7}  # told anew, on the new connections
    assert crowd.live(SLOT_S - 1.0) == [], "A-C may still be under way"
    asked = crowd.live(60.0)
    assert len(asked) == 4 and (A, B) not in asked and (A, C) not in asked


def test_what_is_to_be_written_changes_with_the_probes() -> None:
    crowd = Crowd(A, B)
    revision, state = crowd.table.machine.revision, crowd.table.machine.export()
    assert crowd.live(3.0) == [(A, B)]
    assert crowd.table.machine.revision > revision and crowd.table.machine.export() != state


def test_a_snapshot_of_an_older_version_loads() -> None:
    crowd = Crowd(A, B)
    assert crowd.live(3.0) == [(A, B)]
    fields = msgspec.msgpack.decode(snapshot.encode(crowd.table.machine.export())[8:])
    assert fields.pop("tried") == [[A, B]]
    body = msgspec.msgpack.encode(fields)
    old = snapshot.decode(struct.pack("<II", zlib.crc32(body), 1) + body, "a file")
    assert old.tried == ()
    crowd.restart(old)
    assert crowd.live(3.0) == [(A, B)]
