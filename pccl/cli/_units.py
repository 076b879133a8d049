"""Sizes and durations as people read them, durations and lists as they write them."""

from __future__ import annotations

import re

import click

from pccl.units import parse_bytes


def parse_duration(text: str) -> float:
    """ "90s" -> 90.0; "15m" -> 900.0; "1.5h" -> 5400.0; "7d" -> 604800.0; a bare number is in seconds."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", text)
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write 30s, 15m, 8h, 7d")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def format_bytes(count: float) -> str:
    """67108864 -> "64 MiB"."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count:.4g} B"


def format_ms(ms: float | None) -> str:
    """Milliseconds with the digits that mean something; "-" for none."""
    if ms is None:
        return "-"
    return f"{ms:.3f}" if ms < 1 else f"{ms:.2f}" if ms < 100 else f"{ms:.0f}"


def format_age(seconds: float) -> str:
    """0.02 -> "20 ms"; 75 -> "1 min 15 s"."""
    if seconds < 1:
        return f"{max(seconds, 0.0) * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


class ListOf(click.ParamType):  # type: ignore[type-arg]  # click 8.1 has no parameter there
    """A comma-separated list of sizes or positive integers."""

    def __init__(self, kind: str) -> None:
        self.name = kind

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        parts = str(value).split(",")
        try:
            numbers = [parse_bytes(part) if self.name == "sizes" else int(part) for part in parts]
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if min(numbers) < 1:
            self.fail("every number must be positive", param, ctx)
        return numbers
