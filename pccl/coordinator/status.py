"""status.py - what `pccl status` shows of a group. Decides nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pccl import messages as m
from pccl.coordinator.roster import wire_plan

if TYPE_CHECKING:
    from pccl.coordinator.membership import Membership


def group_status(group: Membership, reality: m.Reality | None, now: float) -> m.GroupStatus:
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
    )
