"""run.py - one run: routes messages to the groups, keeps the run's limits, answers tools.

Pure, like the groups: `message`, `disconnected`, `reconnected`, `tick` take the time and give effects.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from pccl import messages as m
from pccl.coordinator.contacts import Contacts
from pccl.coordinator.events import Dialled, Disconnected, Effect, Event, From, Reconnected, Send, Tick
from pccl.coordinator.membership import Membership
from pccl.coordinator.roster import REMEMBERED_MAX, Peer
from pccl.coordinator.settings import Settings
from pccl.coordinator.snapshot import GroupState
from pccl.errors import ProtocolError

GROUPS_MAX = 256
#: Says to whom it concerns that somebody has forgotten something.
STRANGER = "this coordinator does not know the peer; if it was started anew, then without the run's state (--state)"


class Run:
    """All groups of a run. `make`: a group without anybody."""

    def __init__(
        self, name: str, settings: Settings, now: float, make: Callable[[int, Settings], Membership] = Membership
    ) -> None:
        self.name = name
        self.settings = settings
        self.groups: dict[int, Membership] = {}
        self.malformed = 0
        self.incarnation = 0  # of how many processes that have led this run it is; 0: its state dies with it
        self.state = ""  # where that is
        self.trouble = ""  # why it cannot be written
        self._started = now
        self._make = make
        self._home: OrderedDict[bytes, int] = OrderedDict()
        self._contacts = Contacts(self._find)

    def restore(self, now: float, states: Iterable[GroupState]) -> list[Effect]:
        """Takes up the groups of another process."""
        effects: list[Effect] = []
        for state in states:
            group = self.groups[state.group] = self._make(state.group, self.settings)
            effects += group.restore(now, state)
            for peer in (*state.gone, *group.members):
                self._home[peer] = state.group
        return effects

    def knows(self, peer: bytes) -> bool:
        """Whether the peer is in a group, or waits for one."""
        group = self._home.get(peer)
        return group is not None and self.groups[group].knows(peer)

    def bytes_from(self, now: float, peer: bytes, data: bytes) -> list[Effect]:
        """A frame has come. What does not decode is counted and dropped; another version is told so."""
        try:
            message = m.decode_at_coordinator(data)
        except m.WrongVersion as error:
            self.malformed += 1
            return [Send(peer, m.Refused(m.VERSION, "version", m.clip(str(error))))]
        except ProtocolError:
            self.malformed += 1
            return []
        return self.message(now, peer, message)

    def message(self, now: float, peer: bytes, message: m.ToCoordinator) -> list[Effect]:
        """A message has come."""
        if isinstance(message, m.StatusRequest):
            return [Send(peer, self._answer(now, message))]
        if isinstance(message, m.Join):
            refusal = self._refusal(peer, message)
            if refusal is not None:
                return [Send(peer, refusal)]
            self._settle_in(peer, message.group)
        group = self._home.get(peer)
        if group is None:
            if isinstance(message, m.Leave):
                return [Send(peer, m.Goodbye(m.VERSION))]
            return [Send(peer, m.Evicted(m.VERSION, STRANGER))]
        if isinstance(message, m.Seek):
            self._contacts.seek(self.incarnation, peer, message)
        elif isinstance(message, m.Heartbeat):
            self._contacts.spoke(peer)
        return self._handle(now, group, From(peer, message))

    def disconnected(self, now: float, peer: bytes) -> list[Effect]:
        """The control connection of a peer was closed."""
        return self._handle(now, self._home.get(peer), Disconnected(peer))

    def reconnected(self, now: float, peer: bytes) -> list[Effect]:
        """A peer whose control connection was closed has a new one."""
        self._contacts.forget(peer)
        return self._handle(now, self._home.get(peer), Reconnected(peer))

    def dialled(self, now: float, peer: bytes, address: str | None) -> list[Effect]:
        """A dial-back has ended."""
        return self._handle(now, self._home.get(peer), Dialled(peer, address))

    def tick(self, now: float) -> list[Effect]:
        """Time has passed."""
        effects: list[Effect] = []
        for _, group in sorted(self.groups.items()):
            effects += group.handle(now, Tick())
        return effects + self._contacts.news(self.incarnation)

    def _handle(self, now: float, group: int | None, event: Event) -> list[Effect]:
        effects = [] if group is None else self.groups[group].handle(now, event)
        return effects + self._contacts.news(self.incarnation)

    def _find(self, peer: bytes) -> tuple[int, Peer] | None:
        """The group in which a peer is, or waits to be."""
        group = self._home.get(peer)
        if group is None:
            return None
        found = self.groups[group].members.get(peer) or self.groups[group].waiting.get(peer)
        return None if found is None else (group, found)

    def next_deadline(self) -> float | None:
        """When `tick` is due; None: not before something happens."""
        deadlines = [group.next_deadline() for group in self.groups.values()]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def status(self, now: float, links: bool = True) -> m.Status:
        """What `pccl status` shows; `links`: of each link, too."""
        groups = tuple(group.status(now, links) for _, group in sorted(self.groups.items()))
        return m.Status(
            v=m.VERSION,
            run=self.name,
            up_s=now - self._started,
            malformed=self.malformed,
            groups=groups,
            incarnation=self.incarnation,
            state=m.clip(self.state),
            trouble=m.clip(self.trouble),
        )

    def _answer(self, now: float, request: m.StatusRequest) -> m.ToPeer:
        return self.status(now) if request.run == self.name else self._other_run(request.run)

    def _other_run(self, run: str) -> m.Refused:
        return m.Refused(m.VERSION, "run", f"this coordinator serves run {self.name!r}, not {run!r}")

    def _refusal(self, peer: bytes, join: m.Join) -> m.Refused | None:
        if join.run != self.name:
            return self._other_run(join.run)
        if join.peer != peer:
            return m.Refused(m.VERSION, "malformed", "the peer id is not the routing id")
        if self._home.get(peer, join.group) != join.group:
            return m.Refused(m.VERSION, "group", f"the peer is in group {self._home[peer]}")
        if join.group not in self.groups and len(self.groups) >= GROUPS_MAX:
            return m.Refused(m.VERSION, "group", f"the run has {GROUPS_MAX} groups, no more are possible")
        known = sum(len(group.members) + len(group.waiting) for group in self.groups.values())
        if peer not in self._home and known >= self.settings.peers_max:
            return m.Refused(m.VERSION, "group", f"the run has {known} peers, no more are possible")
        return None

    def _settle_in(self, peer: bytes, group: int) -> None:
        if group not in self.groups:
            self.groups[group] = self._make(group, self.settings)
        self._home[peer] = group
        if len(self._home) > REMEMBERED_MAX + self.settings.peers_max:
            gone = next(old for old, home in self._home.items() if not self.groups[home].knows(old))
            del self._home[gone]
