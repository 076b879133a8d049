"""machine.py - what the state machines of transfers (receive.py, send.py) have in common: events in, effects out.

Both are told events and the time and give effects; they read no clock, no memory of blocks and no network. An event
that a state has no row for came too late: it is counted and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pccl.kv.ends import End, State
from pccl.kv.messages import TEXT_MAX, Message
from pccl.kv.messages import End as EndMessage
from pccl.table import Row

__all__ = ["Machine", "Over", "Say", "Stop", "Tick"]


@dataclass(slots=True, frozen=True)
class Tick:
    """Time has passed; due at `deadline`."""


@dataclass(slots=True, frozen=True)
class Stop:
    """It is to end so. `say`: the other side does not know yet."""

    end: End
    say: bool


@dataclass(slots=True, frozen=True)
class Say:
    """Effect: mail it to the other side."""

    message: Message


@dataclass(slots=True, frozen=True)
class Over:
    """Effect: nothing touches the blocks any more; it has ended so."""

    end: End


class Machine:
    """One side of one transfer. `late`: events that came too late."""

    table: ClassVar[Mapping[tuple[State, type], Row[Any, State]]]

    def __init__(self, transfer: bytes, state: State, deadline_at: float) -> None:
        self.transfer = transfer
        self.state = state
        self.deadline_at = deadline_at
        self.end: End | None = None
        self.late = 0
        self.now = 0.0
        self._effects: list[Any] = []

    @property
    def over(self) -> bool:
        """Nothing touches the blocks any more."""
        return self.end is not None and self.state is self.end.state

    def begin(self) -> list[Any]:
        """Effects of being made."""
        effects, self._effects = self._effects, []
        return effects

    def handle(self, event: Any, now: float) -> list[Any]:
        """Gives the effects, in order."""
        self.now = max(self.now, now)
        found = self.table.get((self.state, type(event)))
        if found is None:
            self.late += not isinstance(event, Tick)
            return []
        before = self.state
        found.act(self, event)
        assert self.state is before or self.state in found.to, (before, event, self.state)
        effects, self._effects = self._effects, []
        return effects

    def _say(self, message: Message) -> None:
        self._effects.append(Say(message))

    def _decide(self, end: End, say: bool) -> None:
        """The outcome stands; the memory does not yet."""
        self.end = end
        self.state = State.ENDING
        if say:
            self._say(EndMessage(self.transfer, end.state.value, end.cause, end.text[:TEXT_MAX]))

    def _close(self) -> None:
        """The memory does, too."""
        assert self.end is not None
        self.state = self.end.state
        self._effects.append(Over(self.end))
