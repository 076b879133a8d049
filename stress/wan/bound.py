"""The least time that an all-reduce can take on a topology, whatever the program: a linear program and two delays.

Each byte of the result is made at some peer, its owner: what the others have of it flows there, summed on its way
wherever flows meet, and the sum flows back to all, copied wherever it forks. For peers i, directed pairs e, one unit of
data and the time t that is to be least:

    w_i      share that i owns                           sum of all w_i = 1
    y_i(e)   what e carries of i's sums, on their way    y_i >= a flow of w_i from i to v, for every other peer v
    z_i(e)   what e carries of what i is to sum          z_i >= a flow of w_i from v to i, for every other peer v

    sum over i of y_i(e) + z_i(e)  <=  t rate(e) (1 - loss(e))          and so for the caps of each site, up and down

(Edmonds: capacities that let a flow of w through to each peer alone let copies of w through to all at once, so flows
to one peer at a time need no more than the largest of them; and the other way round for sums.) A packet that the pair
loses has used the pair's rate and the uplink, but not the downlink.

    bound = t * bytes  +  least over owners of (longest delay to the owner + longest delay from it to a peer)

The second term is two one-way delays where all are equal: to the owner and back, or, for peers that send each other
everything, the data and then the word that it has come, without which nobody knows that all hold the result. Delays are
along the shortest way, jitter is none. Headers are not counted: TCP's payload is at most 1448/1500 of a rate.

`direct`: for owners that talk to every peer themselves, so that nothing is passed on (the mesh with the best spans).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .topology import Topology

BYTES_PER_MBIT = 1e6 / 8

Pair = tuple[str, str]
Terms = Iterable[tuple[int, float]]


class BoundError(ValueError):
    """There is no all-reduce on this topology: some peer cannot reach another."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Seconds."""

    transfer_s: float
    delay_s: float

    @property
    def total_s(self) -> float:
        return self.transfer_s + self.delay_s


def bound(topology: Topology, nbytes: float, direct: bool = False) -> Bound:
    """Of an all-reduce of so many bytes between the peers of the topology, as it is before its script begins."""
    return Bound(nbytes * seconds_per_byte(topology, direct), delay_s(topology))


# -- delay -----------------------------------------------------------------------------------------------------------


def open_pairs(topology: Topology) -> list[Pair]:
    """Directed pairs of peers over which something can come."""
    names = [site.name for site in topology.peers]
    return [(a, b) for a in names for b in names if a != b and topology.links[a, b].loss < 1]


def shortest_s(topology: Topology) -> dict[Pair, float]:
    """One-way delays from each peer to each, along the shortest way."""
    names = [site.name for site in topology.peers]
    reach = {(a, b): 0.0 if a == b else math.inf for a in names for b in names}
    reach.update({pair: topology.links[pair].delay_ms / 1e3 for pair in open_pairs(topology)})
    for via, a, b in itertools.product(names, names, names):
        reach[a, b] = min(reach[a, b], reach[a, via] + reach[via, b])
    return reach


def delay_s(topology: Topology) -> float:
    """To the best placed owner and back, by the farthest peers."""
    names, reach = [site.name for site in topology.peers], shortest_s(topology)
    return min(max(reach[i, owner] for i in names) + max(reach[owner, i] for i in names) for owner in names)


# -- the linear program ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Program:
    """A linear program as it grows: variables from 0 to a most, sparse rows `<=` and `==`."""

    most: list[float | None] = field(default_factory=list)
    upper: list[tuple[list[tuple[int, float]], float]] = field(default_factory=list)
    equal: list[tuple[list[tuple[int, float]], float]] = field(default_factory=list)

    def variable(self, most: float | None = None) -> int:
        self.most.append(most)
        return len(self.most) - 1

    def at_most(self, terms: Terms, limit: float = 0.0) -> None:
        self.upper.append((list(terms), limit))

    def equals(self, terms: Terms, value: float = 0.0) -> None:
        self.equal.append((list(terms), value))

    def least(self, variable: int) -> float | None:
        """The least value of a variable; None if nothing fulfils all rows."""
        from scipy.optimize import linprog

        cost = [float(index == variable) for index in range(len(self.most))]
        (a_ub, b_ub), (a_eq, b_eq) = self._matrix(self.upper), self._matrix(self.equal)
        limits = [(0.0, most) for most in self.most]
        solved = linprog(cost, A_ub=a_ub, b_ub=b_ub, A_eq=a_eq, b_eq=b_eq, bounds=limits, method="highs")
        return float(solved.fun) if solved.success else None

    def _matrix(self, rows: Sequence[tuple[list[tuple[int, float]], float]]) -> tuple[Any, list[float] | None]:
        from scipy.sparse import coo_matrix

        if not rows:
            return None, None
        entries = [(number, column, value) for number, (terms, _) in enumerate(rows) for column, value in terms]
        lines, columns, values = zip(*entries, strict=True)
        matrix = coo_matrix((values, (lines, columns)), shape=(len(rows), len(self.most)))
        return matrix, [limit for _, limit in rows]


