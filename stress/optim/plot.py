"""plot.py - loss against bytes sent: every mode of pccl.optim beside data parallel and a lone worker, as a picture.

    python -m stress.optim.convergence --seeds 1 --watch-every 20 --json > rows.jsonl
    python -m stress.optim.plot rows.jsonl --out build/loss_against_bytes.svg

Left: how the loss fell with what one peer had sent, for some modes; right: where each mode ended. Rows of 4 peers that
did not change are drawn. The picture of the documents is that of `performance_page.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stress.pictures import pyplot, save

PEERS = 4
PARALLEL, LONE = "data parallel", "lone worker"
CURVES = {
    PARALLEL: "#555555",
    "diloco": "#1f6fb4",
    "streaming-t1-a.5-e3m0": "#2a9d6f",
    "gossip": "#8a6fb0",
    "sparse-1.56%": "#c0392b",
}
OTHER = "#d98018"


def drawn(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that the picture shows. ValueError for rows that were not watched."""
    shown = [row for row in rows if row["peers"] in (1, PEERS) and "churn" not in row["mode"]]
    for row in shown:
        if not row.get("watched"):
            raise ValueError(f"{row['mode']}: no losses on the way; run convergence with --watch-every")
    if [row["mode"] for row in shown[:2]] != [PARALLEL, LONE]:
        raise ValueError("the first rows must be those of data parallel and of the lone worker")
    return shown


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes the picture, the same for the same rows."""
    chart, (left, right) = pyplot().subplots(1, 2, figsize=(15, 5), layout="constrained")
    _curves(left, rows)
    _ends(right, rows)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("sent by one peer, MB")
        axes.set_ylabel("loss on held-out tokens, nats")
        axes.grid(alpha=0.25, which="both")
    save(chart, path)


def _curves(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        if row["mode"] in CURVES:
            points = [(sent / 1e6, loss) for _, sent, loss in row["watched"] if sent]
            axes.plot(*zip(*points, strict=True), "-o", markersize=3, color=CURVES[row["mode"]], label=row["mode"])
    axes.axhline(rows[1]["loss"], color="black", linewidth=0.8, linestyle=":", label=f"{LONE}, at the end")
    axes.set_title("on the way, at the same steps")
    axes.legend(fontsize=8)


def _ends(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    ends = sorted((row for row in rows if row["bytes_sent"]), key=lambda row: row["loss"])
    for number, row in enumerate(ends, 1):
        place = (row["bytes_sent"] / 1e6, row["loss"])
        text = f"{number}  {row['mode']}  {place[0]:.2f} MB, {row['gap_percent']:+.2f} %"
        axes.plot(*place, "o", color=CURVES.get(row["mode"], OTHER), label=text)
        axes.annotate(str(number), place, textcoords="offset points", xytext=(4, 4), fontsize=7)
    axes.axhline(rows[0]["loss"], color=CURVES[PARALLEL], linewidth=0.8, linestyle="--")
    axes.axhline(rows[1]["loss"], color="black", linewidth=0.8, linestyle=":")
    axes.set_title(f"at the end; %: above {PARALLEL}; dotted: the {LONE}")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=1)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Loss against bytes sent, from rows of stress.optim.convergence.")
    parser.add_argument("rows", type=Path, help="what --json --watch-every printed")
    parser.add_argument("--out", type=Path, default=Path("build/loss_against_bytes.svg"))
    arguments = parser.parse_args()
    try:
        rows = drawn([json.loads(line) for line in arguments.rows.read_text().splitlines()])
    except ValueError as error:
        print(f"plot: {error}", file=sys.stderr)
        return 2
    draw(rows, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
