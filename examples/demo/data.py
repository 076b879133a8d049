"""The text: the source files of the running Python's own standard library, as windows of bytes.

Everything here is a function of the installed Python and the seed, so that all peers see the same windows in the same
order without exchanging a byte. A place in that order (the cursor) is all the sampling state there is.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

INSTALLED = {"site-packages", "dist-packages"}
TESTS = {"test", "tests", "idle_test"}
TABLES = {"encodings"}  # character tables: Python by name only
SKIPPED = INSTALLED | TESTS | TABLES
VALIDATION_EVERY = 20  # one file in so many is for validation only


@dataclass(frozen=True)
class Windows:
    """A text cut into windows of context + 1 bytes, in a fixed shuffled order that repeats for ever."""

    text: Tensor  # uint8
    starts: Tensor  # int64, shuffled
    context: int

    def take(self, first: int, count: int) -> Tensor:
        """Windows first .. first + count - 1 of the order, as int64 [count, context + 1]."""
        places = torch.arange(first, first + count) % len(self.starts)
        index = self.starts[places, None] + torch.arange(self.context + 1)
        return self.text[index].long()


def load_windows(context: int, seed: int) -> tuple[Windows, Windows]:
    """Training and validation windows; no file has a part in both."""
    files = list(source_files(Path(sysconfig.get_paths()["stdlib"])))
    if len(files) < 2 * VALIDATION_EVERY:
        raise FileNotFoundError("this Python keeps no sources of its standard library: nothing to train on")
    held_out = files[::VALIDATION_EVERY]
    kept = [file for number, file in enumerate(files) if number % VALIDATION_EVERY]
    return _cut(kept, context, seed), _cut(held_out, context, seed)


def source_files(root: Path) -> Iterator[Path]:
    """The library's own .py files in sorted order: no installed packages, test suites or tables."""
    for path in sorted(root.rglob("*.py")):
        if SKIPPED.isdisjoint(path.relative_to(root).parts):
            yield path


def _cut(files: list[Path], context: int, seed: int) -> Windows:
    text = np.frombuffer(b"\n".join(file.read_bytes() for file in files), dtype=np.uint8)
    count = (len(text) - 1) // context
    starts = np.random.default_rng(seed).permutation(count) * context
    return Windows(torch.from_numpy(text.copy()), torch.from_numpy(starts), context)
