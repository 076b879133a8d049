"""`python -m stress.scale_sim`: beyond this machine. Plans for 8 to 1,024 peers, and the coordinator under as many.

`plan` predicts; nothing moves. `coordinator` runs the real one, and simulated sessions speak to it over real sockets.
Both print a table, or with --json one object per row. What the columns mean: scale/README.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from pccl.cli._units import ListOf, format_bytes, format_ms

from .scale import load, planning

Row = dict[str, Any]
TABLE_COLUMNS = 140  # where there is no terminal to ask


@click.group()
def main() -> None:
    """Numbers of peers that no single machine can run."""


def seconds(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


PLAN_COLUMNS: dict[str, Callable[[Row], str]] = {
    "peers": lambda row: str(row["peers"]),
    "sites": lambda row: str(row["sites"]),
    "size": lambda row: format_bytes(row["bytes"]),
    "ring s": lambda row: seconds(row["ring_s"]),
    "pccl s": lambda row: seconds(row["ours_s"]),
    "ring/pccl": lambda row: f"{row['speedup']:.1f}",
    "bound s": lambda row: seconds(row["bound_s"]),
    "by": lambda row: row["bound"],
    "bound/pccl": lambda row: f"{row['fraction']:.2f}",
    "blind s": lambda row: seconds(row["blind_s"]),
    "plan ms": lambda row: f"{row['plan_ms']:.0f}",
    "algorithm": lambda row: row["algorithm"],
}


@main.command("plan")
@click.option("--peers", type=ListOf("numbers"), default="8,16,32,64,128,256,512,1024", show_default=True)
@click.option("--sizes", type=ListOf("sizes"), default="64MiB,1MiB", show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Geographies of each number.")
@click.option("--start", type=click.IntRange(0), default=1, show_default=True, help="The first seed.")
@click.option("--where", type=click.Choice(["cities", "sphere"]), default="cities", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per row.")
def plan_command(peers: list[int], sizes: list[int], seeds: int, start: int, where: str, as_json: bool) -> None:
    """Predicted all-reduce times on random geographies: our plan, a ring in the order of joining, the bound."""
    rows = []
    for row in planning.rows(peers, sizes, seeds, start, where):
        rows.append(row)
        report(row, as_json)
    if not as_json:
        show(rows, PLAN_COLUMNS, f"all-reduce, float32, predicted; peers in {where}")
        click.echo("\n".join(f"{row['peers']}: {row['reason']}" for row in rows if row["bytes"] == sizes[0]))


LOAD_COLUMNS: dict[str, Callable[[Row], str]] = {
    "sessions": lambda row: str(row["sessions"]),
    "event": lambda row: row["event"],
    "trials": lambda row: str(row["trials"]),
    "messages": lambda row: str(row["messages"]),
    "bytes": lambda row: format_bytes(row["bytes"]) if "bytes" in row else "-",
    "median ms": lambda row: format_ms(row.get("median_ms")),
    "worst ms": lambda row: format_ms(row["worst_ms"]),
    "coordinator CPU ms": lambda row: format_ms(row["coordinator_cpu_ms"]),
}


@main.command("coordinator")
@click.option("--sessions", "sizes", type=ListOf("numbers"), default="8,64,256,1000", show_default=True)
@click.option("--trials", type=click.IntRange(1), default=3, show_default=True, help="Of each kind of event.")
@click.option("--lease", "lease_s", type=click.FloatRange(min=1.0), default=10.0, show_default=True)
@click.option("--replan/--no-replan", default=True, show_default=True, help="Also figures and a new plan: 12 s each.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per row.")
def coordinator_command(sizes: list[int], trials: int, lease_s: float, replan: bool, as_json: bool) -> None:
    """The real coordinator under simulated sessions on loopback: messages and milliseconds per event."""
    rows = []
    for row in load.rows(sizes, trials, lease_s, replan):
        rows.append(row)
        report(row, as_json)
    if not as_json:
        show(rows, LOAD_COLUMNS, "per event; times until the last session has the new epoch")


def report(row: Row, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({key: rounded(value) for key, value in row.items()}))


def rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def show(rows: Sequence[Row], columns: dict[str, Callable[[Row], str]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(cell(row) for cell in columns.values()))
    Console(width=None if sys.stdout.isatty() else TABLE_COLUMNS).print(table)


if __name__ == "__main__":
    main(prog_name="python -m stress.scale_sim")
