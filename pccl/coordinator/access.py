"""access.py - whose own line to the world is what limits all its paths.

Pure. Rates are measured while a member's paths are busy together. Where a line limits them, each shows its turn on it,
and one alone would carry far more; where each path is limited by itself, it would not. Nobody can tell these apart by
what was measured at once; but paths of one member that are all alike, and all slow beside those of others, have a slow
line in common more likely than by chance the same limit each. If that is wrong, an owner is left out that was a slow
one anyway.
"""

from __future__ import annotations

import numpy as np

from pccl.coordinator.figures import Array
from pccl.coordinator.places import Bools

#: So far apart may the rates of one member be, and so slow beside the better ones of all must they be.
ALIKE = 1.4
SLOW = 0.6
BETTER = 0.75
PATHS_MIN = 2


def slow_lines(rates: Array, shared: Bools) -> tuple[Array, Array]:
    """What each member's line carries, up and down; infinite where nothing speaks for a slow one.

    `rates`: as measured, [from, to], NaN where unknown. `shared`: the pairs whose paths go over those lines.
    """
    apart = shared & ~np.eye(len(rates), dtype=np.bool_)
    known = rates[apart & ~np.isnan(rates)]
    if not len(known):
        return np.full(len(rates), np.inf), np.full(len(rates), np.inf)
    slow = SLOW * float(np.quantile(known, BETTER, method="higher"))
    return _sums(rates, apart, slow), _sums(rates.T, apart.T, slow)


def _sums(rates: Array, apart: Bools, slow: float) -> Array:
    """Of each row whose rates are all known, alike and slow."""
    least = np.where(apart, rates, np.inf).min(axis=1)
    most = np.where(apart, rates, 0.0).max(axis=1)
    found = (apart.sum(axis=1) >= PATHS_MIN) & (most <= slow) & (most <= ALIKE * least)
    return np.where(found, np.where(apart, rates, 0.0).sum(axis=1), np.inf)
