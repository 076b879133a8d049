"""events.py - what happens to a group, and what it wants done about it: the words that membership.py takes and gives.

Decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from pccl import messages as m


@dataclass(slots=True, frozen=True)
class From:
    """A message of a peer has come."""

    peer: bytes
    message: m.ToCoordinator


@dataclass(slots=True, frozen=True)
class Disconnected:
    """The control connection of a peer was closed."""

    peer: bytes


@dataclass(slots=True, frozen=True)
class Reconnected:
    """A peer whose control connection was closed has a new one."""

    peer: bytes


@dataclass(slots=True, frozen=True)
class Dialled:
    """The dial-back to a peer that wants to join has ended: the address that answered, or None."""

    peer: bytes
    address: str | None


@dataclass(slots=True, frozen=True)
class Tick:
    """Time has passed; due at `next_deadline()`."""


Event = From | Disconnected | Reconnected | Dialled | Tick


@dataclass(slots=True, frozen=True)
class Send:
    """Send a message to a peer."""

    peer: bytes
    message: m.ToPeer


@dataclass(slots=True, frozen=True)
class DialBack:
    """Find out which of a peer's advertised addresses can be dialled, and answer with Dialled, soon."""

    peer: bytes
    addresses: tuple[str, ...]


@dataclass(slots=True, frozen=True)
class Record:
    """A decision, for the log."""

    time: float
    group: int
    epoch: int
    peer: bytes
    what: str
    reason: str
    warning: bool = False


Effect = Send | DialBack | Record
