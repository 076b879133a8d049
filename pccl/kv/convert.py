"""convert.py - which layouts meet, and the copy that brings one cache into the form of the other.

Exact only: blocks of a multiple of the other's tokens, some of the heads that the sender has, layers in one buffer or
in many. Anything else is refused by the name of the field. The sender converts: it lays its slabs out as the receiver's
before they are digested and sent, so that a receiver's blocks always arrive as they are to be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pccl.errors import ArgumentError
from pccl.kv.errors import LayoutMismatch
from pccl.kv.layout import Group, Layout
from pccl.kv.memory import Array, Ids, Memory

__all__ = ["GroupMatch", "Match", "match"]

#: Axes of (planes, blocks, tokens, heads, unit), either way, for what lies as (blocks, planes, ...).
_ORDER = {"tokens": (1, 0, 2, 3, 4), "heads": (1, 0, 3, 2, 4)}
_EQUAL = ("kind", "planes", "rows", "dtype", "window")


@dataclass(frozen=True, slots=True)
class GroupMatch:
    """One group of the receiver's. `group`: the sender's; `layers`: of each of the receiver's layers, the sender's.
    `plain`: the slabs are the same bytes.
    """

    group: int
    layers: tuple[int, ...]
    source: Group
    target: Group

    @property
    def plain(self) -> bool:
        """Slabs need no conversion; where they lie is each side's own business."""
        return self.source.block_tokens == self.target.block_tokens and self.source.heads == self.target.heads

    def blocks_needed(self, wanted: int) -> int:
        """Blocks of the sender that so many of the receiver are made of."""
        if self.target.block_tokens is None or self.source.block_tokens is None:
            return wanted
        return -(-wanted * self.target.block_tokens // self.source.block_tokens)

    def stage(self, memory: Memory, layer: int, blocks: Ids, wanted: int) -> Array:
        """One of the receiver's layers, [wanted, slab], made of the sender's blocks; what they lack is 0.

        `layer`: number in the receiver's group. `blocks`: of the sender, at least one, `blocks_needed(wanted)` at most.
        """
        source, target = self.source, self.target
        if not 1 <= blocks.size <= self.blocks_needed(wanted):
            raise ArgumentError(f"{blocks.size} blocks do not make {wanted}: {self.blocks_needed(wanted)} do at most")
        slabs = memory.slabs(self.group, self.layers[layer])[blocks]
        if self.plain:
            return slabs
        tokens = source.block_tokens or 1
        cells = _by_token(slabs, source, blocks.size, tokens)[:, :, _heads_of(source, target)]
        wide = np.zeros((cells.shape[0], wanted * (target.block_tokens or 1), *cells.shape[2:]), np.uint8)
        count = min(cells.shape[1], wide.shape[1])
        wide[:, :count] = cells[:, :count]
        return _to_slabs(wide, target, wanted)


@dataclass(frozen=True, slots=True)
class Match:
    """How a sender's layout serves a receiver's; `groups` in the receiver's order. `codecs`: both know, best first."""

    groups: tuple[GroupMatch, ...]
    codecs: tuple[str, ...]

    @property
    def plain(self) -> bool:
        """Nothing has to be converted."""
        return all(group.plain for group in self.groups)


def match(ours: Layout, theirs: Layout, convert: bool = False) -> Match:
    """What of `ours`, the sender's, goes where in `theirs`, the receiver's.

    The receiver may have fewer groups and layers than the sender (a pipeline stage). `convert`: conversions are
    welcome. Raises LayoutMismatch; without `convert` also for what could be converted.
    """
    _same("model_id", ours.model_id, theirs.model_id)
    _same("hash_scheme", ours.hash_scheme, theirs.hash_scheme)
    codecs = tuple(codec for codec in theirs.codec_ok if codec in ours.codec_ok)
    return Match(tuple(_match_group(ours, group, convert) for group in theirs.groups), codecs)


def _match_group(ours: Layout, target: Group, convert: bool) -> GroupMatch:
    what = f"groups[{target.name}]"
    places = [ours.layer_index.get(layer) for layer in target.layers]
    for layer, place in zip(target.layers, places, strict=True):
        if place is None:
            raise LayoutMismatch(f"{what}.layers", "no such layer", layer)
    found = [place for place in places if place is not None]
    number = found[0][0]
    if any(group != number for group, _ in found):
        raise LayoutMismatch(f"{what}.layers", "layers of several groups", target.layers)
    source = ours.groups[number]
    for field in _EQUAL:
        _same(f"{what}.{field}", getattr(source, field), getattr(target, field))
    _same(f"{what}.unit_bytes", source.unit_bytes, target.unit_bytes)
    _check_heads(what, source, target, convert)
    _check_tokens(what, source, target, convert)
    return GroupMatch(number, tuple(layer for _, layer in found), source, target)


def _check_heads(what: str, source: Group, target: Group, convert: bool) -> None:
    if source.heads == target.heads:
        return
    fits = (
        source.heads is not None
        and target.heads is not None
        and source.heads[2] == target.heads[2]
        and source.heads[0] <= target.heads[0]
        and target.heads[1] <= source.heads[1]
    )
    if not (convert and fits):
        raise LayoutMismatch(f"{what}.heads", source.heads, target.heads)


def _check_tokens(what: str, source: Group, target: Group, convert: bool) -> None:
    ours, theirs = source.block_tokens, target.block_tokens
    if ours == theirs:
        return
    if not convert or ours is None or theirs is None or max(ours, theirs) % min(ours, theirs):
        raise LayoutMismatch(f"{what}.block_tokens", ours, theirs)


def _same(field: str, ours: object, theirs: object) -> None:
    if ours != theirs:
        raise LayoutMismatch(field, ours, theirs)


def _heads_of(source: Group, target: Group) -> slice:
    """Those of the target among the source's."""
    if source.heads is None or target.heads is None:
        return slice(None)
    return slice(target.heads[0] - source.heads[0], target.heads[1] - source.heads[0])


def _by_token(slabs: Array, group: Group, count: int, tokens: int) -> Array:
    """Slabs of some blocks as [planes, tokens of all, heads, unit]."""
    rows = (tokens, group.head_count) if group.rows == "tokens" else (group.head_count, tokens)
    cells = slabs.reshape(count, group.planes, *rows, group.unit_bytes).transpose(_ORDER[group.rows])
    wide: Array = cells.reshape(group.planes, count * tokens, group.head_count, group.unit_bytes)
    return wide


def _to_slabs(cells: Array, group: Group, count: int) -> Array:
    """The reverse, of the target's shape."""
    blocks = cells.reshape(group.planes, count, group.block_tokens or 1, group.head_count, group.unit_bytes)
    slabs: Array = np.ascontiguousarray(blocks.transpose(_ORDER[group.rows])).reshape(
        count, group.bytes_per_block_layer
    )
    return slabs
