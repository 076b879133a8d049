"""files.py - reads trace files: which there are, and what each peer has written, the older file first.

A peer that was killed may have written half a line last; that is left out. Anything else that is no record is an
ArgumentError that names file and line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from pccl.errors import ArgumentError
from pccl.trace.records import VERSION, Begin, Record

__all__ = ["PeerTrace", "find", "read"]


@dataclass(slots=True)
class PeerTrace:
    """What one peer has written, in order of writing. `begin`: of its first file that is left."""

    begin: Begin
    records: list[Record] = field(default_factory=list)

    @property
    def short(self) -> str:
        """How people see the peer."""
        return self.begin.peer[:8]

    def wall_ns(self, t: int) -> int:
        """What the wall clock of the peer's host showed, had nobody set it since the peer began."""
        return t - self.begin.t + self.begin.wall_ns


def find(paths: Sequence[Path]) -> list[Path]:
    """The trace files among the paths and in the directories among them. ArgumentError: there are none."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise ArgumentError(f"trace: {str(path)!r} does not exist")
        found += sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not found:
        raise ArgumentError(f"trace: no *.jsonl in {', '.join(repr(str(path)) for path in paths)}")
    return found


def read(files: Sequence[Path]) -> list[PeerTrace]:
    """What every peer has written; peers in order of their ids."""
    parts: dict[str, dict[int, PeerTrace]] = {}
    for file in files:
        part = _part(file)
        if part is not None:
            parts.setdefault(part.begin.peer, {})[part.begin.part] = part
    if not parts:
        raise ArgumentError(f"trace: nothing is written in {', '.join(repr(str(file)) for file in files)}")
    return [_joined([part for _, part in sorted(of_peer.items())]) for _, of_peer in sorted(parts.items())]


def _joined(parts: list[PeerTrace]) -> PeerTrace:
    first = parts[0]
    for part in parts[1:]:
        first.records += part.records
    return first


def _part(file: Path) -> PeerTrace | None:
    """One file; None: not even its first line was written."""
    decoder = msgspec.json.Decoder(Record)
    lines = file.read_bytes().split(b"\n")
    records = [_record(decoder, line, file, number) for number, line in enumerate(lines[:-1], 1)]
    if not records:
        return None
    begin = records[0]
    if not isinstance(begin, Begin):
        raise ArgumentError(f"trace: {file}:1 is not the beginning of a trace")
    if begin.version != VERSION:
        raise ArgumentError(f"trace: {file} is of version {begin.version}, this pccl reads {VERSION}")
    return PeerTrace(begin, records[1:])


def _record(decoder: msgspec.json.Decoder[Record], line: bytes, file: Path, number: int) -> Record:
    try:
        return decoder.decode(line)
    except msgspec.DecodeError as error:
        raise ArgumentError(f"trace: {file}:{number} is no record of a trace: {error}") from None
