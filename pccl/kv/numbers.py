"""numbers.py - checks of what callers say: every refusal is an ArgumentError that names the field."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pccl.errors import ArgumentError


def positive(field: str, value: float) -> float:
    """The value, if it is a finite number above 0."""
    if not (value > 0 and math.isfinite(value)):
        raise ArgumentError(f"{field} must be a finite number above 0, not {value!r}")
    return value


def at_least_zero(field: str, value: float) -> float:
    """The value, if it is a finite number of at least 0."""
    if not (value >= 0 and math.isfinite(value)):
        raise ArgumentError(f"{field} must be a finite number of at least 0, not {value!r}")
    return value


def share(field: str, value: float) -> float:
    """The value, if it is between 0 and 1, 0 excluded."""
    if not 0 < value <= 1:
        raise ArgumentError(f"{field} must be above 0 and at most 1, not {value!r}")
    return value


def count(field: str, value: int, least: int = 0) -> int:
    """The value, if it is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ArgumentError(f"{field} must be an integer of at least {least}, not {value!r}")
    return value


def some(field: str, values: Sequence[object], least: int = 1) -> None:
    """Refuses what is shorter than `least`."""
    if len(values) < least:
        raise ArgumentError(f"{field} is empty" if not values else f"{field} needs at least {least} entries")


def ahead(field: str, deadline_s: float, now_s: float) -> float:
    """The deadline, if it is a number and not yet past."""
    if math.isnan(deadline_s):
        raise ArgumentError(f"{field} must be a number, not {deadline_s!r}")
    if deadline_s <= now_s:
        raise ArgumentError(f"{field} is in the past: {deadline_s!r}, and it is {now_s!r}")
    return deadline_s
