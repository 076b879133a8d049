"""events.py - what an instance tells of its prefix cache, and the journal that it tells it from.

An instance numbers its events from 1 on, for as long as it lives: that is its epoch, and a restarted one has another.
The journal keeps the last events, to be told again to whoever missed some; who missed more gets all that is held, as
one snapshot. A digest says in 16 bytes whether both sides mean the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b

from pccl.errors import ArgumentError
from pccl.kv.numbers import count

__all__ = ["Batch", "Contents", "Digest", "Event", "Journal", "Kind", "Snapshot"]

HASH_BYTES_MAX = 64


class Kind(Enum):
    """`STATE`: the block's end has a checkpoint of the recurrent state as well (hybrid models)."""

    STORED = "stored"
    STATE = "state"
    REMOVED = "removed"
    CLEARED = "cleared"


@dataclass(frozen=True, slots=True)
class Event:
    """Something became of these blocks, by their prefix hashes; CLEARED is about all of them."""

    kind: Kind
    hashes: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        for block in self.hashes:
            if not isinstance(block, bytes) or not 0 < len(block) <= HASH_BYTES_MAX:
                raise ArgumentError(f"hashes must be of 1 to {HASH_BYTES_MAX} bytes, not {block!r}")


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive events of one epoch; `first` is the number of the first."""

    epoch: int
    first: int
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that is held after event `last`."""

    epoch: int
    last: int
    blocks: frozenset[bytes]
    states: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Digest:
    """What is held after event `last`, in short."""

    epoch: int
    last: int
    value: int


class Contents:
    """Blocks and state checkpoints that one instance holds, with a digest that follows every change in constant time:
    the exclusive or of a hash of each.
    """

    def __init__(self) -> None:
        self.blocks: set[bytes] = set()
        self.states: set[bytes] = set()
        self.digest = 0

    def apply(self, event: Event) -> tuple[list[bytes], list[bytes]]:
        """(blocks that came, blocks that went). Storing what is held and removing what is not change nothing. A state
        is not held without its block, and goes with it.
        """
        came: list[bytes] = []
        gone: list[bytes] = []
        if event.kind is Kind.CLEARED:
            gone = list(self.blocks)
            self.blocks, self.states, self.digest = set(), set(), 0
        elif event.kind is Kind.REMOVED:
            for block in event.hashes:
                if block in self.blocks:
                    gone.append(block)
                    self._toggle(self.blocks, block, b"b")
                    if block in self.states:
                        self._toggle(self.states, block, b"s")
        else:
            for block in event.hashes:
                if block not in self.blocks:
                    came.append(block)
                    self._toggle(self.blocks, block, b"b")
                if event.kind is Kind.STATE and block not in self.states:
                    self._toggle(self.states, block, b"s")
        return came, gone

    def replace(self, blocks: Iterable[bytes], states: Iterable[bytes]) -> tuple[list[bytes], list[bytes]]:
        """The same, from a snapshot."""
        wanted = set(blocks)
        came, gone = list(wanted - self.blocks), list(self.blocks - wanted)
        self.apply(Event(Kind.CLEARED))
        self.apply(Event(Kind.STORED, tuple(wanted)))
        self.apply(Event(Kind.STATE, tuple(set(states) & wanted)))
        return came, gone

    def _toggle(self, held: set[bytes], block: bytes, mark: bytes) -> None:
        held.symmetric_difference_update((block,))
        self.digest ^= int.from_bytes(blake2b(block, digest_size=16, person=mark).digest(), "little")


class Journal:
    """The instance's side. `epoch`: another one after every start, never smaller (a start time will do). Keeps the last
    `keep` events. Not for several threads.
    """

    def __init__(self, epoch: int, keep: int = 4096) -> None:
        self.epoch, self.keep = count("epoch", epoch), count("keep", keep, 1)
        self.last = 0
        self.contents = Contents()
        self._events: deque[Event] = deque(maxlen=keep)

    def record(self, *events: Event) -> Batch:
        """Numbers them; the batch is to be sent to every index."""
        for event in events:
            self.contents.apply(event)
            self._events.append(event)
        self.last += len(events)
        return Batch(self.epoch, self.last - len(events) + 1, events)

    def replay(self, first: int) -> Batch | Snapshot:
        """All events from number `first` on, or, where they are no longer kept, all that is held."""
        missing = self.last - count("first", first, 1) + 1
        if 0 <= missing <= len(self._events):
            return Batch(self.epoch, first, _tail(self._events, missing))
        return Snapshot(self.epoch, self.last, frozenset(self.contents.blocks), frozenset(self.contents.states))

    def digest(self) -> Digest:
        """To be sent now and then."""
        return Digest(self.epoch, self.last, self.contents.digest)


def _tail(events: Sequence[Event], number: int) -> tuple[Event, ...]:
    return tuple(events)[len(events) - number :]
