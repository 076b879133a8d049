"""The least time of a ring all-reduce on a topology: over all orders of the peers, by brute force.

Of n peers each sends 2 (n - 1) spans of 1/n of the data to the next one. In a given order the hop with the least rate
(pair, uplink and downlink) is busy for all of that, and the last span has to arrive; or the way of one span through
2 (n - 1) hops is what takes long. Then, as for any all-reduce, the word that all hold the result goes round.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from .bound import BYTES_PER_MBIT, Bound, BoundError, shortest_s
from .topology import Topology

PEERS_MAX = 8


def ring_bound(topology: Topology, nbytes: float) -> Bound:
    """Of the best order. BoundError: too many peers to try all, or no ring reaches all of them."""
    names = [site.name for site in topology.peers]
    if len(names) > PEERS_MAX:
        raise BoundError(f"{topology.name or 'topology'}: {len(names)} peers are too many to try all rings")
    if len(names) < 2:
        return Bound(0.0, 0.0)
    orders = ([names[0], *rest] for rest in itertools.permutations(names[1:]))
    best = min((_of_order(topology, order, nbytes) for order in orders), key=lambda found: found.total_s)
    if math.isinf(best.total_s):
        raise BoundError(f"{topology.name or 'topology'}: no ring reaches all peers")
    return Bound(best.transfer_s, best.delay_s + max(shortest_s(topology).values()))


def _of_order(topology: Topology, order: Sequence[str], nbytes: float) -> Bound:
    """Each sends to the next one, the last to the first. Without the word."""
    hops = list(zip(order, [*order[1:], order[0]], strict=True))
    span_s = max(_seconds_per_byte(topology, a, b) for a, b in hops) * nbytes / len(order)
    if math.isinf(span_s):
        return Bound(span_s, 0.0)
    steps = 2 * (len(order) - 1)
    delays = [topology.links[hop].delay_ms / 1e3 for hop in hops]
    trip_s = max(sum(itertools.islice(itertools.cycle(delays), start, start + steps)) for start in range(len(order)))
    return Bound(steps * span_s, max(*delays, trip_s - (steps - 1) * span_s))


def _seconds_per_byte(topology: Topology, a: str, b: str) -> float:
    """Of a lone flow; 0 where nothing limits it, infinity where nothing arrives. Lost packets spare the downlink."""
    link = topology.links[a, b]
    up, down = (0.0, 0.0) if link.local else (topology.sites[a].up_mbit, topology.sites[b].down_mbit)
    arrives = 1 - link.loss
    limits = [limit for limit in (link.rate_mbit * arrives, up * arrives, down) if limit > 0]
    if arrives <= 0:
        return math.inf
    return 1 / (min(limits) * BYTES_PER_MBIT) if limits else 0.0
