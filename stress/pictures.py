"""pictures.py - how rows are drawn: without a screen, and the same rows as the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def pyplot() -> Any:
    """matplotlib's, for files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "pccl"
    return pyplot


def save(chart: Any, path: Path) -> None:
    """Writes a chart as what its name ends with, without the date, and closes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot().close(chart)
