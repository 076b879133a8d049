"""memory.py - a registered cache: the engine's own buffers, and where in them the blocks of a layer are.

Nothing is copied, and no address ever leaves the process: peers name (group, layer, block), which are checked against
the layout before any byte moves. A *piece* is one layer's slab of one block; neighbouring pieces make *runs*.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pccl._native import ffi, lib
from pccl.errors import ArgumentError
from pccl.kv.layout import Group, Layout
from pccl.transfer.offers import writable

__all__ = ["Array", "Ids", "Memory", "Pieces", "coalesce", "digests"]

Array = np.ndarray[Any, np.dtype[np.uint8]]
Ids = np.ndarray[Any, np.dtype[np.int64]]
Numbers = np.ndarray[Any, np.dtype[np.uint64]]


_FLOATS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}


class Pieces(NamedTuple):
    """One layer of some blocks: in `Memory.views[buffer]`, `nbytes` at each of the `offsets`, in the blocks' order."""

    buffer: int
    offsets: Numbers
    nbytes: int


class Memory:
    """The buffers of a layout. `views`: all of them as flat bytes; of a layer-first group one per layer, else one."""

    def __init__(self, layout: Layout, buffers: Mapping[str, Any]) -> None:
        """`buffers`: of each group, by name: its layers' arrays in their order or by their names (layer-first), or one
        array (block-first). C-contiguous, writable host memory; shapes do not matter, sizes do. An array of floats must
        be of the group's dtype, any other holds bytes. Two groups may have the same memory, if a block is of one of
        them at a time. Raises ArgumentError or TypeError that names group and
        layer.
        """
        self.layout = layout
        self.views: list[Array] = []
        self._holds: list[Any] = []
        self._first: list[int] = []  # number of the group's first buffer
        self._blocks: list[int] = []
        if unknown := set(buffers) - set(layout.group_index):
            raise ArgumentError(f"buffers name a group that the layout does not have: {sorted(unknown)[0]!r}")
        for group in layout.groups:
            if group.name not in buffers:
                raise ArgumentError(f"buffers lack the group {group.name!r}")
            self._first.append(len(self.views))
            self._blocks.append(self._take(group, buffers[group.name]))
            _check_apart(self.views[self._first[-1] :])

    def block_count(self, group: int) -> int:
        """Blocks of a group."""
        return self._blocks[group]

    def check(self, group: int, blocks: Sequence[int] | Ids) -> Ids:
        """Block ids as an array. ArgumentError for one that is out of range or there twice, naming its place."""
        name, count = self.layout.groups[group].name, self._blocks[group]
        ids = np.asarray(blocks)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise ArgumentError(f"blocks of {name!r} must be a flat list of integers")
        wrong = np.flatnonzero((ids < 0) | (ids >= count))
        if wrong.size:
            at = int(wrong[0])
            raise ArgumentError(f"blocks[{at}] of {name!r} is {ids[at]}: the group has {count} blocks")
        places = np.argsort(ids, kind="stable")
        again = np.flatnonzero(np.diff(ids[places]) == 0)
        if again.size:
            at = int(places[again[0] + 1])
            raise ArgumentError(f"blocks[{at}] of {name!r} is {ids[at]}, which is there twice")
        return ids.astype(np.int64, copy=False)

    def pieces(self, group: int, layer: int, blocks: Ids) -> Pieces:
        """Where one layer of these blocks is; the ids have been checked."""
        this = self.layout.groups[group]
        slab = this.bytes_per_block_layer
        if this.order == "layer_first":
            return Pieces(self._first[group] + layer, blocks.astype(np.uint64) * np.uint64(slab), slab)
        stride = np.uint64(slab * len(this.layers))
        return Pieces(self._first[group], blocks.astype(np.uint64) * stride + np.uint64(slab * layer), slab)

    def slabs(self, group: int, layer: int) -> Array:
        """One layer of all blocks: a view of [blocks, slab]."""
        this = self.layout.groups[group]
        slab, count = this.bytes_per_block_layer, self._blocks[group]
        if this.order == "layer_first":
            return self.views[self._first[group] + layer].reshape(count, slab)
        return self.views[self._first[group]].reshape(count, len(this.layers), slab)[:, layer]

    def parts(self, group: int, layer: int, split: int) -> Array:
        """The same, every slab in so many equal parts: [blocks, split, part]."""
        slabs = self.slabs(group, layer)
        return slabs.reshape(slabs.shape[0], split, -1)

    def _take(self, group: Group, given: Any) -> int:
        """Appends the buffers of a group; gives its number of blocks."""
        if group.order == "block_first":
            view = self._view(given, f"the buffer of {group.name!r}", group.dtype)
            return _count(view, group.bytes_per_block_layer * len(group.layers), f"the buffer of {group.name!r}")
        if isinstance(given, Mapping):
            if wrong := set(given) ^ set(group.layers):
                raise ArgumentError(f"buffers of {group.name!r} do not match its layers: {sorted(wrong)[0]!r}")
            given = [given[layer] for layer in group.layers]
        if not isinstance(given, Sequence) or len(given) != len(group.layers):
            raise ArgumentError(f"buffers of {group.name!r} must be a list of {len(group.layers)}, one for each layer")
        counts = []
        for layer, array in zip(group.layers, given, strict=True):
            view = self._view(array, f"the buffer of layer {layer!r}", group.dtype)
            counts.append(_count(view, group.bytes_per_block_layer, f"the buffer of layer {layer!r}"))
            if counts[-1] != counts[0]:
                raise ArgumentError(f"layer {layer!r} has {counts[-1]} blocks, {group.layers[0]!r} has {counts[0]}")
        return counts[0]

    def _view(self, array: Any, what: str, dtype: str) -> Array:
        found = _FLOATS.get(str(getattr(array, "dtype", "")).removeprefix("torch."))
        if found is not None and dtype in _FLOATS.values() and found != dtype:
            raise TypeError(f"{what} is of {array.dtype}, the layout says {dtype!r}")
        try:
            views, hold = writable(array)
        except (TypeError, ArgumentError) as error:
            raise type(error)(f"{what}: {error}") from None
        if len(views) != 1:
            raise ArgumentError(f"{what} must be one array, not a list")
        self.views.append(views[0])
        self._holds.append(hold)
        return views[0]


