"""faults.py - what may go wrong, and how a seed draws what does.

`Faults` are verbs on a cluster (crash, freeze, partition, ...), each with its end: everything heals. A scenario uses
them by hand; `swarm` lets a seed draw which kinds exist at all and how often they come, because runs in which all
kinds of faults happen at once look alike. Each verb tells the checkers what it excuses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

from pccl._native import SimPath
from pccl.testing.clock import MILLISECOND, ns
from pccl.testing.coordinator import MOMENTS, Moment

if TYPE_CHECKING:
    from pccl.testing.cluster import Cluster, Node
    from pccl.testing.program import Program

#: A process that is silent for this part of its lease may lose it.
LEASE_PART = 0.6


class Faults:
    """Verbs. Times are seconds from now; nodes are given by number."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.count = 0
        self._paths: dict[tuple[int, int], SimPath] = {}

    def at(self, seconds: float, action: Callable[[], object]) -> None:
        """Does it later."""
        self.cluster.clock.after(seconds, action)

    def when(self, what: str, *facts: object, then: Callable[[], object], after_s: float = 0.0) -> None:
        """Does it so long after the first line of the story that begins like this."""
        due = [True]

        def look(said: str, about: tuple[object, ...]) -> None:
            if due and said == what and about[: len(facts)] == facts:
                due.clear()
                self.at(after_s, then)

        self.cluster.observers.append(look)

    def mark(self, name: str, what: str, *facts: object) -> None:
        """Counts the lines of the story that begin like this."""

        def look(said: str, about: tuple[object, ...]) -> None:
            if said == what and about[: len(facts)] == facts:
                self.cluster.marks[name] += 1

        self.cluster.observers.append(look)

    def _note(self, what: str, *facts: object) -> None:
        self.count += 1
        self.cluster.trace("fault", what, *facts)

    def node(self, index: int) -> Node | None:
        """The node, if it lives."""
        nodes = self.cluster.nodes
        return nodes[index] if index < len(nodes) and nodes[index].alive else None

    # -- processes --------------------------------------------------------------------------------------------

    def crash(self, index: int) -> None:
        """The process is gone."""
        node = self.node(index)
        if node is not None:
            self._note("crash", index)
            self.cluster.watch.excuse(node, "crashed")
            node.thaw()
            node.crash()

    def freeze(self, index: int, seconds: float) -> None:
        """The process stands still for so long."""
        node = self.node(index)
        if node is None or node.frozen:
            return
        self._note("freeze", index, seconds)
        if seconds > LEASE_PART * self.cluster.options.lease_s:
            self.cluster.watch.excuse(node, f"frozen for {seconds:.3f} s")
        node.freeze()
        self.at(seconds, node.thaw)

    def slow(self, index: int, gap_s: float, seconds: float) -> None:
        """The process gets a turn only every `gap_s`."""
        node = self.node(index)
        if node is None:
            return
        self._note("slow", index, gap_s)
        node.slow_ns = ns(gap_s)

        def recover() -> None:
            node.slow_ns = 0

        self.at(seconds, recover)

    def leave(self, index: int) -> None:
        """The process leaves in good order, whatever its program is doing."""
        node = self.node(index)
        if node is not None and not node.frozen:
            self._note("leave", index)
            self.cluster.watch.excuse(node, "left")
            node.leave()

    def join(self, program: Program, *, guest: bool = False, group: int = 0) -> None:
        """A new process asks to join a group, or comes as a guest first."""
        self._note("join", len(self.cluster.nodes), group)
        self.cluster.add(program, guest=guest, group=group)

    # -- links ------------------------------------------------------------------------------------------------

    def path(self, a: int, b: int) -> SimPath:
        """The present state of one direction."""
        return self._paths.get((a, b), self.cluster.options.path)

    def set_path(self, a: int, b: int, path: SimPath) -> None:
        """Changes one direction."""
        self._paths[a, b] = path
        self.cluster.set_path(a, b, path, both=False)

    def reset(self, a: int, b: int, index: int = 0) -> None:
        """One stream between two nodes breaks."""
        if self.node(a) is not None and self.node(b) is not None and a != b and self.cluster.sim.reset(a, b, index):
            self._note("reset", a, b, index)

    def noise(self, seconds: float, **changes: Any) -> None:
        """Every data path becomes worse for a while (fields of SimPath), new nodes' paths excepted."""
        self._note("noise", sorted(changes.items()))
        pairs = [(a.index, b.index) for a in self.cluster.nodes for b in self.cluster.nodes if a is not b]
        for a, b in pairs:
            self.set_path(a, b, replace(self.path(a, b), **changes))
        fresh = SimPath()
        calm = {
            name: getattr(self.cluster.options.path if "ns" in name or "bytes" in name else fresh, name)
            for name in changes
        }

        def heal() -> None:
            for a, b in pairs:
                self.set_path(a, b, replace(self.path(a, b), **calm))

        self.at(seconds, heal)

    def cut(self, a: int, b: int, seconds: float, *, both: bool = True, excuses: bool = True) -> None:
        """Nothing passes from a to b (and back). `excuses` False: there is a way around, so no op may be late."""
        if a == b or max(a, b) >= len(self.cluster.nodes):
            return
        self._note("cut", a, b, seconds, both)
        if excuses:
            self.cluster.watch.shaken(f"{a} and {b} cut apart")
        for x, y in ((a, b), (b, a))[: 1 + both]:
            self.set_path(x, y, replace(self.path(x, y), cut=True))

        def heal() -> None:
            for x, y in ((a, b), (b, a))[: 1 + both]:
                self.set_path(x, y, replace(self.path(x, y), cut=False))

        self.at(seconds, heal)

    def isolate(self, index: int, seconds: float) -> None:
        """A node hears nobody and is heard by nobody, on both planes."""
        for other in range(len(self.cluster.nodes)):
            self.cut(index, other, seconds)
        self.cut_control(index, seconds)

    # -- control plane ----------------------------------------------------------------------------------------

    def cut_control(self, index: int, seconds: float, *, up: bool = True, down: bool = True) -> None:
        """Nothing passes between a node and the coordinator."""
        node = self.node(index)
        if node is None:
            return
        self._note("cut_control", index, seconds, up, down)
        if seconds > LEASE_PART * self.cluster.options.lease_s:
            self.cluster.watch.excuse(node, f"cut off from the coordinator for {seconds:.3f} s")
        self.cluster.watch.shaken(f"{node} cut off from the coordinator")
        node.connection.cut(up, down)
        self.at(seconds, node.connection.heal)

    def lose_control(self, index: int) -> None:
        """The control connection of a node breaks; it connects anew."""
        node = self.node(index)
        if node is not None:
            self._note("lose_control", index)
            node.connection.lose()

    def lose_all(self, index: int) -> None:
        """Every connection of a node breaks at the same moment, as when a router on its way forgets them."""
        node = self.node(index)
        if node is None:
            return
        self._note("lose_all", index)
        for other in range(len(self.cluster.nodes)):
            while other != index and self.cluster.sim.reset(index, other):
                pass
        node.connection.lose()

    def stall(self, seconds: float) -> None:
        """The coordinator does nothing for so long."""
        self._note("stall", seconds)
        self.cluster.watch.shaken("the coordinator stalled")
        self.cluster.coordinator.stall(seconds)

    def restart(self, seconds: float, moment: Moment = "now") -> None:
        """The coordinator dies, now or at its next decision, and comes back so much later with what it has written."""
        if not self.cluster.coordinator.alive:
            return
        self._note("restart", seconds, moment)
        self.cluster.watch.shaken("the coordinator died")
        self.cluster.coordinator.crash(seconds, moment)

    def full_disk(self, seconds: float) -> None:
        """The coordinator cannot write for so long, and therefore decides nothing."""
        self._note("full_disk", seconds)
        self.cluster.watch.shaken("the coordinator's disk is full")
        self.cluster.coordinator.disk.full_until_ns = self.cluster.clock.now_ns + ns(seconds)


