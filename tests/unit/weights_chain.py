"""A history of weights without a network: a small schema, states, the payloads between them, crashes while writing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from pccl.weights import codec, files
from pccl.weights.base import version_zero
from pccl.weights.certificate import Certificate, SigningKey, Version, state_digest
from pccl.weights.digests import merkle_root, quick
from pccl.weights.fold import made_of
from pccl.weights.manifest import Prelude
from pccl.weights.payload import Payload
from pccl.weights.schema import Schema, Tensor
from pccl.weights.shadow import Shadow, aligned_empty

SCHEMA = Schema(
    [
        Tensor("a", (40, 10), "bfloat16"),
        Tensor("none", (0, 7), "bfloat16"),
        Tensor("b", (33,), "bfloat16"),
        Tensor("c", (50,), "float32"),
        Tensor("d", (1000,), "float8_e4m3fn"),
        Tensor("e", (), "int64"),
    ]
)
KEY = SigningKey(bytes(range(32)))
POOL = ThreadPoolExecutor(2)


def digests_of(arena: Any) -> list[bytes]:
    return [quick(SCHEMA.block_view(arena, block)) for block in SCHEMA.blocks]


class Chain:
    """States and the deltas between them. `arenas[v]` is version v."""

    def __init__(self, seed: int = 1) -> None:
        self.rng = np.random.default_rng(seed)
        first = aligned_empty(SCHEMA.arena_bytes)
        first[:] = self.rng.integers(0, 256, first.size, np.uint8)
        self.arenas = [first]
        self.at: list[Version] = [version_zero(SCHEMA, digests_of(first))]
        self.payloads: list[bytes] = []

    @property
    def tip(self) -> Version:
        return self.at[-1]

    def publish(self, share: float = 0.05, codecs: str = "auto", key: SigningKey = KEY) -> bytes:
        """One more version; gives its delta."""
        new = self.arenas[-1].copy()
        for block in SCHEMA.blocks:
            view = SCHEMA.block_view(new, block)
            where = np.flatnonzero(self.rng.random(block.elements) < share)
            view[where] = self.rng.integers(0, 256, where.size).astype(view.dtype)
        old, before = self.arenas[-1], self.tip
        blocks = [
            (b.number, codec.encode(SCHEMA.block_view(old, b), SCHEMA.block_view(new, b), codecs))
            for b in SCHEMA.blocks
        ]
        blocks = [(number, data) for number, data in blocks if codec.describe(data).codec != codec.Codec.ZERO]
        digests = digests_of(new)
        prelude = Prelude(before, before.version + 1, SCHEMA.hash)

        def made(root: bytes) -> tuple[bytes, Certificate]:
            state = state_digest(SCHEMA.hash, digests)
            certificate = Certificate(bytes(32), 1, before.version + 1, before.lineage, SCHEMA.hash, state, root)
            return made_of(prelude, blocks, digests, certificate, key.sign(certificate))[0], certificate

        root = merkle_root(Payload(made(bytes(32))[0]).manifest.leaves)
        data, certificate = made(root)
        self.arenas.append(new)
        self.at.append(certificate.at)
        self.payloads.append(data)
        return data

    def begin(self, shadow: Shadow, version: int = 0) -> None:
        """The shadow is at this version."""
        shadow.arena[:] = self.arenas[version]
        shadow.begin(self.at[version], digests_of(self.arenas[version]))

    def holds(self, shadow: Shadow) -> bool:
        """Whether the shadow is, byte for byte, what its version says."""
        assert shadow.at is not None
        same = all(
            np.array_equal(SCHEMA.view(shadow.arena, n), SCHEMA.view(self.arenas[shadow.at.version], n))
            for n in range(len(SCHEMA.tensors))
        )
        return same and shadow.at == self.at[shadow.at.version]


class Crash(BaseException):
    """The process is gone."""


@contextlib.contextmanager
def crashes_after(budget: int, monkeypatch: Any) -> Iterator[list[int]]:
    """So many bytes are written, and steps on names made (16 each), and then nothing any more. Gives what is left."""
    left = [budget]

    def spend(cost: int) -> int:
        """How much of it is still done."""
        done = min(cost, max(0, left[0]))
        left[0] -= cost
        return done

    class File:
        def __init__(self, path: Path) -> None:
            self._file = path.open("wb")

        def write(self, data: Any) -> None:
            view = memoryview(data).cast("B")
            done = spend(len(view))
            self._file.write(view[:done])
            if done < len(view):
                raise Crash

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def flush(self) -> None:
            self._file.flush()

        def fileno(self) -> int:
            return self._file.fileno()

    replace, unlink = os.replace, Path.unlink

    def step(then: Any) -> Any:
        def call(*arguments: Any) -> Any:
            if spend(16) < 16:
                raise Crash
            return then(*arguments)

        return call

    real_open = open
    with monkeypatch.context() as patch:
        patch.setattr(
            files, "open", lambda path, mode: File(path) if mode == "wb" else real_open(path, mode), raising=False
        )
        patch.setattr(files.os, "replace", step(replace))
        patch.setattr(Path, "unlink", step(unlink))
        yield left
