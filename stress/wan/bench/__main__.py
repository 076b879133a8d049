"""`python -m stress.wan.bench`: the command line, and the way from a scenario to its row."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from pccl.cli._units import ListOf, format_bytes
from pccl.coordinator.fixed import ALGORITHMS

from ..emulator import Emulator
from ..lines import WorkerError
from ..namespaces import NamespaceError, why_not
from ..router import RouterError
from ..run import main_guard
from ..topology import Topology, TopologyError
from . import faults, report, store
from .crew import Crew
from .faults import FAULTS, Fault
from .measure import Measurement, Rounds
from .plot import draw
from .rows import network_of, row_of
from .scenarios import SCENARIOS, Scenario
from .sides import SIDES, Run
from .targets import Row

NEEDED = {"yaml": "PyYAML", "scipy": "SciPy", "pccl": "pccl"}
NAMES = [*SCENARIOS, *FAULTS]


def missing(sides: Collection[str], picture: bool) -> str | None:
    """Why nothing can be measured here."""
    needed = {**NEEDED, **({"torch": "PyTorch"} if "gloo" in sides else {})}
    needed |= {"matplotlib": "Matplotlib"} if picture else {}
    absent = [label for module, label in needed.items() if importlib.util.find_spec(module) is None]
    return f"{', '.join(absent)} not installed" if absent else why_not()


@contextmanager
def at_work(topology: Topology, sides: tuple[str, ...], ours: Run) -> Iterator[tuple[Crew | None, str]]:
    """(the crew, "") or (None, why there is none). What does not end in order at the end is killed, and that is all."""
    with Emulator(topology, large_packets=True) as wan:
        try:
            crew = Crew(wan, sides, ours)
        except WorkerError as error:
            yield None, str(error)
            return
        yield crew, ""
        try:
            crew.end()
        except (WorkerError, subprocess.TimeoutExpired) as error:
            click.echo(f"not ended in order: {error}", err=True)


def rows_of(
    name: str, scenarios: Sequence[Scenario], without: Collection[str], rounds: Rounds, ours: Run
) -> Iterator[Row]:
    """One network and one crew for all sizes; after a failure the rest has empty rows."""
    sides = tuple(side for side in ("ours", *scenarios[0].sides) if side not in without)
    topology = scenarios[0].load()
    known = [network_of(name, scenario, topology) for scenario in scenarios]
    with at_work(topology, sides, ours) as (crew, failure):
        for part, scenario in zip(known, scenarios, strict=True):
            found = None
            if crew is not None and not failure:
                found = Measurement(crew, scenario, sides, rounds)
                found.run()
                failure = found.failure
            yield row_of(part, scenario, sides, found, failure)


def fault_row(name: str, fault: Fault) -> Row:
    figures: faults.Figures = {}
    plan: Row = {}
    with at_work(fault.load(), ("ours",), fault.ours) as (crew, failure):
        if crew is not None:
            try:
                figures = fault.play(crew)
                plan = crew.plans()["ours"]
            except WorkerError as error:
                failure = str(error)
    return faults.row_of(name, fault, figures, plan, failure)


def announce(row: Row, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(row))
        return
    known = {SIDES[side].label: of["s"] for side, of in row.get("sides", {}).items()} or row["figures"]
    words = ", ".join(f"{label} {report.figure(value)}" for label, value in known.items())
    click.echo(f"{row['scenario']}, {format_bytes(row['bytes'])}: {words}", err=True)
    if row["failure"]:
        click.echo(f"{row['scenario']}: {row['failure']}", err=True)


def conclude(rows: Sequence[Row], folder: Path | None, as_json: bool, limits: bool) -> int:
    """Shows what there is; the exit code."""
    if not as_json:
        report.show(rows)
    if folder is not None and rows:
        with (folder / "wan.txt").open("w", encoding="utf-8") as file:
            report.show(rows, file)
        draw([row for row in rows if row["kind"] == "times"], folder / "wan.png")
    return int(any(row["failure"] for row in rows) or (limits and report.missed(rows)))


@click.command()
@click.option("--scenarios", help=f"Comma-separated, of {', '.join(NAMES)}; or topologies.  [default: all]")
@click.option("--sizes", type=ListOf("sizes"), help="Instead of the scenarios' own.")
@click.option("--without", multiple=True, type=click.Choice([*SIDES][1:]), help="A side that is left out.")
@click.option("--rounds", "ours", type=click.IntRange(1), default=5, show_default=True, help="Samples of ours.")
@click.option("--gloo-rounds", "gloo", type=click.IntRange(1), default=2, show_default=True, help="Of gloo, at most.")
@click.option("--settle", "settle_s", default=25.0, show_default=True, help="Seconds of warm-up of each of ours.")
@click.option("--budget", "budget_s", default=60.0, show_default=True, help="Seconds that all samples may take.")
@click.option("--streams", type=click.IntRange(1, 64), help="Fix the streams of ours.")
@click.option("--algorithm", type=click.Choice(list(ALGORITHMS)), default="auto", help="Fix the algorithm of ours.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per row instead of tables.")
@click.option("--out", "folder", type=click.Path(file_okay=False, path_type=Path), help="For rows, tables, picture.")
@click.option("--show", "only_show", is_flag=True, help="Measure nothing: tables and picture of the rows in --out.")
@click.option("--no-limits", "lenient", is_flag=True, help="A target that is missed is no failure.")
@click.option("--if-possible", is_flag=True, help="Where no WAN can be emulated: say why, and succeed.")
def main(
    scenarios: str | None,
    sizes: list[int] | None,
    without: tuple[str, ...],
    streams: int | None,
    algorithm: str,
    as_json: bool,
    folder: Path | None,
    only_show: bool,
    lenient: bool,
    if_possible: bool,
    **rounds: Any,
) -> None:
    """Time all-reduce between the sites of emulated WANs, checking every result; break things amid it.

    Exit code 1: something failed, a sum was wrong, or a target was missed.
    """
    main_guard()
    saved = None if folder is None else folder / "wan.jsonl"
    if only_show:
        sys.exit(conclude(store.read(saved) if saved else [], folder, as_json, not lenient))
    names = scenarios.split(",") if scenarios else NAMES
    timed = {name: SCENARIOS.get(name, Scenario(name)) for name in names if name not in FAULTS}
    if reason := missing({side for scenario in timed.values() for side in scenario.sides} - {*without}, bool(folder)):
        click.echo(f"WAN benchmark not run: {reason}", err=True)
        sys.exit(0 if if_possible else 1)
    rows: list[Row] = []
    for name in names:
        if name in timed:
            parts = [timed[name].of_size(nbytes) for nbytes in sizes or (timed[name].nbytes,)]
            made = rows_of(name, parts, without, Rounds(**rounds), Run(streams, algorithm))
        else:
            made = iter([fault_row(name, FAULTS[name])])
        for row in made:
            rows.append(row)
            announce(row, as_json)
            if saved is not None:
                store.append(saved, row)
    sys.exit(conclude(store.read(saved) if saved is not None else rows, folder, as_json, not lenient))


if __name__ == "__main__":
    try:
        main(prog_name="python -m stress.wan.bench")
    except (TopologyError, RouterError, NamespaceError) as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit(130)
