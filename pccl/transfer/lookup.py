"""lookup.py - which of the sources of a fetch offers what, and which content the fetch is about. Pure.

A source that does not offer the name yet, or an older generation than wanted, is asked again until the fetch ends: it
may be about to, as a relay is. Content is chosen once: of the newest generation that has been seen when all sources
have answered, or GRACE_S after the first answer, the root that most sources offer, the first among equals in the order
in which the sources were given. Sources with other content are out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum

from pccl.transfer.manifest import Head

__all__ = ["Lookup", "Place"]

GRACE_S = 0.25
AGAIN_S = 0.02
AGAIN_MAX_S = 0.25


class Place(Enum):
    """Where a source is."""

    IDLE = "is to be asked for its head"
    ASKED = "was asked for its head"
    LATER = "does not offer it yet"
    READY = "has told its head"
    JOINED = "has the content that was chosen"
    OUT = "is of no use"


@dataclass(slots=True)
class Found:
    """What is known of one source. `why`: it is out, in words."""

    place: Place = Place.IDLE
    head: Head | None = None
    again_at: float = 0.0
    tries: int = 0
    why: str = ""
    cause: str = ""


class Lookup:
    """The sources of one fetch. `generation`, `root`: what is wanted, None for whatever there is; `lost`: where to say
    why those that are out are.
    """

    def __init__(
        self, sources: tuple[bytes, ...], generation: int | None, root: bytes | None, lost: dict[bytes, str]
    ) -> None:
        self._lost = lost
        self.found: dict[bytes, Found] = {source: Found() for source in sources}
        self.chosen: Head | None = None
        self._generation = generation
        self._root = root
        self._first_at: float | None = None

    def add(self, source: bytes) -> None:
        """One more; one that was out is asked again."""
        if source not in self.found or self.found[source].place is Place.OUT:
            self.found[source] = Found()

    def to_ask(self, now: float) -> list[bytes]:
        """Whose heads to ask for now."""
        due = [
            s for s, f in self.found.items() if f.place is Place.IDLE or (f.place is Place.LATER and f.again_at <= now)
        ]
        for source in due:
            self.found[source].place = Place.ASKED
        return due

    def later(self, source: bytes, now: float) -> None:
        """It has nothing of the name, or not yet what is wanted."""
        found = self.found[source]
        found.place = Place.LATER
        found.again_at = now + min(AGAIN_S * 2.0**found.tries, AGAIN_MAX_S)
        found.tries = min(found.tries + 1, 16)

    def out(self, source: bytes, cause: str, why: str) -> None:
        """It is of no use for this fetch."""
        found = self.found[source]
        found.place, found.cause, found.why = Place.OUT, cause, why
        self._lost[source] = why

    def told(self, source: bytes, head: Head, now: float) -> None:
        """It has answered with a head."""
        found = self.found[source]
        wanted = self.chosen.generation if self.chosen is not None else self._generation
        root = self.chosen.root if self.chosen is not None else self._root
        if wanted is not None and head.generation < wanted:
            self.later(source, now)
        elif wanted is not None and head.generation > wanted:
            self.out(source, "gone", f"offers generation {head.generation}")
        elif root is not None and head.root != root:
            self.out(source, "digest", f"offers other content as generation {head.generation}")
        else:
            found.place, found.head = Place.READY, head
            if self._first_at is None:
                self._first_at = now

    def choose(self, now: float) -> Head | None:
        """The head of what will be fetched, once there is one."""
        if self.chosen is not None:
            return self.chosen
        ready = [found.head for found in self.found.values() if found.place is Place.READY and found.head is not None]
        waiting = any(found.place in (Place.IDLE, Place.ASKED) for found in self.found.values())
        if not ready or (waiting and self._first_at is not None and now < self._first_at + GRACE_S):
            return None
        newest = max(head.generation for head in ready)
        heads = [head for head in ready if head.generation == newest]
        votes = Counter(head.root for head in heads)  # in the order of first appearance, which max keeps
        root = max(votes, key=votes.__getitem__)
        self.chosen = next(head for head in heads if head.root == root)
        for source, found in self.found.items():
            if found.place is Place.READY and found.head is not None:
                self.told(source, found.head, now)  # judged again, by what was chosen
        return self.chosen

    def forget_choice(self) -> None:
        """Nobody can give the manifest of what was chosen: whoever comes next decides."""
        self.chosen = None

    def ready(self) -> list[bytes]:
        """The sources that offer what was chosen and have not been taken yet."""
        return [source for source, found in self.found.items() if found.place is Place.READY]

    def join(self, source: bytes) -> None:
        """It has been taken."""
        self.found[source].place = Place.JOINED

    @property
    def hopeless(self) -> bool:
        """Whether every source is out; not while there has been none."""
        return bool(self.found) and all(found.place is Place.OUT for found in self.found.values())

    def deadline(self) -> float | None:
        """When `to_ask` or `choose` want to be called again."""
        times = [found.again_at for found in self.found.values() if found.place is Place.LATER]
        if self.chosen is None and self._first_at is not None and self.ready():
            times.append(self._first_at + GRACE_S)
        return min(times, default=None)

    def words(self, name_of: dict[bytes, str]) -> str:
        """What became of each source, for people."""
        words = (f"{name_of[s]} {found.why or found.place.value}" for s, found in self.found.items())
        return "; ".join(words) or "there is no source"
