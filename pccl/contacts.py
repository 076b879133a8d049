"""contacts.py - whom a peer seeks in other groups, and which links to them it has: its side of coordinator/contacts.py.

No session state: the links are there for transfers alone. `Peer` drives it; pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from pccl import messages as m
from pccl.epochs import acquaintances_of
from pccl.types import MemberConfig

__all__ = ["Contacts", "Step", "Way"]


class Way(Enum):
    """What there is to a peer."""

    GROUP = "a link of the group, if any"
    LINK = "a link across groups"
    NONE_YET = "no link yet"
    NEVER = "no link, says the coordinator"


@dataclass(slots=True, frozen=True)
class Step:
    """What is to be done with the engine's links: close, then open."""

    closed: list[bytes] = field(default_factory=list)
    opened: list[MemberConfig] = field(default_factory=list)
    streams: int = 1


class Contacts:
    """Of one peer. `missing`: those that it seeks and cannot have, and why."""

    def __init__(self, own: bytes) -> None:
        self.missing: Mapping[bytes, str] = {}
        self._own = own
        self._sought: tuple[bytes, ...] = ()
        self._links: dict[bytes, int] = {}
        self._seek = 0

    def way_to(self, peer: bytes) -> Way:
        """To a peer that is not of the group."""
        if peer in self._links:
            return Way.LINK
        return Way.NEVER if peer in self.missing else Way.NONE_YET

    def seek(self, peers: Iterable[bytes]) -> m.Seek | None:
        """These are named by transfers, and no others. What to say, if that is news."""
        sought = tuple(sorted(peers))
        if sought == self._sought:
            return None
        self._sought = sought
        self.missing = {}
        self._seek = (self._seek + 1) % (1 << 32)
        return self._message()

    def again(self) -> m.Seek | None:
        """What to say to who may not have heard it, or was not there then."""
        return self._message() if self._sought or self._links else None

    def heard(self, said: m.Contacts) -> Step:
        """The coordinator's word: these links and no others."""
        numbers = {contact.member.peer: contact.number for contact in said.contacts}
        members = acquaintances_of(self._own, said.inbound, [contact.member for contact in said.contacts])
        opened = [
            replace(member, incarnation=numbers[member.id])
            for member in members
            if numbers[member.id] > self._links.get(member.id, 0)
        ]
        closed = [peer for peer in self._links if peer not in numbers]
        kept = {peer: number for peer, number in self._links.items() if peer in numbers}
        self._links = kept | {member.id: member.incarnation for member in opened}
        if said.seek == self._seek:
            self.missing = dict(said.missing)
        return Step(closed, opened, said.streams)

    def _message(self) -> m.Seek:
        return m.Seek(m.VERSION, self._seek, self._sought, tuple(sorted(self._links.items())))
