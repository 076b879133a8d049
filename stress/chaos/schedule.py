"""The faults of a run, drawn from its seed: what, where, when and for how long. Pure; same arguments, same schedule.

The rules keep a run such that every promise must hold: two peers (the veterans) live through all of it, never more
than some are away at once, dead links leave every peer a way to every other, everything that is broken is mended, and a
pause is either well below the lease or clearly beyond it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

VETERANS = 2
SPARES = 2
#: Seconds until a peer that was started again takes part, on a busy machine.
SETTLE_S = 6.0
DEAD_PAIRS_MAX = 3
#: A schedule ends so long before the run, so that the last faults can be recovered from.
CALM_S = 5.0

#: How often each kind is drawn, beside the others.
WEIGHTS = {
    "kill": 3.0,
    "stop": 2.0,
    "stop_long": 1.0,
    "leave": 1.0,
    "join": 1.5,
    "join_die": 1.5,
    "cut": 2.0,
    "one_way": 2.0,
    "loss": 1.5,
    "collapse": 1.5,
    "isolate": 1.0,
    "isolate_long": 0.7,
    "control_reset": 1.0,
    "control_corrupt": 1.0,
    "reset": 2.0,
    "corrupt": 2.0,
    "descriptors": 1.0,
    "hub_stop": 1.0,
    "clock": 0.5,
    "hub_descriptors": 0.5,
    "hub_clock": 0.6,
    "hub_kill": 1.0,
    "hub_full": 0.7,
    "failover": 1.0,
}
#: Where the coordinator keeps the run: in a file, or in etcd, where another one stands by.
KEEPING = ("file", "etcd")
#: These need the one or the other.
NEEDS = {"hub_kill": "file", "hub_full": "file", "failover": "etcd"}
#: Seconds by which a wall clock jumps: cold batteries, time zones, a missing battery, the end of certificates.
JUMPS_S = (-400 * 86400.0, -3600.0, -1.5, 1.5, 3600.0, 4000 * 86400.0)


@dataclass(frozen=True, slots=True)
class Fault:
    """At `at_s` something happens at a site, or between it and another, for so many seconds. `again_s`: how long after
    its end a peer is started there again. `amount`: a probability, Mbit/s, or by how many seconds a clock jumps."""

    at_s: float
    kind: str
    site: str
    other: str = ""
    seconds: float = 0.0
    again_s: float = 0.0
    amount: float = 0.0


def sites_of(peers: int) -> tuple[list[str], list[str]]:
    """Names of the peers' sites, the veterans first, and of those where others join for a while."""
    return [f"p{number}" for number in range(peers)], [f"x{number}" for number in range(SPARES)]


def allowed(only: Iterable[str], keeping: str) -> list[str]:
    """The kinds that are drawn. ValueError for a name that is none."""
    wanted = list(only) or list(WEIGHTS)
    if unknown := set(wanted) - WEIGHTS.keys():
        raise ValueError(f"no such fault: {', '.join(sorted(unknown))}; known are {', '.join(WEIGHTS)}")
    return [kind for kind in wanted if NEEDS.get(kind, keeping) == keeping]


def draw(
    seed: int,
    seconds: float,
    every_s: float,
    peers: int,
    lease_s: float,
    only: Iterable[str] = (),
    keeping: str = "file",
) -> list[Fault]:
    """The schedule of a run that lasts so long."""
    drawer = _Drawer(random.Random(f"chaos {seed}"), peers, lease_s)
    kinds = allowed(only, keeping)
    faults: list[Fault] = []
    at_s = 0.0
    while True:
        at_s += every_s * drawer.chance.uniform(0.5, 1.5)
        if at_s > seconds - CALM_S:
            return faults
        fault = drawer.fault(round(at_s, 3), kinds)
        if fault is not None:
            faults.append(fault)


