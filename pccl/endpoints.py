"""endpoints.py - decides at which of several coordinators a peer tries, and when it goes on to the next.

Pure: it takes the time and what has happened. Only a leader serves; so a coordinator that does not answer in time,
whose connection breaks, or who falls silent is left for the next. Patience grows with every round in vain, for those
that are far away.
"""

from __future__ import annotations

from collections.abc import Sequence

PATIENCE_S = 0.4
PATIENCE_MAX_S = 5.0
SILENCE_MIN_S = 1.0
#: So much of a lease may a leader be silent, who answers every heartbeat (lease/5).
SILENCE_LEASES = 0.5


class Endpoints:
    """The addresses, and the one in use."""

    def __init__(self, all_of_them: Sequence[str]) -> None:
        self._all = list(all_of_them)
        self._number = 0
        self._in_vain = 0  # how many in a row were not reached
        self._connected = False
        self._since = 0.0  # when the present one was dialled, connected or last heard

    def __str__(self) -> str:
        return ", ".join(self._all)

    @property
    def current(self) -> str:
        """The one in use."""
        return self._all[self._number]

    def start(self, now: float) -> None:
        """The present one is dialled."""
        self._connected, self._since = False, now

    def connected(self, now: float) -> None:
        """A handshake has succeeded."""
        self._connected, self._since = True, now

    def heard(self, now: float) -> None:
        """The present one has spoken."""
        self._in_vain, self._since = 0, max(self._since, now)

    def broken(self) -> bool:
        """A connection was closed. True if it is time to go on to the next."""
        was, self._connected = self._connected, False
        return was and len(self._all) > 1

    def due(self, lease_s: float) -> float | None:
        """When to go on to the next, unless something happens; None: there is no other."""
        if len(self._all) < 2:
            return None
        if self._connected:
            return self._since + max(SILENCE_MIN_S, SILENCE_LEASES * lease_s)
        rounds = min(8, self._in_vain // len(self._all))
        return self._since + min(PATIENCE_MAX_S, PATIENCE_S * 2.0**rounds)

    def go_on(self, now: float) -> str:
        """The next one, which is to be dialled now."""
        self._number = (self._number + 1) % len(self._all)
        self._in_vain += 1
        self.start(now)
        return self.current
