"""SGLang: whole tensors for its loader, or patches for ours, in place; what it refuses is told."""

from __future__ import annotations

import pytest
from unit.sglang_double import Engine, Model
from unit.weights_chain import SCHEMA, Chain
from unit.weights_update import Follower, bits

from pccl.weights.adapters import EngineError, install
from pccl.weights.adapters.sglang import LOADER, SGLangAdapter, load_patches, packed


@pytest.fixture
def follower() -> Follower:
    chain = Chain()
    for _ in range(4):
        chain.publish(share=0.2)
    return Follower(chain)


def follows(model: Model, follower: Follower) -> bool:
    return all(bits(model.get(t.name)).tobytes() == follower.shadow.tensor(t.name).tobytes() for t in SCHEMA.tensors)


def test_whole_tensors_go_to_a_model_with_fused_parameters(follower: Follower) -> None:
    model = Model(follower.engine(), fuse=("a", "twin"), twin=40)
    engine = Engine(model)
    for number in range(1, 5):
        install(follower.update(), SGLangAdapter(engine))
        assert follows(model, follower) and engine.flushed == number
    assert not model.get("twin").any()


def test_patches_are_written_in_place_and_are_few_bytes(follower: Follower) -> None:
    model = Model(follower.engine())
    where = {name: value.data_ptr() for name, value in model.named_parameters()}
    engine = Engine(model, (LOADER,))
    for _ in range(4):
        update = follower.update()
        install(update, SGLangAdapter(engine, patches=True, flush_cache=False))
        assert follows(model, follower)
        assert engine.received_bytes < 300 + 12 * update.changed
    assert engine.flushed == 0
    assert {name: value.data_ptr() for name, value in model.named_parameters()} == where


def test_what_the_engine_refuses_is_told_and_the_version_stays(follower: Follower) -> None:
    engine = follower.engine()
    del engine["c"]
    before = {name: bits(value).copy() for name, value in engine.items()}
    with pytest.raises(EngineError, match="no tensor 'c'"):
        install(follower.update(), SGLangAdapter(Engine(Model(engine), (LOADER,)), patches=True))
    assert all(bits(value).tobytes() == before[name].tobytes() for name, value in engine.items())
    with pytest.raises(EngineError, match="load_format"):
        install(follower.update(), SGLangAdapter(Engine(Model(engine)), patches=True))
    with pytest.raises(EngineError, match="'c'"):
        install(follower.update(), SGLangAdapter(Engine(Model(engine))))
    assert follower.shadow.at.version == 0


@pytest.mark.parametrize("cut", ["pccl.rows", "pccl.places", "pccl.values"])
def test_cut_patches_are_refused(follower: Follower, cut: str) -> None:
    named = [(name, tensor[:-1] if name == cut else tensor) for name, tensor in packed(follower.update().patches())]
    with pytest.raises(EngineError, match="patches"):
        load_patches(Model(follower.engine()), named)
    with pytest.raises(EngineError, match=cut):
        load_patches(Model(follower.engine()), [(name, tensor) for name, tensor in named if name != cut])
