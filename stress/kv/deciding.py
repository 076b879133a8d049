"""deciding.py - how quick are solving, deciding and simulating, and does the moving floor beat every fixed threshold?

    python -m stress.kv.deciding [--seeds 1] [--quick] [--json]

Times are those of one core, the best of ROUNDS. Then a conversation-like trace at 5, 10 and 25 Gbit/s under every fixed
threshold of THRESHOLDS, the model's and pccl.kv's own policy: P90 and P99 of the time to the first token. Then traces
of short prompts, of which nothing should be offloaded. Exit code 1 when a bound is not kept, or a fixed threshold is
better. `--quick`: fewer thresholds, and 4,000 requests.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pccl.kv.model.case_study import DECODE_PER_S, H20, H200, case_study
from pccl.kv.model.decide import Load, Paths, Plan, decide
from pccl.kv.model.lengths import Lengths
from pccl.kv.model.throughput import ThroughputModel
from pccl.kv.simulator.cluster import Topology
from pccl.kv.simulator.generate import generated
from pccl.kv.simulator.policies import policy_of
from pccl.kv.simulator.report import Summary, summary_of
from pccl.kv.simulator.run import simulate
from pccl.kv.simulator.trace import Trace

GBIT = 125e6
GBITS = (5, 10, 25)
ROUNDS = 5
THRESHOLDS = (
    *range(0, 8000, 500),
    *range(8000, 16_000, 1000),
    *range(16_000, 30_000, 2000),
    19_400,
    *range(30_000, 50_000, 4000),
)
QUICK = (0, 2000, 4000, 8000, 12_000, 16_000, 19_400, 32_000)
PATHS = Paths(H200, H20)
#: What is wanted: ms, us, s.
BOUNDS = {"solve_ms": 50.0, "decide_us": 50.0, "fifty_policies_s": 60.0}


def best_of(run: Callable[[], object], calls: int) -> float:
    """Seconds for one call."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(calls):
            run()
        times.append((time.perf_counter() - start) / calls)
    return min(times)


def solve_ms() -> float:
    """A model of 2,000 lengths, new every time, with every division."""
    samples = case_study().lengths.tokens
    return 1e3 * best_of(
        lambda: ThroughputModel(H200, H20, 4, 8, DECODE_PER_S, 10 * GBIT, Lengths.of(samples)).solve(), 20
    )


def decide_us() -> float:
    """With its load, by the last rule, a pull weighed."""
    plan = Plan("offload", 1000.0, 19_400.0, "benchmark")
    return 1e6 * best_of(
        lambda: decide(30_000, 9000, 2000, Load(10 * GBIT, 1e8, 0.5, 0.1, 0.2, 4, 3), PATHS, plan, deadline_s=60.0),
        5000,
    )


def topology(gbit: float) -> Topology:
    """The published case's: 4 remote instances, 3 and 5 local ones."""
    return Topology(PATHS, 4, 3, 5, DECODE_PER_S, gbit * GBIT)


def row_of(trace: Trace, policy: str, where: Topology, seed: int) -> Summary:
    """One simulation."""
    return summary_of(simulate(trace, where, policy_of(policy, where), seed))


def fifty_policies_s(trace: Trace) -> float:
    """All of THRESHOLDS and the others, up to fifty."""
    names = [f"threshold:{t}" for t in sorted(set(THRESHOLDS))]
    names = [*["local", "remote", "model", "greedy"] * 10, *names][: 50 - len(names)] + names
    start = time.perf_counter()
    for name in names:
        row_of(trace, name, topology(10), 0)
    return (time.perf_counter() - start) * 50 / len(names)


