"""coordinator.py - the real run and its ledger as one simulated process, which may stand still, die and come back.

What it has written outlives it (`Disk`); everything else does not: its connections, its memory, what it was about to
say. `crash` may be told to wait for a write, and to hit before it, after it, or amid the messages that rest on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from pccl import messages as m
from pccl.coordinator import snapshot
from pccl.coordinator.dial_back import DIAL_S
from pccl.coordinator.events import DialBack, Effect, Record, Send
from pccl.coordinator.membership import Membership
from pccl.coordinator.run import Run
from pccl.coordinator.settings import Settings
from pccl.coordinator.store import Saved
from pccl.errors import StateError
from pccl.testing.clock import ns

if TYPE_CHECKING:
    from pccl.testing.cluster import Cluster

RUN = "simulation"
#: pccl_sim_path.dials: how a firewall treats dials.
DIALS_LOST, DIALS_REFUSED = 1, 2

Step = Callable[[float], list[Effect]]
#: When a crash hits: at once, or at the next write before it, after it, or when half of what rests on it was said.
Moment = Literal["now", "before", "after", "amid"]
MOMENTS: tuple[Moment, ...] = ("now", "before", "after", "amid")


class Crash(BaseException):
    """The process ends where it stands."""


class Disk:
    """A Store that outlives processes. `full_until_ns`: nothing can be written until then."""

    where = "the simulated disk"

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.incarnation = 0
        self.groups: dict[int, bytes] = {}
        self.full_until_ns = 0
        self.crash: Moment = "now"

    def begin(self, run: str) -> Saved:
        """As Store says."""
        del run
        self.incarnation += 1
        groups = tuple(snapshot.decode(data, self.where) for _, data in sorted(self.groups.items()))
        return Saved(self.incarnation, groups)

    def save(self, groups: Mapping[int, bytes]) -> None:
        """As Store says."""
        if self.cluster.clock.now_ns < self.full_until_ns:
            raise StateError(f"{self.where} is full")
        if self.crash == "before":
            raise Crash
        self.groups.update(groups)
        self.cluster.trace("saved", len(groups))
        if self.crash == "after":
            raise Crash

    def close(self) -> None:
        """As Store says."""


class Coordinator:
    """The run, reached over the control network. `stall_until_ns`: it is busy until then."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self.cluster = cluster
        self._settings = settings
        self._of_groups: dict[int, Settings] = {}
        self.disk = Disk(cluster)
        self.slow_ns = 0
        self._lives = 0
        self._away_s = 0.0
        self._begin()

    def _begin(self) -> None:
        """A process starts, with nothing but what is on the disk."""
        options, now = self.cluster.options, self.cluster.clock.now
        self._lives += 1
        self.alive = True
        self.stall_until_ns = 0
        self._backlog: deque[Step] = deque()
        self._ticking = False
        self._speakers: set[bytes] = set()  # who has said something over the connection that it has now
        self._lost: set[bytes] = set()
        self.run = Run(RUN, self._settings, now, self._group)
        self.ledger = options.ledger(self.run, self.disk)
        self._take(lambda now: self.ledger.open(lambda: now))

    def _group(self, number: int, settings: Settings) -> Membership:
        return self.cluster.options.membership(number, self._of_groups.get(number, settings))

    def settle(self, group: int, settings: Settings) -> None:
        """A group's settings, in this life and those to come."""
        self._of_groups[group] = settings
        self.group(group).settings = settings

    def group(self, number: int = 0) -> Membership:
        """One of the groups; made if nobody has asked to join it yet."""
        if number not in self.run.groups:
            self.run.groups[number] = self._group(number, self._settings)
        return self.run.groups[number]

    @property
    def restarts(self) -> int:
        """How often it has come back."""
        return self._lives - 1

    # -- what it hears ----------------------------------------------------------------------------------------

    def hear(self, peer: bytes, data: bytes) -> None:
        """A message has come."""
        if not self.alive:
            return

        def step(now: float) -> list[Effect]:
            effects = []
            self._speakers.add(peer)
            if peer in self._lost:
                self._lost.discard(peer)
                effects = self.ledger.reconnected(now, peer)
            return effects + self.ledger.bytes_from(now, peer, data)

        self._tell(step)

    def lost(self, peer: bytes) -> None:
        """A connection has closed. That of who has not said anything is nobody's."""
        if not self.alive or peer not in self._speakers:
            return

        def step(now: float) -> list[Effect]:
            self._lost.add(peer)
            return self.ledger.disconnected(now, peer)

        self._tell(step)

    # -- what happens to it -----------------------------------------------------------------------------------

    def stall(self, seconds: float) -> None:
        """The process does nothing for so long."""
        self.cluster.trace("stall", seconds)
        self.stall_until_ns = max(self.stall_until_ns, self.cluster.clock.now_ns + ns(seconds))

    def crash(self, seconds: float, moment: Moment = "now") -> None:
        """The process is gone, now or at its next write; another one takes its place so much later."""
        self._away_s = seconds
        self.disk.crash = moment
        if moment == "now":
            self._die()

    def _die(self) -> None:
        if not self.alive:
            return
        self.cluster.trace("coordinator", "crash")
        self.alive = False
        self.disk.crash = "now"
        for node in self.cluster.nodes:
            node.connection.server_died()
        self.cluster.clock.after(self._away_s, self._return)

    def _return(self) -> None:
        self.cluster.trace("coordinator", "return")
        self._begin()

    # -- its loop ---------------------------------------------------------------------------------------------

    def _tell(self, step: Step) -> None:
        clock = self.cluster.clock
        due_ns = max(self.stall_until_ns, clock.now_ns + self.slow_ns)
        if due_ns <= clock.now_ns and not self._backlog:
            self._take(step)
            return
        self._backlog.append(step)
        self._later(due_ns, self._work_off)

    def _later(self, due_ns: int, action: Callable[[], None]) -> None:
        """At that time, if it is this process still."""
        life = self._lives
        self.cluster.clock.at(due_ns, lambda: action() if self.alive and self._lives == life else None)

    def _work_off(self) -> None:
        """A timer per entry: whichever comes first takes the oldest."""
        if self.cluster.clock.now_ns < self.stall_until_ns:
            self._later(self.stall_until_ns, self._work_off)
        elif self._backlog:
            self._take(self._backlog.popleft())

    def _take(self, step: Step) -> None:
        try:
            self._carry_out(step(self.cluster.clock.now))
        except Crash:
            self._die()
            return
        self._arm()

    def _carry_out(self, effects: list[Effect]) -> None:
        amid = len(effects) // 2 if self.disk.crash == "amid" and _says_something(effects) else -1
        encoded: tuple[m.ToPeer | None, bytes] = (None, b"")
        for number, effect in enumerate(effects):
            if number == amid:
                raise Crash
            if isinstance(effect, Record):
                self.cluster.trace("log", effect.what, effect.peer.hex()[:8], effect.reason)
                self.cluster.watch.decided(effect)
                continue
            if isinstance(effect, DialBack):
                self._dial_back(effect)
                continue
            if effect.message is not encoded[0]:
                encoded = (effect.message, m.encode(m.signed(effect.message, self.run.incarnation)))
            node = self.cluster.by_id.get(effect.peer)
            if node is not None:
                self.cluster.watch.said(node.group, effect.message)
            self.cluster.trace("down", -1 if node is None else node.index, type(effect.message).__name__)
            if node is not None:
                node.connection.send_down(encoded[1])

    def _dial_back(self, effect: DialBack) -> None:
        """A dial that nobody answers takes its time."""
        cluster = self.cluster
        node = cluster.by_id[effect.peer]
        lost = cluster.hidden.get(node.index, 0)
        there = (lost == 0) is not cluster.options.dial_back_lies and node.alive
        address = effect.addresses[0] if there else None

        def answer() -> None:
            cluster.trace("dialled back", node.index, address)
            self._tell(lambda now: self.ledger.dialled(now, effect.peer, address))

        wait_s = DIAL_S if lost == DIALS_LOST and not there else 0.0
        self._later(cluster.clock.now_ns + ns(wait_s), answer)

    def _arm(self) -> None:
        deadline = self.ledger.next_deadline()
        if self._ticking or deadline is None:
            return
        self._ticking = True
        clock = self.cluster.clock
        self._later(max(ns(deadline) + 1, clock.now_ns + 1), self._on_time)

    def _on_time(self) -> None:
        self._ticking = False
        self._tell(self.ledger.tick)


def _says_something(effects: list[Effect]) -> bool:
    return any(isinstance(effect, Send) and isinstance(effect.message, m.Epoch | m.Freeze) for effect in effects)
