"""stage.py - what scenarios are made of: how they become known, and how the peers of a run begin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from pccl.testing.cluster import Cluster
from pccl.testing.faults import Faults
from pccl.testing.traffic import EVERY_KIND, Shape, Traffic

__all__ = ["SCENARIOS", "Scenario", "delay_ns", "delay_s", "every_kind", "hit_relay", "kill_links", "scenario", "start"]

Scenario = Callable[[Cluster, Faults, Random], None]
SCENARIOS: dict[str, Scenario] = {}


def scenario(play: Scenario) -> Scenario:
    """Makes it known by its name."""
    SCENARIOS[play.__name__] = play
    return play


def start(cluster: Cluster, peers: int, shape: Shape | None = None, hidden: dict[int, int] | None = None) -> Traffic:
    """A group of so many, of which some cannot be dialled, and its program."""
    traffic = Traffic(cluster, shape)
    for index in range(peers):
        cluster.add(traffic, hidden=(hidden or {}).get(index, 0))
    cluster.form_with(peers)
    return traffic


def delay_s(cluster: Cluster) -> float:
    """One way, of the data network as it was laid out."""
    return delay_ns(cluster) / 1e9


def delay_ns(cluster: Cluster) -> int:
    """The same."""
    return cluster.options.path.delay_ns


def kill_links(
    faults: Faults, pairs: Sequence[tuple[int, int]], seconds: float, after_s: float, *, both: bool = True
) -> None:
    """Cuts what leaves a way between any two; no op may miss its deadline for that."""

    def kill() -> None:
        for a, b in pairs:
            faults.cut(a, b, seconds, both=both, excuses=False)

    faults.when("epoch", pairs[0][0], then=kill, after_s=after_s)
    faults.mark("around", "log", "dead link")


def hit_relay(cluster: Cluster, how: Callable[[int], object]) -> None:
    """Something happens to the relay of a detour, if there is one."""
    plan = cluster.coordinator.group().plan
    if plan is not None and plan.detours:
        cluster.marks["relay hit"] += 1
        how(cluster.by_id[plan.order[plan.detours[0][2]]].index)


def every_kind(boundaries: int = 20) -> Shape:
    """Nobody leaves, who may be the relay of others."""
    return Shape(boundaries=boundaries, ops_max=4, gap_s=0.1, timeout_s=9.0, kinds=EVERY_KIND, leave=False)
