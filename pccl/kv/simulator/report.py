"""report.py - what a simulation says: one row per policy, one line per request as CSV, a picture of all policies.

The P99 stands beside the P90: with a tenth of the requests offloaded, the P90 cannot see a link that is full.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pccl.errors import ArgumentError
from pccl.kv.simulator.run import Outcome

__all__ = ["Summary", "draw", "summary_of", "write_csv"]

#: Columns of the CSV, a line for each request.
COLUMNS = (
    "request",
    "arrival_s",
    "input_tokens",
    "uncached_tokens",
    "where",
    "threshold_tokens",
    "ttft_s",
    "predicted_s",
    "sent_bytes",
    "saved_bytes",
    "pulled_bytes",
    "extrapolated",
    "reason",
)


@dataclass(frozen=True, slots=True)
class Summary:
    """`link_utilisation`: bytes sent, by what the link could have carried from the first arrival to the last first
    token; `link_offered`: by the time of arrivals alone, above 1 in overload. `saved_bytes`: what prefixes that were
    cached here made needless to send. `within_slo`: part of the requests. `error_p90`: of predictions, as a part of
    what came; `extrapolated`: decisions by lengths beyond a profile.
    """

    policy: str
    requests: int
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    within_slo: float
    offloaded: float
    link_utilisation: float
    link_offered: float
    sent_bytes: float
    saved_bytes: float
    pulled_bytes: float
    error_p90: float
    extrapolated: int


def summary_of(outcome: Outcome) -> Summary:
    """Of all requests."""
    p50, p90, p99 = (float(found) for found in np.percentile(outcome.ttft_s, (50, 90, 99)))
    capacity = outcome.topology.bandwidth_bytes_per_s
    sent = float(outcome.sent_bytes.sum())
    duration_s = max(outcome.trace.duration_s, 1e-9)
    return Summary(
        policy=outcome.policy,
        requests=len(outcome.trace),
        ttft_p50_s=p50,
        ttft_p90_s=p90,
        ttft_p99_s=p99,
        within_slo=float((outcome.ttft_s <= outcome.topology.paths.slo_s).mean()),
        offloaded=float(outcome.remote.mean()),
        link_utilisation=sent / capacity / max(outcome.end_s - float(outcome.trace.arrival_s[0]), 1e-9),
        link_offered=sent / capacity / duration_s,
        sent_bytes=sent,
        saved_bytes=float(outcome.saved_bytes.sum()),
        pulled_bytes=float(outcome.pulled_bytes.sum()),
        error_p90=float(np.percentile(np.abs(outcome.predicted_s - outcome.ttft_s) / outcome.ttft_s, 90)),
        extrapolated=int(outcome.extrapolated.sum()),
    )


def write_csv(outcome: Outcome, path: Path) -> None:
    """A line for each request. ArgumentError if the file cannot be written."""
    trace = outcome.trace
    rows = zip(
        range(len(trace)),
        trace.arrival_s.tolist(),
        trace.input_tokens.tolist(),
        outcome.uncached_tokens.tolist(),
        ("remote" if away else "local" for away in outcome.remote),
        outcome.threshold.tolist(),
        outcome.ttft_s.tolist(),
        outcome.predicted_s.tolist(),
        outcome.sent_bytes.tolist(),
        outcome.saved_bytes.tolist(),
        outcome.pulled_bytes.tolist(),
        outcome.extrapolated.astype(int).tolist(),
        outcome.reasons,
        strict=True,
    )
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(rows)
    except OSError as error:
        raise ArgumentError(f"{path}: {error.strerror}") from None


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """How many requests have had their first token after how long, a curve for each policy; the same picture for the
    same outcomes. Wants matplotlib (pccl[plot]): ArgumentError without it.
    """
    try:
        import matplotlib
    except ImportError:
        raise ArgumentError("a plot wants matplotlib: pip install pccl[plot]") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "pccl"
    chart, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for outcome in outcomes:
        share = 100.0 * (1.0 - np.arange(len(outcome.ttft_s)) / len(outcome.ttft_s))
        axes.step(np.sort(outcome.ttft_s), share, where="post", label=outcome.policy)
    axes.axvline(outcomes[0].topology.paths.slo_s, color="black", linewidth=0.8, linestyle=":", label="SLO")
    axes.set(xscale="log", yscale="log", xlabel="time to the first token, s", ylabel="requests that wait longer, %")
    axes.set_title(outcomes[0].trace.name)
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=8)
    try:
        chart.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{path}: {error}") from None
    finally:
        pyplot.close(chart)
