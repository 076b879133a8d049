"""What a network may do to a run amid an all-reduce, and what must come of it: scenarios of events instead of times.

The coordinator is at none of the sites whose link suffers: they keep their control connections.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..topology import Topology, load
from .crew import Crew, Kill
from .measure import traffic
from .scenarios import MIB
from .sides import Run
from .targets import Row, Target, at_least, at_most

NBYTES = 64 * MIB
SETTLE_S = 15.0  # as the planner needs to see the paths
AMID_S = 0.25  # after the beginning of an op
DEAD_S = 2.0
PATIENCE_S = 60.0
#: Decisions of a coordinator by which a member goes.
LOSSES = {"lost", "lease", "leave"}

Figures = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Fault:
    """A network, what is fixed about the run's plans there, what happens, and what is wanted of it."""

    topology: str
    play: Callable[[Crew], Figures]
    targets: tuple[Target, ...]
    parameters: dict[str, float] = field(default_factory=dict)
    ours: Run = field(default_factory=Run)

    def load(self) -> Topology:
        return load(self.topology, **self.parameters)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one all-reduce: seconds of the slowest site, how often it began anew, frames sent again so far by all."""

    seconds: float
    retries: int
    resent: int


def reduce(crew: Crew, nbytes: int = NBYTES, **fault: object) -> Outcome:
    """One, checked whole."""
    crew.prepare("ours", nbytes)
    answers = crew.go(**fault)  # type: ignore[arg-type]
    crew.check(whole=True)
    seconds, retries = (max(answer[name] for answer in answers) for name in ("seconds", "retries"))
    return Outcome(seconds, retries, sum(answer["resent"] for answer in answers))


def warm_up(crew: Crew) -> None:
    """Until the planner has seen the paths, and what it saw is in its plan: an op by the first one may take all of the
    time.
    """
    end = time.monotonic() + SETTLE_S
    while time.monotonic() < end:
        reduce(crew)
    until(crew, lambda: "nothing is known" not in crew.plans()["ours"]["reason"])


def decided(crew: Crew, kinds: set[str]) -> int:
    """How many such decisions the coordinator has made."""
    return sum(what in kinds for _, what, _ in crew.plans()["ours"]["log"])


def bytes_between(crew: Crew, a: str, b: str) -> Callable[[], tuple[int, int]]:
    """Gives (wire bytes between two sites, in all) since this call."""

    def count() -> tuple[int, int]:
        stats = crew.wan.stats()
        return sum(stats["pairs"][pair]["wire_bytes"] for pair in ((a, b), (b, a))), traffic(stats)[0]

    before = count()
    return lambda: tuple(now - then for now, then in zip(count(), before, strict=True))  # type: ignore[return-value]


# -- what happens ----------------------------------------------------------------------------------------------------


def a_stream_dies(crew: Crew) -> Figures:
    """One of the streams of a link, amid an op; and an undisturbed op for comparison."""
    before = usual(crew)
    return compared(crew, before, reduce(crew, kill=Kill("c", "d", 1), after_s=AMID_S))


def a_link_dies_for_a_while(crew: Crew) -> Figures:
    """All streams of a link are reset, and none can be dialled again for two seconds."""
    before, streams = usual(crew), crew.plans()["ours"]["streams"]
    with healing(crew, "c", "d", DEAD_S) as cut:
        amid = reduce(crew, amid=cut, kill=Kill("c", "d", streams), after_s=AMID_S)
    reduce(crew)
    return compared(crew, before, amid)


def usual(crew: Crew) -> Outcome:
    """Of an op that nothing disturbs, over links that have carried one."""
    reduce(crew)
    return reduce(crew)


def compared(crew: Crew, before: Outcome, amid: Outcome) -> Figures:
    """An op with a fault amid beside the one before it. A fault that hit nothing would have nothing sent again."""
    return {
        "usual_s": before.seconds,
        "fault_s": amid.seconds,
        "retries": amid.retries,
        "resent": amid.resent - before.resent,
        "gone": decided(crew, LOSSES),
        "changes": decided(crew, {"freeze"}),
    }


@contextlib.contextmanager
def healing(crew: Crew, a: str, b: str, after_s: float) -> Iterator[Callable[[], None]]:
    """Gives what cuts the link; it heals so long afterwards, at the latest at the end of the block."""
    timer = threading.Timer(after_s, crew.wan.heal, (a, b))

    def cut() -> None:
        crew.wan.cut(a, b)
        timer.start()

    try:
        yield cut
    finally:
        timer.join() if timer.ident else crew.wan.heal(a, b)


def a_bad_link_fails_and_comes_back(crew: Crew) -> Figures:
    """The link between a and b is bad; then it is cut amid an op; then it is healed."""
    warm_up(crew)
    since = bytes_between(crew, "a", "b")
    before = reduce(crew)
    over, whole = since()
    amid = reduce(crew, amid=lambda: crew.wan.cut("a", "b"), after_s=AMID_S)
    without = until(crew, lambda: "around the broken" in crew.plans()["ours"]["reason"])
    since = bytes_between(crew, "a", "b")
    reduce(crew)
    over_cut, whole_cut = since()
    crew.wan.heal("a", "b")
    again = until(crew, lambda: "around the broken" not in crew.plans()["ours"]["reason"])
    figures = compared(crew, before, amid)
    shares = {"bad_share": over / whole, "cut_share": over_cut / whole_cut}
    return {**figures, **shares, "avoided_after_s": without, "used_again_after_s": again}


def until(crew: Crew, so: Callable[[], bool]) -> float | None:
    """Reduces until it is so; the seconds that took, None if it did not come."""
    started = time.monotonic()
    while not so():
        if time.monotonic() > started + PATIENCE_S:
            return None
        reduce(crew, MIB)
    return time.monotonic() - started


NOTHING_LOST = (at_least("resent", 1), at_most("retries", 0), at_most("gone", 0), at_most("changes", 0))
GOES_AROUND = (
    at_most("bad_share", 0.05),
    at_most("gone", 0),
    at_most("avoided_after_s", PATIENCE_S),
    at_most("cut_share", 0.01),
    at_most("used_again_after_s", PATIENCE_S),
)

FAULTS = {
    "stream_killed": Fault("mesh4_pair", a_stream_dies, NOTHING_LOST, {"loss": 0.0}, Run(streams=8)),
    "link_dead_2s": Fault("mesh4_pair", a_link_dies_for_a_while, NOTHING_LOST, {"loss": 0.0}, Run(streams=8)),
    "link_cut": Fault("one_bad_link", a_bad_link_fails_and_comes_back, GOES_AROUND),
}


def row_of(name: str, fault: Fault, figures: Figures, plan: Row, failure: str) -> Row:
    """As rows.py has it for times; a figure that did not come about counts as missed."""
    row: Row = {"kind": "fault", "scenario": name, "bytes": NBYTES, "figures": figures, "failure": failure}
    row["plan"] = {key: value for key, value in plan.items() if key != "log"}
    row["targets"] = [target.judge(row) for target in fault.targets]
    for target in row["targets"]:
        target["ok"] = bool(target["ok"])
    return row
