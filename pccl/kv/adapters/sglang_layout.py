"""sglang_layout.py - what a pool is made of, from the KVArgs that SGLang gives to its managers: addresses and lengths.

All that SGLang moves becomes blocks: pages of the cache by their page, states by their component ("mamba", "swa" ...)
and slot, and what goes with the first token ("aux") by its slot. Buffers with as many items of one size make a group,
and layers are named by their place: KVArgs has no names. Needs no sglang.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pccl.errors import ArgumentError
from pccl.kv.layout import Group, Kind, Layout
from pccl.kv.memory import Array

__all__ = ["Caches", "caches_of"]


@dataclass(slots=True)
class Caches:
    """`pages`, `states` (of each component), `aux`: names of their groups. `page_tokens`: of a page."""

    layout: Layout
    buffers: dict[str, list[Array]]
    pages: list[str]
    states: list[list[str]]
    aux: list[str]
    page_tokens: int

    def page_blocks(self, pages: Any) -> dict[str, Any]:
        """Blocks of all groups of pages."""
        return dict.fromkeys(self.pages, pages)

    def other_blocks(self, aux: int | None, states: Sequence[Any] | None) -> dict[str, Any]:
        """Blocks of a request's states and of what goes with its first token. ArgumentError: states of too many
        components.
        """
        given = [] if states is None else list(states)
        if len(given) > len(self.states):
            raise ArgumentError(f"state_indices are of {len(given)} components, KVArgs has {len(self.states)}")
        found: dict[str, Any] = dict.fromkeys(self.aux, [] if aux is None else [aux])
        for names, indices in zip(self.states, given, strict=False):
            found |= dict.fromkeys(names, [] if indices is None else np.asarray(indices).ravel())
        return found

    def item_bytes(self, blocks: dict[str, Any]) -> int:
        """Of all layers of these blocks."""
        groups = {group.name: group for group in self.layout.groups}
        return sum(
            len(ids) * groups[name].bytes_per_block_layer * len(groups[name].layers) for name, ids in blocks.items()
        )


@dataclass(slots=True)
class _Making:
    groups: list[Group] = field(default_factory=list)
    buffers: dict[str, list[Array]] = field(default_factory=dict)

    def add(
        self, what: str, pointers: Sequence[int], lengths: Sequence[int], items: Sequence[int], **facts: Any
    ) -> list[str]:
        """Groups of these buffers, by the size and the number of their items; gives their names."""
        if not len(pointers) == len(lengths) == len(items):
            raise ArgumentError(f"{what}: {len(pointers)} addresses, {len(lengths)} lengths, {len(items)} item lengths")
        alike: dict[tuple[int, int], list[int]] = {}
        for number, size in enumerate(items):
            alike.setdefault((size, lengths[number]), []).append(number)
        names = []
        for (size, _), numbers in alike.items():
            name = f"{what}.{numbers[0]}"
            layers = tuple(f"{what}.{number}" for number in numbers)
            self.groups.append(Group(name=name, layers=layers, bytes_per_block_layer=size, **facts))
            self.buffers[name] = [_view(f"{what}.{n}", pointers[n], lengths[n], size) for n in numbers]
            names.append(name)
        return names


def caches_of(args: Any, model_id: str, dtype: str) -> Caches:
    """Views of the memory that KVArgs names: it must be host memory, and stay where it is.

    Raises ArgumentError that names the buffer or the field.
    """
    making, page_tokens = _Making(), _page_tokens(args)
    kind: Kind = "full"
    pages = making.add(
        "kv", args.kv_data_ptrs, args.kv_data_lens, args.kv_item_lens, kind=kind, block_tokens=page_tokens, dtype=dtype
    )
    states = []
    for number, one in enumerate(getattr(args, "state_types", None) or ()):
        what = f"{getattr(one, 'value', one)}.{number}"
        memory = args.state_data_ptrs[number], args.state_data_lens[number], args.state_item_lens[number]
        states.append(making.add(what, *memory, kind="state", dtype=dtype))
    aux = making.add("aux", args.aux_data_ptrs, args.aux_data_lens, args.aux_item_lens, kind="state", dtype="bytes")
    layout = Layout(model_id=model_id, groups=tuple(making.groups))
    return Caches(layout, making.buffers, pages, states, aux, page_tokens)


def _page_tokens(args: Any) -> int:
    found = getattr(args, "page_size", None)
    if not isinstance(found, int) or found < 1:
        raise ArgumentError(f"page_size of KVArgs must be a number of tokens, not {found!r}")
    return found


def _view(what: str, pointer: int, nbytes: int, item: int) -> Array:
    if not pointer or nbytes < 1 or item < 1 or nbytes % item:
        raise ArgumentError(f"{what} of KVArgs: {nbytes} bytes at {pointer:#x} are no items of {item}")
    memory = (ctypes.c_uint8 * nbytes).from_address(pointer)
    found: Array = np.ctypeslib.as_array(memory)
    return found
