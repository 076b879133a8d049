"""directory.py - engines that load from disk: a directory of safetensors per version, and a link that says which is it.

    ROOT/v7/model-00001-of-00002.safetensors ... ROOT/v7/model.safetensors.index.json      ROOT/latest -> v7

A version is written whole while the engine serves; `apply` moves the link, at once, and tells the engine if it is asked
to. Whoever opened the version before keeps its files until they are closed: `keep` versions stay.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pccl.errors import ArgumentError
from pccl.weights.adapters.engine import Apply
from pccl.weights.adapters.safetensors import Entry, shards_of, write_index, write_tensors
from pccl.weights.errors import LogError
from pccl.weights.files import TEMPORARY, sync_directory
from pccl.weights.update import Update

__all__ = ["DirectoryAdapter", "move_link", "write_checkpoint"]

SHARD_BYTES = 5 << 30
LATEST = "latest"


class DirectoryAdapter:
    """`root`: made if it is not there. `reload`: what tells the engine, such as `update_weights_from_disk`; is given
    the directory, while the engine stands still. `extra`: other files of the checkpoint (config, tokenizer), put
    beside the tensors. `keep`: versions that stay. `durable`: they survive a power cut.
    """

    def __init__(
        self,
        root: str | Path,
        reload: Callable[[Path], Any] | None = None,
        *,
        extra: Iterable[str | Path] = (),
        keep: int = 2,
        shard_bytes: int = SHARD_BYTES,
        durable: bool = False,
    ) -> None:
        if keep < 1:
            raise ArgumentError(f"keep must be at least 1, not {keep}")
        self.root = Path(root)
        self._reload, self._extra = reload, [Path(path) for path in extra]
        self._keep, self._shard_bytes, self._durable = keep, shard_bytes, durable
        self.root.mkdir(parents=True, exist_ok=True)
        for left in self.root.glob(f"v*{TEMPORARY}"):
            shutil.rmtree(left)

    def prepare(self, update: Update) -> Apply:
        """See Adapter. LogError: the disk is full; nothing is left of the version."""
        made = self.root / f"v{update.version}"
        beside = made.with_name(made.name + TEMPORARY)
        try:
            write_checkpoint(update, beside, self._extra, self._shard_bytes, {"version": update.version}, self._durable)
            shutil.rmtree(made, ignore_errors=True)
            os.replace(beside, made)
        except OSError as error:
            raise LogError(f"{made} cannot be written: {error}") from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)

        def apply() -> None:
            if self._reload is not None:
                self._reload(made)
            move_link(self.root / LATEST, made.name, self._durable)
            self._remove_old(update.version)

        return apply

    def _remove_old(self, version: int) -> None:
        versions = [int(path.name[1:]) for path in self.root.glob("v*") if path.name[1:].isdigit()]
        for old in sorted(v for v in versions if v <= version)[: -self._keep]:
            shutil.rmtree(self.root / f"v{old}", ignore_errors=True)


def write_checkpoint(
    update: Update, directory: Path, extra: Iterable[Path], shard_bytes: int, metadata: dict[str, Any], durable: bool
) -> None:
    """All tensors of the update's version, in a directory that has nothing else. LogError, OSError."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for path in extra:
        shutil.copy2(path, directory / path.name)
    owned = set(update.owned_names())
    entries = [Entry(t.name, t.dtype, t.shape, t.nbytes) for t in update.schema.tensors if t.name in owned]
    shards = shards_of(entries, shard_bytes)
    data = (elements.data.cast("B") if elements.size else b"" for _, elements in update.dense())
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(directory / name, shard, (next(data) for _ in shard), {"format": "pt"}, durable)
        where.update((entry.name, name) for entry in shard)
    write_index(directory, {"total_size": sum(e.nbytes for e in entries), **metadata}, where, durable)
    if durable:
        sync_directory(directory)


def move_link(link: Path, target: str, durable: bool) -> None:
    """The link points there, at once."""
    beside = link.with_name(link.name + TEMPORARY)
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    os.replace(beside, link)
    if durable:
        sync_directory(link.parent)
