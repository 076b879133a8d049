"""What is wanted of a row's figures, and whether they are so. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """One figure of a row (rows.py) that is to be at least, or at most, so much."""

    figure: str
    limit: float
    at_least: bool = True

    def judge(self, row: Row) -> Row:
        """For the row: what was wanted, what was found, whether it is enough; null where nothing was measured."""
        found = row["figures"].get(self.figure)
        good = None if found is None else found >= self.limit if self.at_least else found <= self.limit
        wanted = f"{'>=' if self.at_least else '<='} {self.limit:g}"
        return {"figure": self.figure, "what": WORDS[self.figure], "wanted": wanted, "found": found, "ok": good}


#: The figures in words.
WORDS = {
    "fraction": "bound / ours",
    "vs_gloo": "gloo's time / ours",
    "vs_one_stream": "time with one stream / ours",
    "vs_ring": "time of our best ring / ours",
    "vs_ring_bound": "bound of the best ring / ours",
    "vs_delays": "(3 one-way delays + transfer) / ours",
    "int8_bytes": "bytes moved as int8 / float32",
    "e3m0_bytes": "bytes moved as e3m0 / float32",
    "int8_speed": "float32's time / int8's",
    "e3m0_speed": "float32's time / e3m0's",
    "retries": "how often the op began anew",
    "resent": "frames sent again",
    "gone": "members that were evicted",
    "changes": "changes of the epoch at once",
    "bad_share": "part of the bytes over the bad link",
    "cut_share": "part of the bytes towards the cut link",
    "avoided_after_s": "seconds until a plan without the cut link",
    "used_again_after_s": "seconds from its healing until a plan with it",
}


def at_least(figure: str, limit: float) -> Target:
    """It is to be so much or more."""
    return Target(figure, limit)


def at_most(figure: str, limit: float) -> Target:
    """It is to be so much or less."""
    return Target(figure, limit, at_least=False)
