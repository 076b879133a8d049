"""Weights between real engines over loopback: what is published is what is committed, whatever happens in between."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pccl
from pccl.errors import Timeout
from pccl.weights import (
    DamageError,
    DeltaLog,
    FileShadow,
    LineageError,
    MemoryShadow,
    Publisher,
    Receiver,
    Relay,
    Schema,
    SigningKey,
    Tensor,
    Version,
    base,
)

WAIT_S = 60.0

SCHEMA = Schema(
    [
        Tensor("embed", (1500, 1000), "bfloat16"),
        Tensor("norm", (64,), "bfloat16"),
        Tensor("bias", (100, 3), "float32"),
        Tensor("codes", (70000,), "uint8"),
        Tensor("head", (5000, 1000), "bfloat16"),
    ]
)


def weights(seed: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    """All bit patterns, as integers: NaN, infinities, both zeros and denormals are among them."""
    rng = np.random.default_rng(seed)
    made = {}
    for tensor in SCHEMA.tensors:
        dtype = {"bfloat16": "uint16", "float32": "uint32", "uint8": "uint8"}[tensor.dtype]
        made[tensor.name] = rng.integers(0, np.iinfo(dtype).max + 1, tensor.shape, dtype)
    return made


def tensors(state: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    """The same as what a user has."""
    import ml_dtypes

    kinds = {"uint16": ml_dtypes.bfloat16, "uint32": np.float32, "uint8": np.uint8}
    return {name: array.view(kinds[str(array.dtype)]) for name, array in state.items()}


def step(state: dict[str, np.ndarray[Any, Any]], seed: int, share: float = 0.01) -> None:
    """What an optimizer does to it: a few elements, by a few units in the last place."""
    rng = np.random.default_rng(seed)
    for array in state.values():
        flat = array.reshape(-1)
        where = rng.choice(flat.size, max(1, int(flat.size * share)), replace=False)
        flat[where] += rng.choice(np.array([1, 2, 200], flat.dtype), where.size)


def equals(shadow: Any, state: dict[str, np.ndarray[Any, Any]]) -> bool:
    return all(shadow.tensor(name).tobytes() == array.tobytes() for name, array in state.items())


def loaded(state: dict[str, np.ndarray[Any, Any]]) -> MemoryShadow:
    shadow = MemoryShadow(SCHEMA)
    base.fill(shadow, tensors(state))
    return shadow


class Run:
    """A coordinator, and peers that come and go; every one is closed at the end."""

    def __init__(self, cluster: Any, n: int) -> None:
        self._cluster = cluster
        self._coordinator = cluster.coordinator(n)
        made: list[Any] = []
        threads = [threading.Thread(target=lambda: made.append(self.connect())) for _ in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.comms: list[pccl.Communicator] = made
        self.closing: list[Callable[[], None]] = []

    def connect(self, **options: Any) -> Any:
        return self._cluster.connect(self._coordinator, transport="tcp", **options)

    def keep(self, thing: Any) -> Any:
        self.closing.append(thing.close)
        return thing

    def close(self) -> None:
        for close in reversed(self.closing):
            close()
        for comm in self.comms:
            comm.close()


@pytest.fixture
def run(cluster: Any) -> Any:
    made: list[Run] = []

    def start(n: int) -> Run:
        made.append(Run(cluster, n))
        return made[-1]

    yield start
    for one in made:
        one.close()


def commit_until(rx: Receiver, version: int) -> list[int]:
    """Versions that were committed, up to this one."""
    seen = []
    while rx.version < version:
        update = rx.next(WAIT_S)
        with update.commit():
            pass
        seen.append(update.version)
    return seen


def test_what_is_published_is_committed(run: Any, tmp_path: Path) -> None:
    net = run(2)
    state = weights()
    key = SigningKey()
    pub = net.keep(Publisher(net.comms[0], SCHEMA, base=tensors(state), log=DeltaLog(tmp_path), sign=key))
    shadow = loaded(state)
    rx = net.keep(Receiver(net.comms[1], shadow, upstream=[net.comms[0].peer_id], pubkey=key.public))
    engine = {name: array.copy() for name, array in state.items()}
    for number in range(1, 6):
        step(state, number)
        ticket = pub.publish(tensors(state))
        update = rx.next(WAIT_S)
        assert (update.base_version, update.version) == (number - 1, number)
        before = shadow.arena.copy()
        with update.commit():
            for patch in update.patches():
                engine[patch.name].reshape(-1)[patch.index] = patch.values
            for name, elements in update.dense():
                assert elements.tobytes() == state[name].tobytes()
            assert np.array_equal(before, shadow.arena)
        assert equals(shadow, state) and all(engine[name].tobytes() == state[name].tobytes() for name in state)
        stats = ticket.wait("all", WAIT_S)
        assert stats.changed == update.changed and rx.lineage == pub.tip.lineage


def test_a_receiver_that_comes_late_gets_one_fold(run: Any, tmp_path: Path) -> None:
    net = run(2)
    state = weights()
    first = loaded(state)
    pub = net.keep(Publisher(net.comms[0], SCHEMA, base=tensors(state), log=DeltaLog(tmp_path)))
    chain = 0
    for number in range(1, 9):
        step(state, number)
        chain += pub.publish(tensors(state)).wait("durable", WAIT_S).bytes
    rx = net.keep(Receiver(net.comms[1], first, upstream=[net.comms[0].peer_id]))
    assert commit_until(rx, 8)[-1] == 8
    assert equals(first, state)


def test_through_a_chain_of_relays(run: Any, tmp_path: Path) -> None:
    net = run(4)
    state = weights()
    trainer, near, far, worker = net.comms
    pub = net.keep(Publisher(trainer, SCHEMA, base=tensors(state), log=DeltaLog(tmp_path / "t")))
    one = net.keep(
        Relay(near, SCHEMA, base=loaded(state), log=DeltaLog(tmp_path / "1"), upstream=[trainer.peer_id])
    )
    two = net.keep(Relay(far, SCHEMA, base=one._zero, log=DeltaLog(tmp_path / "2"), upstream=[near.peer_id]))
    shadow = loaded(state)
    rx = net.keep(Receiver(worker, shadow, upstream=[far.peer_id]))
    for number in range(1, 5):
        step(state, number)
        ticket = pub.publish(tensors(state))
        ticket.wait("relays", WAIT_S)
        commit_until(rx, number)
        assert equals(shadow, state)
        ticket.wait("durable", WAIT_S)
    assert (one.error, two.error) == (None, None)
    assert two.log.tip == pub.tip
