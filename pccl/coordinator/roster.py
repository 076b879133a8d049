"""roster.py - one peer as its group's coordinator knows it, and what is said about peers and plans on the wire.

Pure, like membership.py, whose helper it is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pccl import messages as m
from pccl.coordinator.plan import Pair, Plan
from pccl.coordinator.settings import Settings
from pccl.types import Cause, MemberInfo, short_id

if TYPE_CHECKING:
    from pccl.coordinator.membership import Membership

RATE_WINDOW_S = 0.5
#: So much is kept of what has passed: who is gone, which ops were judged.
REMEMBERED_MAX = 4096

Rank = tuple[int, int]
Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(slots=True)
class Peer:
    """What is known about one peer."""

    id: bytes
    address: str
    host: str
    pid: int
    wire: int
    heard: float
    addresses: tuple[str, ...] = ()  # all that it advertises; `address` is one of them
    checked: bool = True  # the dial-back has ended
    inbound: bool = True  # and somebody answered
    guest: bool = False  # does not want to enter yet
    acquainted: bool = False  # is or was one: members have, or had, links to it
    since: int = 0
    boundary: int = 0
    epoch: int = 0
    oldest: int = 0
    connected: bool = True
    reminded: float = 0.0
    probed: float = float("-inf")
    rate_at: float = 0.0
    rate_base: tuple[int, int] = (0, 0)
    ops_per_s: float = 0.0
    bytes_per_s: float = 0.0
    ops: int = 0
    bytes: int = 0

    def note(self, now: float, beat: m.Heartbeat) -> None:
        """How far it is, and the rates of its ops and bytes."""
        self.boundary = max(self.boundary, beat.boundary)
        self.epoch = max(self.epoch, beat.epoch)
        self.oldest = max(self.oldest, beat.oldest)
        self.ops, self.bytes = beat.ops, beat.bytes
        elapsed = now - self.rate_at
        if elapsed >= RATE_WINDOW_S:
            self.ops_per_s = max(0, beat.ops - self.rate_base[0]) / elapsed
            self.bytes_per_s = max(0, beat.bytes - self.rate_base[1]) / elapsed
            self.rate_at, self.rate_base = now, (beat.ops, beat.bytes)

    def status(self, rank: int, now: float) -> m.PeerStatus:
        """What `pccl status` shows; rank -1: it waits."""
        return m.PeerStatus(
            peer=self.id,
            rank=rank,
            host=self.host,
            pid=self.pid,
            address=self.address,
            since=self.since,
            boundary=self.boundary,
            epoch=self.epoch,
            ops_per_s=self.ops_per_s,
            bytes_per_s=self.bytes_per_s,
            heard_s=now - self.heard,
            connected=self.connected,
            inbound=self.inbound,
            ops=self.ops,
            bytes=self.bytes,
        )


class Settled:
    """The least `oldest` of all members: looked for among them only when the last that had it has gone on."""

    def __init__(self) -> None:
        self._least = 0
        self._there = 0  # members that still have it; 0: not known

    def moved(self, before: int, after: int) -> None:
        """A member has another `oldest`."""
        self._there -= before == self._least < after and self._there > 0

    def look_again(self) -> None:
        """The members are others."""
        self._there = 0

    def among(self, members: Iterable[Peer]) -> int:
        """The least of all."""
        if not self._there:
            all_of_them = [member.oldest for member in members]
            self._least = min(all_of_them, default=0)
            self._there = all_of_them.count(self._least)
        return self._least


def infos(peers: Iterable[Peer]) -> list[MemberInfo]:
    """What the planner wants of them."""
    return [MemberInfo(peer.id, peer.since, peer.address, peer.host) for peer in peers]


def wire_members(peers: Iterable[Peer], chosen: Plan | None = None) -> tuple[m.Member, ...]:
    """The members of an epoch, in the order of the plan; or joiners, about whom there is no plan yet."""
    weights = chosen.weights if chosen is not None else ()
    regions = chosen.regions if chosen is not None else ()
    return tuple(
        m.Member(
            peer=peer.id,
            since=peer.since,
            address=peer.address,
            host=peer.host,
            weight=weights[rank] if weights else 0,
            region=regions[rank] if regions else 0,
            inbound=peer.inbound,
        )
        for rank, peer in enumerate(peers)
    )


def wire_epoch(
    group: Membership, boundary: int, change: int, verdicts: tuple[m.Verdict, ...], reason: str, turned: Sequence[Rank]
) -> m.Epoch:
    """The group's newest epoch."""
    assert group.plan is not None
    return m.Epoch(
        v=m.VERSION,
        epoch=group.epoch,
        from_boundary=boundary,
        change=change,
        members=wire_members(group.members.values(), group.plan),
        plan=wire_plan(group.plan),
        verdicts=verdicts,
        reason=m.clip(reason),
        min_peers=group.settings.min_peers,
        lease_s=group.settings.lease_s,
        streams=group.plan.pair_streams,
        detours=group.plan.detours,
        turned=tuple(turned),
    )


def wire_plan(chosen: Plan) -> m.Plan:
    """The plan without what is said per member or pair."""
    return m.Plan(
        streams=chosen.streams,
        segment_bytes=chosen.segment_bytes,
        mesh_bytes_max=chosen.mesh_bytes_max,
        large_algorithm=int(chosen.large_algorithm),
        predicted_s=chosen.predicted_s,
        reason=m.clip(chosen.reason),
        one_round_bytes_max=chosen.one_round_bytes_max,
    )


def in_words(chosen: Plan) -> str:
    """A plan for the log."""
    expected = f"{chosen.predicted_s:.3g} s expected for 64 MiB: " if chosen.predicted_s else ""
    return f"{expected}{chosen.reason}"


def evidence_in_words(reporter: bytes, suspect: m.Suspect) -> str:
    """A suspicion for the log."""
    cause = Cause(suspect.cause).name.lower() if suspect.cause in list(Cause) else f"cause {suspect.cause}"
    return f"peer {short_id(reporter)} reports {cause}, errno {suspect.errno}"


def names_of(pairs: Sequence[Pair]) -> str:
    """Links for the log."""
    return "link " + ", ".join(f"{short_id(a)}-{short_id(b)}" for a, b in pairs[:8])


def joiner(now: float, join: m.Join, checked: bool) -> Peer:
    """A peer that asks to join. `checked`: nobody finds out whether it can be dialled."""
    return Peer(
        id=join.peer,
        address=join.addresses[0],
        addresses=join.addresses,
        checked=checked,
        host=join.host,
        pid=join.pid,
        wire=join.wire,
        heard=now,
        rate_at=now,
        guest=join.guest,
        acquainted=join.guest,
    )


def refuse(join: m.Join, members: Sequence[Peer], waiting: Sequence[Peer], settings: Settings) -> m.Refused | None:
    """Why a joiner cannot be one of these peers; None if it can."""
    peers = [*members, *waiting]
    if peers and peers[0].wire != join.wire:
        return m.Refused(m.VERSION, "version", f"wire version {join.wire}, the group speaks {peers[0].wire}")
    if len(peers) >= settings.peers_max or len(waiting) >= settings.waiting_max:
        return m.Refused(m.VERSION, "group", f"the group is full: {len(peers)} peers")
    return None


def remember(table: OrderedDict[Key, Value], key: Key, value: Value) -> None:
    """Keeps it as the newest; the oldest of too many goes."""
    table[key] = value
    table.move_to_end(key)
    while len(table) > REMEMBERED_MAX:
        table.popitem(last=False)
