"""Rows for people: a table of times, one of what was wanted, and why each plan was chosen. Pure, but for the screen."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from pccl.cli._units import format_bytes

from .sides import SIDES
from .targets import Row

TABLE_COLUMNS = 200  # where there is no terminal to ask
VERDICT = {True: "yes", False: "NO", None: "not measured"}


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def seconds_of(row: Row, side: str) -> str:
    return figure(row["sides"].get(side, {}).get("s"))


def plan_of(row: Row) -> str:
    """As in "mesh x 3": the algorithm of ops of this size, and the streams of a link."""
    plan = row["plan"]
    if not plan:
        return "-"
    algorithm = "mesh" if row["bytes"] <= plan["mesh_bytes_max"] else plan["algorithm"].replace("_", "-")
    return f"{algorithm} x {row['streams']}"


TIMES: dict[str, Callable[[Row], str]] = {
    "scenario": lambda row: row["scenario"] + (" (!)" if row["failure"] else ""),
    "size": lambda row: format_bytes(row["bytes"]),
    "RTT ms": lambda row: f"{row['rtt_ms']:g}",
    "loss %": lambda row: f"{100 * row['loss']:g}",
    "Mbit/s": lambda row: f"{row['rate_mbit']:g}",
    "bound": lambda row: figure(row["bound_s"]),
    "pccl": lambda row: seconds_of(row, "ours"),
    "bound/pccl": lambda row: figure(row["figures"]["fraction"]),
    "1 stream": lambda row: seconds_of(row, "one_stream"),
    "gloo": lambda row: seconds_of(row, "gloo"),
    "gloo/pccl": lambda row: figure(row["figures"]["vs_gloo"]),
    "ring": lambda row: seconds_of(row, "ring"),
    "ring bound": lambda row: figure(row["ring_bound_s"]),
    "expected": lambda row: figure(row["expected_s"]),
    "plan": plan_of,
    "late ms": lambda row: figure(row["router_late_max_ms"]),
}
WANTED: dict[str, Callable[[Row, Row], str]] = {
    "scenario": lambda row, target: row["scenario"],
    "what": lambda row, target: target["what"],
    "wanted": lambda row, target: target["wanted"],
    "found": lambda row, target: figure(target["found"]),
    "so": lambda row, target: VERDICT[target["ok"]],
}
NOTES = """\
Seconds: the median over rounds of the slowest site's time; "ring" is ours with the ring fixed. "bound": the least
time of any all-reduce here, by a linear program over the rates of pairs and sites, and two one-way delays; TCP and IP
headers alone take 3.5 % of a rate. "expected": what the planner predicts for 64 MiB by the figures at the end. "late":
how late the emulator was at worst; beyond a few milliseconds the machine was too busy."""


def table(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]], left: Sequence[str]) -> Any:
    from rich.table import Table

    made = Table(title=title, title_justify="left")
    for heading in headings:
        made.add_column(heading, justify="left" if heading in left else "right", no_wrap=True)
    for line in lines:
        made.add_row(*line)
    return made


def reasons(rows: Sequence[Row]) -> list[str]:
    """Why each plan was chosen; of failures, what went wrong."""
    plans = [f"{row['scenario']}: {row['plan']['reason']}" for row in rows if row["plan"]]
    return plans + [f"{row['scenario']} failed: {row['failure']}" for row in rows if row["failure"]]


def codec_lines(rows: Sequence[Row]) -> list[list[str]]:
    """Where codecs took turns: seconds, payload and packets of each."""
    return [
        [row["scenario"], SIDES[side].label, figure(of["s"]), *(f"{of[name] / 1e6:.1f}" for name in MOVED)]
        for row in rows
        if any(SIDES[side].codec for side in row["sides"])
        for side, of in row["sides"].items()
        if of["s"] is not None
    ]


MOVED = ("sent_bytes", "wire_bytes")


def fault_lines(rows: Sequence[Row]) -> list[list[str]]:
    """What happened where something was broken on purpose."""
    seconds = ("usual_s", "fault_s")
    return [[row["scenario"], *(figure(row["figures"].get(name)) for name in seconds)] for row in rows]


def show(rows: Sequence[Row], file: Any = None) -> None:
    """All of it, on the screen or into a file."""
    from rich.console import Console

    screen = file is None and sys.stdout.isatty()
    console = Console(file=file, width=None if screen else TABLE_COLUMNS, soft_wrap=True)
    timed = [row for row in rows if row["kind"] == "times"]
    faults = [row for row in rows if row["kind"] == "fault"]
    if timed:
        times = [[cell(row) for cell in TIMES.values()] for row in timed]
        console.print(table("All-reduce of float32 on emulated WANs", list(TIMES), times, ("scenario", "plan")))
        console.print(NOTES, markup=False, highlight=False)
    if faults:
        headings = ["scenario", "seconds undisturbed", "seconds with the fault amid"]
        console.print(table("Faults amid an all-reduce of 64 MiB", headings, fault_lines(faults), ("scenario",)))
    if lines := codec_lines(timed):
        headings = ["scenario", "side", "seconds", "payload MB", "on the wire MB"]
        console.print(table("Codecs", headings, lines, ("scenario", "side")))
    wanted = [[cell(row, target) for cell in WANTED.values()] for row in rows for target in row["targets"]]
    if wanted:
        console.print(table("What was wanted", list(WANTED), wanted, ("scenario", "what", "so")))
    for line in reasons(rows):
        console.print(line, markup=False, highlight=False)


def missed(rows: Sequence[Row]) -> bool:
    """Whether something was measured and is not what was wanted."""
    return any(target["ok"] is False for row in rows for target in row["targets"])
