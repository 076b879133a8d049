"""join.py - join_state: a guest fetches the state, enters and synchronises, as much as possible at the same time.

One call instead of three, because nobody else writes to the entries meanwhile. So what was verified as it came needs
not be read again; and the guest asks to enter while the last of it is still coming: members come to their boundary and
read their own state, which takes them as long as it took here, while their lines are still busy for the guest.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from pccl.sharing.content import Content
from pccl.sharing.prefetch import Guest, Prefetch, PrefetchReport, seconds_of
from pccl.sharing.report import SyncReport
from pccl.sharing.rounds import Peers, synchronise

__all__ = ["Joiner", "join_state"]

#: From asking to the others' boundary, if their steps are short.
_ENTER_S = 0.5
#: Members wait at most about so much longer for a guest that asked too early.
_READ_MAX_S = 1.0


class Joiner(Guest, Peers, Protocol):
    """What join_state needs of a communicator."""

    @property
    def op_timeout(self) -> float: ...
    def ask_to_enter(self) -> None: ...
    def enter(self) -> Any: ...


def join_state(
    comm: Joiner, entries: dict[str, Any], allow_drift: Sequence[str] = (), *, timeout: float | None = None
) -> tuple[PrefetchReport, SyncReport]:
    """`prefetch_state(entries, allow_drift, timeout=timeout)`, `enter()` and the first `sync_state(entries,
    allow_drift=allow_drift)` of a guest, to be called instead of these: it is sooner done, and the others, which call
    `sync_state` when they see that the epoch has grown, wait no longer. Blocks; Ctrl-C interrupts.

    Nobody may write to the entries, or read them, while it runs. Gives what the prefetch has brought and what the
    synchronisation did. Raises what the three raise; the entries are then as they say, this peer perhaps a member.
    """
    content = Content(entries, frozenset(allow_drift), read_only=False)

    def near(left_s: float, read_s: float) -> bool:
        is_near = left_s <= _ENTER_S + min(read_s, _READ_MAX_S)
        if is_near:
            comm.ask_to_enter()
        return is_near

    prefetch = Prefetch(comm, content, time.monotonic() + seconds_of(comm, timeout), near)
    report = prefetch.run()
    if prefetch.target.manifest is None:  # what came before a manifest was seen nobody has judged
        content.fixed.read()
    else:
        content.fixed.read_some(prefetch.missing)
    if content.loose in content.shares:
        content.loose.read()
    comm.enter()
    return report, synchronise(comm, content, "majority", None)
