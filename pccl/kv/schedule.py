"""schedule.py - what to ask a peer for next: class, deadline, age; and how much at a time. Pure; the time is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from pccl.kv.unit import ASK_BYTES
from pccl.types import Priority

__all__ = ["CLASSES", "Asker", "Urgent", "ask_bytes", "class_of", "in_order", "plan", "suggestions", "window"]

CLASSES = {"critical": Priority.HIGH, "normal": Priority.NORMAL, "prefetch": Priority.LOW}
_ORDER = (Priority.HIGH, Priority.NORMAL, Priority.LOW)
PROMOTE_S = 10.0
WINDOW_MIN, WINDOW_START, WINDOW_MAX = 8 << 20, 16 << 20, 1 << 30
#: What it takes until the next ask is made once one has ended.
REACTION_S = 0.02
#: Asks that wait at the other side: of one transfer, of all.
AHEAD, AHEAD_ALL = 8, 128
THETA = 1.5
ASK_S = 0.01
ASK_BYTES_MAX = 32 << 20

Some = TypeVar("Some", bound="Urgent")


def window(rate: float, rtt_s: float) -> int:
    """Bytes to keep asked for."""
    if not rate:
        return WINDOW_START
    return int(min(max(2 * rate * rtt_s + rate * REACTION_S, WINDOW_MIN), WINDOW_MAX))


def ask_bytes(rate: float) -> int:
    """Of one ask: what waits behind it is what is more urgent, and each costs half a millisecond of this thread."""
    return int(min(max(rate * ASK_S, ASK_BYTES), ASK_BYTES_MAX))


def class_of(priority: str, waited_s: float) -> Priority:
    """By its age, too."""
    place = _ORDER.index(CLASSES[priority]) - int(waited_s / PROMOTE_S)
    return _ORDER[max(0, place)]


class Urgent(Protocol):
    """A transfer, more or less urgent than others."""

    @property
    def priority(self) -> str:
        """As the user gave it."""

    @property
    def since(self) -> float:
        """When it was made."""

    @property
    def deadline_at(self) -> float:
        """When it ends."""


class Asker(Urgent, Protocol):
    """A transfer that may have something to ask for."""

    @property
    def flowing_bytes(self) -> int:
        """Asked for and ready."""

    @property
    def left_bytes(self) -> int:
        """That have not come."""

    def waiting(self) -> tuple[int, int]:
        """(asks, their bytes) that wait at the other side."""

    def ask(self, ahead: bool, priority: Priority) -> int | None:
        """Posts its next ask; gives its bytes."""


def in_order(askers: Iterable[Some], now: float) -> list[tuple[Priority, Some]]:
    """The most urgent first."""
    classed = [(class_of(asker.priority, now - asker.since), asker) for asker in askers]
    return sorted(classed, key=lambda pair: (_ORDER.index(pair[0]), pair[1].deadline_at, pair[1].since))


def plan(askers: Iterable[Asker], now: float, room: int) -> None:
    """Lets those that share a link ask, up to `room` bytes of what is ready, and ahead of what is not."""
    ordered = in_order(askers, now)
    flowing = sum(asker.flowing_bytes for _, asker in ordered)
    for priority, asker in ordered:
        while flowing < room and (nbytes := asker.ask(False, priority)) is not None:
            flowing += nbytes
    waits = [asker.waiting() for _, asker in ordered]
    asks, ahead = sum(count for count, _ in waits), sum(nbytes for _, nbytes in waits)
    for (priority, asker), (own, _) in zip(ordered, waits, strict=True):
        while asks < AHEAD_ALL and own < AHEAD and (ahead < room or not own):
            nbytes = asker.ask(True, priority)
            if nbytes is None:
                break
            asks, own, ahead = asks + 1, own + 1, ahead + nbytes


def suggestions(askers: Iterable[Asker], now: float, rate: float, suggest: Callable[[Asker], None]) -> None:
    """Which of those that share a link had better be computed again where they are wanted."""
    if not rate:
        return
    before = 0
    for _, asker in in_order(askers, now):
        before += asker.left_bytes
        if before / rate > THETA * (asker.deadline_at - now):
            suggest(asker)
