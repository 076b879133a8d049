"""index.py - which datacenter holds how much of a prefix: fed by the events of every instance, asked for every request.

Each instance is followed by epoch and number. A batch that begins beyond what is known leaves a gap: it is kept until
the events before it are there, and the answer says from where to replay. What is known already is skipped. A newer
epoch forgets the older one; an older one is ignored. A digest of the same number that differs means that something was
lost unseen: the instance is forgotten and asked for everything.

The index may be behind, but never makes anything up: an answer is contiguous from block 0, in one datacenter, and for
hybrid models ends at the deepest block whose recurrent state is held too. What is really there is found out when a
transfer is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pccl.kv.numbers import count
from pccl.kv.prefix.context import KeyContext
from pccl.kv.prefix.events import Batch, Contents, Digest, Snapshot

__all__ = ["Hit", "Instance", "PrefixIndex", "Replay"]

#: Batches beyond a gap that are kept for each instance.
AHEAD_MAX = 64


@dataclass(frozen=True, slots=True)
class Instance:
    """An engine with a prefix cache; `context`: what its block hashes mean."""

    dc: str
    name: str
    context: KeyContext


@dataclass(frozen=True, slots=True)
class Replay:
    """Ask the instance for its events from number `first` on (1: for everything)."""

    instance: Instance
    first: int


@dataclass(frozen=True, slots=True)
class Hit:
    """The datacenter has the first `n_blocks`. `age_s`: since the last news of who holds the last of them."""

    dc: str
    n_blocks: int
    age_s: float


@dataclass(slots=True)
class _Followed:
    """What is known of one instance."""

    epoch: int = -1
    last: int = 0
    heard_s: float = 0.0
    contents: Contents = field(default_factory=Contents)
    ahead: dict[int, Batch] = field(default_factory=dict)


class PrefixIndex:
    """Not for several threads; never reads a clock."""

    def __init__(self) -> None:
        self._followed: dict[Instance, _Followed] = {}
        # By context, then datacenter: which instances hold a block.
        self._held: dict[KeyContext, dict[str, dict[bytes, set[Instance]]]] = {}

    def apply(self, now_s: float, instance: Instance, batch: Batch) -> Replay | None:
        """Takes in events; a Replay if some are missing before them. Order and repetition do not matter."""
        count("first", batch.first, 1)
        known = self._of_epoch(now_s, instance, batch.epoch)
        if known is None:
            return None
        if batch.first > known.last + 1:
            if len(known.ahead) < AHEAD_MAX:
                known.ahead[batch.first] = batch
            return Replay(instance, known.last + 1)
        self._take(instance, known, batch)
        while known.ahead and min(known.ahead) <= known.last + 1:
            self._take(instance, known, known.ahead.pop(min(known.ahead)))
        return Replay(instance, known.last + 1) if known.ahead else None

    def restore(self, now_s: float, instance: Instance, snapshot: Snapshot) -> Replay | None:
        """Takes in all that an instance holds; one that is older than what is known is ignored."""
        known = self._of_epoch(now_s, instance, snapshot.epoch)
        if known is None or snapshot.last < known.last:
            return None
        self._changed(instance, *known.contents.replace(snapshot.blocks, snapshot.states))
        known.last = snapshot.last
        waiting = [known.ahead.pop(first) for first in sorted(known.ahead)]
        replays = [self.apply(now_s, instance, batch) for batch in waiting]
        return next((replay for replay in replays if replay is not None), None)

    def check(self, now_s: float, instance: Instance, digest: Digest) -> Replay | None:
        """Compares with what the instance says of itself; a Replay if something is missing or wrong."""
        known = self._of_epoch(now_s, instance, digest.epoch)
        if known is None or digest.last < known.last:
            return None
        if digest.last > known.last:
            return Replay(instance, known.last + 1)
        if digest.value == known.contents.digest:
            return None
        self.forget(instance)
        return Replay(instance, 1)

    def forget(self, instance: Instance) -> None:
        """The instance is gone."""
        known = self._followed.pop(instance, None)
        if known is not None:
            self._changed(instance, [], list(known.contents.blocks))

    def lookup(self, now_s: float, context: KeyContext, hashes: Sequence[bytes], hybrid: bool = False) -> list[Hit]:
        """Who has the beginning of this prefix, the longest first; nobody with nothing. `hashes`: one per block, from
        the first on. `hybrid`: only up to a block with a checkpoint of the state.
        """
        found = []
        for dc, held in self._held.get(context, {}).items():
            blocks = _contiguous(held, hashes)
            if hybrid:
                blocks = self._to_checkpoint(held, hashes, blocks)
            if blocks:
                heard_s = max(self._followed[holder].heard_s for holder in held[hashes[blocks - 1]])
                found.append(Hit(dc, blocks, max(0.0, now_s - heard_s)))
        return sorted(found, key=lambda hit: (-hit.n_blocks, hit.age_s, hit.dc))

    def _of_epoch(self, now_s: float, instance: Instance, epoch: int) -> _Followed | None:
        """What is known of this epoch of the instance, nothing yet if it is new; None if it is over."""
        count("epoch", epoch)
        known = self._followed.get(instance)
        if known is None or known.epoch < epoch:
            self.forget(instance)
            known = self._followed[instance] = _Followed(epoch)
        if known.epoch > epoch:
            return None
        known.heard_s = max(known.heard_s, now_s)
        return known

    def _take(self, instance: Instance, known: _Followed, batch: Batch) -> None:
        """Events that follow what is known, without those that are part of it."""
        for event in batch.events[max(0, known.last + 1 - batch.first) :]:
            self._changed(instance, *known.contents.apply(event))
        known.last = max(known.last, batch.first + len(batch.events) - 1)

    def _changed(self, instance: Instance, came: list[bytes], gone: list[bytes]) -> None:
        held = self._held.setdefault(instance.context, {}).setdefault(instance.dc, {})
        for block in came:
            held.setdefault(block, set()).add(instance)
        for block in gone:
            holders = held[block]
            holders.discard(instance)
            if not holders:
                del held[block]

    def _to_checkpoint(self, held: dict[bytes, set[Instance]], hashes: Sequence[bytes], blocks: int) -> int:
        """The deepest of the first `blocks` whose state is held."""
        while blocks and not any(
            hashes[blocks - 1] in self._followed[holder].contents.states for holder in held[hashes[blocks - 1]]
        ):
            blocks -= 1
        return blocks


def _contiguous(held: dict[bytes, set[Instance]], hashes: Sequence[bytes]) -> int:
    for place, block in enumerate(hashes):
        if block not in held:
            return place
    return len(hashes)