class AllReduce:
    """The program of the text above. Rates are relative to the fastest, so that all numbers are near 1."""

    def __init__(self, topology: Topology, direct: bool) -> None:
        self.topology = topology
        self.pairs = open_pairs(topology)
        self.names = [site.name for site in topology.peers]
        self.program = Program()
        self.time = self.program.variable()
        self.loads: dict[Pair, list[int]] = {pair: [] for pair in self.pairs}
        shares = [self.program.variable(1.0) for _ in self.names]
        self.program.equals(((share, 1.0) for share in shares), 1.0)
        for owner, share in zip(self.names, shares, strict=True):
            self._spread(owner, share, direct, gather=False)
            self._spread(owner, share, direct, gather=True)

    def _spread(self, owner: str, share: int, direct: bool, gather: bool) -> None:
        """The owner's share to every other peer or, to gather, from every other peer."""
        own = [pair for pair in self.pairs if not direct or pair[gather] == owner]
        carried = {pair: self.program.variable() for pair in own}
        for pair, variable in carried.items():
            self.loads[pair].append(variable)
        for other in self.names:
            if other != owner:
                source, sink = (other, owner) if gather else (owner, other)
                self._flow(source, sink, share, carried)

    def _flow(self, source: str, sink: str, share: int, carried: dict[Pair, int]) -> None:
        """As much as the share from source to sink, within what is carried."""
        flow = {pair: self.program.variable() for pair in carried}
        for pair, variable in flow.items():
            self.program.at_most([(variable, 1.0), (carried[pair], -1.0)])
        for node in self.names:
            if node != source:
                arrives = [(variable, 1.0) for (_, to), variable in flow.items() if to == node]
                leaves = [(variable, -1.0) for (start, _), variable in flow.items() if start == node]
                self.program.equals([*arrives, *leaves, *([(share, -1.0)] if node == sink else [])])

    def _cap(self, pairs: Iterable[Pair], relative: float, after_loss: bool) -> None:
        """What the pairs carry together takes no longer than the time."""
        kept = {pair: 1.0 if after_loss else 1 - self.topology.links[pair].loss for pair in pairs}
        loads = [(variable, 1 / kept[pair]) for pair in kept for variable in self.loads[pair]]
        self.program.at_most([*loads, (self.time, -relative)])

    def caps(self) -> list[tuple[list[Pair], float, bool]]:
        """(pairs that share a line, its rate, whether losses come before it); lines without a limit left out."""
        found = [([pair], self.topology.links[pair].rate_mbit, False) for pair in self.pairs]
        shared = [pair for pair in self.pairs if not self.topology.links[pair].local]
        for site in self.topology.peers:
            found.append(([pair for pair in shared if pair[0] == site.name], site.up_mbit, False))
            found.append(([pair for pair in shared if pair[1] == site.name], site.down_mbit, True))
        return [(pairs, mbit, after_loss) for pairs, mbit, after_loss in found if mbit > 0]

    def seconds(self) -> float:
        """For one byte."""
        caps = self.caps()
        fastest = max((mbit for _, mbit, _ in caps), default=1.0)
        for pairs, mbit, after_loss in caps:
            self._cap(pairs, mbit / fastest, after_loss)
        time = self.program.least(self.time)
        if time is None:
            raise BoundError(f"{self.topology.name or 'topology'}: a peer cannot reach another")
        return time / (fastest * BYTES_PER_MBIT)


def seconds_per_byte(topology: Topology, direct: bool = False) -> float:
    """What the rates make of each byte reduced; 0 where nothing limits them."""
    return AllReduce(topology, direct).seconds() if len(topology.peers) > 1 else 0.0
