"""status.py - what `pccl status` and the page show of a group. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np

from pccl import messages as m
from pccl.coordinator.figures import Array, Figures
from pccl.coordinator.links import Links, pair_of
from pccl.coordinator.plan import Plan
from pccl.coordinator.roster import wire_plan
from pccl.types import LOSS_UNKNOWN

#: Peers may claim anything.
FIGURE_MAX = 1 << 62

if TYPE_CHECKING:
    from pccl.coordinator.membership import Membership


def group_status(group: Membership, reality: m.Reality | None, links: Links | None, now: float) -> m.GroupStatus:
    """The group as it is; without `links` nothing is said of each."""
    chosen = group.plan if group.members else None
    shown = link_statuses(list(group.members), chosen, links, now) if chosen is not None and links is not None else ()
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
        links=tuple(shown),
        counts=tuple(sorted(group.counts.items())),
        losses=tuple(sorted(group.losses.items())),
    )


def link_statuses(members: list[bytes], plan: Plan, links: Links, now: float) -> Iterator[m.LinkStatus]:
    """Every path between two members, each way; nothing if they are too many to be shown."""
    if len(members) * (len(members) - 1) > m.LINK_STATUS_MAX:
        return
    measured = links.measured(now)
    rtt_s, rate, loss = (
        Figures.of(known).matrix(members) for known in (measured.rtt_s, measured.bytes_per_s, measured.loss_ppm)
    )
    rtts, rates, losses = _whole(rtt_s * 1e6, 0), _whole(rate, 0), _whole(loss, LOSS_UNKNOWN)
    streams = {pair_of(plan.order[a], plan.order[b]): count for a, b, count in plan.pair_streams}
    rank_of = {peer: rank for rank, peer in enumerate(members)}
    via = {(plan.order[a], plan.order[b]): rank_of.get(plan.order[c], -1) for a, b, c in plan.detours}
    states = {pair: "broken" if pair in links.broken else "suspected" for pair in links.doubtful}
    for (a, sender), (b, receiver) in permutations(enumerate(members), 2):
        pair = pair_of(sender, receiver)
        figures = rtts[a][b], rates[a][b], losses[a][b]
        over = via.get((sender, receiver), -1) if via else -1
        yield m.LinkStatus(a, b, *figures, streams.get(pair, plan.streams), states.get(pair, "up"), over)


def _whole(figures: Array, unknown: int) -> list[list[int]]:
    """Figures as the wire says them; NaN is not known."""
    known = np.minimum(np.where(np.isnan(figures), unknown, figures), FIGURE_MAX)
    whole: list[list[int]] = np.rint(known).astype(np.int64).tolist()
    return whole
