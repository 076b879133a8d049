"""fixed.py - what an operator lays down about every plan: the streams of a link, the algorithm of all-reduces.

For benchmarks and for finding out what a plan costs; the planner does better without. Pure. What is fixed counts as far
as it can: two levels still ask for regions, a codec and a half-precision all-reduce for the mesh. One round is only
for little data, so nobody can fix it.
"""

from __future__ import annotations

from dataclasses import dataclass

from pccl.errors import ArgumentError
from pccl.types import STREAMS_LIMIT, Algorithm

ALGORITHMS = {algorithm.name.lower(): algorithm for algorithm in Algorithm if algorithm != Algorithm.ONE_ROUND}


@dataclass(slots=True, frozen=True)
class Fixed:
    """`streams` of every link, 0: by what was measured. `algorithm` of all-reduces, AUTO: the fastest."""

    streams: int = 0
    algorithm: Algorithm = Algorithm.AUTO


#: Nothing: the planner is free.
FREE = Fixed()


def fixed_from(streams: int | None, algorithm: str) -> Fixed:
    """None and "auto" leave it to the planner. Raises ArgumentError that names what is wrong."""
    if streams is not None and (isinstance(streams, bool) or not isinstance(streams, int)):
        raise ArgumentError(f"streams must be a whole number, not {streams!r}")
    if streams is not None and not 1 <= streams <= STREAMS_LIMIT:
        raise ArgumentError(f"streams must be 1 to {STREAMS_LIMIT}, not {streams}")
    if algorithm not in ALGORITHMS:
        raise ArgumentError(f"algorithm must be one of {', '.join(map(repr, ALGORITHMS))}, not {algorithm!r}")
    return Fixed(streams or 0, ALGORITHMS[algorithm])
