"""steps.py - the states of a group, and the step to its next epoch that it is in the middle of. Decides nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from pccl import messages as m
from pccl.frozen import Report


class State(Enum):
    """States of a group."""

    FORMING = "forming"
    STABLE = "stable"
    HOLDING = "holding"
    FREEZING = "freezing"


@dataclass(slots=True)
class Growth:
    """A hold under way: for joiners, or, without any, for a new plan."""

    number: int
    joiners: tuple[bytes, ...]
    reason: str
    message: m.Hold
    promises: dict[bytes, int] = field(default_factory=dict)


@dataclass(slots=True)
class Change:
    """A freeze under way."""

    number: int
    reason: str
    reports: dict[bytes, Report] = field(default_factory=dict)
