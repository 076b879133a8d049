"""One row: all that is known and was measured of a scenario, as plain values. ../README.md says what they mean.

Pure, apart from the linear program of the bound.
"""

from __future__ import annotations

import statistics
from typing import Any

from ..bound import bound, shortest_s
from ..ring_bound import PEERS_MAX, ring_bound
from ..topology import Topology
from .measure import Measurement, Samples
from .scenarios import MIB, Scenario
from .targets import Row

REFERENCE_BYTES = 64 * MIB  # what the planner's predictions are for
DELAYS_OF_A_SMALL_OP = 3


def network_of(name: str, scenario: Scenario, topology: Topology) -> Row:
    """The part that is known beforehand: the worst pair's figures, and the bounds."""
    names = [site.name for site in topology.peers]
    pairs = [(a, b) for a in names for b in names if a != b]
    links, rates = topology.links, [topology.expected_mbit(*pair) for pair in pairs]
    best, ring = bound(topology, scenario.nbytes), None
    if len(names) <= PEERS_MAX:
        ring = ring_bound(topology, scenario.nbytes).total_s
    return {
        "kind": "times",
        "scenario": name,
        "sites": len(names),
        "bytes": scenario.nbytes,
        "rtt_ms": max(links[a, b].delay_ms + links[b, a].delay_ms for a, b in pairs),
        "loss": max(links[pair].loss for pair in pairs),
        "rate_mbit": min((rate for rate in rates if rate), default=0.0),
        "bound_s": best.total_s,
        "bound_transfer_s": best.transfer_s,
        "bound_delay_s": best.delay_s,
        "mesh_bound_s": bound(topology, scenario.nbytes, direct=True).total_s,
        "ring_bound_s": ring,
        "delays_limit_s": DELAYS_OF_A_SMALL_OP * max(shortest_s(topology).values()) + best.transfer_s,
    }


def row_of(known: Row, scenario: Scenario, sides: tuple[str, ...], found: Measurement | None, failure: str) -> Row:
    """All of the row; null for what was not measured."""
    samples = found.samples if found else {}
    plan = found.plans.get("ours", {}) if found else {}
    row = {
        **known,
        "sides": {side: side_of(samples.get(side, Samples())) for side in sides},
        "plan": {key: value for key, value in plan.items() if key != "log"},
        "streams": found.streams if found else None,
        "retries": found.retries if found else None,
        "congestion": found.crew.congestion if found else None,
        "router_late_max_ms": found.late_us_max / 1e3 if found else None,
        "warm_ups": found.warm_ups if found else 0,
        "failure": failure,
    }
    row["expected_s"] = plan.get("expected_s") if known["bytes"] == REFERENCE_BYTES else None
    row["figures"] = figures_of(row)
    row["targets"] = [target.judge(row) for target in scenario.targets]
    return rounded(row)


def side_of(samples: Samples) -> Row:
    """Medians of one side, and its times."""
    medians = {name: median(getattr(samples, name)) for name in ("sent_bytes", "wire_bytes", "lost_packets")}
    return {"s": samples.median_s(), **medians, "samples_s": samples.seconds}


def figures_of(row: Row) -> dict[str, float | None]:
    """What targets are about; each is better the larger it is, but for bytes."""

    def of(side: str, what: str = "s") -> float | None:
        found: float | None = row["sides"].get(side, {}).get(what)
        return found

    ours = of("ours")
    return {
        "fraction": ratio(row["bound_s"], ours),
        "vs_gloo": ratio(of("gloo"), ours),
        "vs_one_stream": ratio(of("one_stream"), ours),
        "vs_ring": ratio(of("ring"), ours),
        "vs_ring_bound": ratio(row["ring_bound_s"], ours),
        "vs_delays": ratio(row["delays_limit_s"], ours),
        "int8_bytes": ratio(of("int8", "sent_bytes"), of("ours", "sent_bytes")),
        "e3m0_bytes": ratio(of("e3m0", "sent_bytes"), of("ours", "sent_bytes")),
        "int8_speed": ratio(ours, of("int8")),
        "e3m0_speed": ratio(ours, of("e3m0")),
        "expected": ratio(row["expected_s"], ours),
    }


def ratio(dividend: float | None, divisor: float | None) -> float | None:
    return None if dividend is None or not divisor else dividend / divisor


def median(values: list[int]) -> int | None:
    return int(statistics.median(values)) if values else None


def rounded(value: Any) -> Any:
    """Four digits after the point say all that there is."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value
