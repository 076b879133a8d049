"""reach.py - who can be dialled, and who therefore dials whom.

Pure, like membership.py, whose helper it is. The rule is `dials` in pccl/types.py. Its `inbound` comes from the
coordinator's own dial-back, which is a hint: others may stand elsewhere. Experience outweighs it: a dial that failed
and has never succeeded *turns* the pair, once; if the other direction fails too, the link is dead like any other, and
links.py and the planner do without it. Two members that cannot be dialled are taken to be apart from the start, until
their link, which is dialled all the while, comes up all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pccl import messages as m
from pccl.coordinator.links import pair_of
from pccl.coordinator.plan import Pair
from pccl.coordinator.roster import Peer
from pccl.types import Cause

#: So long is waited for more of the kind before pairs are turned: one change for all.
TURN_AFTER_S = 0.5
#: Of more members that cannot be dialled no pair is taken to be apart before it has been tried.
APART_MAX = 64

NOTICE = (
    "none of the addresses that this peer advertises ({tried}) can be dialled from the coordinator: NAT or a firewall "
    "is in between. It dials the others itself; with peers that cannot be dialled either it speaks through a third. If "
    "it can be reached elsewhere, set PCCL_ADVERTISE to that address and PCCL_LISTEN to its port. See pccl doctor."
)


class Reach:
    """The directions of one group's links."""

    def __init__(self) -> None:
        self.turned: frozenset[Pair] = frozenset()
        self._failed: dict[Pair, float] = {}  # a dial failed that never succeeded: since when

    def suspect(self, now: float, reporter: bytes, suspect: m.Suspect) -> None:
        """A link is dead: from the start?"""
        pair = pair_of(reporter, suspect.peer)
        if not suspect.was_up and suspect.cause in (Cause.REFUSED, Cause.UNREACHABLE) and pair not in self.turned:
            self._failed.setdefault(pair, now)

    def heal(self, a: bytes, b: bytes) -> None:
        """The link is up: whoever dialled goes on dialling."""
        self._failed.pop(pair_of(a, b), None)

    def turn(self, now: float) -> list[Pair]:
        """Turns the pairs whose dials failed, all together, when the first has waited for long enough."""
        if self._due() > now:
            return []
        due = sorted(self._failed)
        self._failed.clear()
        self.turned |= set(due)
        return due

    def next_due(self, now: float) -> float:
        """When pairs are to be turned; infinity for never, or when it is overdue: then a change is under way."""
        due = self._due()
        return due if due > now else float("inf")

    def _due(self) -> float:
        return min(self._failed.values(), default=float("inf")) + TURN_AFTER_S

    def forget(self, peer: bytes) -> None:
        """The peer is no member any more."""
        self.turned = frozenset(pair for pair in self.turned if peer not in pair)
        self._failed = {pair: since for pair, since in self._failed.items() if peer not in pair}

    def ranks(self, members: Iterable[bytes]) -> tuple[tuple[int, int], ...]:
        """The turned pairs as an epoch names them."""
        rank = {peer: number for number, peer in enumerate(members)}
        pairs = ((rank[a], rank[b]) for a, b in self.turned if a in rank and b in rank)
        return tuple(sorted(pairs))[: m.PAIRS_MAX]


def apart(members: Mapping[bytes, Peer], joiners: Mapping[bytes, Peer]) -> set[Pair]:
    """Pairs of which a joiner is one and neither can be dialled. `members`: all, with the joiners. None where nobody
    can be dialled: then it is the coordinator that stands apart.
    """
    hidden = [peer for peer in members.values() if not peer.inbound]
    if not hidden or len(hidden) == len(members) or len(hidden) > APART_MAX:
        return set()
    return {pair_of(a.id, b.id) for a in hidden if a.id in joiners for b in hidden if a is not b}


def notice(peer: Peer) -> str:
    """What a peer that nobody can dial is told."""
    return m.clip(NOTICE.format(tried=", ".join(peer.addresses)), 4 * m.TEXT_MAX)
