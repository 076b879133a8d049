"""simulate.py - many seeds, each one a run of its own: what `pccl simulate` and the tests call.

A seed draws the size of the group, the plan, the network, the program and the faults (`mix`), or plays a named
scenario. Seeds are independent of each other and of how many processes work on them.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import TypedDict

from pccl._native import SimPath
from pccl.errors import ArgumentError
from pccl.testing import scenarios, scenarios_moving  # noqa: F401 - become known
from pccl.testing.clock import MILLISECOND, ns
from pccl.testing.cluster import Cluster, Options
from pccl.testing.coordinator import DIALS_LOST, DIALS_REFUSED
from pccl.testing.faults import Faults, Swarm
from pccl.testing.stage import SCENARIOS
from pccl.testing.traffic import Shape, Traffic
from pccl.transfer.named import KEEP_S
from pccl.types import Status

SECONDS_MAX = 90.0
SETTLE_S = 1.5
FORGET_S = KEEP_S + 1.5  # until nobody names peers of other groups any more
SEEDS_PER_TASK = 8
JOBS_MAX = 8


class BrokenPromise(TypedDict):
    """One finding. `detail` ends with how to see it again."""

    seed: int
    promise: str
    detail: str


class SimReport(TypedDict):
    """What a batch of seeds gave."""

    seeds: int
    ops: int
    commits: int
    faults: int
    broken: list[BrokenPromise]


@dataclass(slots=True, frozen=True)
class Outcome:
    """What one seed gave. `trace`: the last lines of its story."""

    seed: int
    ops: int
    commits: int
    faults: int
    broken: tuple[tuple[str, str], ...]
    digest: str
    seconds: float
    trace: tuple[str, ...]
    marks: dict[str, int]


def simulate(
    seeds: int, start: int = 0, scenario: str | None = None, *, defects: int = 0, jobs: int | None = None
) -> SimReport:
    """Runs `seeds` seeds from `start` on; ArgumentError for a scenario that does not exist.

    `defects`: planted ones (pccl_defect), to see the checkers at work. `jobs`: processes; default: one per core for
    many seeds, none for few.
    """
    if scenario is not None and scenario not in SCENARIOS:
        raise ArgumentError(f"no scenario {scenario!r}; there are: {', '.join(sorted(SCENARIOS))}")
    report: SimReport = {"seeds": seeds, "ops": 0, "commits": 0, "faults": 0, "broken": []}
    for outcome in _outcomes(range(start, start + seeds), scenario, defects, jobs):
        report["ops"] += outcome.ops
        report["commits"] += outcome.commits
        report["faults"] += outcome.faults
        for promise, detail in outcome.broken:
            again = f"{detail}; replay: {replay(outcome.seed, scenario)}"
            report["broken"].append({"seed": outcome.seed, "promise": promise, "detail": again})
    return report


def replay(seed: int, scenario: str | None) -> str:
    """The command that shows a seed again."""
    return f"pccl simulate --seeds 1 --start {seed}" + (f" --scenario {scenario}" if scenario else "")


def _outcomes(seeds: range, scenario: str | None, defects: int, jobs: int | None) -> Iterator[Outcome]:
    tasks = [(seed, scenario, defects) for seed in seeds]
    wanted = min(os.cpu_count() or 1, JOBS_MAX, len(seeds) // SEEDS_PER_TASK) if jobs is None else jobs
    if wanted <= 1:
        yield from map(_task, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(wanted) as pool:
        yield from pool.imap(_task, tasks, SEEDS_PER_TASK)


def _task(task: tuple[int, str | None, int]) -> Outcome:
    seed, scenario, defects = task
    return run_seed(seed, scenario, defects)


def run_seed(seed: int, scenario: str | None = None, defects: int = 0, options: Options | None = None) -> Outcome:
    """One run. `options`: instead of those that the seed would draw."""
    random = Random(f"{seed}:{scenario or 'mix'}")
    drawn = draw_options(random) if options is None else options
    drawn.defects |= defects
    cluster = Cluster(seed, drawn)
    try:
        faults = Faults(cluster)
        play = mix if scenario is None else SCENARIOS[scenario]
        play(cluster, faults, random)
        settle(cluster)
        broken = cluster.watch.finish()
        return Outcome(
            seed=seed,
            ops=len(cluster.watch.works),
            commits=sum(work.status == 0 for work in cluster.watch.works),
            faults=faults.count,
            broken=tuple((finding.promise, finding.detail) for finding in broken),
            digest=cluster.digest,
            seconds=cluster.clock.now,
            trace=tuple(cluster.log),
            marks=dict(cluster.marks),
        )
    finally:
        cluster.close()


def settle(cluster: Cluster) -> None:
    """Runs until every program has ended, and on until nothing is under way any more."""
    end_ns = ns(SECONDS_MAX)
    while cluster.clock.now_ns < end_ns and cluster.run(SECONDS_MAX):
        cluster.run(FORGET_S if cluster.watch.deliveries.moving else SETTLE_S, until=lambda: False)
        if cluster.programs_ended():
            cluster.watch.deliveries.settled = True
            return


def draw_options(random: Random) -> Options:
    """A layout: sizes and times that make trouble likely."""
    delay_ns = random.choice((MILLISECOND // 10, MILLISECOND, 5 * MILLISECOND, 20 * MILLISECOND))
    return Options(
        min_peers=random.choice((1, 1, 2)),
        streams=random.choice((1, 2, 3)),
        segment_bytes=random.choice((256, 1024, 4096)),
        one_round_bytes_max=random.choice((0, 256, 4096, 1 << 40)),
        mesh_bytes_max=random.choice((0, 1000, 4096, 1 << 40)),
        eager_bytes=random.choice((1024, 8192, 1 << 20)),
        transport=random.choice(("sim", "sim", "faulty+sim")),
        harmful=random.random() < 0.3,
        quantum_ns=random.choice((0, 20_000, 100_000)),
        path=SimPath(delay_ns, delay_ns // 2),
    )


def mix(cluster: Cluster, faults: Faults, random: Random) -> None:
    """Everything at once, as much of it as the seed says."""
    peers = random.randint(2, 5)
    delay_s = cluster.options.path.delay_ns / 1e9
    boundaries = random.randint(4, 14)
    shape = Shape(
        boundaries=boundaries,
        ops_max=random.randint(1, 6),
        gap_s=random.choice((0.0, 2 * delay_s)),
        skip_chance=0.05 if random.random() < 0.1 else 0.0,
        leave=random.random() < 0.8,
    )
    if shape.skip_chance:
        cluster.watch.overdue_expected = True
        cluster.watch.expected.add(Status.EMISMATCH)
    traffic = Traffic(cluster, shape)
    behind_nat = random.randrange(peers) if random.random() < 0.2 else None
    for index in range(peers):
        cluster.add(traffic, hidden=random.choice((DIALS_LOST, DIALS_REFUSED)) if index == behind_nat else 0)
    if random.random() < 0.7:
        cluster.form_with(peers)
    Swarm(faults, random, lambda: faults.join(traffic), window_s=0.005 + 6 * boundaries * delay_s, peers=peers).draw()
