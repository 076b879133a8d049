"""probes.py - which paths are measured with filler, and when: those of which nothing is known, while no op wants them.

Pure, like membership.py, whose helper it is. Measured are the directed paths between sites, whose rate nobody knows,
nor what the lines of both ends carry; each once in FIGURES_AGE_S, and before all others those of pairs of which no
direction is known. Two at a time share no site, so that none is measured while another fills its line. While any member
has ops or transfers under way, or its counts of them move, nothing is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pccl import messages as m
from pccl.coordinator.cost import Measurements
from pccl.coordinator.figures import Array, Figures, Path
from pccl.coordinator.links import FIGURES_AGE_S, Links, pair_of
from pccl.coordinator.places import Bools, near_pairs
from pccl.coordinator.plan import FEW_MAX, Pair
from pccl.coordinator.roster import Peer, infos
from pccl.types import MemberInfo

#: A probe ends when the link is known: after 8 to 10 round trips. These are only its bounds.
PROBE_BYTES = 64 << 20
PROBE_S = 2.0
#: A member is quiet when a heartbeat shows the counts of one so much earlier.
QUIET_S = 1.0
LOOK_GAP_S = 0.25
#: What is closer to each other is one site.
SITE_RTT_S = 1e-3


@dataclass(slots=True)
class _Counts:
    """What a member's heartbeats have shown since when, and when they last did."""

    counts: tuple[int, int]
    since: float
    last: float


class Probes:
    """The probes of one group. `beat_s`: the time between heartbeats."""

    def __init__(self, beat_s: float) -> None:
        self.changes = 0  # of `tried`
        self._patience_s = PROBE_S + 2 * beat_s
        self._counts: dict[bytes, _Counts] = {}
        self._tried: dict[Path, float] = {}
        self._running: dict[Path, float] = {}  # until when its ends are left alone
        self._looked = float("-inf")
        self._busy = False  # since the last time there was nothing to do

    @property
    def tried(self) -> tuple[Path, ...]:
        """Paths that have been measured of late, and whose rate is not known yet."""
        return tuple(sorted(self._tried))

    def restore(self, now: float, tried: Iterable[Path]) -> None:
        """As another process has had them. Each may just have begun."""
        for path in tried:
            self._tried[path], self._running[path] = now, now + self._patience_s

    def beat(self, now: float, peer: bytes, beat: m.Heartbeat) -> None:
        """A heartbeat has come."""
        known, counts = self._counts.get(peer), (beat.ops, beat.bytes)
        if known is None or known.counts != counts or beat.busy:
            self._counts[peer] = _Counts(counts, now, now)
        else:
            known.last = now

    def forget(self, peer: bytes) -> None:
        """The peer is no member any more."""
        self._counts.pop(peer, None)
        for table in (self._tried, self._running):
            for path in [path for path in table if peer in path]:
                del table[path]

    def next(self, now: float, members: Mapping[bytes, Peer], links: Links) -> tuple[list[Path], int]:
        """Paths to measure now, none while a member is away or not quiet; and, where they are the first after a time
        without any, how many are unknown in all, else 0.
        """
        if now < self._looked + LOOK_GAP_S or not 1 < len(members) <= FEW_MAX:
            return [], 0
        if not all(peer.connected and self._is_quiet(peer.id) for peer in members.values()):
            return [], 0
        self._looked = now
        return self._choose(now, infos(members.values()), links.measured(now), links.doubtful)

    def _choose(
        self, now: float, members: Sequence[MemberInfo], measured: Measurements, doubtful: frozenset[Pair]
    ) -> tuple[list[Path], int]:
        """In none of the `doubtful` pairs."""
        peers = [member.id for member in members]
        rank = {peer: number for number, peer in enumerate(peers)}
        rtt, rate = (Figures.of(known).matrix(peers) for known in (measured.rtt_s, measured.bytes_per_s))
        site = _sites(near_pairs(members, rtt), rtt)
        lines = _known(peers, measured.up)[:, None] & _known(peers, measured.down)[None, :]
        far = (np.fmin(rtt, rtt.T) >= SITE_RTT_S) & (site[:, None] != site[None, :])
        unknown = np.isnan(rate) & ~lines & far
        self._running = {
            (a, b): until for (a, b), until in self._running.items() if now < until and unknown[rank[a], rank[b]]
        }
        over = [
            (a, b)
            for (a, b), at in self._tried.items()
            if now >= at + FIGURES_AGE_S or not np.isnan(rate[rank[a], rank[b]])
        ]
        for path in over:
            del self._tried[path]
        wanted, urgent = self._wanted(peers, unknown, doubtful)
        first = 0 if self._busy else len(wanted)
        self._busy = bool(wanted or self._running)
        taken = {site[rank[peer]] for path in self._running for peer in path}
        chosen = []
        for path in urgent or wanted:
            ends = {site[rank[peer]] for peer in path}
            if taken.isdisjoint(ends):
                taken |= ends
                chosen.append(path)
                self._tried[path], self._running[path] = now, now + self._patience_s
        self.changes += bool(over or chosen)
        return chosen, first

    def _wanted(
        self, peers: Sequence[bytes], unknown: Bools, doubtful: frozenset[Pair]
    ) -> tuple[list[Path], list[Path]]:
        """All; and those of pairs of which no direction is known or was tried."""
        tried = {pair_of(*path) for path in self._tried}
        paths = {(peers[a], peers[b]): bool(unknown[b, a]) for a, b in np.argwhere(unknown).tolist()}
        wanted = [path for path in paths if path not in self._tried and pair_of(*path) not in doubtful]
        return wanted, [path for path in wanted if paths[path] and pair_of(*path) not in tried]

    def _is_quiet(self, peer: bytes) -> bool:
        known = self._counts.get(peer)
        return known is not None and known.last - known.since >= QUIET_S


def measure_message(path: Path) -> m.Measure:
    """What the one end is told about the other."""
    return m.Measure(m.VERSION, path[1], PROBE_BYTES, PROBE_S)


def _known(peers: Sequence[bytes], lines: Mapping[bytes, float]) -> Bools:
    return np.array([peer in lines for peer in peers], dtype=np.bool_)


def _sites(near: Bools, rtt: Array) -> Array:
    """Of each member, the number of the first in its site."""
    close = near | (np.fmin(rtt, rtt.T) < SITE_RTT_S) | np.eye(len(rtt), dtype=np.bool_)
    site = np.arange(len(rtt), dtype=np.float64)
    while True:
        lowest = np.where(close, site[None, :], np.inf).min(axis=1)
        if (lowest == site).all():
            return site
        site = lowest
