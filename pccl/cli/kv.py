"""``pccl kv``: what policies of offloading prefills to another datacenter would do to a trace of requests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pccl.cli._units import format_bytes

if TYPE_CHECKING:
    from pccl.kv.simulator.cluster import Topology
    from pccl.kv.simulator.report import Summary
    from pccl.kv.simulator.trace import Trace

GENERATED = ("conversation", "synthetic", "azure-code", "azure-conv")


@click.group("kv")
def command() -> None:
    """KV caches across datacenters."""


@command.command("simulate")
@click.argument("trace")
@click.option(
    "--policy", "policies", multiple=True, help="local, remote, threshold:T, model or greedy; may be repeated."
)
@click.option(
    "--gbit", "gbit_per_s", type=float, default=10.0, show_default=True, help="Bandwidth of the link, Gbit/s."
)
@click.option("--rtt", "rtt_ms", type=float, default=30.0, show_default=True, help="Round trip of the link, ms.")
@click.option("--remote", "n_remote", type=int, default=4, show_default=True, help="Remote prefill instances.")
@click.option("--prefill", "n_p", type=int, default=3, show_default=True, help="Local instances that prefill.")
@click.option("--decode", "n_d", type=int, default=5, show_default=True, help="Local instances that decode.")
@click.option("--decode-rate", type=float, help="Requests that one of these finishes in a second.  [default: 0.782]")
@click.option("--profiles", type=click.Path(dir_okay=False, path_type=Path), help="JSON: what a prefill takes.")
@click.option("--layers", type=int, default=32, show_default=True, help="Pieces in which a KV cache streams.")
@click.option("--slo", "slo_s", type=float, default=5.0, show_default=True, help="Seconds to the first token.")
@click.option("--cache-blocks", type=int, help="Blocks of each cluster's prefix cache.  [default: no bound]")
@click.option("--jitter", type=float, default=0.05, show_default=True, help="Noise of a prefill's time.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of that noise, and of a trace.")
@click.option("--requests", type=click.IntRange(1), help="Only so many.")
@click.option("--lax", is_flag=True, help="Skip malformed lines of a trace, and count them.")
@click.option("--csv", "csv_path", type=click.Path(dir_okay=False, path_type=Path), help="A line for each request.")
@click.option("--plot", "plot_path", type=click.Path(dir_okay=False, path_type=Path), help="A picture, .svg or .png.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each policy.")
def simulate(trace: str, policies: tuple[str, ...], **options: Any) -> None:
    """Replay TRACE under policies and compare them.

    TRACE is a file (Mooncake .jsonl, Azure .csv) or made up: conversation, synthetic, azure-code, azure-conv.
    Instances are an H200 (remote) and an H20 (local) with the hybrid model of docs/kv_routing.md, or of --profiles:
    {"remote": {"prefill_s": [[tokens, s], ...], "kv_bytes": [[tokens, bytes], ...]}, "local": ...}.
    """
    from pccl.kv.simulator.policies import policy_of
    from pccl.kv.simulator.report import draw, summary_of, write_csv
    from pccl.kv.simulator.run import simulate as replay

    found = trace_of(trace, options["seed"], options["requests"], strict=not options["lax"])
    topology = topology_of(options)
    chosen = policies or ("local", "remote", "model", "greedy")
    if options["csv_path"] is not None and len(chosen) != 1:
        raise click.UsageError("--csv is about one policy; say --policy once")
    outcomes = [replay(found, topology, policy_of(name, topology), options["seed"]) for name in chosen]
    rows = [summary_of(outcome) for outcome in outcomes]
    if options["csv_path"] is not None:
        write_csv(outcomes[0], options["csv_path"])
    if options["plot_path"] is not None:
        draw(outcomes, options["plot_path"])
    if options["as_json"]:
        for row in rows:
            click.echo(json.dumps({"trace": found.name, "skipped": found.skipped, **asdict(row)}))
    else:
        show(found, topology, rows)


def trace_of(name: str, seed: int, requests: int | None, strict: bool) -> Trace:
    """Made up, or read."""
    from pccl.kv.simulator.generate import generated
    from pccl.kv.simulator.trace import read

    if name in GENERATED:
        return generated(name, seed, requests)
    trace = read(Path(name), strict)
    return trace if requests is None else trace.first(requests)


def topology_of(options: dict[str, Any]) -> Topology:
    """From the options."""
    from pccl.kv.model.case_study import DECODE_PER_S, H20, H200
    from pccl.kv.model.decide import Paths
    from pccl.kv.simulator.cluster import Topology

    remote, local = H200, H20
    if options["profiles"] is not None:
        remote, local = profiles_of(options["profiles"])
    rate = options["decode_rate"]
    return Topology(
        Paths(remote, local, options["layers"], options["rtt_ms"] / 1e3, slo_s=options["slo_s"]),
        options["n_remote"],
        options["n_p"],
        options["n_d"],
        DECODE_PER_S if rate is None else rate,
        options["gbit_per_s"] * 125e6,
        options["cache_blocks"],
        options["jitter"],
    )


def profiles_of(path: Path) -> tuple[Any, Any]:
    """(remote, local) of a JSON file."""
    from pccl.errors import ArgumentError
    from pccl.kv.model.profile import Profile

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{path}: {error}") from None
    if not isinstance(found, dict) or not {"remote", "local"} <= found.keys():
        raise ArgumentError(f"{path}: there must be an object with remote and local")
    return Profile.from_dict("remote", found["remote"]), Profile.from_dict("local", found["local"])


def show(trace: Trace, topology: Topology, rows: Sequence[Summary]) -> None:
    """A table, a line for each policy."""
    from rich.console import Console
    from rich.table import Table

    skipped = f", {trace.skipped} malformed lines skipped" if trace.skipped else ""
    table = Table(
        title=f"{trace.name}: {len(trace)} requests in {trace.duration_s:.0f} s{skipped}; "
        f"{topology.bandwidth_bytes_per_s / 125e6:g} Gbit/s, {topology.paths.rtt_s * 1e3:g} ms",
        title_justify="left",
    )
    table.add_column("policy", no_wrap=True)
    for heading in ("P50 s", "P90 s", "P99 s", "SLO %", "offload %", "link %", "sent", "saved"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        times = (f"{seconds:.2f}" for seconds in (row.ttft_p50_s, row.ttft_p90_s, row.ttft_p99_s))
        parts = (f"{100 * part:.1f}" for part in (row.within_slo, row.offloaded, row.link_utilisation))
        table.add_row(row.policy, *times, *parts, format_bytes(row.sent_bytes), format_bytes(row.saved_bytes))
    Console().print(table)
