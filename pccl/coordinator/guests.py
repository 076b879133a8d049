"""guests.py - who may fetch from whom before it is a member: what a group tells its guests, and its members of them.

A *guest* has joined and does not want to enter yet. Members and guests keep links to each other, for transfers alone.
What a peer was told is told again when it may have been lost, and only then, or when it is no longer true. Pure, like
membership.py, whose helper it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pccl import messages as m
from pccl.coordinator.contacts import STREAMS
from pccl.coordinator.events import Send
from pccl.coordinator.places import on_one_host
from pccl.coordinator.plan import Plan
from pccl.coordinator.roster import Peer, infos, wire_members

__all__ = ["Guests"]


class Guests:
    """Of one group."""

    def __init__(self) -> None:
        #: What each peer was told last, None if it may not have heard it. A member that is not here knows of no guest.
        self._told: dict[bytes, tuple[m.Member, ...] | None] = {}
        self._seen: tuple[object, ...] = ()

    def forget(self, peer: bytes) -> None:
        """It may not have heard what it was told."""
        if peer in self._told:
            self._told[peer] = None
            self._seen = ()

    def news(self, epoch: int, members: Mapping[bytes, Peer], waiting: Iterable[Peer], plan: Plan | None) -> list[Send]:
        """What is to be said now."""
        guests = {peer.id: peer for peer in waiting if peer.acquainted and peer.checked}
        seen = (epoch, len(members), *guests)
        if (not guests and not self._told) or seen == self._seen:
            return []
        self._seen = seen
        known = {**members, **guests}
        fewest = 1 if on_one_host(infos(known.values())) else STREAMS
        streams = max(plan.streams if plan is not None and members else 1, fewest)
        self._told = {peer: told for peer, told in self._told.items() if peer in known}
        of_members, of_guests = wire_members(members.values()), wire_members(guests.values())
        out: list[Send] = []
        for peer in known.values():
            peers = of_members if peer.id in guests else of_guests
            if self._told.get(peer.id, None if peer.id in guests else ()) != peers:
                out.append(Send(peer.id, m.Acquaint(m.VERSION, peers, streams, peer.inbound)))
            self._told[peer.id] = peers
            if not peers and peer.id in members:
                del self._told[peer.id]
        return out
