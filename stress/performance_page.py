"""performance_page.py - writes the figures of docs/performance.md: tables and pictures of the rows in docs/measured.

    python -m stress.performance_page [--check]

Prose stays as it is. What stands between `<!-- measured: NAME -->` and `<!-- end -->` is made anew: a table of
`performance_tables.py`, or a picture, which is drawn as docs/plots/NAME. What was not measured yet is said in its
place. With --check nothing is written, and exit code 1 means that page or pictures are not those of the rows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pccl.cli._units import format_bytes
from stress.measured import FOLDER, ROOT, Measured, MeasuredError, Row, read
from stress.optim import plot as optim_plot
from stress.performance_tables import TABLES, Table
from stress.pictures import pyplot, save
from stress.wan.bench import plot as wan_plot

PAGE = ROOT / "docs" / "performance.md"
PLOTS = ROOT / "docs" / "plots"
SECTION = re.compile(r"(?P<begin><!-- measured: (?P<name>[^>]+?) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
Rows = Mapping[str, Sequence[Row]]


@dataclass(frozen=True, slots=True)
class Picture:
    """Drawn of the rows of some steps, if there is one of them."""

    steps: tuple[str, ...]
    title: str
    draw: Callable[[Rows, Path], None]


# -- pictures ----------------------------------------------------------------------------------------------------------


def draw_all_reduce(rows: Rows, path: Path) -> None:
    """Time against size, for each number of peers: pccl over TCP and through shared memory, each beside gloo in its
    own run.
    """
    peers = sorted({row["peers"] for of in rows.values() for row in of})
    chart, places = pyplot().subplots(1, len(peers), figsize=(5.5 * len(peers), 4), layout="constrained", squeeze=False)
    for count, axes in zip(peers, places[0], strict=True):
        for step, label, colour in (("tcp", "TCP", "#1f6fb4"), ("shm", "shared memory", "#d98018")):
            of = [row for row in rows.get(step, ()) if row["peers"] == count]
            line(axes, of, "ours_ms", f"pccl, {label}", "-o", colour)
            line(axes, of, "gloo_ms", "gloo in the same run", "--", colour)
        axes.set_title(f"{count} peers")
        axes.set_ylabel("ms")
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    save(chart, path)


def line(axes: Any, rows: Sequence[Row], name: str, label: str, style: str, colour: str) -> None:
    """One side."""
    points = [(row["bytes"], row[name]) for row in rows if row[name] is not None]
    if points:
        axes.loglog(*zip(*points, strict=True), style, markersize=4, label=label, color=colour)
        sizes = [nbytes for nbytes, _ in points]
        axes.set_xticks(sizes, [format_bytes(nbytes) for nbytes in sizes], fontsize=8)


def draw_wan(rows: Rows, path: Path) -> None:
    """Which part of what is possible."""
    wan_plot.draw([row for row in rows["wan"] if row["kind"] == "times"], path)


def draw_optim(rows: Rows, path: Path) -> None:
    """Loss against bytes."""
    optim_plot.draw(optim_plot.drawn(rows["optim"]), path)


PICTURES = {
    "all_reduce.svg": Picture(("tcp", "shm"), "time of an all-reduce on one host, by size", draw_all_reduce),
    "wan.svg": Picture(("wan",), "all-reduce on emulated WANs: part of the bound", draw_wan),
    "loss_against_bytes.svg": Picture(("optim",), "loss against bytes sent", draw_optim),
}


def drawn(picture: Picture, found: Mapping[str, Measured]) -> str | None:
    """The file's content; at its end stands of which rows it is. None: nothing was measured."""
    rows = rows_of(picture, found)
    if not rows:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.svg"
        picture.draw(rows, path)
        return path.read_text(encoding="utf-8") + digest(rows)


def rows_of(picture: Picture, found: Mapping[str, Measured]) -> dict[str, list[Row]]:
    """What it is drawn of."""
    return {step: found[step].rows for step in picture.steps if step in found}


