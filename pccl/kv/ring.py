"""ring.py - two hash rings over the same nodes: a key's two candidates, which hardly change as nodes come and go.

Each node stands at VIRTUAL places of either ring; a key belongs to the next place after its own hash. The rings hash
with different salts, so the two candidates of a key are independent, and of all keys of one node the second candidates
are spread over all others. A new node takes about 1/(n+1) of the keys of each ring, and nothing else moves.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from hashlib import blake2b

from pccl.errors import ArgumentError

__all__ = ["TwoRings"]

VIRTUAL = 160
SALTS = (b"pccl.kv ring 1", b"pccl.kv ring 2")


class TwoRings:
    """Of nodes by name; immutable, so that routers may share it. ArgumentError for no node, or one that is there
    twice.
    """

    def __init__(self, nodes: Iterable[str]) -> None:
        self.nodes = tuple(sorted(nodes))
        if not self.nodes:
            raise ArgumentError("nodes is empty")
        if len(set(self.nodes)) != len(self.nodes):
            raise ArgumentError("nodes has a name twice")
        self._rings = tuple(_ring(salt, self.nodes) for salt in SALTS)

    def candidates(self, key: bytes) -> tuple[str, ...]:
        """The two nodes of a key, different ones; one where there is only one."""
        first = self._after(0, key, None)
        return (first,) if len(self.nodes) == 1 else (first, self._after(1, key, first))

    def _after(self, which: int, key: bytes, other_than: str | None) -> str:
        places, owners = self._rings[which]
        at = bisect_right(places, _place(SALTS[which], key))
        while owners[at % len(owners)] == other_than:
            at += 1
        return owners[at % len(owners)]


def _ring(salt: bytes, nodes: tuple[str, ...]) -> tuple[list[int], list[str]]:
    """(places, sorted; the node at each)."""
    stands = sorted((_place(salt, f"{node}\0{number}".encode()), node) for node in nodes for number in range(VIRTUAL))
    return [place for place, _ in stands], [node for _, node in stands]


def _place(salt: bytes, what: bytes) -> int:
    return int.from_bytes(blake2b(what, digest_size=8, key=salt).digest(), "big")
