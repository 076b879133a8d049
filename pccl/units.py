"""units.py - sizes as people write them."""

from __future__ import annotations

import re

__all__ = ["parse_bytes"]

_FACTORS = {
    "": 1,
    "b": 1,
    "k": 1 << 10,
    "kib": 1 << 10,
    "kb": 1000,
    "m": 1 << 20,
    "mib": 1 << 20,
    "mb": 10**6,
    "g": 1 << 30,
    "gib": 1 << 30,
    "gb": 10**9,
}


def parse_bytes(text: str) -> int:
    """ "64MiB" -> 67108864; "64MB" -> 64000000; "512" -> 512. ValueError says how sizes are written."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].lower() not in _FACTORS:
        raise ValueError(f"{text!r} is not a size; write 512, 64KiB, 1MiB, 1GB")
    return int(float(match[1]) * _FACTORS[match[2].lower()])
