"""planning.py - what the planner makes of random geographies: its time beside a plain ring's and the least possible.

All times are predictions (pccl/coordinator/cost.py) for the geography as it is. The planner of `ours_s` knows it: every
path as measured alone, and every peer's line. That of `blind_s` knows the paths but not the lines, as a coordinator
does whose peers measure only paths.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from pccl.coordinator.cost import Measurements
from pccl.coordinator.plan import SEGMENT_BYTES, Plan, plan, predict
from pccl.types import Algorithm

from .bounds import bound_s
from .geography import Geography, geography

Row = dict[str, Any]


def rows(peers: Sequence[int], sizes: Sequence[int], seeds: int, first_seed: int, where: str) -> Iterator[Row]:
    """One per number of peers, seed and size."""
    warm = geography(3, 0)
    plan(warm.members, warm.measured())  # the solver is loaded with the first plan
    for count in peers:
        for seed in range(first_seed, first_seed + seeds):
            yield from _rows_of(geography(count, seed, where), sizes, {"where": where, "seed": seed})


def _rows_of(world: Geography, sizes: Sequence[int], known: Row) -> Iterator[Row]:
    members, truth = world.members, world.measured()
    chosen, wall_s, cpu_s = _timed_plan(world, truth)
    blind, _, _ = _timed_plan(world, world.measured(with_caps=False))
    ring = Plan(1, SEGMENT_BYTES, 0, tuple(member.id for member in members), Algorithm.RING)
    for nbytes in sizes:
        ours_s = predict(chosen, members, truth, nbytes)
        ring_s = predict(ring, members, truth, nbytes)
        least_s, kind = bound_s(world, nbytes)
        yield {
            "peers": len(members),
            "sites": int(world.site.max()) + 1,
            **known,
            "bytes": nbytes,
            "ring_s": ring_s,
            "ours_s": ours_s,
            "blind_s": predict(blind, members, truth, nbytes),
            "bound_s": least_s,
            "bound": kind,
            "speedup": ring_s / ours_s,
            "fraction": least_s / ours_s,
            "algorithm": _algorithm(chosen, nbytes),
            "reason": chosen.reason,
            "plan_ms": wall_s * 1e3,
            "plan_cpu_ms": cpu_s * 1e3,
        }


def _timed_plan(world: Geography, known: Measurements) -> tuple[Plan, float, float]:
    wall, cpu = time.perf_counter(), time.thread_time()
    chosen = plan(world.members, known)
    return chosen, time.perf_counter() - wall, time.thread_time() - cpu


def _algorithm(chosen: Plan, nbytes: int) -> str:
    """What an all-reduce of this size takes."""
    few = len(chosen.order) <= 2 or nbytes <= chosen.mesh_bytes_max
    return "mesh" if few else Algorithm(chosen.large_algorithm).name.lower()
