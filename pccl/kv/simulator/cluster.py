"""cluster.py - what the simulator is made of: pools of instances, a link, prefix caches. Virtual time only.

A pool is one queue in front of equal instances, first come, first served. The link carries the KV caches of prefills in
the order in which they began, each while it is being made; it never idles while something waits. Decode, batching and
what happens inside a cluster are left out.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace

from pccl.kv.model.decide import Paths
from pccl.kv.numbers import at_least_zero, count, positive

__all__ = ["Link", "Pool", "PrefixCache", "Topology"]

UTILISATION_S = 10.0


@dataclass(frozen=True, slots=True)
class Topology:
    """Two clusters and the link between them; it carries as much in either direction. `n_p` local instances prefill,
    `n_d` decode, each `decode_per_s` requests. `cache_blocks`: of each cluster's prefix cache, None without a bound.
    `jitter`: standard deviation of a prefill's time around its profile, as a part of it.
    """

    paths: Paths
    n_remote: int
    n_p: int
    n_d: int
    decode_per_s: float
    bandwidth_bytes_per_s: float
    cache_blocks: int | None = None
    jitter: float = 0.05

    def __post_init__(self) -> None:
        count("n_remote", self.n_remote, 1)
        count("n_p", self.n_p, 1)
        count("n_d", self.n_d)
        positive("decode_per_s", self.decode_per_s)
        positive("bandwidth_bytes_per_s", self.bandwidth_bytes_per_s)
        at_least_zero("jitter", self.jitter)
        if self.cache_blocks is not None:
            count("cache_blocks", self.cache_blocks)


class Pool:
    """Equal instances behind one queue."""

    def __init__(self, instances: int) -> None:
        self._free_s = [0.0] * instances
        heapify(self._free_s)

    def __len__(self) -> int:
        return len(self._free_s)

    def wait_s(self, now_s: float) -> float:
        """How long a request that comes now waits."""
        return max(0.0, self._free_s[0] - now_s)

    def take(self, ready_s: float, work_s: float) -> tuple[float, float]:
        """(begin, end) of a piece of work that can begin at `ready_s`."""
        begin_s = max(ready_s, self._free_s[0])
        heapreplace(self._free_s, begin_s + work_s)
        return begin_s, begin_s + work_s


class Link:
    """One direction of the link. What is handed over is sent in that order, each not before it begins to exist."""

    def __init__(self, bandwidth_bytes_per_s: float) -> None:
        self.bandwidth_bytes_per_s = bandwidth_bytes_per_s
        self.sent_bytes = self.busy_s = self.utilisation = self.queued_bytes = 0.0
        self._free_s = self._now_s = 0.0
        self._coming: deque[tuple[float, float]] = deque()  # when something is sent: from, to

    def carry(self, begin_s: float, size_bytes: float) -> float:
        """When all of it has left, if it is there from `begin_s` on."""
        start_s = max(begin_s, self._free_s)
        self._free_s = start_s + size_bytes / self.bandwidth_bytes_per_s
        self.queued_bytes += size_bytes
        self._coming.append((start_s, self._free_s))
        return self._free_s

    def advance(self, now_s: float) -> None:
        """Brings up to date: `busy_s`, `sent_bytes`, `queued_bytes` (handed over, not sent), and `utilisation`: the
        busy part of the last seconds (UTILISATION_S, fading).
        """
        passed_s, busy_s = now_s - self._now_s, 0.0
        while self._coming and self._coming[0][0] < now_s:
            start_s, end_s = self._coming[0]
            busy_s += min(end_s, now_s) - max(start_s, self._now_s)
            if end_s > now_s:
                break
            self._coming.popleft()
        if passed_s > 0.0:
            fade = math.exp(-passed_s / UTILISATION_S)
            self.utilisation = self.utilisation * fade + min(busy_s / passed_s, 1.0) * (1.0 - fade)
            self._now_s = now_s
        self.busy_s += busy_s
        self.sent_bytes += busy_s * self.bandwidth_bytes_per_s
        self.queued_bytes = max(0.0, self.queued_bytes - busy_s * self.bandwidth_bytes_per_s)


class PrefixCache:
    """Blocks of one cluster, the least recently used leave first. A prefill's blocks are there when it ends."""

    def __init__(self, blocks_max: int | None = None) -> None:
        self.blocks_max = blocks_max
        self._held: OrderedDict[int, None] = OrderedDict()
        self._coming: list[tuple[float, int, Sequence[int]]] = []
        self._number = 0

    def hit_blocks(self, now_s: float, blocks: Sequence[int]) -> int:
        """How many blocks, from the first on, are there now."""
        while self._coming and self._coming[0][0] <= now_s:
            self._store(heappop(self._coming)[2])
        held = self._held
        for place, block in enumerate(blocks):
            if block not in held:
                return place
        return len(blocks)

    def add(self, end_s: float, blocks: Sequence[int]) -> None:
        """These blocks are there from `end_s` on."""
        self._number += 1
        heappush(self._coming, (end_s, self._number, blocks))

    def _store(self, blocks: Sequence[int]) -> None:
        if self.blocks_max is None:
            self._held.update(dict.fromkeys(blocks))
            return
        for block in reversed(blocks):  # the first of a prefix is used by most: it leaves last
            self._held[block] = None
            self._held.move_to_end(block)
        while len(self._held) > self.blocks_max:
            self._held.popitem(last=False)
