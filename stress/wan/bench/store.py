"""Rows on disk: one JSON object per line, so that scenarios can be measured one by one and shown together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .faults import FAULTS
from .scenarios import SCENARIOS
from .targets import Row


def append(path: Path, row: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read(path: Path) -> list[Row]:
    """Of each scenario and size the newest, in the order of the table of scenarios."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return ordered([json.loads(line) for line in lines])


def ordered(rows: Sequence[Row]) -> list[Row]:
    newest = {(row["scenario"], row["bytes"]): row for row in rows}
    places = {name: place for place, name in enumerate([*SCENARIOS, *FAULTS])}
    return sorted(newest.values(), key=lambda row: places.get(row["scenario"], len(places)))
