"""bounds.py - the least time that an all-reduce can take on a geography, whatever the program.

For few peers the linear program of stress/wan/bound.py, over all ways there are ("lp"). Its size grows with the fourth
power of the peers, so for many there are only its cuts, which it fulfils as well, but which may promise too much
("cuts"): everything that a peer, or all peers of a site together, have is to go out once, and the result to come in;
and each byte is sent 2 (k - 1) times between k sites, since that many must give theirs away and have the sum.
"""

from __future__ import annotations

import numpy as np

from ..wan.bound import BYTES_PER_MBIT, AllReduce, Pair
from ..wan.topology import Link, Site, Topology
from .geography import Geography

LP_PEERS_MAX = 8


def bound_s(geography: Geography, nbytes: float) -> tuple[float, str]:
    """Seconds, and "lp" or "cuts"."""
    few = len(geography.members) <= LP_PEERS_MAX
    per_byte = program_seconds(geography) if few else cut_seconds(geography)
    return nbytes * per_byte + delay_s(geography), "lp" if few else "cuts"


def delay_s(geography: Geography) -> float:
    """To the best placed owner and back, by the farthest peers; no way round is shorter than the direct one."""
    delay = geography.rtt_s / 2
    return float((delay.max(axis=0) + delay.max(axis=1)).min())


# -- the program -----------------------------------------------------------------------------------------------------


class _Program(AllReduce):
    """A site's line is shared by its paths to other sites alone."""

    def __init__(self, topology: Topology, local: set[Pair]) -> None:
        self.local = local
        super().__init__(topology, direct=False)

    def caps(self) -> list[tuple[list[Pair], float, bool]]:
        lines = [(pairs, mbit, late) for pairs, mbit, late in super().caps() if len(pairs) > 1]
        alone = [([pair], self.topology.links[pair].rate_mbit, False) for pair in self.pairs]
        return alone + [([pair for pair in pairs if pair not in self.local], mbit, late) for pairs, mbit, late in lines]


def program_seconds(geography: Geography) -> float:
    """Per byte."""
    names = [f"p{k}" for k in range(len(geography.members))]
    mbit = geography.bytes_per_s / BYTES_PER_MBIT
    links = {
        (a, b): Link(delay_ms=float(geography.rtt_s[i, j]) * 500, rate_mbit=float(mbit[i, j]))
        for i, a in enumerate(names)
        for j, b in enumerate(names)
        if i != j
    }
    up, down = (line / BYTES_PER_MBIT for line in (geography.up, geography.down))
    sites = {name: Site(name, k + 1, up_mbit=float(up[k]), down_mbit=float(down[k])) for k, name in enumerate(names)}
    local = {(a, b) for i, a in enumerate(names) for j, b in enumerate(names) if i != j and geography.lan[i, j]}
    return _Program(Topology("geography", sites, links), local).seconds()


# -- the cuts --------------------------------------------------------------------------------------------------------


def cut_seconds(geography: Geography) -> float:
    """Per byte."""
    within = np.where(geography.lan, geography.bytes_per_s, 0.0)
    between = np.where(geography.lan, 0.0, geography.bytes_per_s)
    seconds = []
    for axis, line in ((1, geography.up), (0, geography.down)):
        far = np.minimum(line, between.sum(axis=axis))
        seconds += [1.0 / float((far + within.sum(axis=axis)).min())]
        of_site = np.bincount(geography.site, far)
        if len(of_site) > 1:
            seconds += [1.0 / float(of_site.min()), 2 * (len(of_site) - 1) / float(of_site.sum())]
    return max(seconds)
