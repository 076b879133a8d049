"""Engines that take updates: bit for bit, in place, work before the pause; what an engine does not know is named."""

from __future__ import annotations

import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.weights_chain import SCHEMA, Chain
from unit.weights_update import Follower, bits, holds

from pccl.weights import Schema, Tensor, WeightsError
from pccl.weights.adapters import EngineError, install, scatter
from pccl.weights.adapters.loader import LoaderAdapter
from pccl.weights.adapters.module import ModuleAdapter
from pccl.weights.adapters.scatter import Piece

NAMES = [tensor.name for tensor in SCHEMA.tensors]


@pytest.fixture
def follower() -> Follower:
    chain = Chain()
    for _ in range(4):
        chain.publish()
    return Follower(chain)


class Model(torch.nn.Module):
    """Parameters and buffers of the schema."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and tensor.element_size() > 1:
                self.register_parameter(name, torch.nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)


def test_importing_adapters_imports_no_engine() -> None:
    code = (
        "import sys, pkgutil, importlib, pccl.weights.adapters as a\n"
        "for m in pkgutil.iter_modules(a.__path__): importlib.import_module('pccl.weights.adapters.' + m.name)\n"
        "print([m for m in ('torch', 'vllm', 'sglang', 'verl', 'ray', 'zstandard') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- the order of things --


def test_an_engine_stands_still_only_for_writing(follower: Follower) -> None:
    seen: list[str] = []

    class Engine:
        def prepare(self, update: Any) -> Any:
            seen.append(f"prepare {follower.shadow.at.version}")
            return lambda: seen.append(f"apply {follower.shadow.at.version}")

        @contextmanager
        def paused(self) -> Iterator[None]:
            seen.append("pause")
            yield
            seen.append(f"resume {follower.shadow.at.version}")

    engine = Engine()
    done = install(follower.update(), engine, engine.paused)
    assert seen == ["prepare 0", "pause", "apply 0", "resume 0"]
    assert follower.shadow.at.version == done.version == 1
    assert 0 <= done.apply_s <= done.pause_s <= done.commit_s


def test_an_update_without_changes_asks_for_no_pause(follower: Follower) -> None:
    chain = Chain()
    chain.publish(share=0.0)
    still = Follower(chain)
    install(still.update(), ModuleAdapter(still.engine()), lambda: pytest.fail("paused"))
    assert still.shadow.at.version == 1


def test_what_fails_can_be_installed_again(follower: Follower) -> None:
    engine = follower.engine()
    real = ModuleAdapter(engine)
    update = follower.update()

    class Fails:
        def prepare(self, update: Any) -> Any:
            apply = real.prepare(update)

            def half() -> None:
                apply()
                engine["a"].zero_()
                raise EngineError("the engine fell over")

            return half

    with pytest.raises(EngineError, match="fell over"):
        install(update, Fails())
    assert follower.shadow.at.version == 0
    engine = real_engine = follower.engine()
    install(update, ModuleAdapter(real_engine))
    assert holds(engine, follower.shadow) and follower.shadow.at.version == 1
    with pytest.raises(WeightsError, match="already"):
        install(update, real)


# -- a module --


def test_a_module_follows_in_place(follower: Follower) -> None:
    model = Model(follower.engine())
    model.tied = model.a
    where = {name: value.data_ptr() for name, value in model.state_dict().items()}
    lock = threading.Lock()
    for version in range(1, 5):
        update = follower.update()
        apply = ModuleAdapter(model, ignore=["tied"]).prepare(update)
        untouched = {name: bits(value).copy() for name, value in model.state_dict().items()}
        assert all(np.array_equal(bits(value), untouched[name]) for name, value in model.state_dict().items())
        with lock, update.commit():
            apply()
        assert follower.shadow.at.version == version
        assert holds(dict(model.state_dict()), follower.shadow) and follower.chain.holds(follower.shadow)
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == where


def test_fused_tensors_are_given_as_views(follower: Follower) -> None:
    engine = follower.engine()
    fused = torch.cat([engine["a"], torch.full((5, 10), 7.0, dtype=torch.bfloat16)])
    engine["a"] = fused[:40]
    install(follower.update(), ModuleAdapter(engine))
    assert holds(engine, follower.shadow)
    assert (fused[40:] == 7.0).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: e.pop("c"), "no tensor 'c'"),
        (lambda e: e.update(c=torch.zeros(49)), r"'c' is float32 \(49,\) in the engine, not float32 \(50,\)"),
        (lambda e: e.update(c=torch.zeros(50, dtype=torch.int32)), "'c' is int32"),
        (lambda e: e.update(a=torch.zeros(10, 40, dtype=torch.bfloat16).t()), "'a' is not contiguous"),
    ],
)
def test_what_an_engine_does_not_know_is_named_before_anything_is_written(
    follower: Follower, change: Any, words: str
) -> None:
    engine = follower.engine()
    change(engine)
    before = {name: bits(value).copy() for name, value in engine.items()}
    with pytest.raises(EngineError, match=words):
        install(follower.update(), ModuleAdapter(engine), lambda: pytest.fail("paused"))
    assert all(np.array_equal(bits(value), before[name]) for name, value in engine.items())
    assert follower.shadow.at.version == 0


def test_an_ignored_tensor_may_be_missing(follower: Follower) -> None:
    engine = follower.engine()
    del engine["c"]
    install(follower.update(), ModuleAdapter(engine, ignore=["c"]))
    assert follower.shadow.at.version == 1


def test_a_tensor_that_nobody_keeps_is_kept_while_it_is_read() -> None:
    named = ((name, torch.full((100, 100), float(n)).t()) for n, name in enumerate("abcdefgh"))
    schema = Schema(Tensor(name, (100, 100), "float32") for name in "abcdefgh")
    flat = [schema.flat(n, value) for n, (_, value) in enumerate(named)]
    noise = [torch.full((100, 100), 99.0) for _ in range(50)]
    assert [set(part.view(np.float32)) for part in flat] == [{float(n)} for n in range(8)] and noise
    assert schema.flat(0, flat[0].view(np.float32).reshape(100, 100)).ctypes.data == flat[0].ctypes.data
    alive = weakref.ref(value := torch.zeros(3))
    held = Schema([Tensor("x", (3,), "float32")]).flat(0, value.t())
    storage = value.untyped_storage().data_ptr()
    del value
    assert held.ctypes.data == storage and not held.any() and alive() is None


# -- scatter --

WAYS = {"host": scatter._on_host, "device": scatter._on_device}


@pytest.mark.parametrize("way", WAYS)
@given(data=st.data())
@settings(max_examples=60)
def test_values_come_to_their_places_and_nowhere_else(data: st.DataObject, way: str) -> None:
    dtypes = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    store = {width: torch.randint(0, 100, (400,), dtype=dtypes[width]) for width in dtypes}
    wanted = {width: value.numpy().copy() for width, value in store.items()}
    used = dict.fromkeys(store, 0)
    pieces = []
    for number in range(data.draw(st.integers(1, 8))):
        width = data.draw(st.sampled_from(sorted(dtypes)))
        size, gap = data.draw(st.integers(0, 40)), data.draw(st.integers(0, 3))
        start = used[width] + gap
        used[width] = start + size
        index = np.array(sorted(data.draw(st.sets(st.integers(0, size - 1)))) if size else [], np.int64)
        values = np.array(
            data.draw(st.lists(st.integers(0, 255), min_size=len(index), max_size=len(index))), f"u{width}"
        )
        wanted[width][start + index] = values.view(f"{'u' if width == 1 else 'i'}{width}")
        pieces.append(Piece(f"t{number}", store[width][start : start + size], index, values))
    apply = WAYS[way](pieces)
    apply()
    assert all(np.array_equal(store[width].numpy(), wanted[width]) for width in store)
    apply()
    assert all(np.array_equal(store[width].numpy(), wanted[width]) for width in store)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("index", [[0, 4], [-1, 2]])
def test_a_place_that_is_not_there_is_refused(way: str, index: list[int]) -> None:
    targets = [torch.zeros(4), torch.zeros(4)]
    values = np.ones(2, np.uint32)
    pieces = [Piece("good", targets[0], np.array([0, 3]), values), Piece("bad", targets[1], np.array(index), values)]
    with pytest.raises(EngineError, match="'bad'"):
        WAYS[way](pieces)
    assert not targets[0].any()


# -- load_weights --


class Loads:
    """A model as vLLM and SGLang have them: it takes (name, tensor) in any order, a part or all, copies in place, and
    gives the names that it took.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], paused: list[bool]) -> None:
        self.tensors, self.calls, self.paused = tensors, 0, paused

    def load_weights(self, weights: Any) -> set[str]:
        self.calls += 1
        loaded = set()
        for name, tensor in weights:
            if name == "skipped":
                continue
            self.tensors[name].copy_(tensor)
            loaded.add(name)
        return loaded


@pytest.mark.parametrize("hold", [True, False])
def test_an_engine_loads_what_changed(follower: Follower, hold: bool) -> None:
    model = Loads(follower.engine(), [])
    for _ in range(3):
        update = follower.update()
        changed = {patch.name for patch in update.patches()}
        seen: list[str] = []

        def load(weights: Any, seen: list[str] = seen) -> set[str]:
            return model.load_weights((seen.append(n) or (n, t)) for n, t in weights)

        install(update, LoaderAdapter(load, knows=True, hold=hold))
        assert set(seen) == changed
        assert holds(model.tensors, follower.shadow)


def test_what_a_loader_does_not_know_is_named(follower: Follower) -> None:
    model = Loads(follower.engine(), [])
    del model.tensors["c"]
    with pytest.raises(EngineError, match=r"does not take 'c'.*KeyError"):
        install(follower.update(), LoaderAdapter(model.load_weights))
    with pytest.raises(EngineError, match="no tensor 'b'"):
        install(follower.update(), LoaderAdapter(lambda named: {name for name, _ in named} - {"b"}, knows=True))
    assert follower.shadow.at.version == 0
