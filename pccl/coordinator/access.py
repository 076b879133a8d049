"""access.py - whose own line to the world is what limits all its paths.

Pure. Rates are measured while a member's paths are busy together. Where a line limits them, each shows its turn on it,
and one alone would carry far more; where each path is limited by itself, it would not. Nobody can tell these apart by
what was measured at once; but paths of one member that are all alike, and all slow beside those of others, have a slow
line in common more likely than by chance the same limit each. If that is wrong, an owner is left out that was a slow
one anyway. As soon as the paths carry different amounts, they are alike no more: the last to be busy has the line for
itself. What a member has measured of its line (csrc/line_meter.c) is better; then only those of its paths were held
back by it that got their turn on it.

Figures come in one after the other: for a while one member's are those of paths that were measured each alone, or its
line is not known yet, while the others' are. Its line then looks many times as good as theirs, and is not; or its paths
look as slow as their turns on that line, and would each carry all of it. `likened` has such lines like the known ones:
what a plan promises by the one reading, it must not lose by the other.
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
#: Who gets so much of what the slower ones have left is held back by the line, and not by something of its own.
TURN = 0.6


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


def shown(lines: Array, went: Array, fastest: Array) -> Array:
    """What each line carries for sure; infinite where nothing speaks for any limit.

    `lines`: what is known of them, infinite where nothing is; `went`: what went over them, NaN where that is not known;
    `fastest`: the best path of each. Where nobody has said what went over a line, it is taken to be like the best of
    the known ones.
    """
    known = lines[np.isfinite(lines)]
    least = np.maximum(fastest, known.max()) if len(known) else np.full(len(lines), np.inf)
    seen = np.where(np.isnan(went), least, np.maximum(fastest, went))
    found: Array = np.where(np.isfinite(lines), lines, seen)
    return found


def likened(lines: Array, went: Array, rates: Array, shared: Bools) -> Array:
    """What lines carry, NaN where that is not known, if those are full over which about as much went as the known ones
    carry, and whose paths carry about that together.
    """
    if np.isnan(lines).all():
        return lines
    usual = np.nanmedian(lines)
    together = np.where(shared & ~np.eye(len(rates), dtype=np.bool_), rates, 0.0).sum(axis=1)
    least, most = np.fmin(went, together), np.fmax(went, together)
    like = np.isnan(lines) & ~np.isnan(went + together) & (most <= ALIKE * usual) & (usual <= ALIKE * least)
    found: Array = np.where(like, went, lines)
    return found


def alone(rates: Array, shared: Bools, slow: Array, measured: Array) -> Array:
    """What each path would carry, [from, to], if it had its member's line for itself; 0 where that is not known.

    `slow`: lines as slow_lines gives them; `measured`: the same by measurement, NaN where unknown, and preferred.
    """
    found = np.repeat(np.where(np.isfinite(slow), slow, 0.0)[:, None], len(rates), axis=1)
    apart = shared & ~np.eye(len(rates), dtype=np.bool_)
    for member in np.flatnonzero(~np.isnan(measured)).tolist():
        line = float(measured[member])
        own = np.where(apart[member], rates[member], np.nan)
        found[member] = np.where(own >= _turn(own[apart[member]], line), line, 0.0)
    return found


def _turn(rates: Array, line: float) -> float:
    """The least rate of a path that the line holds back: slower ones take what they can, the others share the rest.

    NaN: a path of which nothing is known shares it too.
    """
    left = line
    for place, rate in enumerate(np.sort(rates[~np.isnan(rates)]).tolist()):
        if rate >= TURN * left / (len(rates) - place):
            return float(rate)
        left -= rate
    return float("inf")
