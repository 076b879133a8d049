"""log.py - the durable log of deltas: what was published, and the folds that make catching up cheap.

A directory. `d000000000007.pccl` leads from version 6 to 7, as it was sent; `p000000000007.pccl` is the same in a form
that folds, where that is another one; `f000000000004-000000000008.pccl` is a fold of the ladder, or, from 0,
what pruned deltas have left. Files are whole or not there. Any thread; one writer.
"""

from __future__ import annotations

import re
import threading
from concurrent.futures import Executor
from pathlib import Path

from pccl.errors import ArgumentError
from pccl.weights import codec
from pccl.weights.certificate import Version
from pccl.weights.codec import Codec
from pccl.weights.errors import DamageError, LineageError, LogError
from pccl.weights.files import TEMPORARY, Growing, mapped, remove, write_whole
from pccl.weights.fold import fold
from pccl.weights.payload import Payload

__all__ = ["DeltaLog"]

_DELTA = re.compile(r"d(\d{12})\.pccl")
_FOLD = re.compile(r"f(\d{12})-(\d{12})\.pccl")


class DeltaLog:
    """`directory` is made if it is not there. `keep_bytes`: of deltas; older ones are folded into one from the base.
    None: all are kept.
    """

    def __init__(self, directory: str | Path, keep_bytes: int | None = None) -> None:
        self.directory = Path(directory)
        self.keep_bytes = keep_bytes
        self._lock = threading.RLock()
        self._lineages: dict[int, bytes] = {}
        self._sizes: dict[int, int] = {}
        self._folds: set[tuple[int, int]] = set()
        self.tip = Version(0, b"")
        self.settled = self.tip  # the newest that folds can lead to

    def __repr__(self) -> str:
        return f"<pccl.weights.DeltaLog {self.directory}, {self.tip}>"

    def open(self, base: Version) -> None:
        """Takes up what is there; `base` is where it must begin. LineageError if it begins elsewhere; LogError, if it
        cannot be read; DamageError if a file is not what it was.
        """
        if base.version:
            raise ArgumentError(f"a log begins with version 0, not {base}")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            names = sorted(path.name for path in self.directory.iterdir())
        except OSError as error:
            raise LogError(f"{self.directory} cannot be read: {error}") from error
        with self._lock:
            self._lineages, self._sizes, self._folds = {base.version: base.lineage}, {}, set()
            self.tip = base
            for name in names:
                if name.endswith(TEMPORARY):
                    remove(self.directory / name)
            self._folds = {(int(m[1]), int(m[2])) for m in map(_FOLD.fullmatch, names) if m}
            deltas = {int(m[1]) for m in map(_DELTA.fullmatch, names) if m}
            self._take_root(deltas)
            for version in sorted(deltas):
                self._take(version)
            self._folds = {(a, b) for a, b in self._folds if b <= self.tip.version}
            self.settled = self.tip if self._is_plain() else self.version(self.tip.version - 1)

    # -- what is there --

    def knows(self, at: Version) -> bool:
        """Whether a way leads on from there."""
        with self._lock:
            return self._lineages.get(at.version) == at.lineage

    def version(self, number: int) -> Version:
        """A version that is known, by its number. LineageError if it is not."""
        with self._lock:
            lineage = self._lineages.get(number)
        if lineage is None:
            raise LineageError(f"version {number} is not in {self.directory}: it has {self.span()}")
        return Version(number, lineage)

    def span(self) -> str:
        """What it has, in words."""
        known = sorted(self._lineages)
        return f"version {known[0]} and {known[min(1, len(known) - 1)]} to {known[-1]}"

    def delta(self, version: int) -> Payload:
        """What was published as this version."""
        return self._load(self._delta_path(version))

    def pieces(self, start: int, end: int) -> list[Payload]:
        """Payloads that fold to the way from one version to a later one: few, thanks to the ladder. LineageError if
        there is no way.
        """
        with self._lock:
            found, at = [], start
            while at < end:
                step = max((b for a, b in self._folds if a == at and b <= end), default=0)
                if not step and at + 1 not in self._sizes:
                    raise LineageError(f"no way leads from version {at} on in {self.directory}: it has {self.span()}")
                path = self._fold_path(at, step) if step else self._plain_path(at + 1)
                found.append(self._load(path, Version(at, self._lineages[at])))
                at = step or at + 1
            return found

    # -- what is added --

    def begin(self) -> Growing:
        """The file of the next delta, which is being made; `append` makes it part of the log. LogError."""
        return Growing(self._delta_path(self.tip.version + 1))

    def append(self, data: bytes | bytearray, payload: Payload, begun: Growing | None = None) -> None:
        """The next delta; when this returns it is durable, and the tip. `begun`: has been given all of `data`.
        LogError: it is not, and nothing has changed. LineageError if it is not the next one.
        """
        at = payload.manifest.at
        if payload.base != self.tip:
            raise LineageError(f"a delta from {payload.base} cannot follow {self.tip}")
        if begun is None:
            write_whole(self._delta_path(at.version), [data])
        else:
            begun.publish()
        with self._lock:
            self._lineages[at.version] = at.lineage
            self._sizes[at.version] = len(data)
            self.tip = at

    def settle(self, data: bytes | None) -> None:
        """The form of the next delta that folds, None if it is what was appended: from now on folds can lead to it."""
        version = self.settled.version + 1
        if data is not None:
            write_whole(self.directory / f"p{version:012d}.pccl", [data])
        self.settled = self.version(version)

    def restart(self, data: bytes, payload: Payload) -> None:
        """Begins anew with a fold from the base: what was known in between is not any more."""
        at = payload.manifest.at
        write_whole(self._fold_path(0, at.version), [data])
        with self._lock:
            for version in self._sizes:
                remove(self._delta_path(version))
                remove(self.directory / f"p{version:012d}.pccl")
            for a, b in self._folds - {(0, at.version)}:
                remove(self._fold_path(a, b))
            self._sizes, self._folds = {}, {(0, at.version)}
            self._lineages = {0: self._lineages[0], at.version: at.lineage}
            self.tip = self.settled = at

    def tend(self, pool: Executor) -> None:
        """Builds the rungs of the ladder that the tip completes, and prunes. After each append, at leisure."""
        tip, size = self.settled.version, 2
        while tip and tip % size == 0:
            self._build(tip - size, tip, pool)
            size *= 2
        if self.keep_bytes is not None:
            self._prune(pool)

    def _build(self, start: int, end: int, pool: Executor) -> None:
        with self._lock:
            if (start, end) in self._folds or start not in self._lineages:
                return
        write_whole(self._fold_path(start, end), [fold(self.pieces(start, end), pool)])
        with self._lock:
            self._folds.add((start, end))

    def _prune(self, pool: Executor) -> None:
        with self._lock:
            kept, until, most = 0, 0, self.keep_bytes or 0
            for version in sorted(self._sizes, reverse=True):
                kept += self._sizes[version]
                if kept > most and version < self.settled.version:
                    until = version
                    break
        if not until:
            return
        self._build(0, until, pool)
        with self._lock:
            old = [version for version in self._sizes if version <= until]
            for version in old:
                del self._sizes[version]
            self._lineages = {v: lineage for v, lineage in self._lineages.items() if v == 0 or v >= until}
            gone = {(a, b) for a, b in self._folds if (a or b) < until}
            self._folds -= gone
        for a, b in gone:
            remove(self._fold_path(a, b))
        for version in old:
            remove(self.directory / f"p{version:012d}.pccl")
            remove(self._delta_path(version))

    # -- files --

    def _take_root(self, deltas: set[int]) -> None:
        """The fold from the base that a pruned log begins with: the shortest from whose end on all deltas are there."""
        last = max(deltas, default=0)
        for end in sorted({0} | {b for a, b in self._folds if a == 0}):
            if deltas.issuperset(range(end + 1, last + 1)):
                if end:
                    payload = self._load(self._fold_path(0, end), self.tip)
                    self.tip = payload.manifest.at
                    self._lineages[end] = self.tip.lineage
                return

    def _is_plain(self) -> bool:
        """Whether the tip folds as it is: the writer of its other form may have died before that was written."""
        tip = self.tip.version
        if tip not in self._sizes or self._plain_path(tip) != self._delta_path(tip):
            return True
        blocks = self._load(self._delta_path(tip)).blocks()
        return all(codec.describe(block).codec != Codec.DIFF_B for _, block in blocks)

    def _take(self, version: int) -> None:
        if version <= self.tip.version:  # a prune that was interrupted
            remove(self._delta_path(version))
            return
        payload = self._load(self._delta_path(version), self.tip)
        self.tip = payload.manifest.at
        self._lineages[version] = self.tip.lineage
        self._sizes[version] = payload.nbytes

    def _load(self, path: Path, base: Version | None = None) -> Payload:
        try:
            payload = Payload(mapped(path))
        except DamageError as error:
            raise DamageError(f"{path}: {error.message}") from error
        if base is not None and payload.base != base:
            raise LineageError(f"{path} follows {payload.base}, not {base}")
        return payload

    def _delta_path(self, version: int) -> Path:
        return self.directory / f"d{version:012d}.pccl"

    def _plain_path(self, version: int) -> Path:
        other = self.directory / f"p{version:012d}.pccl"
        return other if other.exists() else self._delta_path(version)

    def _fold_path(self, start: int, end: int) -> Path:
        return self.directory / f"f{start:012d}-{end:012d}.pccl"
