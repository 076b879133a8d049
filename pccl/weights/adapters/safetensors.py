"""safetensors.py - files of tensors, written whole: eight bytes of length, JSON, and the tensors' bytes.

The library `safetensors` writes a file when all of its tensors are in memory at once, 5 GB of them in a shard of a
checkpoint, to a name of its own choice and without a sync. Here they come one after the other, each of them made from
shadow and patch when its turn comes. The tests read with the library what is written here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pccl.weights.base import SAFETENSORS_DTYPES
from pccl.weights.errors import SchemaError
from pccl.weights.files import write_whole

__all__ = ["INDEX", "Entry", "shards_of", "write_index", "write_tensors"]

INDEX = "model.safetensors.index.json"
_ALIGN = 8
_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


class Entry(NamedTuple):
    """One tensor of a file: `data` has `nbytes` bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def write_tensors(
    path: Path, entries: Sequence[Entry], data: Iterable[Any], metadata: Mapping[str, str], durable: bool
) -> None:
    """The file has these tensors, whose bytes come one after the other from `data`; or it is not there. LogError (a
    full disk), SchemaError for a dtype that the format has not.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for entry in entries:
        if entry.dtype not in _NAMES:
            raise SchemaError(f"{entry.name!r} is {entry.dtype}, which safetensors have not")
        header[entry.name] = {
            "dtype": _NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [at, at + entry.nbytes]
        }  # fmt: skip
        at += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGN)

    def parts() -> Iterator[Any]:
        yield len(text).to_bytes(8, "little")
        yield text
        yield from data

    write_whole(path, parts(), durable)


def shards_of(entries: Sequence[Entry], shard_bytes: int) -> list[list[Entry]]:
    """In order, in files of at most so many bytes, or one tensor."""
    shards: list[list[Entry]] = []
    room = 0
    for entry in entries:
        if not shards or entry.nbytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(entry)
        room -= entry.nbytes
    return shards


def write_index(directory: Path, metadata: Mapping[str, Any], where: Mapping[str, str], durable: bool) -> None:
    """The file that says in which file each tensor is."""
    text = json.dumps({"metadata": dict(metadata), "weight_map": dict(where)}, indent=1)
    write_whole(directory / INDEX, [text.encode()], durable)
