"""endpoints.py - decides at which of several coordinators a peer tries, and when it goes on to the next.

Pure: it takes the time and what has happened. Only a leader serves; so a coordinator that does not answer in time,
whose connection breaks, or who falls silent is left for the next. Patience grows with every round in vain, for those
that are far away. Where there is but one it is dialled anew: a wrong byte may make a handshake wait for more for ever,
and the lease runs. How long one takes is known from those that succeeded.
"""

from __future__ import annotations

from collections.abc import Sequence

PATIENCE_S = 0.4
PATIENCE_MAX_S = 5.0
#: With one coordinator: so much of a lease, or so many times what a handshake takes.
PATIENCE_LEASES = 0.125
PATIENCE_HANDSHAKES = 3.0
#: A round of all takes so much of a lease at most, unless handshakes take longer: a new leader waits no longer than it.
ROUND_LEASES = 0.5
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
        self._took_s = float("inf")  # the shortest handshake

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
        if not self._connected:
            self._took_s = min(self._took_s, now - self._since)
        self._connected, self._since = True, now

    def heard(self, now: float) -> None:
        """The present one has spoken."""
        self._in_vain, self._since = 0, max(self._since, now)

    def broken(self, now: float) -> bool:
        """A connection was closed. True if it is time to go on to the next; else the same is being dialled."""
        was, self._connected = self._connected, False
        if was:
            self._since = now
        return was and len(self._all) > 1

    def due(self, lease_s: float) -> float | None:
        """When to go on to the next, or to dial the only one anew, unless something happens; None: never."""
        only = len(self._all) == 1
        if self._connected:
            return None if only else self._since + max(SILENCE_MIN_S, SILENCE_LEASES * lease_s)
        needed_s = PATIENCE_HANDSHAKES * self._took_s
        patience_s = max(PATIENCE_LEASES * lease_s, needed_s) if only else PATIENCE_S
        limit_s = min(PATIENCE_MAX_S, max(ROUND_LEASES * lease_s / len(self._all), needed_s))
        rounds = min(8, self._in_vain // max(2, len(self._all)))
        return self._since + min(limit_s, patience_s * 2.0**rounds)

    def go_on(self, now: float) -> str:
        """The next one, which is to be dialled now."""
        self._number = (self._number + 1) % len(self._all)
        self._in_vain += 1
        self.start(now)
        return self.current
