"""slime.py - for engines that pull from a directory, as slime's, miles' and Stitch's SGLang does (`/pull_weights`).

    ROOT/weight_v000001/ model.safetensors, model.safetensors.index.json     ROOT/latest: "weight_v000001"

Each directory is a delta on the one before: per changed tensor its new bytes xor its old ones, zstd-compressed, and
xxh3-128 of the new; or, where the directory before is not what the shadow holds (the first one, another run), a whole
checkpoint, which needs no history. Directories are numbered one by one, whatever versions were skipped; the index says
which version and lineage each is. It appears by a rename, whole or not at all.

A host that pulls has the base checkpoint as version 0; `first` = "delta" says that it is the shadow's base, so that the
first directory can be a delta, too.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash

from pccl.errors import ArgumentError
from pccl.weights.adapters.directory import SHARD_BYTES, write_checkpoint
from pccl.weights.adapters.engine import Apply
from pccl.weights.adapters.safetensors import INDEX, Entry, write_index, write_tensors
from pccl.weights.errors import DamageError, LogError
from pccl.weights.files import TEMPORARY, sync_directory, write_whole
from pccl.weights.update import Update

__all__ = ["PREFIX", "SlimeAdapter"]

PREFIX = "weight_v"
LATEST = "latest"
_DELTA_FILE = "model.safetensors"
_LEVEL = 1


class SlimeAdapter:
    """`root`: where directories appear; made if it is not there. `pull`: called with (root, number) when a directory is
    there, while the engine stands still: it lets hosts pull and reload. `first`: what the first directory is, "full" or
    "delta" (the shadow must be at version 0 then). `extra`: files that go with a whole checkpoint. `durable`: they
    survive a power cut. One writer for a root. Needs zstandard for deltas.
    """

    def __init__(
        self,
        root: str | Path,
        pull: Callable[[Path, int], Any] | None = None,
        *,
        first: Literal["full", "delta"] = "full",
        extra: Iterable[str | Path] = (),
        shard_bytes: int = SHARD_BYTES,
        durable: bool = False,
    ) -> None:
        if first not in ("full", "delta"):
            raise ArgumentError(f"first must be 'full' or 'delta', not {first!r}")
        self.root = Path(root)
        self._pull, self._first, self._extra = pull, first, [Path(path) for path in extra]
        self._shard_bytes, self._durable = shard_bytes, durable
        self.root.mkdir(parents=True, exist_ok=True)
        for left in self.root.glob(f"{PREFIX}*{TEMPORARY}"):
            shutil.rmtree(left)

    def prepare(self, update: Update) -> Apply:
        """See Adapter. LogError: the disk is full. DamageError: a directory that is there cannot be read."""
        number, lineage = self._newest()
        if lineage == update.at.lineage.hex():  # it is there, but the shadow did not follow
            return lambda: self._show(number)
        follows = lineage == update.base.lineage.hex() or (
            number == 0 and self._first == "delta" and update.base_version == 0
        )
        made = self.root / f"{PREFIX}{number + 1:06d}"
        beside = made.with_name(made.name + TEMPORARY)
        metadata = {
            "version": f"{number + 1:06d}",
            "pccl_version": update.version,
            "pccl_lineage": update.at.lineage.hex(),
        }
        try:
            if follows:
                self._write_delta(update, beside, metadata | {"base_version": f"{number:06d}"})
            else:
                write_checkpoint(update, beside, self._extra, self._shard_bytes, metadata, self._durable)
        except BaseException as error:
            shutil.rmtree(beside, ignore_errors=True)
            if isinstance(error, OSError):
                raise LogError(f"{made} cannot be written: {error}") from error
            raise

        def apply() -> None:
            if beside.exists():
                os.replace(beside, made)
                if self._durable:
                    sync_directory(self.root)
            self._show(number + 1)

        return apply

    def _show(self, number: int) -> None:
        write_whole(self.root / LATEST, [f"{PREFIX}{number:06d}".encode()], self._durable)
        if self._pull is not None:
            self._pull(self.root, number)

    def _newest(self) -> tuple[int, str | None]:
        """(number, lineage) of the last directory; (0, None): there is none."""
        numbers = [int(path.name[len(PREFIX) :]) for path in self.root.glob(f"{PREFIX}??????")]
        if not numbers:
            return 0, None
        path = self.root / f"{PREFIX}{max(numbers):06d}" / INDEX
        try:
            return max(numbers), json.loads(path.read_bytes())["metadata"].get("pccl_lineage")
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise DamageError(f"{path} cannot be read: {error!r}") from error

    def _write_delta(self, update: Update, directory: Path, metadata: dict[str, Any]) -> None:
        import zstandard

        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        compressor = zstandard.ZstdCompressor(level=_LEVEL)
        entries, data, sums = [], [], {}
        for (name, new), (_, old) in zip(update.dense(changed_only=True), update.before(), strict=True):
            compressed = compressor.compress(np.bitwise_xor(new, old).data.cast("B"))
            entries.append(Entry(name, "uint8", (len(compressed),), len(compressed)))
            data.append(compressed)
            sums[name] = xxhash.xxh3_128_hexdigest(new.data.cast("B"))
        write_tensors(directory / _DELTA_FILE, entries, data, sums, self._durable)
        said = {"delta_encoding": "xor", "compression_format": "zstd", "checksum_format": "xxh3-128"}
        write_index(directory, metadata | said, {entry.name: _DELTA_FILE for entry in entries}, self._durable)
