"""Names of ops: (boundary, lane, seq), the same on every peer that calls the same in the same order.

Lane 0 has the untagged ops, every tag and every pair of a send has one of its own, and so have the further ops of a
call that takes several (fused.py). Here is counted how many ops of each lane were called since the last boundary, and
which tags are in flight. The lock is the caller's.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from pccl import messages as m
from pccl.errors import ArgumentError, MismatchError, ResourceError
from pccl.types import OpName

__all__ = ["LANES_MAX", "Lanes", "Tag"]

Tag = str | bytes | int | None

LANES_MAX = m.PENDING_MAX  # of a boundary: what fits a Frozen message


class Lanes:
    """How far each lane is, at the present boundary."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._posted: dict[int, int] = {}
        self._boundary = -1
        self._busy: set[int] = set()  # lanes of tags in flight

    def lane(self, tag: Tag, pair: tuple[bytes, bytes] | None = None) -> int:
        """The lane of a tag, and of a pair for send/recv."""
        return 0 if tag is None and pair is None else _lane(self._key, tag, pair)

    def next_names(self, boundary: int, lane: int, tag: Tag, count: int) -> list[OpName]:
        """The names of the next call in the lane, which takes so many ops. The number of all of them is the call's, so
        that calls stay matched even if peers disagree about how many ops one takes. MismatchError, ResourceError.
        """
        if boundary != self._boundary:
            self._posted.clear()
            self._boundary = boundary
        lanes = [lane]
        for number in range(1, count):
            lanes.append(_part_lane(self._key, lane, number))
        if tag is not None and not self._busy.isdisjoint(lanes):
            raise MismatchError(f"tag {tag!r} is already in flight here; wait for that op, or use another tag")
        fresh = sum(one not in self._posted for one in lanes)
        if fresh and len(self._posted) + fresh > LANES_MAX:
            raise ResourceError(f"{LANES_MAX} tags were used at boundary {boundary}, no more before the next")
        seq = self._posted.get(lane, 0)
        return [OpName(boundary, one, seq) for one in lanes]

    def occupy(self, lane: int) -> None:
        """An op with a tag is in flight there."""
        self._busy.add(lane)

    def free(self, lane: int) -> None:
        """It is no longer."""
        self._busy.discard(lane)

    def note(self, name: OpName) -> None:
        """The op was called. Names may be noted again, when later ones have been."""
        self._posted[name.lane] = max(self._posted.get(name.lane, 0), name.seq + 1)


@lru_cache(maxsize=4096, typed=True)
def _lane(key: bytes, tag: Tag, pair: tuple[bytes, bytes] | None) -> int:
    """Never 0, which is the lane of everything without."""
    if tag is not None and not isinstance(tag, str | bytes | int):
        raise ArgumentError(f"tag must be a str, bytes or int, not {type(tag).__name__}")
    text = f"{type(tag).__name__}:".encode() + (tag if isinstance(tag, bytes) else str(tag).encode())
    return _hash(key, b"".join(pair or ()) + b"|" + text)


@lru_cache(maxsize=4096)
def _part_lane(key: bytes, lane: int, number: int) -> int:
    return _hash(key, b"part" + lane.to_bytes(8, "little") + number.to_bytes(4, "little"))


def _hash(key: bytes, text: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text, key=key, digest_size=8).digest(), "little") or 1
