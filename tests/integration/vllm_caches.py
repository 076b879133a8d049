"""Caches of models for the double of vLLM, the settings of its engines, and two of them that speak with each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

BLOCKS, BLOCK_TOKENS, HEADS, HEAD = 256, 4, 2, 8
PAGE = 2 * BLOCK_TOKENS * HEADS * HEAD * 2
WINDOW = 6
WAIT_S = 30.0


def cache(*kinds: str, layers: int = 2) -> Any:
    """A KVCacheConfig with a group of each kind: full, mla, swa, state. Groups share memory, layer by layer."""
    import torch
    from vllm.v1 import kv_cache_interface as i

    facts = {"block_size": BLOCK_TOKENS, "num_kv_heads": HEADS, "head_size": HEAD, "dtype": torch.bfloat16}
    specs = {
        "full": lambda: i.FullAttentionSpec(**facts),
        "mla": lambda: i.MLAAttentionSpec(**{**facts, "num_kv_heads": 1}),
        "swa": lambda: i.SlidingWindowSpec(**facts, sliding_window=WINDOW),
        "state": lambda: i.MambaSpec(
            block_size=4096, shapes=((3, 4), (4, 6)), dtypes=(torch.bfloat16, torch.float32), page_size_padded=PAGE
        ),
    }
    groups = [i.KVCacheGroupSpec([f"model.{kind}.{layer}" for layer in range(layers)], specs[kind]()) for kind in kinds]
    size = groups[0].kv_cache_spec.page_size_bytes * BLOCKS
    tensors = [i.KVCacheTensor(size, [group.layer_names[layer] for group in groups]) for layer in range(layers)]
    return i.KVCacheConfig(BLOCKS, tensors, groups)


def config(extra: dict[str, Any], rank: int = 0, size: int = 1) -> Any:
    """A VllmConfig."""
    return SimpleNamespace(
        kv_transfer_config=SimpleNamespace(kv_connector_extra_config=extra),
        parallel_config=SimpleNamespace(rank=rank, tensor_parallel_size=size, pipeline_parallel_size=1),
        model_config=SimpleNamespace(model="test/model", revision=None),
    )


def settings(address: str, secret: str, group: int, **extra: Any) -> dict[str, Any]:
    """kv_connector_extra_config."""
    connect = {"address": address, "secret": secret, "listen": "127.0.0.1:0", "transport": "tcp"}
    return {"connect": {**connect, "group": group, "op_timeout": 20.0}, "deadline_s": 20.0, **extra}


class Both:
    """Two engines, P and D, and one by itself that says what is right."""

    def __init__(self, p: Any, d: Any, alone: Any) -> None:
        self.p, self.d, self.alone = p, d, alone

    def until(self, what: Callable[[], Any], *engines: Any) -> None:
        """Steps both, or these, until something is so."""
        end = time.monotonic() + WAIT_S
        while not what():
            assert time.monotonic() < end, "it did not happen"
            for engine in engines or (self.p, self.d):
                engine.step()

    def prefill(self, name: str, prompt: list[int], **params: Any) -> dict[str, Any]:
        """P computes a prompt; what its answer says to D."""
        self.p.add(name, prompt, 1, {"do_remote_decode": True, **params})
        while name not in self.p.params:
            self.p.step()
        found: dict[str, Any] = self.p.params[name]
        return found

    def decode(self, name: str, prompt: list[int], params: Any, tokens: int = 4) -> list[int]:
        """D goes on with it; the tokens that it makes."""
        request = self.d.add(name, prompt, tokens, params)
        self.until(lambda: len(request.output) == tokens)
        return list(request.output)

    def expected(self, prompt: list[int], tokens: int = 4) -> list[int]:
        """By an engine without a connector."""
        request = self.alone.add("alone", prompt, tokens)
        while len(request.output) < tokens:
            self.alone.step()
        return list(request.output)

    def free(self) -> None:
        """In the end nobody holds a block, in any ledger."""
        self.until(lambda: not self.p.requests and not self.d.requests)
        for engine in (self.p, self.d):
            assert not engine.blocks.held()
            for pool in pools_of(engine):
                self.until(lambda pool=pool: not any(pool.busy(group.name).size for group in pool.layout.groups))


def pools_of(engine: Any) -> list[Any]:
    """Of its workers."""
    return [worker._worker.pool for worker in engine.workers]


@contextmanager
def both(cluster: Any, *kinds: str, p: Any = None, d: Any = None, sizes: tuple[int, int] = (1, 1)) -> Iterator[Both]:
    """P and D, of so many workers, each of which is a group by itself. `p`, `d`: more settings of theirs."""
    coordinator = cluster.coordinator(1, form_peers=1)
    with ExitStack() as stack:
        engines = []
        for number, (extra, size) in enumerate(zip((p, d), sizes, strict=True)):
            given = settings(coordinator.address, cluster.secret, 10 * number, **(extra or {}))
            engines.append(engine(given, size, *kinds))
            for worker in engines[-1].workers:
                stack.callback(worker.shutdown)
        yield Both(*engines, engine_alone(*kinds, size=sizes[1]))


def engine(extra: dict[str, Any], size: int, *kinds: str) -> Any:
    """One with connectors."""
    from vllm.v1.engine import Engine

    from pccl.kv.adapters.vllm import PcclConnector

    return Engine([config(extra, rank, size) for rank in range(size)], cache(*kinds), PcclConnector)


def engine_alone(*kinds: str, size: int = 1) -> Any:
    """One without."""
    from vllm.v1.engine import Engine

    return Engine([None] * size, cache(*kinds))
