"""trace.py - traces of requests as arrays, and the readers of two public formats.

Mooncake: a JSON object per line, `timestamp` in ms, `input_length`, `output_length` in tokens, `hash_ids`: one per 512
tokens, equal where the whole prefix up to there is equal. Azure: CSV with `TIMESTAMP,ContextTokens,GeneratedTokens`
and no prefixes. A line that is malformed, or earlier than the one before, is an ArgumentError with file and line; with
`strict=False` it is skipped and counted.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pccl.errors import ArgumentError
from pccl.kv.model.profile import Floats

__all__ = ["Request", "Trace", "read", "read_azure", "read_mooncake"]

MOONCAKE_BLOCK_TOKENS = 512
AZURE_HEADING = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


@dataclass(frozen=True, slots=True)
class Request:
    """One line of a trace. `blocks`: ids of its prefix blocks, none where the trace has no prefixes."""

    arrival_s: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Trace:
    """Requests in the order of their arrival. `block_tokens`: what one id of `blocks` stands for.
    `skipped`: malformed lines that were left out.
    """

    name: str
    arrival_s: Floats
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    blocks: tuple[tuple[int, ...], ...]
    block_tokens: int = MOONCAKE_BLOCK_TOKENS
    skipped: int = 0

    def __post_init__(self) -> None:
        if not len(self.arrival_s):
            raise ArgumentError(f"{self.name}: the trace is empty")
        if len({len(self.arrival_s), len(self.input_tokens), len(self.output_tokens), len(self.blocks)}) != 1:
            raise ArgumentError(f"{self.name}: arrival_s, input_tokens, output_tokens and blocks differ in length")
        if not np.isfinite(self.arrival_s).all() or (np.diff(self.arrival_s) < 0).any():
            raise ArgumentError(f"{self.name}: arrival_s is not sorted")
        if min(self.input_tokens) < 1 or min(self.output_tokens) < 0:
            raise ArgumentError(f"{self.name}: input_tokens must be at least 1, output_tokens at least 0")

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def duration_s(self) -> float:
        """From the first arrival to the last."""
        return float(self.arrival_s[-1] - self.arrival_s[0])

    @classmethod
    def of(cls, name: str, requests: Iterable[Request], block_tokens: int = MOONCAKE_BLOCK_TOKENS) -> Trace:
        """From requests that are sorted by arrival, which is made to begin at 0."""
        found = list(requests)
        arrival = np.array([request.arrival_s for request in found], np.float64)
        return cls(
            name,
            arrival - (arrival[0] if len(found) else 0.0),
            np.array([request.input_tokens for request in found], np.int64),
            np.array([request.output_tokens for request in found], np.int64),
            tuple(request.blocks for request in found),
            block_tokens,
        )

    def first(self, requests: int) -> Trace:
        """Only so many requests."""
        return replace(
            self,
            arrival_s=self.arrival_s[:requests],
            input_tokens=self.input_tokens[:requests],
            output_tokens=self.output_tokens[:requests],
            blocks=self.blocks[:requests],
        )


def read(path: Path, strict: bool = True) -> Trace:
    """A trace file, by its suffix: .jsonl (Mooncake) or .csv (Azure)."""
    readers = {".jsonl": read_mooncake, ".json": read_mooncake, ".csv": read_azure}
    if path.suffix not in readers:
        raise ArgumentError(f"{path}: a trace is a .jsonl (Mooncake) or .csv (Azure) file")
    return readers[path.suffix](path, strict)


def read_mooncake(path: Path, strict: bool = True) -> Trace:
    """Mooncake's format."""
    with _opened(path) as lines:
        numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
        return _collect(path, numbered, _mooncake_request, strict, MOONCAKE_BLOCK_TOKENS)


def read_azure(path: Path, strict: bool = True) -> Trace:
    """Azure's format."""
    with _opened(path) as lines:
        rows = csv.reader(lines)
        heading = tuple(next(rows, ()))
        if heading != AZURE_HEADING:
            raise ArgumentError(f"{path}:1: the heading must be {','.join(AZURE_HEADING)}, not {','.join(heading)!r}")
        numbered = ((rows.line_num, row) for row in rows if row)
        return _collect(path, numbered, _azure_request, strict, MOONCAKE_BLOCK_TOKENS)


def _opened(path: Path) -> Any:
    try:
        return path.open(encoding="utf-8", errors="replace", newline="")
    except OSError as error:
        raise ArgumentError(f"{path}: {error.strerror}") from None


def _collect(
    path: Path, lines: Iterator[tuple[int, Any]], parse: Callable[[Any], Request], strict: bool, block_tokens: int
) -> Trace:
    """All requests; a line that is none ends it (strict) or is counted."""
    found: list[Request] = []
    skipped = 0
    for number, line in lines:
        try:
            request = parse(line)
            if found and request.arrival_s < found[-1].arrival_s:
                raise ValueError("the timestamp is before that of the line before: the trace is not sorted")
            found.append(request)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            if strict:
                said = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
                raise ArgumentError(f"{path}:{number}: {said}") from None
            skipped += 1
    if not found:
        raise ArgumentError(f"{path}: the trace is empty ({skipped} malformed lines)")
    return replace(Trace.of(path.name, found, block_tokens), skipped=skipped)


def _mooncake_request(line: str) -> Request:
    """ValueError, TypeError or KeyError for what is none."""
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    blocks = row.get("hash_ids", [])
    if not isinstance(blocks, list) or any(isinstance(b, bool) or not isinstance(b, int) for b in blocks):
        raise ValueError("hash_ids must be a list of integers")
    tokens = _tokens("input_length", row["input_length"], 1)
    if blocks and len(blocks) != -(-tokens // MOONCAKE_BLOCK_TOKENS):
        raise ValueError(f"hash_ids has {len(blocks)} entries, and input_length is {tokens}")
    stamp = row["timestamp"]
    if isinstance(stamp, bool) or not isinstance(stamp, int | float) or not 0 <= stamp < float("inf"):
        raise ValueError(f"timestamp must be a number of at least 0, not {stamp!r}")
    return Request(stamp / 1e3, tokens, _tokens("output_length", row["output_length"], 0), tuple(blocks))


def _azure_request(row: list[str]) -> Request:
    """ValueError for what is none."""
    if len(row) != len(AZURE_HEADING):
        raise ValueError(f"{len(row)} columns instead of {len(AZURE_HEADING)}")
    whole, _, fraction = row[0].strip().partition(".")
    stamp = datetime.fromisoformat(whole)
    if stamp.tzinfo is None:
        stamp = stamp.replace(tzinfo=timezone.utc)
    seconds = stamp.timestamp() + (float(f"0.{int(fraction):0{len(fraction)}d}") if fraction else 0.0)
    return Request(seconds, _tokens(AZURE_HEADING[1], int(row[1]), 1), _tokens(AZURE_HEADING[2], int(row[2]), 0))


def _tokens(field: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 40:
        raise ValueError(f"{field} must be an integer of at least {least}, not {value!r}")
    return value
