"""neighbours.py - who else follows the same sources and serves what it has, and how far each of them is.

Sources say who serves (records.Peers); of these the NEIGHBOURS_MAX that come after this peer in the order of ids are
followed, so that not all turn to the same. What a source has said stays when it is gone: that is when neighbours are
wanted. They are helpers: nobody waits at one for a version that does not exist yet, so no two wait for each other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from pccl.transfer.transfers import Transfers
from pccl.weights.certificate import Version
from pccl.weights.errors import DamageError
from pccl.weights.line import Inbox
from pccl.weights.records import Peers, Tip, decode, tip_line

__all__ = ["Neighbours"]

log = logging.getLogger("pccl.weights")

NEIGHBOURS_MAX = 4
#: Deltas that a receiver serves: that which is coming, and those that it had before.
SERVED_MAX = 3


class Neighbours:
    """Of one Follow. `told`: runs a step on its thread, where all is called but `helpers`; `moved`: one of them can
    serve more than before.
    """

    def __init__(
        self,
        transfers: Transfers,
        name: str,
        schema: bytes,
        told: Callable[[Callable[[], None]], None],
        moved: Callable[[], None],
    ) -> None:
        self._transfers, self._name, self._schema = transfers, name, schema
        self._told, self._moved = told, moved
        self._said: dict[bytes, list[bytes]] = {}
        self._inboxes: dict[bytes, Inbox] = {}
        self._tips: dict[bytes, Version] = {}

    def hear(self, source: bytes, data: bytes, sources: Collection[bytes]) -> None:
        """A source says who serves; `sources`: those that are there."""
        said = decode(Peers, data)
        said.check()
        self._said = {peer: ids for peer, ids in self._said.items() if peer in sources} | {source: said.ids}
        me = self._transfers.peer_id
        others = set().union(*self._said.values()) - set(sources) - {me}
        chosen = sorted(others, key=lambda peer: (peer < me, peer))[:NEIGHBOURS_MAX]
        for peer in self._inboxes.keys() - chosen:
            self._leave(peer)
        for peer in chosen:
            if peer not in self._inboxes:
                self._inboxes[peer] = self._meet(peer)

    def tend(self, now: float) -> float:
        """See Inbox."""
        return min((inbox.tend(now) for inbox in self._inboxes.values()), default=float("inf"))

    def helpers(self, base: Version) -> tuple[list[bytes], list[bytes]]:
        """See stream.Helpers: for the delta from there. Any thread."""
        tips = list(self._tips.items())
        held = [peer for peer, tip in tips if 0 < tip.version - base.version < SERVED_MAX]
        return held, [peer for peer, tip in tips if tip == base]

    def close(self) -> None:
        """Nobody is followed any more."""
        for peer in list(self._inboxes):
            self._leave(peer)

    def _meet(self, peer: bytes) -> Inbox:
        def told(data: bytes) -> None:
            self._told(lambda: self._on_tip(peer, data))

        def absent() -> None:
            self._told(lambda: self._forget(peer))

        return Inbox(self._transfers, peer, tip_line(self._name), told, absent, absent)

    def _leave(self, peer: bytes) -> None:
        self._inboxes.pop(peer).close()
        self._forget(peer)

    def _forget(self, peer: bytes) -> None:
        self._tips.pop(peer, None)

    def _on_tip(self, peer: bytes, data: bytes) -> None:
        """What a neighbour says is no reason to end: a wrong one is not listened to."""
        if peer not in self._inboxes:
            return
        try:
            tip = decode(Tip, data)
            if tip.schema != self._schema:
                raise DamageError("it has weights of another schema")
        except DamageError as error:
            log.warning("weights: a neighbour is left alone: %s", error)
            self._forget(peer)
            return
        self._tips[peer] = tip.at
        self._moved()
