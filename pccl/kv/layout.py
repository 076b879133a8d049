"""layout.py - what a KV cache is made of: groups of layers, how a block of each lies in memory, and its fingerprint.

A group is a set of layers whose state is kept alike: full attention (a block for every `block_tokens` tokens), a
sliding window (the same, of which only the last `window` tokens matter), or recurrent state (one block for the whole
request).
The *slab* is what one layer has in one block, [planes, tokens, heads, unit] or [planes, heads, tokens, unit] of bytes.
Layers and groups are matched by their names, never by their places. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Literal

import msgspec

from pccl.errors import ArgumentError, ProtocolError

__all__ = ["Group", "Kind", "Layout", "Order", "Rows"]

Kind = Literal["full", "swa", "state"]
Order = Literal["block_first", "layer_first"]
Rows = Literal["tokens", "heads"]

VERSION = 1
GROUPS_MAX = 64
LAYERS_MAX = 4096
NAME_BYTES_MAX = 256
SLAB_BYTES_MAX = 1 << 32
LAYOUT_BYTES_MAX = 1 << 20


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True, kw_only=True):
    """Layers whose state is kept alike.

    `layers`: names, in the order of the memory. `bytes_per_block_layer`: of a slab. `block_tokens`: tokens of a block,
    None for `kind="state"`. `heads`: (first, end, total): which heads of the model the slab holds; None: it is not
    divided by heads (MLA, recurrent state). `planes`: equal parts of a slab, one after another (2: keys, then values).
    `rows`: whether within a plane the heads of one token lie together ("tokens") or the tokens of one head ("heads").
    `order`: "layer_first": a buffer for each layer, of [blocks, slab]; "block_first": one for the group, of
    [blocks, layers, slab]. `window`: tokens, of "swa" alone. `dtype`: as the engine calls it; compared, and known to
    codecs. Raises ArgumentError that names the field.
    """

    name: str
    kind: Kind = "full"
    layers: tuple[str, ...]
    bytes_per_block_layer: int
    block_tokens: int | None = None
    heads: tuple[int, int, int] | None = None
    planes: int = 1
    rows: Rows = "tokens"
    dtype: str = "bf16"
    order: Order = "layer_first"
    window: int | None = None

    def __post_init__(self) -> None:
        _check_name("name", self.name)
        _one_of("kind", self.kind, ("full", "swa", "state"))
        _one_of("order", self.order, ("block_first", "layer_first"))
        _one_of("rows", self.rows, ("tokens", "heads"))
        _check_name("dtype", self.dtype)
        _check_layers(self.name, self.layers)
        _positive("bytes_per_block_layer", self.bytes_per_block_layer, SLAB_BYTES_MAX)
        _positive("planes", self.planes, 1 << 16)
        if self.kind == "state":
            _absent("block_tokens", self.block_tokens, "state")
        else:
            _positive("block_tokens", self.block_tokens, 1 << 20)
        if self.kind == "swa":
            _positive("window", self.window, 1 << 40)
        else:
            _absent("window", self.window, self.kind)
        if self.heads is not None:
            first, end, total = self.heads
            if not 0 <= first < end <= total <= 1 << 16:
                raise ArgumentError(f"heads must be (first, end, total) with 0 <= first < end <= total: {self.heads}")
        cells = self.planes * (self.block_tokens or 1) * self.head_count
        if self.bytes_per_block_layer % cells:
            raise ArgumentError(
                f"bytes_per_block_layer of {self.name!r} is {self.bytes_per_block_layer}, which the {cells} cells of "
                "its planes, tokens and heads do not divide"
            )

    @property
    def head_count(self) -> int:
        """Heads in a slab."""
        return 1 if self.heads is None else self.heads[1] - self.heads[0]

    @property
    def unit_bytes(self) -> int:
        """Bytes of one head of one token of one plane."""
        return self.bytes_per_block_layer // (self.planes * (self.block_tokens or 1) * self.head_count)


class Layout(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True, kw_only=True, dict=True):
    """A cache: its groups, of which model, under which hashes. Equal layouts have equal fingerprints.

    `model_id`: model and revision. `hash_scheme`: how the engine hashes blocks, with its seed: hashes of another scheme
    mean nothing. `codec_ok`: codecs that may be used on the wire; "raw" must be among them. "int8-kc-vt" loses
    something: it is not used unless it is named here.
    """

    model_id: str
    groups: tuple[Group, ...]
    hash_scheme: str = "none"
    codec_ok: tuple[str, ...] = ("bf16-exp", "raw")

    def __post_init__(self) -> None:
        _check_name("model_id", self.model_id)
        _check_name("hash_scheme", self.hash_scheme)
        for codec in self.codec_ok:
            _check_name("codec_ok", codec)
        if "raw" not in self.codec_ok or len(set(self.codec_ok)) != len(self.codec_ok):
            raise ArgumentError(f"codec_ok must name every codec once, and 'raw' too: {self.codec_ok}")
        if not 1 <= len(self.groups) <= GROUPS_MAX:
            raise ArgumentError(f"groups must be 1 to {GROUPS_MAX}, not {len(self.groups)}")
        _unique("groups have", (group.name for group in self.groups))
        _unique("layers of the groups have", (layer for group in self.groups for layer in group.layers))

    def encode(self) -> bytes:
        """The canonical form, that travels."""
        return _ENCODER.encode((VERSION, self))

    @classmethod
    def decode(cls, data: bytes) -> Layout:
        """From another peer. ProtocolError names what is wrong."""
        if len(data) > LAYOUT_BYTES_MAX:
            raise ProtocolError(f"a layout of {len(data)} bytes is longer than {LAYOUT_BYTES_MAX}")
        try:
            (version,) = _VERSION.decode(data)[:1]
            if version != VERSION:
                raise ProtocolError(f"a layout of version {version!r}: this one is {VERSION}")
            return _DECODER.decode(data)[1]
        except (msgspec.DecodeError, ArgumentError, ValueError) as error:
            raise ProtocolError(f"not a layout: {error}") from None

    @cached_property
    def fingerprint(self) -> bytes:
        """BLAKE2b of the canonical form, 16 bytes."""
        return hashlib.blake2b(self.encode(), digest_size=16).digest()

    @cached_property
    def group_index(self) -> dict[str, int]:
        """Numbers of the groups, by name."""
        return {group.name: number for number, group in enumerate(self.groups)}

    @cached_property
    def layer_index(self) -> dict[str, tuple[int, int]]:
        """(group, layer) of every layer, by name."""
        return {
            layer: (number, place)
            for number, group in enumerate(self.groups)
            for place, layer in enumerate(group.layers)
        }


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(tuple[int, Layout])
_VERSION = msgspec.msgpack.Decoder(tuple[Any, ...])


def _check_name(field: str, value: Any) -> None:
    if not isinstance(value, str) or not 1 <= len(value.encode()) <= NAME_BYTES_MAX:
        raise ArgumentError(f"{field} must be a string of 1 to {NAME_BYTES_MAX} bytes, not {value!r}")


def _check_layers(group: str, layers: tuple[str, ...]) -> None:
    if not 1 <= len(layers) <= LAYERS_MAX:
        raise ArgumentError(f"layers of {group!r} must be 1 to {LAYERS_MAX}, not {len(layers)}")
    for layer in layers:
        _check_name("layers", layer)


def _one_of(field: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ArgumentError(f"{field} must be one of {', '.join(map(repr, choices))}, not {value!r}")


def _positive(field: str, value: Any, most: int) -> None:
    if not isinstance(value, int) or not 1 <= value <= most:
        raise ArgumentError(f"{field} must be an integer from 1 to {most}, not {value!r}")


def _absent(field: str, value: Any, kind: str) -> None:
    if value is not None:
        raise ArgumentError(f"{field} means nothing for kind={kind!r}: it must be None, not {value!r}")


def _unique(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ArgumentError(f"two {what} the name {name!r}")
        seen.add(name)