def digest(rows: Rows) -> str:
    """The last line of a picture."""
    return f"<!-- of rows {hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()} -->\n"


# -- the page ----------------------------------------------------------------------------------------------------------


def caption(found: Measured) -> str:
    """By what, when, where, of what."""
    host = found.host
    where = "the machine was not recorded"
    if host:
        where = f"{host['cores']} cores of {host['cpu']}, {host['memory_gib']:g} GiB, Linux {host['kernel']}"
        if stolen := host.get("stolen_percent"):
            where += f", a virtual machine whose host took {stolen:g} % of what was wanted of them"
    return f"`{found.command}`: {found.date}, commit {found.commit}; {where}."


def not_run(step: str, lines: Sequence[str] = ()) -> str:
    """In place of figures."""
    return f"*Not run yet: {', '.join(lines) or 'all of it'} (step `{step}` of `make bench`).*\n"


def table_of(table: Table, found: Measured | None) -> str:
    """As Markdown, and what of it was not run."""
    cells = table.lines(found.rows) if found else []
    if not found or not cells:
        return not_run(table.step, table.wanted)
    known = {line[0] for line in cells}
    missing = [name for name in table.wanted if name not in known]
    ruled = [list(table.columns), ["---", *["--:"] * (len(table.columns) - 1)], *cells]
    text = "".join(f"| {' | '.join(line)} |\n" for line in ruled)
    return f"{text}\n{caption(found)}\n" + (f"\n{not_run(table.step, missing)}" if missing else "")


def section(name: str, found: Mapping[str, Measured]) -> str:
    """What stands between a pair of marks. KeyError: there is no such table or picture."""
    if name in TABLES:
        return table_of(TABLES[name], found.get(TABLES[name].step))
    picture = PICTURES[name]
    if not rows_of(picture, found):
        return not_run(picture.steps[0], [picture.title])
    return f"![{picture.title}](plots/{name})\n"


def page(text: str, found: Mapping[str, Measured]) -> str:
    """The page with the figures of these rows. KeyError names marks of what does not exist."""
    return SECTION.sub(lambda mark: f"{mark['begin']}\n{section(mark['name'], found)}\n{mark['end']}", text)


def is_current(path: Path, wanted: str | None) -> bool:
    """Whether a picture is what it should be; one of another matplotlib, whether it is of the same rows."""
    if wanted is None or not path.exists():
        return wanted is None and not path.exists()
    there = path.read_text(encoding="utf-8")
    return there == wanted or (maker(there) != maker(wanted) and there.splitlines()[-1] == wanted.splitlines()[-1])


def maker(picture: str) -> str:
    """By which version of matplotlib it was drawn."""
    found = re.search(r"Matplotlib v[\w.]+", picture)
    return found[0] if found else ""


def stale() -> list[Path]:
    """What would be written: the page, pictures."""
    found = read(FOLDER)
    text = PAGE.read_text(encoding="utf-8")
    wrong = [PAGE] if page(text, found) != text else []
    pictures = {PLOTS / name: drawn(picture, found) for name, picture in PICTURES.items()}
    return wrong + [path for path, wanted in pictures.items() if not is_current(path, wanted)]


def update() -> None:
    """Writes page and pictures; those of what was not measured go."""
    found = read(FOLDER)
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    for name, picture in PICTURES.items():
        wanted = drawn(picture, found)
        if wanted is None:
            (PLOTS / name).unlink(missing_ok=True)
        elif not is_current(PLOTS / name, wanted):
            (PLOTS / name).write_text(wanted, encoding="utf-8")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="The figures of docs/performance.md, from the rows in docs/measured.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if something is not current")
    arguments = parser.parse_args()
    try:
        if arguments.check:
            wrong = stale()
            print("".join(f"not that of the rows: {path.relative_to(ROOT)}\n" for path in wrong), end="")
            return int(bool(wrong))
        update()
    except (MeasuredError, KeyError) as error:
        print(f"performance_page: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
