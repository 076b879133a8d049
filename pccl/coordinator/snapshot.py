"""snapshot.py - what a group must remember beyond the death of its coordinator, as a value and as bytes.

Pure. Bytes: CRC-32, format, msgpack. Whatever does not come back whole is a StateError: no decision rests on half a
memory. What peers tell again by themselves (boundaries, figures, suspicions, joins) is no part of it.
"""

from __future__ import annotations

import struct
import zlib
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from pccl import messages as m
from pccl.coordinator.plan import Plan
from pccl.coordinator.roster import Peer
from pccl.coordinator.settings import Settings
from pccl.errors import StateError

#: Goes up with every change of `GroupState` that an older reader would misunderstand.
FORMAT = 1
_HEAD = struct.Struct("<II")

#: A link that plans do without, by its two ends, and how often it has broken.
Broken = tuple[m.PeerId, m.PeerId, m.U32]


class MemberState(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One member."""

    peer: m.PeerId
    since: m.U32
    address: m.Address
    host: m.Name
    pid: m.U32
    wire: m.U32
    inbound: bool = True

    @classmethod
    def of(cls, peer: Peer) -> MemberState:
        """What is remembered of a peer."""
        return cls(peer.id, peer.since, peer.address, peer.host, peer.pid, peer.wire, peer.inbound)

    def remembered(self, now: float) -> Peer:
        """The peer as it is known after a restart, not heard yet: what only grows begins with the least it can be."""
        return Peer(
            id=self.peer,
            address=self.address,
            host=self.host,
            pid=self.pid,
            wire=self.wire,
            inbound=self.inbound,
            heard=now,
            since=self.since,
            boundary=self.since,
            oldest=self.since,
            rate_at=now,
        )


class GroupState(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One group. `members` by rank; `holds`, `changes`: the last numbers given; `change`: why one is under way;
    `lost`: who has gone in it, and since when they were members; `gone`: who is out for good, and why; `epochs`: the
    newest ones, that some member may lack; `faults`: not judged yet, with who reported them; `judged`: in which epoch;
    `turned`: links that are dialled from the other side than the rule says; `tried`: paths, from and to, that have been
    measured of late without a result yet.
    """

    group: m.U32
    epoch: m.U32
    from_boundary: m.U32
    min_peers: m.U32
    form_peers: m.U32
    plan: Plan | None
    members: Annotated[tuple[MemberState, ...], Meta(max_length=m.MEMBERS_MAX)]
    holds: m.U32
    changes: m.U32
    change: str | None
    lost: dict[m.PeerId, m.U32]
    gone: dict[m.PeerId, str]
    epochs: tuple[m.Epoch, ...]
    faults: tuple[tuple[m.PeerId, m.OpFault], ...]
    judged: tuple[tuple[m.OpRef, m.U32], ...]
    broken: tuple[Broken, ...]
    turned: tuple[tuple[m.PeerId, m.PeerId], ...] = ()
    tried: tuple[tuple[m.PeerId, m.PeerId], ...] = ()


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[GroupState] = msgspec.msgpack.Decoder(GroupState)
_BAD_BYTES = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError)


def encode(state: GroupState) -> bytes:
    """The bytes of a group."""
    body = _encoder.encode(state)
    return _HEAD.pack(zlib.crc32(body), FORMAT) + body


def decode(data: bytes, where: str) -> GroupState:
    """The group of these bytes; `where` they were found stands in the StateError that anything else gives."""
    if len(data) < _HEAD.size:
        raise StateError(f"{where} is damaged: a group of {len(data)} bytes")
    checksum, version = _HEAD.unpack_from(data)
    body = data[_HEAD.size :]
    if version > FORMAT:
        raise newer(where, version)
    if zlib.crc32(body) != checksum:
        raise StateError(f"{where} is damaged: a group's checksum is wrong")
    try:
        state = _decoder.decode(body)
    except _BAD_BYTES as error:
        raise StateError(f"{where} is damaged: {m.clip(str(error))}") from None
    _check(state, where)
    return state


def newer(where: str, version: Any) -> StateError:
    """Somebody else's future."""
    return StateError(f"{where} was written by a newer pccl: format {version}, this one reads up to {FORMAT}")


def _check(state: GroupState, where: str) -> None:
    """What the decoder cannot see: a plan for these very members, and the epoch's message if there are any."""
    members = [entry.peer for entry in state.members]
    if not members:
        return
    newest = state.epochs[-1] if state.epochs else None
    planned = list(state.plan.order) if state.plan is not None else []
    told = [member.peer for member in newest.members] if newest is not None and newest.epoch == state.epoch else []
    if not set(members) <= set(planned) or planned != told:
        raise StateError(f"{where} is damaged: group {state.group} has members that its epoch {state.epoch} lacks")


def restart_in_words(state: GroupState, settings: Settings) -> str:
    """For the log."""
    before, after = (state.min_peers, state.form_peers), (settings.min_peers, settings.form_peers)
    asked = f"; asked for are {after[0]} peers, {after[1]} to begin, no longer {before[0]} and {before[1]}"
    back = f"{len(state.members)} members of epoch {state.epoch} have {settings.lease_s:g} s to come back"
    return back + (asked if after != before else "")
