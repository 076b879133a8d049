"""sizes.py - up to how many bytes an all-reduce takes one round, and up to how many the mesh with equal spans.

Pure. Of two ways the one with fewer delays is better for little data, and the one with fewer bytes for much. Where they
are even need not be known better than to a power of two.
"""

from __future__ import annotations

from collections.abc import Callable

from pccl.coordinator.cost import Line

MESH_BYTES_MIN = 16 << 10
MESH_ALWAYS = 1 << 62
ONE_ROUND_BYTES_MIN = 64
ONE_ROUND_BYTES_MAX = 4 << 20

#: How long an op of so many bytes takes.
Seconds = Callable[[float], float]


def mesh_bytes_max(mesh: Line, large: Seconds, bar: float) -> int:
    """The largest for which `large`, what large ops use, is not below `bar` times the mesh's time; 0: never."""
    size = MESH_BYTES_MIN
    while size < MESH_ALWAYS >> 20:
        if large(size) < bar * mesh.seconds(size):
            return size // 2
        size *= 2
    return MESH_ALWAYS


def one_round_bytes_max(one_round: Line, other: Seconds, most: int = ONE_ROUND_BYTES_MAX) -> int:
    """The largest, up to `most`, for which one round is better than what is used otherwise; 0: never."""
    size = 1 << min(most, ONE_ROUND_BYTES_MAX).bit_length() - 1 if most > 0 else 0
    while size >= ONE_ROUND_BYTES_MIN:
        if one_round.seconds(size) < other(size):
            return size
        size //= 2
    return 0
