"""settings.py - what the operator chose for the groups of a run. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pccl.coordinator.cost import Measurements
from pccl.coordinator.links import GRACE_S, MENDED_S
from pccl.coordinator.plan import Pair, Plan, plan
from pccl.errors import ArgumentError
from pccl.types import MemberInfo

#: A plan is made anew for what was measured at most so often.
REPLAN_GAP_S = 10.0


@dataclass(slots=True, frozen=True)
class Settings:
    """What the operator chose. `form_peers`: so many begin (default 0: as many as `min_peers`, which must go on).
    `dial_back`: joiners' addresses are tried out first. `measure`: unknown paths are measured while nobody uses them.
    """

    min_peers: int = 1
    form_peers: int = 0
    lease_s: float = 5.0
    probe: bool = True
    peers_max: int = 1024
    waiting_max: int = 1024
    link_grace_s: float = GRACE_S
    link_mended_s: float = MENDED_S
    replan_gap_s: float = REPLAN_GAP_S
    dial_back: bool = False
    measure: bool = True
    planner: Callable[[Sequence[MemberInfo], Measurements, frozenset[Pair]], Plan] = plan

    def __post_init__(self) -> None:
        object.__setattr__(self, "form_peers", self.form_peers or self.min_peers)
        if self.form_peers < self.min_peers:
            raise ArgumentError(f"form_peers ({self.form_peers}) is less than min_peers ({self.min_peers})")