def compared(trace: Trace, gbit: float, thresholds: tuple[int, ...], seed: int) -> dict[str, Any]:
    """Greedy and the model beside the best of the fixed thresholds, by P90 and by P99."""
    where = topology(gbit)
    fixed = {t: row_of(trace, f"threshold:{t}", where, seed) for t in thresholds}
    greedy, model = (row_of(trace, name, where, seed) for name in ("greedy", "model"))
    by_p90 = min(fixed, key=lambda t: fixed[t].ttft_p90_s)
    by_p99 = min(fixed, key=lambda t: fixed[t].ttft_p99_s)
    beaten = all(greedy.ttft_p90_s < row.ttft_p90_s and greedy.ttft_p99_s < row.ttft_p99_s for row in fixed.values())
    return {
        "gbit": gbit,
        "greedy": (greedy.ttft_p90_s, greedy.ttft_p99_s),
        "model": (model.ttft_p90_s, model.ttft_p99_s),
        "best P90": (by_p90, fixed[by_p90].ttft_p90_s, fixed[by_p90].ttft_p99_s),
        "best P99": (by_p99, fixed[by_p99].ttft_p90_s, fixed[by_p99].ttft_p99_s),
        "offloaded": greedy.offloaded,
        "link": greedy.link_utilisation,
        "thresholds": len(fixed),
        "greedy is best": beaten,
    }


def short_prompts(name: str, decode_per_s: float, seed: int, requests: int | None) -> dict[str, Any]:
    """What greedy offloads where 8 local instances, divided as is best without the remote cluster, suffice."""
    trace = generated(name, seed, requests)
    lengths = Lengths.of(trace.input_tokens.astype(np.float64))
    alone = ThroughputModel(H200, H20, 4, 8, decode_per_s, 25 * GBIT, lengths).homogeneous()
    where = Topology(PATHS, 4, alone.n_p, alone.n_d, decode_per_s, 25 * GBIT)
    row = row_of(trace, "greedy", where, seed)
    return {"trace": name, "n_p": alone.n_p, "offloaded": row.offloaded, "p99_s": row.ttft_p99_s}


def measure(seeds: int, quick: bool) -> dict[str, Any]:
    """Everything."""
    requests = 4000 if quick else None
    found: dict[str, Any] = {"solve_ms": solve_ms(), "decide_us": decide_us()}
    found["fifty_policies_s"] = fifty_policies_s(generated("conversation", 0, requests))
    thresholds = QUICK if quick else tuple(sorted(set(THRESHOLDS)))
    found["conversation"] = [
        {"seed": seed, **compared(generated("conversation", seed, requests), gbit, thresholds, seed)}
        for seed in range(seeds)
        for gbit in GBITS
    ]
    found["short"] = [
        short_prompts(name, rate, seed, requests)
        for seed in range(seeds)
        for name, rate in (("azure-code", 20.0), ("azure-conv", 3.8))
    ]
    found["kept"] = (
        all(found[name] < bound for name, bound in BOUNDS.items())
        and all(row["greedy is best"] for row in found["conversation"])
        and all(row["offloaded"] == 0 for row in found["short"])
    )
    return found


def show(found: dict[str, Any]) -> None:
    """As lines."""
    print(f"solve, 2,000 lengths: {found['solve_ms']:.2f} ms; decide: {found['decide_us']:.1f} us")
    print(f"50 policies: {found['fifty_policies_s']:.1f} s")
    for row in found["conversation"]:
        (t90, a90, a99), (t99, b90, b99) = row["best P90"], row["best P99"]
        (g90, g99), (m90, m99) = row["greedy"], row["model"]
        print(
            f"seed {row['seed']}, {row['gbit']:>2} Gbit/s, P90/P99 s: greedy {g90:.3f}/{g99:.2f}, "
            f"model {m90:.2f}/{m99:.2f}, of {row['thresholds']} fixed t={t90} {a90:.3f}/{a99:.2f} and "
            f"t={t99} {b90:.2f}/{b99:.2f}; offloaded {row['offloaded']:.2f}, link {row['link']:.2f}; "
            f"greedy is {'' if row['greedy is best'] else 'NOT '}best"
        )
    for row in found["short"]:
        print(f"{row['trace']}: {row['n_p']} of 8 prefill, offloaded {row['offloaded']:.4f}, P99 {row['p99_s']:.2f} s")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="How quick and how good are decisions of pccl.kv?")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(arguments.seeds, arguments.quick)
    print(json.dumps(found)) if arguments.json else show(found)
    return 0 if found["kept"] else 1


if __name__ == "__main__":
    sys.exit(main())
