"""named.py - which peers of other groups the transfers of a communicator name, and asks that wait for their links.

A peer is named from the first ask until the last task that asked it is over, and KEEP_S beyond, so that one transfer
after the other finds its link open. An ask goes to the engine once there is a link; where the coordinator says that
there can be none it ends as if that had been lost. The worker's thread alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from pccl.contacts import Way
from pccl.transfer.task import Task
from pccl.types import Status

__all__ = ["Links", "Named"]

KEEP_S = 5.0


class Links(Protocol):
    """What is known of links to others."""

    def way_to(self, peer: bytes) -> Way:
        """Whether there is a link to a peer."""

    def seek(self, peers: frozenset[bytes]) -> None:
        """Transfers name these peers of other groups, and no others."""


@dataclass(slots=True)
class _Name:
    """A peer that is named. `idle_at`: since when by no task."""

    tasks: set[Task] = field(default_factory=set)
    idle_at: float = 0.0


class Named:
    """`end`: an ask that the engine never saw has ended so."""

    def __init__(self, links: Links, end: Callable[[int, Status], None]) -> None:
        self._links = links
        self._end = end
        self._names: dict[bytes, _Name] = {}
        self._waiting: dict[int, tuple[bytes, Callable[[], None]]] = {}

    def ask(self, task: Task, peer: bytes, token: int, go: Callable[[], None]) -> None:
        """Calls `go` when there is a link to the peer, now or later."""
        way = self._links.way_to(peer)
        if way is Way.GROUP:
            go()
            return
        self._name(task, peer)
        self._waiting[token] = peer, go
        self.look()

    def cancel(self, token: int) -> bool:
        """Ends an ask that still waits for a link; False if it does not."""
        if self._waiting.pop(token, None) is None:
            return False
        self._end(token, Status.ECANCELLED)
        return True

    def look(self) -> None:
        """Links may have come, or been refused."""
        ways = {peer: self._links.way_to(peer) for peer, _ in self._waiting.values()}
        for token, (peer, go) in list(self._waiting.items()):
            if ways[peer] is Way.NONE_YET:
                continue
            del self._waiting[token]
            if ways[peer] is Way.NEVER:
                self._end(token, Status.EPEER)
            else:
                go()

    def over(self, task: Task, now: float) -> None:
        """The task names nobody any more."""
        for name in self._names.values():
            if task in name.tasks:
                name.tasks.discard(task)
                name.idle_at = now

    def deadline(self) -> float:
        """When `tick` is due."""
        return min((name.idle_at + KEEP_S for name in self._names.values() if not name.tasks), default=float("inf"))

    def tick(self, now: float) -> None:
        """Forgets who has not been named for a while."""
        idle = [peer for peer, name in self._names.items() if not name.tasks and now >= name.idle_at + KEEP_S]
        for peer in idle:
            del self._names[peer]
        if idle:
            self._links.seek(frozenset(self._names))

    def _name(self, task: Task, peer: bytes) -> None:
        fresh = peer not in self._names
        self._names.setdefault(peer, _Name()).tasks.add(task)
        if fresh:
            self._links.seek(frozenset(self._names))
