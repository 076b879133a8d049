"""refusals.py - says in the log that streams were refused, without letting whoever is refused fill the log."""

from __future__ import annotations

import logging

__all__ = ["Refusals"]

EVERY_S = 1.0

log = logging.getLogger("pccl")


class Refusals:
    """One line per EVERY_S at most; the next one says how many had none."""

    def __init__(self) -> None:
        self._next = 0.0
        self._untold = 0

    def note(self, now: float, text: str) -> None:
        """A stream was refused: from where, and why."""
        if now < self._next:
            self._untold += 1
            return
        more = f" ({self._untold} more since the last such line)" if self._untold else ""
        log.warning("refused a stream, %s%s", text, more)
        self._next = now + EVERY_S
        self._untold = 0
