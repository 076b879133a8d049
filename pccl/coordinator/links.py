"""links.py - what a group's coordinator knows about the links between members: figures, suspicions, what is broken.

Pure, like membership.py, whose helper it is. A link is *suspected* while either end reports it dead; *broken* once
membership has decided to do without it; *mended* when nobody has suspected it for a while, which doubles with every
break, so that a link that comes and goes does not make a new plan each time. Of what an end reports, that its dial was
refused outweighs the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import nan

from pccl import messages as m
from pccl.coordinator.cost import Measurements
from pccl.coordinator.figures import AgedFigures
from pccl.coordinator.plan import Pair
from pccl.types import LOSS_UNKNOWN, Cause

FIGURES_AGE_S = 600.0
#: A link that is dead for so long is done without; not so one that is back after two seconds, and then dialled.
GRACE_S = 5.0
#: So long has a link been dead that is reported as silent (silence_ns of the engine).
SILENCE_S = 2.5
MENDED_S = 5.0
MENDED_DOUBLINGS = 6


def pair_of(a: bytes, b: bytes) -> Pair:
    """The two ends, in a fixed order."""
    return (a, b) if a < b else (b, a)


class Links:
    """All links of one group."""

    def __init__(self, grace_s: float = GRACE_S, mended_s: float = MENDED_S) -> None:
        self.grace_s = grace_s
        self.mended_s = mended_s
        self.broken: frozenset[Pair] = frozenset()
        self.reports = 0  # grows whenever there are new figures
        self._figures = AgedFigures(3)  # round-trip times, rates, losses
        self._lines: dict[bytes, tuple[float, m.Line]] = {}  # when it was said, and what
        self._suspects: dict[bytes, dict[bytes, m.Suspect]] = {}
        self._refused: dict[Pair, float] = {}  # (who dialled, whom): when that was said first
        self._since: dict[Pair, float] = {}
        self._whole: dict[Pair, float] = {}
        self._breaks: dict[Pair, int] = {}
        self._given_up: set[Pair] = set()
        self._presumed: set[Pair] = set()  # of the broken ones, those that have never been dead for sure

    # -- figures ----------------------------------------------------------------------------------------------

    def report(self, now: float, sender: bytes, reports: Iterable[m.LinkReport]) -> None:
        """Takes what a member has measured. 0 says nothing."""
        news = list(reports)
        if news:
            self.reports += 1
            rtt_s = [entry.rtt_us / 1e6 if entry.rtt_us else nan for entry in news]
            rate = [entry.bytes_per_s or nan for entry in news]
            loss = [nan if entry.loss_ppm == LOSS_UNKNOWN else entry.loss_ppm for entry in news]
            self._figures.put(now, sender, [entry.peer for entry in news], (rtt_s, rate, loss))

    def report_line(self, now: float, sender: bytes, line: m.Line) -> None:
        """Takes what a member has measured of its own line; 0: it does not know (any more)."""
        self.reports += 1
        self._lines[sender] = (now, line)

    def measured(self, now: float) -> Measurements:
        """Everything that is not too old."""
        oldest = now - FIGURES_AGE_S
        rtt_s, bytes_per_s, loss_ppm = self._figures.since(oldest)
        lines = {peer: line for peer, (at, line) in self._lines.items() if at >= oldest}
        told = ({peer: float(line[place]) for peer, line in lines.items() if line[place]} for place in range(4))
        up, down, went_up, went_down = told
        return Measurements(rtt_s, bytes_per_s, loss_ppm, up, down, went_up, went_down)

    @property
    def doubtful(self) -> frozenset[Pair]:
        """Links that are broken, or suspected now."""
        return self.broken | self._since.keys()

    # -- suspicions -------------------------------------------------------------------------------------------

    def suspect(self, now: float, reporter: bytes, suspect: m.Suspect) -> None:
        """One end says that the link is dead."""
        reports = self._suspects.setdefault(suspect.peer, {})
        if reporter not in reports or reports[reporter].cause != Cause.REFUSED:
            reports[reporter] = suspect
            if suspect.cause == Cause.REFUSED:
                self._refused[(reporter, suspect.peer)] = now
        pair = pair_of(reporter, suspect.peer)
        since = now - SILENCE_S if suspect.cause == Cause.SILENT else now
        self._since[pair] = min(since, self._since.get(pair, since))
        self._whole.pop(pair, None)

    def heal(self, now: float, reporter: bytes, peer: bytes) -> bool:
        """That end has a stream again. False if it had not said otherwise, nor was it taken for granted."""
        reports = self._suspects.get(peer, {})
        if reports.pop(reporter, None) is None:
            return self._disprove(now, pair_of(reporter, peer))
        self._refused.pop((reporter, peer), None)
        if peer not in self._suspects.get(reporter, {}):
            pair = pair_of(reporter, peer)
            self._since.pop(pair, None)
            self._given_up.discard(pair)
            if pair in self.broken:
                self._whole[pair] = now
        return True

    def _disprove(self, now: float, pair: Pair) -> bool:
        """A link that was taken to be impossible is there."""
        if pair not in self._presumed:
            return False
        self._presumed.discard(pair)
        self._whole[pair] = now
        return True

    def evidence(self, peer: bytes) -> Mapping[bytes, m.Suspect]:
        """Who has reported a dead link to the peer, and how."""
        return self._suspects.get(peer, {})

    def refusal(self, peer: bytes, since: float) -> tuple[bytes, m.Suspect] | None:
        """Somebody whose dial the peer's port has refused since then, and what he said."""
        for reporter, suspect in self._suspects.get(peer, {}).items():
            if self._refused.get((reporter, peer), float("-inf")) >= since:
                return reporter, suspect
        return None

    def forget(self, peer: bytes) -> None:
        """The peer is no member any more."""
        self._suspects.pop(peer, None)
        for reports in self._suspects.values():
            reports.pop(peer, None)
        self._figures.forget(peer)
        self._lines.pop(peer, None)
        for table in (self._since, self._whole, self._breaks, self._refused):
            for pair in [pair for pair in table if peer in pair]:
                del table[pair]
        self._given_up = {pair for pair in self._given_up if peer not in pair}
        self._presumed = {pair for pair in self._presumed if peer not in pair}
        self.broken = frozenset(pair for pair in self.broken if peer not in pair)

    # -- broken and mended ------------------------------------------------------------------------------------

    def overdue(self, now: float) -> list[tuple[Pair, float]]:
        """Links dead for longer than the grace, and since when they have been so."""
        ends = ((pair, since + self.grace_s) for pair, since in self._since.items())
        return sorted((pair, end) for pair, end in ends if end <= now and pair not in self.broken | self._given_up)

    def set_broken(self, pair: Pair) -> None:
        """Plans do without the link from now on."""
        self.broken |= {pair}
        self._breaks[pair] = self._breaks.get(pair, 0) + 1

    def presume(self, pairs: set[Pair]) -> None:
        """These are taken to be broken before anybody has tried; nothing counts against them if they are not."""
        self.broken |= pairs
        self._presumed |= pairs

    def give_up(self, pair: Pair) -> None:
        """No plan can do without the link: it is not looked at again until it heals or the members change."""
        self._given_up.add(pair)

    def try_again(self) -> None:
        """The members have changed: what no plan could avoid may be avoidable now."""
        self._given_up.clear()

    def mend(self, now: float) -> list[Pair]:
        """Broken links that have been whole for long enough: plans may use them again."""
        mended = sorted(pair for pair in self._whole if self._mended_at(pair) <= now)
        for pair in mended:
            del self._whole[pair]
        self.broken -= set(mended)
        return mended

    # -- beyond this process ----------------------------------------------------------------------------------

    def export(self) -> tuple[tuple[bytes, bytes, int], ...]:
        """The broken links, and how often each has broken."""
        return tuple((*pair, self._breaks.get(pair, 1)) for pair in sorted(self.broken))

    def restore(self, now: float, broken: Iterable[tuple[bytes, bytes, int]]) -> None:
        """As exported. Who still suspects such a link says so again; if nobody does, it mends."""
        for a, b, times in broken:
            pair = pair_of(a, b)
            self.broken |= {pair}
            self._breaks[pair], self._whole[pair] = times, now

    def next_due(self, now: float) -> float:
        """When the next link becomes overdue or mended; infinity for never."""
        overdue = (since + self.grace_s for pair, since in self._since.items() if pair not in self.broken)
        due = [*overdue, *(self._mended_at(pair) for pair in self._whole)]
        return min((at for at in due if at > now), default=float("inf"))

    def _mended_at(self, pair: Pair) -> float:
        doublings = min(self._breaks.get(pair, 1) - 1, MENDED_DOUBLINGS)
        return self._whole[pair] + self.mended_s * 2.0**doublings
