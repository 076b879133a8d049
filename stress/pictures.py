"""pictures.py - how rows are drawn: without a screen, and the same rows as the same file on every machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def pyplot() -> Any:
    """matplotlib's, for files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "pccl"
    return pyplot


#: What matplotlib calls a shape in an SVG: a hash of its coordinates down to the last bit, in which processors differ.
_NAME = re.compile(r"\b[a-z][0-9a-f]{10}\b")


def _with_plain_names(svg: str) -> str:
    """Shapes are called by their order."""
    order: dict[str, str] = {}
    return _NAME.sub(lambda name: order.setdefault(name[0], f"shape{len(order)}"), svg)


def save(chart: Any, path: Path) -> None:
    """Writes a chart as what its name ends with, without the date, and closes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)
    if path.suffix == ".svg":
        path.write_text(_with_plain_names(path.read_text(encoding="utf-8")), encoding="utf-8")
    pyplot().close(chart)
