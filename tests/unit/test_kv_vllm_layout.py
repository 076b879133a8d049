"""Layouts from vLLM's groups and tensors: what is where, in whatever order; what cannot be moved is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pccl.errors import ArgumentError
from pccl.kv.adapters.vllm_layout import Facts, Part, caches_of, groups_of
from pccl.kv.adapters.vllm_orders import Remote, Settings
from pccl.kv.memory import Memory

DOUBLES = Path(__file__).parent.parent / "doubles"
BLOCKS, TOKENS, HEADS, HEAD = 6, 4, 3, 8


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The double can be imported, and is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(DOUBLES))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        del sys.modules[name]


def config(*specs: Any) -> Any:
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec

    return KVCacheConfig(BLOCKS, [], [KVCacheGroupSpec([f"{at}.a", f"{at}.b"], spec) for at, spec in enumerate(specs)])


def full(**changes: Any) -> Any:
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    facts = {"block_size": TOKENS, "num_kv_heads": HEADS, "head_size": HEAD, "dtype": torch.bfloat16}
    return FullAttentionSpec(**{**facts, **changes})


def noise(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).integers(0, 99, shape)).to(torch.bfloat16)


def made(tensor: torch.Tensor, spec: Any = None, shard: tuple[int, int] = (1, 2)) -> Any:
    """The group, and what its memory says a layer of a block is."""
    groups = groups_of(config(spec or full()))
    layout, buffers = caches_of("m", groups, {"0.a": tensor, "0.b": tensor.clone()}, BLOCKS, shard)
    memory = Memory(layout, buffers)

    def slab(layer: int, block: int) -> bytes:
        return bytes(memory.slabs(0, layer)[block])

    return layout.groups[0], slab


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def test_keys_and_values_in_two_halves_are_two_layers() -> None:
    tensor = noise(2, BLOCKS, TOKENS, HEADS, HEAD)
    group, slab = made(tensor)
    assert group.layers == ("0.a.k", "0.a.v", "0.b.k", "0.b.v") and group.name == "0.a"
    assert (group.heads, group.planes, group.rows, group.dtype) == ((3, 6, 6), 1, "tokens", "bf16")
    for which in range(2):
        assert slab(which, 4) == as_bytes(tensor[which, 4])


def test_keys_and_values_side_by_side_are_two_planes_however_they_are_shown() -> None:
    tensor = noise(BLOCKS, 2, TOKENS, HEADS, HEAD)
    for shown in (tensor, tensor.transpose(0, 1)):
        groups = groups_of(config(full()))
        layout, buffers = caches_of("m", groups, {"0.a": shown, "0.b": tensor.clone()}, BLOCKS, (0, 1))
        assert (layout.groups[0].layers, layout.groups[0].planes) == (("0.a", "0.b"), 2)
        assert bytes(Memory(layout, buffers).slabs(0, 0)[3]) == as_bytes(tensor[3])


def test_heads_before_tokens_are_known_by_strides_and_by_shapes() -> None:
    memory = noise(BLOCKS, 2, HEADS, TOKENS, HEAD)
    groups = groups_of(config(full()))
    tensors = {"0.a": memory.transpose(2, 3), "0.b": memory.clone().transpose(2, 3)}
    layout, _ = caches_of("m", groups, tensors, BLOCKS, (0, 1))
    assert layout.groups[0].rows == "heads"
    layout, _ = caches_of("m", groups, {"0.a": memory, "0.b": memory.clone()}, BLOCKS, (0, 1))
    assert layout.groups[0].rows == "heads"


def test_latent_vectors_have_no_heads() -> None:
    from vllm.v1.kv_cache_interface import MLAAttentionSpec

    spec = MLAAttentionSpec(block_size=TOKENS, num_kv_heads=1, head_size=HEAD, dtype=torch.bfloat16)
    tensor = noise(BLOCKS, TOKENS, HEAD)
    group, slab = made(tensor, spec)
    assert (group.heads, group.planes, group.layers) == (None, 1, ("0.a", "0.b"))
    assert slab(1, 5) == as_bytes(tensor[5])


def test_a_state_is_the_page_that_its_tensors_share() -> None:
    from vllm.v1.kv_cache_interface import MambaSpec

    spec = MambaSpec(block_size=99, shapes=((4,), (2, 3)), dtypes=(torch.float32, torch.bfloat16), page_size_padded=64)
    groups = groups_of(config(spec))
    tensors = {}
    for name in ("0.a", "0.b"):
        pages = torch.from_numpy(np.random.default_rng(6).integers(0, 99, (BLOCKS, 64), np.uint8))
        first, second = pages[:, :16].view(torch.float32), pages[:, 16:28].view(torch.bfloat16).unflatten(1, (2, 3))
        tensors[name] = [first, second]
    layout, buffers = caches_of("m", groups, tensors, BLOCKS, (0, 1))
    assert (layout.groups[0].kind, layout.groups[0].bytes_per_block_layer) == ("state", 64)
    assert bytes(Memory(layout, buffers).slabs(0, 1)[2])[16:28] == as_bytes(tensors["0.b"][1][2])
    for wrong in ([torch.zeros(BLOCKS, 4), torch.zeros(BLOCKS, 2, 3)], [*reversed(tensors["0.a"])]):
        with pytest.raises(TypeError, match=r"0\.b"):
            caches_of("m", groups, {**tensors, "0.b": wrong}, BLOCKS, (0, 1))


def test_what_cannot_be_moved_is_named() -> None:
    good = noise(2, BLOCKS, TOKENS, HEADS, HEAD)
    wide = noise(BLOCKS, 2, TOKENS, HEADS, 2 * HEAD)[..., :HEAD]
    for wrong, error, text in (
        (torch.empty(good.shape, device="meta"), TypeError, "meta.*host memory"),
        (wide, TypeError, "gaps"),
        (noise(TOKENS, BLOCKS, HEAD).transpose(0, 1), TypeError, "one after another"),
        (noise(BLOCKS + 1, 2, TOKENS, HEADS, HEAD), ArgumentError, f"{BLOCKS} blocks"),
    ):
        with pytest.raises(error, match=text) as caught:
            made(wrong)
        assert "0.a" in str(caught.value)
    groups = groups_of(config(full()))
    with pytest.raises(ArgumentError, match=r"0\.b"):
        caches_of("m", groups, {"0.a": good}, BLOCKS, (0, 1))
    with pytest.raises(ArgumentError, match="not alike"):
        caches_of("m", groups, {"0.a": good, "0.b": noise(BLOCKS, 2, TOKENS, HEADS, HEAD)}, BLOCKS, (0, 1))
    with pytest.raises(ArgumentError, match="object"):
        groups_of(config(object()))
    from vllm.v1.kv_cache_interface import MambaSpec

    with pytest.raises(ArgumentError, match="more than one block"):
        groups_of(config(MambaSpec(block_size=4, shapes=((4,),), dtypes=(torch.float32,), mamba_cache_mode="align")))


def test_which_blocks_anybody_needs() -> None:
    whole = Facts("g", ("g",), "full", 4, None, None)
    window = Facts("g", ("g",), "swa", 4, 6, None)
    state = Facts("g", ("g",), "state", 99, None, None)
    ids = list(range(10, 20))
    assert whole.part(ids, 0, 17) == Part(0, [10, 11, 12, 13, 14])
    assert whole.part(ids, 9, 17) == Part(2, [12, 13, 14])
    assert window.part(ids, 0, 30) == Part(5, [15, 16, 17])
    assert window.part([0] * 6 + [16, 17], 0, 30) == Part(6, [16, 17])
    assert window.part(ids, 0, 5) == Part(0, [10, 11])
    assert state.part([7], 0, 30) == Part(0, [7])
    assert whole.covered(0, 30) and not whole.covered(1, 30)
    assert window.covered(6, 30) and not window.covered(7, 30)


def test_settings_and_params_are_refused_by_the_name_of_the_field() -> None:
    assert Settings.of({"connect": {"address": "tcp://x"}, "something": "else"}).lease_s == 120.0
    for wrong, text in (
        ({}, "connect"),
        ({"connect": {}, "lease_s": 0}, "lease_s"),
        ({"connect": {}, "deadline_s": float("nan")}, "deadline_s"),
        ({"connect": {}, "pool": 7}, "pool"),
        ({"connect": {}, "load": "some"}, "load"),
    ):
        with pytest.raises(ArgumentError, match=text):
            Settings.of(wrong)
    good = {"transfer_id": "x", "peers": ["0" * 32], "pool": "kv", "tokens": 3, "first": {"g": 0}}
    assert Remote.of({**good, "do_remote_prefill": True}).tokens == 3
    for name in good:
        with pytest.raises(ArgumentError, match=name):
            Remote.of({**good, name: None})


def test_importing_what_adapters_share_imports_no_engine() -> None:
    code = (
        "import sys, pccl.kv, pccl.kv.adapters.vllm_layout, pccl.kv.adapters.vllm_scheduler\n"
        "import pccl.kv.adapters.vllm_worker, pccl.kv.adapters.sglang_layout, pccl.kv.adapters.sglang_rooms\n"
        "import pccl.kv.adapters.sglang_bootstrap, pccl.kv.adapters.sglang_settings\n"
        "print([m for m in ('torch', 'vllm', 'sglang') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