# -- the swarm ------------------------------------------------------------------------------------------------


class Swarm:
    """A seed's own mixture of faults, in the first `window_s` seconds of a run. `join`: brings one more process."""

    def __init__(self, faults: Faults, random: Random, join: Callable[[], object], window_s: float, peers: int) -> None:
        self.faults = faults
        self.random = random
        self.join = join
        self.window_s = window_s
        self.peers = peers
        self.lease_s = faults.cluster.options.lease_s

    def draw(self) -> list[str]:
        """Puts the faults on the clock; says which kinds exist in this run."""
        chosen = [name for name in KINDS if self.random.random() < KINDS[name]]
        for name in chosen:
            for _ in range(self.random.randint(1, 3)):
                at_s = self.random.random() * self.window_s
                self.faults.at(at_s, getattr(self, f"_{name}")(self.random))
        return chosen

    def _some(self, random: Random) -> int:
        return random.randrange(self.peers)

    def _two(self, random: Random) -> tuple[int, int]:
        a = random.randrange(self.peers)
        return a, (a + random.randrange(1, max(2, self.peers))) % self.peers

    def _reset(self, random: Random) -> Callable[[], object]:
        (a, b), index = self._two(random), random.randrange(4)
        return lambda: self.faults.reset(a, b, index)

    def _jitter(self, random: Random) -> Callable[[], object]:
        jitter_ns = random.randrange(1, 30) * MILLISECOND
        return lambda: self.faults.noise(self.window_s, jitter_ns=jitter_ns)

    def _resets(self, random: Random) -> Callable[[], object]:
        ppm = random.choice((1000, 5000, 20000))
        return lambda: self.faults.noise(self.window_s / 2, reset_ppm=ppm)

    def _corrupt(self, random: Random) -> Callable[[], object]:
        ppm = random.choice((1000, 5000, 20000))
        return lambda: self.faults.noise(self.window_s / 2, corrupt_ppm=ppm)

    def _duplicate(self, random: Random) -> Callable[[], object]:
        ppm = random.choice((1000, 5000, 20000))
        return lambda: self.faults.noise(self.window_s / 2, duplicate_ppm=ppm)

    def _rate(self, random: Random) -> Callable[[], object]:
        rate = random.choice((200_000, 1_000_000, 5_000_000))
        return lambda: self.faults.noise(self.window_s, bytes_per_s=rate)

    def _cut(self, random: Random) -> Callable[[], object]:
        (a, b), seconds, both = self._two(random), random.choice((0.02, 0.2, 1.5)), random.random() < 0.5
        return lambda: self.faults.cut(a, b, seconds, both=both)

    def _dead_pair(self, random: Random) -> Callable[[], object]:
        (a, b), seconds = self._two(random), random.choice((3.0, 6.0, 12.0))
        return lambda: self.faults.cut(a, b, seconds)

    def _cut_control(self, random: Random) -> Callable[[], object]:
        a, seconds, way = self._some(random), random.choice((0.02, 0.3, 2.0)), random.randrange(3)
        return lambda: self.faults.cut_control(a, seconds, up=way != 1, down=way != 2)

    def _lose_control(self, random: Random) -> Callable[[], object]:
        a = self._some(random)
        return lambda: self.faults.lose_control(a)

    def _lose_all(self, random: Random) -> Callable[[], object]:
        a = self._some(random)
        return lambda: self.faults.lose_all(a)

    def _isolate(self, random: Random) -> Callable[[], object]:
        a, seconds = self._some(random), random.choice((0.05, 0.5, 2.0))
        return lambda: self.faults.isolate(a, seconds)

    def _crash(self, random: Random) -> Callable[[], object]:
        a = self._some(random)
        return lambda: self.faults.crash(a)

    def _freeze(self, random: Random) -> Callable[[], object]:
        a, seconds = self._some(random), random.choice((0.005, 0.05, 0.4, 1.5, 3.0))
        return lambda: self.faults.freeze(a, seconds)

    def _slow(self, random: Random) -> Callable[[], object]:
        a, gap_s = self._some(random), random.choice((0.001, 0.01, 0.03))
        return lambda: self.faults.slow(a, gap_s, self.window_s)

    def _stall(self, random: Random) -> Callable[[], object]:
        seconds = random.choice((0.01, 0.1, 0.6))
        return lambda: self.faults.stall(seconds)

    def _restart(self, random: Random) -> Callable[[], object]:
        seconds, moment = random.choice((0.01, 0.1, 0.6, 2.0)), random.choice(MOMENTS)
        return lambda: self.faults.restart(seconds, moment)

    def _full_disk(self, random: Random) -> Callable[[], object]:
        seconds = random.choice((0.05, 0.5, 2.0))
        return lambda: self.faults.full_disk(seconds)

    def _leave(self, random: Random) -> Callable[[], object]:
        a = self._some(random)
        return lambda: self.faults.leave(a)

    def _join(self, random: Random) -> Callable[[], object]:
        return self.join

    def _join_crash(self, random: Random) -> Callable[[], object]:
        after_s = random.choice((0.001, 0.004, 0.02))

        def act() -> None:
            self.join()
            index = len(self.faults.cluster.nodes) - 1
            self.faults.at(after_s, lambda: self.faults.crash(index))

        return act


#: How likely each kind is to exist in a run.
KINDS = {
    "reset": 0.4,
    "jitter": 0.3,
    "resets": 0.2,
    "corrupt": 0.15,
    "duplicate": 0.15,
    "rate": 0.15,
    "cut": 0.2,
    "dead_pair": 0.15,
    "cut_control": 0.15,
    "lose_control": 0.15,
    "lose_all": 0.15,
    "isolate": 0.1,
    "crash": 0.35,
    "freeze": 0.25,
    "slow": 0.2,
    "stall": 0.15,
    "leave": 0.1,
    "join": 0.4,
    "join_crash": 0.2,
    "restart": 0.2,
    "full_disk": 0.1,
}
