"""Takes the samples of one scenario: the warm-up, then all sides by turns, each as often as it was asked for."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from ..lines import WorkerError
from .crew import Crew
from .scenarios import MIB, Scenario
from .sides import SIDES

WARM_UP_BYTES = MIB  # of gloo, which has nothing to learn about the network
WARM_UPS_OF_GLOO = 2
BOUNDARIES_S = 3.0  # of small ops after the warm-up, at whose boundaries a plan that waits comes into force
BOUNDARY_BYTES = 1 << 10

Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rounds:
    """How much is measured. `settle_s`: of warm-up of each of ours; `budget_s`: for all of a scenario's samples."""

    ours: int
    gloo: int
    settle_s: float
    budget_s: float

    def of(self, sides: tuple[str, ...]) -> dict[str, int]:
        """How often each side is measured; the slower ones less often."""
        wanted = {side: math.ceil(self.ours * SIDES[side].share) for side in sides}
        return {**wanted, "gloo": min(self.ours, self.gloo)} if "gloo" in wanted else wanted


@dataclass(slots=True)
class Samples:
    """Of one side, per sample: seconds of the slowest site, payload that all sent, and what the network saw."""

    seconds: list[float] = field(default_factory=list)
    sent_bytes: list[int] = field(default_factory=list)
    wire_bytes: list[int] = field(default_factory=list)
    lost_packets: list[int] = field(default_factory=list)

    def median_s(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None


class Measurement:
    """Of one scenario. Samples that came before a failure are kept."""

    def __init__(self, crew: Crew, scenario: Scenario, sides: tuple[str, ...], rounds: Rounds) -> None:
        self.crew, self.scenario, self.rounds = crew, scenario, rounds
        self.wanted = rounds.of(sides)
        self.samples = {side: Samples() for side in sides}
        self.plans: dict[str, Answer] = {}
        self.streams, self.retries, self.warm_ups = 0, 0, 0
        self.late_us_max = 0.0
        self.failure = ""

    def run(self) -> None:
        try:
            self._warm_up()
            started = time.monotonic()
            for number in range(self.rounds.ours):
                for side in turn(self.wanted, self.rounds.ours, number):
                    if self._affordable(side, time.monotonic() - started):
                        self._sample(side)
            self.plans = self.crew.plans()
        except WorkerError as error:
            self.failure = str(error)

    def _warm_up(self) -> None:
        """Each of ours until its planner has had the time to see the paths; the first result is checked whole."""
        ours = [side for side in self.samples if side != "gloo"]
        spent_s = dict.fromkeys(ours, 0.0)
        while waiting := [side for side in ours if self.warm_ups == 0 or spent_s[side] < self.rounds.settle_s]:
            for side in waiting:
                began = time.monotonic()
                self.crew.reduce(side, self.scenario.nbytes, whole=self.warm_ups == 0)
                spent_s[side] += time.monotonic() - began
            self.warm_ups += 1
        end = time.monotonic() + min(BOUNDARIES_S, self.rounds.settle_s)
        while time.monotonic() < end:
            for side in ours:
                self.crew.reduce(side, BOUNDARY_BYTES)
        for number in range(WARM_UPS_OF_GLOO if "gloo" in self.samples else 0):
            self.crew.reduce("gloo", min(self.scenario.nbytes, WARM_UP_BYTES), whole=number == 0)

    def _affordable(self, side: str, elapsed_s: float) -> bool:
        """Each side has one sample, whatever it takes."""
        known = self.samples[side].seconds
        return not known or elapsed_s + known[-1] <= self.rounds.budget_s

    def _sample(self, side: str) -> None:
        for _ in range(self.scenario.lead_in):
            self.crew.reduce(side, self.scenario.nbytes)
        self.crew.prepare(side, self.scenario.nbytes)
        before = traffic(self.crew.wan.stats())  # lateness is that since the last time it was asked for
        answers = self.crew.go()
        stats = self.crew.wan.stats()
        self.crew.check()
        wire_bytes, lost = (now - then for now, then in zip(traffic(stats), before, strict=True))
        samples = self.samples[side]
        samples.seconds.append(max(answer["seconds"] for answer in answers))
        samples.sent_bytes.append(sum(answer.get("sent_bytes", 0) for answer in answers))
        samples.wire_bytes.append(wire_bytes)
        samples.lost_packets.append(lost)
        self.late_us_max = max(self.late_us_max, stats["late_us_max"])
        if side == "ours":
            self.streams = max(answer["streams"] for answer in answers)
            self.retries += max(answer["retries"] for answer in answers)


def turn(wanted: dict[str, int], rounds: int, number: int) -> list[str]:
    """Whose turn it is: those with fewer samples evenly among the others, and everybody first now and then."""

    def due(side: str) -> bool:
        share = wanted[side] / rounds
        return math.floor((number + 1) * share + 1e-9) > math.floor(number * share + 1e-9)

    sides = [side for side in wanted if due(side)]
    return sides if number.bit_count() % 2 == 0 else sides[::-1]


def traffic(stats: Answer) -> tuple[int, int]:
    """(bytes that entered the lines of all pairs, packets lost to them, to full queues and to caps) so far."""
    pairs, sites = stats["pairs"].values(), stats["sites"].values()
    lost = sum(pair["losses"] + pair["queue_drops"] for pair in pairs)
    return sum(pair["wire_bytes"] for pair in pairs), lost + sum(s["up_drops"] + s["down_drops"] for s in sites)
