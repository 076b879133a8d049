"""vllm_layout.py - what a pool is made of, from vLLM's groups of a KV cache and the tensors that it registers.

A group is named by its first layer, and layers by vLLM's names. Keys and values that are two tensors in one are two
layers, NAME.k and NAME.v; a block of recurrent state is one layer's page, whatever tensors it is made of. torch and
vllm are imported when this is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pccl.errors import ArgumentError
from pccl.kv.layout import Group, Kind, Layout, Rows
from pccl.kv.memory import Array

__all__ = ["Facts", "Part", "caches_of", "groups_of"]

#: vLLM's block that stands where a window has moved on.
NULL_BLOCK = 0
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


class Part(NamedTuple):
    """Some blocks of a request: `ids`, of which the first is number `first` of the request's."""

    first: int
    ids: list[int]


@dataclass(slots=True, frozen=True)
class Facts:
    """One of vLLM's groups. `spec`: vLLM's own."""

    name: str
    layers: tuple[str, ...]
    kind: Kind
    block_tokens: int
    window: int | None
    spec: Any

    def part(self, ids: Sequence[int], begin: int, end: int) -> Part:
        """Those of a request's blocks that hold its tokens from `begin` to `end`, as far as anybody needs them."""
        if self.kind == "state":
            return Part(0, list(ids[:1]))
        first, last = begin // self.block_tokens, min(-(-end // self.block_tokens), len(ids))
        if self.window is not None:
            first = max(first, last - -(-self.window // self.block_tokens) - 1)
            while NULL_BLOCK in ids[first:last]:
                first = list(ids).index(NULL_BLOCK, first, last) + 1
        return Part(first, list(ids[first:last]))

    def covered(self, first: int, end: int) -> bool:
        """Whether blocks from number `first` on are all that anybody needs of so many tokens."""
        needed = 0 if self.window is None else max(0, end + 2 - self.window)  # a window may have moved on by a token
        return first * self.block_tokens <= needed


def groups_of(kv_cache_config: Any) -> list[Facts]:
    """The groups of vLLM's KVCacheConfig. Raises ArgumentError that names what cannot be moved."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec, SlidingWindowSpec

    found = []
    for group in kv_cache_config.kv_cache_groups:
        spec, layers = group.kv_cache_spec, tuple(group.layer_names)
        kind: Kind = "full"
        if isinstance(spec, MambaSpec):
            kind = "state"
            if spec.mamba_cache_mode != "none" or spec.num_speculative_blocks:
                raise ArgumentError(f"the state of {layers[0]!r} has more than one block of a request")
        elif isinstance(spec, SlidingWindowSpec):
            kind = "swa"
        elif not isinstance(spec, FullAttentionSpec):
            raise ArgumentError(f"layers like {layers[0]!r} are not known here: {type(spec).__name__}")
        window = spec.sliding_window if kind == "swa" else None
        found.append(Facts(layers[0], layers, kind, spec.block_size, window, spec))
    return found


class _Layer(NamedTuple):
    """A layer as pools know it."""

    name: str
    data: Array
    slab_bytes: int
    planes: int
    rows: Rows


def caches_of(
    model_id: str, groups: Sequence[Facts], tensors: Mapping[str, Any], blocks: int, shard: tuple[int, int]
) -> tuple[Layout, dict[str, list[Array]]]:
    """A layout, and its buffers: views of the tensors. `shard`: (rank, of how many) among which heads are divided.

    Raises ArgumentError or TypeError that names the layer: it is not there, not of so many blocks, not in host memory,
    or has gaps.
    """
    made, buffers = [], {}
    for facts in groups:
        layers = [layer for name in facts.layers for layer in _layers(name, _tensor(tensors, name), facts, blocks)]
        for layer in layers[1:]:
            if layer[2:] != layers[0][2:]:
                raise ArgumentError(f"layers {layers[0].name!r} and {layer.name!r} of one group are not alike")
        first = tensors[facts.layers[0]]
        made.append(
            Group(
                name=facts.name,
                kind=facts.kind,
                layers=tuple(layer.name for layer in layers),
                bytes_per_block_layer=layers[0].slab_bytes,
                block_tokens=None if facts.kind == "state" else facts.block_tokens,
                heads=_heads(facts, shard),
                planes=layers[0].planes,
                rows=layers[0].rows,
                dtype=_dtype(first[0] if isinstance(first, list | tuple) else first),
                window=facts.window,
            )
        )
        buffers[facts.name] = [layer.data for layer in layers]
    return Layout(model_id=model_id, groups=tuple(made)), buffers


def _tensor(tensors: Mapping[str, Any], name: str) -> Any:
    if name not in tensors:
        raise ArgumentError(f"no tensor was registered for layer {name!r}")
    return tensors[name]


def _layers(name: str, given: Any, facts: Facts, blocks: int) -> list[_Layer]:
    tensors = list(given) if isinstance(given, list | tuple) else [given]
    for tensor in tensors:
        if tensor.device.type != "cpu":
            raise TypeError(f"the cache of layer {name!r} lies on {tensor.device}: pools are made of host memory")
    if facts.kind == "state":
        return [_state(name, tensors, facts.spec.page_size_bytes, blocks)]
    (tensor,) = tensors
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    if shape[:2] == (2, blocks):
        if strides[0] > strides[1]:
            pairs = zip(("k", "v"), tensor, strict=True)
            return [_attention(f"{name}.{which}", part, facts, blocks) for which, part in pairs]
        tensor = tensor.transpose(0, 1)  # the two are side by side in each block
    return [_attention(name, tensor, facts, blocks)]


def _attention(name: str, tensor: Any, facts: Facts, blocks: int) -> _Layer:
    """[blocks, ...], in whatever order within a block, without gaps."""
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    if len(shape) < 2 or shape[0] != blocks:
        raise ArgumentError(f"the cache of layer {name!r} has the shape {shape}, which is not that of {blocks} blocks")
    cells = tensor[0].numel()
    sizes = sorted(((stride, size) for stride, size in zip(strides, shape, strict=True) if size > 1), reverse=True)
    dense = 1
    for stride, size in reversed(sizes):
        if stride != dense:
            raise TypeError(f"the cache of layer {name!r} has gaps: strides {strides} of shape {shape}")
        dense *= size
    if blocks > 1 and strides[0] != cells:
        raise TypeError(f"the blocks of layer {name!r} do not lie one after another: strides {strides}")
    planes = 2 if len(shape) == 5 and shape[1] == 2 and strides[1] * 2 == cells else 1
    slab = cells * tensor.element_size()
    return _Layer(name, _bytes(tensor, slab * blocks), slab, planes, _rows(shape, strides, facts))


def _state(name: str, tensors: list[Any], page: int, blocks: int) -> _Layer:
    """All tensors of a layer are views of the same pages."""
    first = tensors[0]
    start = min(tensor.data_ptr() for tensor in tensors)
    alike = all(
        tensor.shape[0] == blocks
        and tensor.stride(0) * tensor.element_size() == page
        and tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        for tensor in tensors
    )
    if not alike or first.data_ptr() != start:
        raise TypeError(f"the state of layer {name!r} does not lie in {blocks} pages of {page} bytes")
    return _Layer(name, _bytes(first, page * blocks), page, 1, "tokens")


def _rows(shape: tuple[int, ...], strides: tuple[int, ...], facts: Facts) -> Rows:
    """Whether a token's heads lie together, or a head's tokens."""
    if _heads(facts, (0, 1)) is None or len(shape) < 4:
        return "tokens"
    token, head = (-3, -2) if shape[-3] == facts.block_tokens else (-2, -3)
    return "tokens" if shape[head] == 1 or strides[token] > strides[head] else "heads"


def _heads(facts: Facts, shard: tuple[int, int]) -> tuple[int, int, int] | None:
    from vllm.v1.kv_cache_interface import MLAAttentionSpec

    if facts.kind == "state" or isinstance(facts.spec, MLAAttentionSpec):
        return None
    count: int = facts.spec.num_kv_heads
    rank, size = shard
    return (rank * count, (rank + 1) * count, size * count)


def _bytes(tensor: Any, nbytes: int) -> Array:
    """The memory from where the tensor begins."""
    import torch

    begin = tensor.storage_offset() * tensor.element_size()
    storage = tensor.untyped_storage()
    if begin + nbytes > storage.nbytes():
        raise TypeError(f"{nbytes} bytes of cache do not lie in an allocation of {storage.nbytes()}")
    flat: Array = torch.empty(0, dtype=torch.uint8).set_(storage, begin, (nbytes,), (1,)).numpy()
    return flat


def _dtype(tensor: Any) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    return _DTYPES.get(name, name)
