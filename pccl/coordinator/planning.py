"""planning.py - when a group wishes for another plan than the one in use, which plan it would be, which predictions
are not believed for a while, and of which algorithms the figures say little, because none was in use yet.

Pure, like membership.py, whose helper it is, and which makes the plan an epoch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

from pccl import messages as m
from pccl.coordinator.cost import REFERENCE_BYTES, Measurements
from pccl.coordinator.links import Links
from pccl.coordinator.plan import Pair, Plan, is_worth_a_try, is_worth_it, predict, wants_other_streams
from pccl.coordinator.reality import Reality, Remark
from pccl.coordinator.roster import Peer, infos
from pccl.coordinator.settings import REPLAN_GAP_S, Settings
from pccl.types import Algorithm

#: A doubt lasts so long at first, and twice as long each time that it proves right, up to the last.
DOUBT_S = 60.0
DOUBT_MAX_S = 960.0


@dataclass(slots=True, frozen=True)
class _Doubt:
    """An algorithm was so many times slower than its figures say, and counts as that until then."""

    slower: float
    lasts_s: float
    until: float


def _again(doubt: _Doubt | None, now: float, slower: float) -> _Doubt:
    if doubt is None:
        return _Doubt(slower, DOUBT_S, now + DOUBT_S)
    lasts_s = doubt.lasts_s if now < doubt.until else min(2 * doubt.lasts_s, DOUBT_MAX_S)
    return _Doubt(slower, lasts_s, now + lasts_s)


class Planning:
    """The plans of one group. `wish`: why a new one is wanted."""

    def __init__(self, settings: Settings) -> None:
        self.wish = ""
        self._settings = settings
        self._reality = Reality()
        self._doubts: dict[Algorithm, _Doubt] = {}
        self._untried = frozenset((Algorithm.TWO_LEVEL,))
        self._drawn: tuple[object, float, Plan] | None = None  # the last plan: for what, and when
        self._planned = float("-inf")

    def begin(self, now: float, epoch: int, reason: str) -> None:
        """A plan comes into use; `reason`: why that one."""
        self.wish, self._planned = "", now
        self._reality.begin(epoch, reason)

    def plan_for(self, now: float, peers: Iterable[Peer], links: Links, broken: frozenset[Pair] = frozenset()) -> Plan:
        """A step asks several times for a plan (wish, hold, epoch): where nothing has changed it is not drawn again."""
        members, avoided = infos(peers), links.broken | broken
        wanted = [member.id for member in members], avoided, links.reports, dict(self._doubts), self._untried
        if self._drawn is None or self._drawn[0] != wanted or now >= self._drawn[1] + REPLAN_GAP_S:
            chosen = self._settings.planner(members, self._known(now, links), avoided)
            self._drawn = wanted, now, chosen
        return self._drawn[2]

    def report(self, peer: bytes, achieved: m.Achieved) -> None:
        """A member tells what it has timed."""
        self._reality.report(peer, achieved)

    def is_due(self, now: float) -> bool:
        """Whether it is time to compare again."""
        return now >= self._planned + self._settings.replan_gap_s

    def compare(self, now: float, plan: Plan, peers: Iterable[Peer], links: Links) -> list[Remark]:
        """Wishes for a new plan if it is clearly better than the present one, as the paths are now; and says how the
        present one does.
        """
        members = list(peers)
        self._planned = now
        if not self.plan_for(now, members, links).predicted_s:
            return []
        remarks = self._reality.look(now, partial(predict, plan, infos(members), links.measured(now)))
        self._learn(now, plan.algorithm_of(REFERENCE_BYTES))
        ahead = self.plan_for(now, members, links)
        now_s = predict(plan, infos(members), self._known(now, links))
        if is_worth_it(now_s, ahead) or is_worth_a_try(plan, now_s, ahead):
            self.wish = f"new plan: {ahead.predicted_s:.3g} s instead of {now_s:.3g} s expected for 64 MiB"
        elif wants_other_streams(plan, ahead):
            self.wish = "new plan: other numbers of streams"
        return remarks

    def _learn(self, now: float, algorithm: Algorithm) -> None:
        """What the plan in use shows of its algorithm. One that does as expected is believed again."""
        slower = self._reality.slower
        self._untried -= {algorithm}
        if slower == 1:
            self._doubts.pop(algorithm, None)
        elif slower is not None:
            self._doubts[algorithm] = _again(self._doubts.get(algorithm), now, slower)

    def _known(self, now: float, links: Links) -> Measurements:
        """All figures, which algorithms they do not fit, and of which they know nothing."""
        slower = {algorithm: doubt.slower for algorithm, doubt in self._doubts.items() if now < doubt.until}
        return replace(links.measured(now), slower=slower, untried=self._untried)

    def status(self) -> m.Reality | None:
        """What `pccl status` shows of the plan in use."""
        return self._reality.status()