def coalesce(offsets: Numbers, nbytes: int) -> tuple[Numbers, Numbers]:
    """Neighbouring pieces of one size as the fewest runs, in their order: (offsets, sizes)."""
    if not offsets.size:
        return offsets, offsets
    begins = np.flatnonzero(np.diff(offsets, prepend=offsets[0] + np.uint64(1)) != np.uint64(nbytes))
    counts = np.diff(begins, append=offsets.size)
    return offsets[begins], counts.astype(np.uint64) * np.uint64(nbytes)


def digests(view: Array, offsets: Numbers, nbytes: int, seeds: Numbers) -> Numbers:
    """64 bits of every piece, each bound to its seed (csrc/digests.c), without the interpreter's lock."""
    found = np.empty(offsets.size, np.uint64)
    if offsets.size:
        _check_within(view.size, offsets, nbytes, seeds.size)
        given = np.ascontiguousarray(offsets, np.uint64), np.ascontiguousarray(seeds, np.uint64)
        data, at, of, to = (ffi.from_buffer(array) for array in (view, *given, found))
        lib.pccl_digest_pieces(
            data, ffi.cast("uint64_t *", at), nbytes, ffi.cast("uint64_t *", of), found.size, ffi.cast("uint64_t *", to)
        )
    return found


def _check_within(size: int, offsets: Numbers, nbytes: int, seeds: int) -> None:
    if seeds != offsets.size or int(offsets.max()) + nbytes > size:
        raise ArgumentError(f"{offsets.size} pieces of {nbytes} bytes with {seeds} seeds do not lie in {size} bytes")


def _count(view: Array, nbytes: int, what: str) -> int:
    if not view.size or view.size % nbytes:
        raise ArgumentError(f"{what} has {view.size} bytes, which are no blocks of {nbytes}")
    return view.size // nbytes


def _check_apart(views: Sequence[Array]) -> None:
    """No byte is in two buffers."""
    spans = sorted((view.__array_interface__["data"][0], view.size) for view in views)
    for (begin, size), (after, _) in itertools.pairwise(spans):
        if begin + size > after:
            raise ArgumentError("two of the buffers overlap")
