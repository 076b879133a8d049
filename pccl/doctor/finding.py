"""finding.py - one result of an examination as people and programs read it, and how figures are written in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Finding", "Level", "mbit", "percent", "rate_text", "worst"]

Level = Literal["ok", "advice", "problem"]
LEVELS: tuple[Level, ...] = ("ok", "advice", "problem")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `where`: a side, or "from -> to". `values`: the figures, units last in their names.

    "problem": a run would not work, or only by luck; "advice": it would work, but less well than it could. Either has a
    `change` that the reader can carry out; an "ok" has none.
    """

    check: str
    where: str
    level: Level
    text: str
    change: str = ""
    values: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """One flat object."""
        head = {"check": self.check, "where": self.where, "level": self.level, "text": self.text, "change": self.change}
        return head | self.values


def worst(found: Sequence[Finding]) -> Level:
    """The level of the gravest."""
    return max((finding.level for finding in found), key=LEVELS.index, default="ok")


def mbit(bytes_per_s: float) -> float:
    """Mbit/s, for `values`."""
    return round(bytes_per_s * 8e-6, 3)


def rate_text(bytes_per_s: float) -> str:
    """ "94.2 Mbit/s", "1884 Mbit/s", "21.9 Gbit/s"."""
    rate = bytes_per_s * 8e-6
    if rate >= 1e4:
        return f"{rate / 1e3:.3g} Gbit/s"
    return f"{rate:.0f} Mbit/s" if rate >= 100 else f"{rate:.3g} Mbit/s"


def percent(share: float) -> str:
    """ "0.013 %"."""
    return f"{100 * share:.2g} %"
