"""refusals.py - says in the log that streams or tokens were refused, and lets nobody who is refused fill the log."""

from __future__ import annotations

import logging
from collections.abc import Mapping

__all__ = ["Refusals"]

EVERY_S = 1.0
REASONS_MAX = 16

log = logging.getLogger("pccl")


class Refusals:
    """One line per reason and EVERY_S at most; the next one of that reason says how many had none."""

    def __init__(self, what: str = "a stream") -> None:
        self._what = what
        self._reasons: dict[str, tuple[float, int]] = {}  # when it may be told again, and how often it was not

    def note(self, now: float, text: str, extra: Mapping[str, object] | None = None) -> None:
        """One was refused: "address: reason". `extra`: of the record."""
        reason = text.partition(": ")[2]
        again, untold = self._reasons.pop(reason, (float("-inf"), 0))
        if now < again:
            self._reasons[reason] = (again, untold + 1)
            return
        more = f" ({untold} more since the last such line)" if untold else ""
        log.warning("refused %s, %s%s", self._what, text, more, extra=extra)
        while len(self._reasons) >= REASONS_MAX:
            del self._reasons[next(iter(self._reasons))]
        self._reasons[reason] = (now + EVERY_S, 0)
