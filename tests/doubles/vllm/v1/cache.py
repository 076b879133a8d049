"""The memory of a KV cache, its blocks, and a model that reads what it has written: a double of what vLLM does.

A model's next token depends on every byte that it reads, so whatever is lost or put elsewhere changes the output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vllm.v1.kv_cache_interface import KVCacheConfig, MambaSpec, MLAAttentionSpec, SlidingWindowSpec

NULL_BLOCK = 0


class Blocks:
    """Which block is whose. Ids are common to all groups; those of whole blocks of prompts are found again."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count - 1, 0, -1))
        self._held: dict[int, int] = {}
        self._known: dict[tuple[int, ...], int] = {}

    def take(self) -> int:
        block = self._free.pop()
        self._held[block] = 1
        return block

    def hold(self, block: int) -> int:
        self._held[block] += 1
        return block

    def free(self, block: int) -> None:
        if block != NULL_BLOCK:
            self._held[block] -= 1
            if not self._held[block]:
                del self._held[block]
                self._free.insert(0, block)

    def learn(self, prefix: tuple[int, ...], block: int) -> None:
        if prefix not in self._known:
            self._known[prefix] = self.hold(block)

    def find(self, prefix: tuple[int, ...]) -> int | None:
        return self._known.get(prefix)

    def held(self) -> set[int]:
        """By requests, not by the memory of prompts."""
        known = set(self._known.values())
        return {block for block, count in self._held.items() if count > (block in known)}


def tensors_of(config: KVCacheConfig) -> dict[str, Any]:
    """As vLLM registers them: layers of several groups in one memory, states and attention side by side in pages."""
    specs = {layer: group.kv_cache_spec for group in config.kv_cache_groups for layer in group.layer_names}
    paged = any(isinstance(spec, MambaSpec) for spec in specs.values())
    made = {}
    for memory in config.kv_cache_tensors:
        raw = torch.zeros(memory.size, dtype=torch.uint8)
        for layer in memory.shared_by:
            made[layer] = _view(raw, specs[layer], config.num_blocks, paged)
    return made


def _view(raw: Any, spec: Any, blocks: int, paged: bool) -> Any:
    if isinstance(spec, MambaSpec):
        views, begin = [], 0
        for shape, dtype in zip(spec.shapes, spec.dtypes, strict=True):
            pages = raw.view(blocks, spec.page_size_bytes)
            nbytes = torch.Size(shape).numel() * dtype.itemsize
            views.append(pages[:, begin : begin + nbytes].view(dtype).unflatten(1, shape))
            begin += nbytes
        return views
    flat = raw.view(spec.dtype)
    cell = (spec.block_size, spec.num_kv_heads, spec.head_size)
    if isinstance(spec, MLAAttentionSpec):
        return flat.view(blocks, spec.block_size, spec.head_size)
    return flat.view(blocks, 2, *cell).transpose(0, 1) if paged else flat.view(2, blocks, *cell)


class Model:
    """Writes keys, values and states of tokens; reads all of them for the next."""

    def __init__(self, config: KVCacheConfig, tensors: dict[str, Any], rank: int) -> None:
        self._groups, self.tensors, self._rank = config.kv_cache_groups, tensors, rank
        self.computed = 0

    def run(
        self, tokens: list[int], begin: int, block_ids: tuple[list[int], ...], wait: Callable[[str], None] | None = None
    ) -> int:
        """Computes those from `begin` on, layer by layer, each of which is waited for before what it holds is read;
        gives the token after the last.
        """
        self.computed += len(tokens) - begin
        total = 0
        for group, ids in zip(self._groups, block_ids, strict=True):
            spec = group.kv_cache_spec
            for number, layer in enumerate(group.layer_names):
                for at in range(begin, len(tokens)):
                    self._write(spec, self.tensors[layer], ids, at, tokens[at] + 17 * number + 7 * self._rank)
                if wait is not None:
                    wait(layer)
                total = total * 31 + self._read(spec, self.tensors[layer], ids, len(tokens))
        return total % 251

    def _write(self, spec: Any, tensor: Any, ids: list[int], at: int, value: int) -> None:
        if isinstance(spec, MambaSpec):
            for part in tensor:
                state = part[ids[0]] if at else torch.zeros_like(part[ids[0]])
                part[ids[0]] = (state * 3 + value + torch.arange(state.numel()).view(state.shape)) % 127
            return
        cells = self._cell(spec, tensor, ids, at)
        wave = torch.arange(cells[0].numel()) * (at + 1)
        for which, cell in enumerate(cells):
            cell.copy_(((wave + value + 5 * which) % 127).view(cell.shape))

    def _read(self, spec: Any, tensor: Any, ids: list[int], end: int) -> int:
        if isinstance(spec, MambaSpec):
            return sum(_digest(part[ids[0]]) for part in tensor)
        first = max(0, end - spec.sliding_window) if isinstance(spec, SlidingWindowSpec) else 0
        return sum(_digest(cell) * (at + 1) for at in range(first, end) for cell in self._cell(spec, tensor, ids, at))

    def _cell(self, spec: Any, tensor: Any, ids: list[int], at: int) -> list[Any]:
        block, place = ids[at // spec.block_size], at % spec.block_size
        assert block != NULL_BLOCK, "a token without a block"
        if isinstance(spec, MLAAttentionSpec):
            return [tensor[block, place]]
        return [tensor[0, block, place], tensor[1, block, place]]


def _digest(values: Any) -> int:
    flat = values.reshape(-1).to(torch.int64)
    return int((flat * torch.arange(1, flat.numel() + 1)).sum())
