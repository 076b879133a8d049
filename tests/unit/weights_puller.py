"""A host that pulls weights from directories, as engines behind `/pull_weights` do, by their documentation.

`weight_v{N:06d}` is a whole checkpoint, or (its index says "delta_encoding") a delta on version N - 1: safetensors of
zstd-compressed xors, with checksums of the new tensors in the header's metadata. A host begins at the newest whole
checkpoint that is not past its target, or at its base, version 0, and applies every delta after it, in order.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import xxhash
import zstandard

__all__ = ["Host", "tensors_in"]


def tensors_in(directory: Path) -> tuple[dict[str, bytes], dict[str, str], dict[str, tuple[str, list[int]]]]:
    """(bytes, metadata, (dtype, shape)) by name, of all safetensors files of a directory."""
    found: dict[str, bytes] = {}
    metadata: dict[str, str] = {}
    kinds: dict[str, tuple[str, list[int]]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        assert size % 8 == 0
        header: dict[str, Any] = json.loads(data[8 : 8 + size])
        metadata.update(header.pop("__metadata__", {}))
        end = 0
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            assert first == end
            end = last
            found[name] = data[8 + size + first : 8 + size + last]
            kinds[name] = (entry["dtype"], entry["shape"])
        assert len(data) == 8 + size + end
    return found, metadata, kinds


class Host:
    """Tensors, and the version that they are at."""

    def __init__(self, base: dict[str, bytes]) -> None:
        self.base, self.tensors, self.version = base, dict(base), 0

    def pull(self, root: Path, target: int) -> list[str]:
        """To the target. Gives what was applied."""
        metadata = {v: self._index(root, v)["metadata"] for v in range(self.version + 1, target + 1)}
        whole = [v for v, said in metadata.items() if "delta_encoding" not in said]
        done = []
        if whole:
            self.tensors, self.version = tensors_in(root / f"weight_v{whole[-1]:06d}")[0], whole[-1]
            done.append(f"full {self.version}")
        while self.version < target:
            self._apply(root / f"weight_v{self.version + 1:06d}", metadata[self.version + 1])
            done.append(f"delta {self.version}")
        return done

    def _index(self, root: Path, version: int) -> dict[str, Any]:
        directory = root / f"weight_v{version:06d}"
        index: dict[str, Any] = json.loads((directory / "model.safetensors.index.json").read_text())
        assert int(index["metadata"]["version"]) == version
        assert set(index["weight_map"]) == set(tensors_in(directory)[0])
        assert all((directory / file).exists() for file in index["weight_map"].values())
        return index

    def _apply(self, directory: Path, said: dict[str, Any]) -> None:
        assert int(said["base_version"]) == self.version
        assert said["compression_format"] == "zstd" and said["checksum_format"] == "xxh3-128"
        assert said["delta_encoding"] == "xor"
        compressed, sums, _ = tensors_in(directory)
        for name, data in compressed.items():
            delta = zstandard.ZstdDecompressor().decompress(data)
            old = self.tensors[name]
            assert len(delta) == len(old)
            new = bytes(a ^ b for a, b in zip(old, delta, strict=True))
            assert xxhash.xxh3_128_hexdigest(new) == sums[name]
            self.tensors[name] = new
        self.version += 1
