"""figures.py - one figure for each path from peer to peer, as a matrix: a thousand peers measure a million paths.

Pure. A peer has a row and a column, its slot; slots of those who are gone are used again. To read, a `Figures` is a
mapping of paths to floats, and gives the matrix of any members in any order at once. `AgedFigures` is what is written
to: every figure has the time it was taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Path = tuple[bytes, bytes]
Array = NDArray[np.float64]

SLOTS_MIN = 8


class Figures(Mapping[Path, float]):
    """Figures by (from, to). NaN stands where there is none."""

    def __init__(self, slots: Mapping[bytes, int], values: Array) -> None:
        self._slots = slots
        self._values = values
        self._rows: list[list[float]] | None = None  # the same, for who asks for one after the other

    @classmethod
    def of(cls, known: Mapping[Path, float]) -> Figures:
        """From any mapping."""
        if isinstance(known, Figures):
            return known
        slots = {peer: slot for slot, peer in enumerate(dict.fromkeys(peer for path in known for peer in path))}
        values = np.full((len(slots), len(slots)), np.nan)
        for (a, b), value in known.items():
            values[slots[a], slots[b]] = value
        return cls(slots, values)

    def matrix(self, peers: Sequence[bytes]) -> Array:
        """[from, to] in the order of the peers; NaN where nothing is known."""
        slots = np.array([self._slots.get(peer, -1) for peer in peers], dtype=np.int64)
        known = np.flatnonzero(slots >= 0)
        found = np.full((len(slots), len(slots)), np.nan)
        found[np.ix_(known, known)] = self._values[np.ix_(slots[known], slots[known])]
        return found

    def __getitem__(self, path: Path) -> float:
        row, column = self._slots[path[0]], self._slots[path[1]]
        if self._rows is None:
            self._rows = self._values.tolist()
        value = self._rows[row][column]
        if value != value:
            raise KeyError(path)
        return value

    def __iter__(self) -> Iterator[Path]:
        peers = {slot: peer for peer, slot in self._slots.items()}
        return ((peers[a], peers[b]) for a, b in np.argwhere(~np.isnan(self._values)).tolist())

    def __len__(self) -> int:
        return int(np.count_nonzero(~np.isnan(self._values)))


class AgedFigures:
    """Several kinds of figures of the same paths, each taken at some time, and too old some time later."""

    def __init__(self, kinds: int) -> None:
        self._slots: dict[bytes, int] = {}
        self._free: list[int] = []
        self._values: Array = np.full((kinds, 0, 0), np.nan)
        self._at: Array = np.full((kinds, 0, 0), np.nan)

    def put(self, now: float, sender: bytes, peers: Sequence[bytes], figures: Sequence[Sequence[float]]) -> None:
        """What a peer has measured of its paths to others: of each kind a row. NaN: nothing new."""
        for peer in (sender, *peers):
            if peer not in self._slots:
                self._enter(peer)
        row, columns = self._slots[sender], np.array([self._slots[peer] for peer in peers], dtype=np.int64)
        for kind, values in enumerate(np.array(figures, dtype=np.float64)):
            news = ~np.isnan(values)
            self._values[kind, row, columns[news]] = values[news]
            self._at[kind, row, columns[news]] = now

    def forget(self, peer: bytes) -> None:
        """The peer is gone for good."""
        slot = self._slots.pop(peer, None)
        if slot is not None:
            self._values[:, slot, :] = self._values[:, :, slot] = np.nan
            self._free.append(slot)

    def since(self, oldest: float) -> list[Figures]:
        """A copy of each kind, without those that were taken before."""
        slots = dict(self._slots)
        kinds = zip(self._values, self._at, strict=True)
        return [Figures(slots, np.where(at >= oldest, values, np.nan)) for values, at in kinds]

    def _enter(self, peer: bytes) -> None:
        """Takes a free slot. There are twice as many when there is none left: growing costs little for each."""
        if not self._free:
            kinds, old, _ = self._values.shape
            new = max(SLOTS_MIN, 2 * old)
            for name in ("_values", "_at"):
                larger = np.full((kinds, new, new), np.nan)
                larger[:, :old, :old] = getattr(self, name)
                setattr(self, name, larger)
            self._free = list(range(new - 1, old - 1, -1))
        self._slots[peer] = self._free.pop()
