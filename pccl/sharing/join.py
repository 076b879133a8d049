"""join.py - join_state: a guest fetches the state, enters and synchronises, as much as possible at the same time.

One call instead of three, because nobody else writes to the entries meanwhile. So what was verified as it came needs
not be read again; and the guest enters while the last of it is still coming: members come to their boundary and read
their own state, which takes them as long as it would take here or longer, tell what it is, and how it has changed, and
send that as well, all while their lines are busy for the guest.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from pccl.sharing.content import Content
from pccl.sharing.prefetch import Guest, Prefetch, PrefetchReport, seconds_of
from pccl.sharing.report import SyncReport
from pccl.sharing.rounds import Peers, Sync

__all__ = ["Joiner", "join_state"]

#: From asking to the others' boundary, if their steps are short, and some round trips.
_ENTER_S = 0.75
#: Members read everything, too, and have more to do than that: the slowest is given twice the time that it takes here,
_READ_FACTOR = 2.0
#: but no more than this, which is about how much longer they wait for a guest that entered too early.
_READ_MAX_S = 1.0


class Joiner(Guest, Peers, Protocol):
    """What join_state needs of a communicator."""

    @property
    def op_timeout(self) -> float: ...
    def enter(self) -> Any: ...


def join_state(
    comm: Joiner, entries: dict[str, Any], allow_drift: Sequence[str] = (), *, timeout: float | None = None
) -> tuple[PrefetchReport, SyncReport]:
    """`prefetch_state(entries, allow_drift, timeout=timeout)`, `enter()` and the first `sync_state(entries,
    allow_drift=allow_drift)` of a guest, to be called instead of these: it is done sooner. The others call `sync_state`
    when they see that the epoch has grown. Blocks; Ctrl-C interrupts.

    Nobody may write to the entries, or read them, while it runs. Gives what the prefetch has brought and what the
    synchronisation did. Raises what the three raise; the entries are then as they say, this peer perhaps a member.
    """
    content = Content(entries, frozenset(allow_drift), False, comm.stager)
    content.loose.read()
    entering = _Entering(comm, content)
    prefetch = Prefetch(comm, content, time.monotonic() + seconds_of(comm, timeout), entering)
    try:
        report = prefetch.run()
        if prefetch.target.manifest is None:  # what came before a manifest was seen nobody has judged
            content.fixed.read()
        else:
            content.fixed.read_some(prefetch.missing)
        comm.enter()
        return report, entering.sync.run()
    finally:
        entering.sync.close()


class _Entering:
    """What can be done while the last of the state is coming."""

    def __init__(self, comm: Joiner, content: Content) -> None:
        self.sync = Sync(comm, content, "majority", None)
        self._comm = comm

    def is_near(self, left_s: float, read_s: float) -> bool:
        """See Near."""
        return left_s <= _ENTER_S + min(_READ_FACTOR * read_s, _READ_MAX_S)

    def go(self) -> None:
        """See Near."""
        self._comm.enter()
        self.sync.open()

    def go_on(self) -> None:
        """See Near."""
        self.sync.go_on()
