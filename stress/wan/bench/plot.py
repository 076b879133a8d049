"""The picture: which fraction of the physical bound each side reaches in each scenario, and what was wanted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pccl.cli._units import format_bytes

from ...pictures import pyplot, save
from .rows import ratio
from .sides import SIDES
from .targets import Row

COLOURS = {
    "ours": "#1f6fb4",
    "one_stream": "#9cc3e6",
    "ring": "#8a6fb0",
    "int8": "#2a9d6f",
    "e3m0": "#8fd0b4",
    "gloo": "#b0b0b0",
}
BAR = 0.22


def draw(rows: Sequence[Row], path: Path) -> None:
    """Writes it as what its name ends with. A codec may be above 1: the bound is that of plain float32."""
    chart, axes = pyplot().subplots(figsize=(max(7.0, 1.15 * len(rows) + 2), 5.0), layout="constrained")
    shown = [side for side in COLOURS if any(heights_of(row).get(side) for row in rows)]
    for side in shown:
        bars(axes, rows, side)
    for place, row in enumerate(rows):
        for wanted in (target for target in row["targets"] if target["figure"] == "fraction"):
            limit = float(wanted["wanted"].split()[-1])
            axes.hlines(limit, place - 0.45, place + 0.45, colors="#c0392b", linewidth=1.6)
    axes.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
    labels = [f"{row['scenario']}\n{format_bytes(row['bytes'])}" for row in rows]
    axes.set_xticks(range(len(rows)), labels, fontsize=7, rotation=30, ha="right")
    top = max((height for row in rows for height in heights_of(row).values()), default=1.0)
    axes.set_ylim(0, max(1.1, 1.08 * top))
    axes.set_ylabel("bound / time (1: as fast as can be)")
    axes.set_title("All-reduce on emulated WANs: fraction of the physical bound; red: wanted")
    if shown:
        axes.legend(loc="upper left", fontsize=8, ncols=len(shown))
    save(chart, path)


def heights_of(row: Row) -> dict[str, float]:
    """By side; those that were not measured left out."""
    found = {side: ratio(row["bound_s"], of["s"]) for side, of in row["sides"].items()}
    return {side: height for side, height in found.items() if height}


def bars(axes: Any, rows: Sequence[Row], side: str) -> None:
    """One side's, each beside the others of its scenario."""
    places, heights = [], []
    for place, row in enumerate(rows):
        present = [name for name in COLOURS if name in heights_of(row)]
        if side in present:
            places.append(place + (present.index(side) - (len(present) - 1) / 2) * BAR)
            heights.append(heights_of(row)[side])
    drawn = axes.bar(places, heights, BAR, color=COLOURS[side], label=SIDES[side].label)
    axes.bar_label(drawn, [f"{height:.2f}" for height in heights], fontsize=6)
