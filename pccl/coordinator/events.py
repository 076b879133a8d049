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
class Tick:
    """Time has passed; due at `next_deadline()`."""


Event = From | Disconnected | Reconnected | Tick


@dataclass(slots=True, frozen=True)
class Send:
    """Send a message to a peer."""

    peer: bytes
    message: m.ToPeer


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


Effect = Send | Record
