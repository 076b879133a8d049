"""status.py - what `pccl status` and the page show of a group. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pccl import messages as m
from pccl.coordinator.figures import Figures
from pccl.coordinator.links import Links, pair_of
from pccl.coordinator.plan import Pair, Plan
from pccl.coordinator.roster import wire_plan
from pccl.types import LOSS_UNKNOWN

#: Peers may claim anything.
FIGURE_MAX = 1 << 62

if TYPE_CHECKING:
    from pccl.coordinator.membership import Membership


def group_status(group: Membership, reality: m.Reality | None, links: Links, now: float) -> m.GroupStatus:
    """The group as it is."""
    chosen = group.plan if group.members else None
    return m.GroupStatus(
        group=group.group,
        state=group.state.value,
        epoch=group.epoch,
        from_boundary=group.from_boundary,
        min_peers=group.settings.min_peers,
        form_peers=group.settings.form_peers,
        plan=wire_plan(chosen) if chosen is not None else None,
        members=tuple(peer.status(rank, now) for rank, peer in enumerate(group.members.values())),
        waiting=tuple(peer.status(-1, now) for peer in group.waiting.values()),
        log=tuple(
            m.LogEntry(now - entry.time, entry.epoch, entry.peer, entry.what, entry.reason) for entry in group.log
        ),
        reality=reality if group.members else None,
        links=tuple(link_statuses(list(group.members), chosen, links, now)) if chosen is not None else (),
        counts=tuple(sorted(group.counts.items())),
        losses=tuple(sorted(group.losses.items())),
    )


def link_statuses(members: list[bytes], plan: Plan, links: Links, now: float) -> Iterator[m.LinkStatus]:
    """Every path between two members, each way; nothing if they are too many to be shown."""
    if len(members) * (len(members) - 1) > m.LINK_STATUS_MAX:
        return
    measured = links.measured(now)
    rtt_s, rate, loss = (
        Figures.of(known).matrix(members).tolist()
        for known in (measured.rtt_s, measured.bytes_per_s, measured.loss_ppm)
    )
    streams = {pair_of(plan.order[a], plan.order[b]): count for a, b, count in plan.pair_streams}
    rank_of = {peer: rank for rank, peer in enumerate(members)}
    via = {(plan.order[a], plan.order[b]): rank_of.get(plan.order[c], -1) for a, b, c in plan.detours}
    doubtful = links.doubtful
    for a, sender in enumerate(members):
        for b, receiver in enumerate(members):
            if a == b:
                continue
            pair = pair_of(sender, receiver)
            yield m.LinkStatus(
                sender=a,
                receiver=b,
                rtt_us=_whole(rtt_s[a][b] * 1e6),
                bytes_per_s=_whole(rate[a][b]),
                loss_ppm=_whole(loss[a][b], LOSS_UNKNOWN),
                streams=streams.get(pair, plan.streams),
                state=_state(pair, links, doubtful),
                via=via.get((sender, receiver), -1),
            )


def _state(pair: Pair, links: Links, doubtful: frozenset[Pair]) -> str:
    if pair not in doubtful:
        return "up"
    return "broken" if pair in links.broken else "suspected"


def _whole(figure: float, unknown: int = 0) -> int:
    """A figure as the wire says it; NaN is not known."""
    return unknown if figure != figure else min(round(figure), FIGURE_MAX)
