"""table.py - a row of a state machine's table, for the machines that are written as one. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Machine = TypeVar("Machine")
State = TypeVar("State")


@dataclass(slots=True, frozen=True)
class Row(Generic[Machine, State]):
    """What is done about an event, and the states that may follow."""

    act: Callable[[Machine, Any], None]
    to: frozenset[State]


def row(act: Callable[[Machine, Any], None], *to: State) -> Row[Machine, State]:
    """One entry of a table."""
    return Row(act, frozenset(to))