class _Drawer:
    """What is broken at the moment, and so may not be broken again."""

    def __init__(self, chance: random.Random, peers: int, lease_s: float) -> None:
        self.chance, self.lease_s = chance, lease_s
        self.sites, self.spares = sites_of(peers)
        self.mortal = self.sites[VETERANS:]
        self.away_max = max(1, peers // 3)
        self._busy: dict[object, float] = {}  # site, pair or other thing -> until when

    def fault(self, at_s: float, kinds: list[str]) -> Fault | None:
        """One that is legal now; None if none of the kinds is."""
        self._busy = {thing: until for thing, until in self._busy.items() if until > at_s}
        left = list(kinds)
        while left:
            kind = self.chance.choices(left, [WEIGHTS[kind] for kind in left])[0]
            make: Callable[[float, str], Fault | None] = getattr(self, f"_{kind}", self._on_pair)
            fault = make(at_s, kind)
            if fault is not None:
                return fault
            left.remove(kind)
        return None

    def _count(self, what: str) -> int:
        return sum(isinstance(thing, tuple) and thing[0] == what for thing in self._busy)

    def _seconds(self, *choices: float) -> float:
        return round(self.chance.choice(choices) * self.chance.uniform(0.7, 1.3), 3)

    # -- peers -------------------------------------------------------------------------------------------------------

    def _away(self, at_s: float, kind: str, seconds: float) -> Fault | None:
        """A peer that goes, and is replaced after a while."""
        free = [site for site in self.mortal if ("away", site) not in self._busy and ("still", site) not in self._busy]
        if not free or self._count("away") >= self.away_max:
            return None
        site, again_s = self.chance.choice(free), self._seconds(0.2, 1.0, 3.0)
        self._busy["away", site] = at_s + seconds + again_s + SETTLE_S
        return Fault(at_s, kind, site, seconds=seconds, again_s=again_s)

    def _kill(self, at_s: float, kind: str) -> Fault | None:
        return self._away(at_s, kind, 0.0)

    _leave = _kill

    def _stop_long(self, at_s: float, kind: str) -> Fault | None:
        return self._away(at_s, kind, self.lease_s + self._seconds(1.5, 3.0))

    _isolate_long = _stop_long

    def _still(self, at_s: float, kind: str, seconds: float, amount: float = 0.0) -> Fault | None:
        """A peer that is disturbed, and stays."""
        free = [site for site in self.sites if ("away", site) not in self._busy and ("still", site) not in self._busy]
        if not free or self._count("still") >= 2:
            return None
        site = self.chance.choice(free)
        self._busy["still", site] = at_s + seconds + self.lease_s
        return Fault(at_s, kind, site, seconds=seconds, amount=amount)

    def _stop(self, at_s: float, kind: str) -> Fault | None:
        return self._still(at_s, kind, self._seconds(0.05, 0.3, self.lease_s / 4))

    def _isolate(self, at_s: float, kind: str) -> Fault | None:
        """From the coordinator only."""
        return self._still(at_s, kind, self._seconds(0.1, 0.5, self.lease_s / 5))

    def _control_reset(self, at_s: float, kind: str) -> Fault | None:
        return self._still(at_s, kind, 0.0)

    def _control_corrupt(self, at_s: float, kind: str) -> Fault | None:
        return self._still(at_s, kind, self._seconds(1.0, 3.0), self.chance.choice((0.02, 0.1, 0.3)))

    def _descriptors(self, at_s: float, kind: str) -> Fault | None:
        return self._still(at_s, kind, self._seconds(2.0, 5.0))

    def _clock(self, at_s: float, kind: str) -> Fault | None:
        return self._still(at_s, kind, self._seconds(1.0, 5.0), self.chance.choice(JUMPS_S))

    def _spare(self, at_s: float, kind: str, seconds: float) -> Fault | None:
        free = [site for site in self.spares if ("spare", site) not in self._busy]
        if not free:
            return None
        site = self.chance.choice(free)
        self._busy["spare", site] = at_s + seconds + SETTLE_S
        return Fault(at_s, kind, site, seconds=seconds)

    def _join(self, at_s: float, kind: str) -> Fault | None:
        return self._spare(at_s, kind, self._seconds(6.0, 15.0))

    def _join_die(self, at_s: float, kind: str) -> Fault | None:
        return self._spare(at_s, kind, self._seconds(0.8, 1.5, 2.5))

    # -- links -------------------------------------------------------------------------------------------------------

    def _on_pair(self, at_s: float, kind: str) -> Fault | None:
        dead = kind in ("cut", "one_way")
        if dead and self._count("dead") >= DEAD_PAIRS_MAX:
            return None
        a, b = self.chance.sample(self.sites, 2)
        pair = tuple(sorted((a, b)))
        if any((what, pair) in self._busy for what in ("dead", "bad")):
            return None
        seconds = 0.0 if kind == "reset" else self._seconds(0.3, 2.0, 6.0)
        self._busy["dead" if dead else "bad", pair] = at_s + seconds + 2.0
        amounts = {"loss": (0.03, 0.1, 0.3), "collapse": (0.5, 2.0, 5.0), "corrupt": (0.001, 0.01, 0.05)}
        amount = self.chance.choice(amounts[kind]) if kind in amounts else 0.0
        return Fault(at_s, kind, a, b, seconds, amount=amount)

    # -- the coordinator ---------------------------------------------------------------------------------------------

    def _on_hub(self, at_s: float, kind: str, seconds: float, amount: float = 0.0) -> Fault | None:
        if "hub" in self._busy:
            return None
        self._busy["hub"] = at_s + seconds + 2 * self.lease_s
        return Fault(at_s, kind, "hub", seconds=seconds, amount=amount)

    def _hub_stop(self, at_s: float, kind: str) -> Fault | None:
        return self._on_hub(at_s, kind, self._seconds(0.3, 1.0, self.lease_s * 1.5))

    def _hub_descriptors(self, at_s: float, kind: str) -> Fault | None:
        return self._on_hub(at_s, kind, self._seconds(2.0, 5.0))

    def _hub_clock(self, at_s: float, kind: str) -> Fault | None:
        return self._on_hub(at_s, kind, self._seconds(1.0, 5.0), self.chance.choice(JUMPS_S))

    def _hub_kill(self, at_s: float, kind: str) -> Fault | None:
        return self._on_hub(at_s, kind, self._seconds(0.2, 1.0, self.lease_s))

    _failover = _hub_kill

    def _hub_full(self, at_s: float, kind: str) -> Fault | None:
        return self._on_hub(at_s, kind, self._seconds(1.0, self.lease_s, 2 * self.lease_s))


# -- on paper ----------------------------------------------------------------------------------------------------------


def written(faults: Iterable[Fault]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(asdict(fault)) + "\n" for fault in faults)


def read(text: str) -> list[Fault]:
    """What `written` gave, perhaps shortened by hand. ValueError says which line is wrong."""
    faults = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            fault = Fault(**json.loads(line))
        except (TypeError, ValueError) as error:
            raise ValueError(f"line {number} is no fault: {error}") from None
        if fault.kind not in WEIGHTS:
            raise ValueError(f"line {number}: no such fault: {fault.kind}")
        faults.append(fault)
    return sorted(faults, key=lambda fault: fault.at_s)
