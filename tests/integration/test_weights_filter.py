"""Receivers that own some tensors fetch the blocks of these, and nothing else: as expert-parallel ranks do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from integration.weights_run import WAIT_S, Run, commit_until
from integration.weights_run import run as run  # a fixture

from pccl.weights import DeltaLog, MemoryShadow, Publisher, Receiver, Relay, Schema, SigningKey, Tensor, base
from pccl.weights.payload import Payload

EXPERTS = 16
SCHEMA = Schema(Tensor(f"expert{n}", (1024, 1024), "bfloat16") for n in range(EXPERTS))
KEY = SigningKey()
State = dict[str, np.ndarray[Any, Any]]


def weights() -> State:
    rng = np.random.default_rng(1)
    return {tensor.name: rng.integers(0, 1 << 16, tensor.shape, np.uint16) for tensor in SCHEMA.tensors}


def named(state: State) -> Iterator[tuple[str, Any]]:
    return ((name, array.view(ml_dtypes.bfloat16)) for name, array in state.items())


def step(state: State, seed: int) -> None:
    """Every element by its chance of 5 %, by a unit in the last place."""
    rng = np.random.default_rng(seed)
    for array in state.values():
        array += rng.random(array.shape, np.float32) < 0.05


def loaded(state: State) -> MemoryShadow:
    made = MemoryShadow(SCHEMA)
    base.fill(made, named(state))
    return made


def mine(name: str) -> bool:
    """A quarter, none of which are neighbours: the worst way to share out."""
    return int(name.removeprefix("expert")) % 4 == 1


def holds(shadow: MemoryShadow, state: State, before: State) -> bool:
    """What is owned is right, and nothing else has been touched."""
    wanted = {name: state[name] if mine(name) else before[name] for name in state}
    return all(shadow.tensor(name).tobytes() == array.tobytes() for name, array in wanted.items())


def manifest_bytes(log: DeltaLog, version: int) -> tuple[int, int]:
    return Payload(log.delta(version).data).sizes


@pytest.mark.parametrize("by", ["publisher", "relay"])
def test_a_quarter_of_the_tensors_is_a_quarter_of_the_bytes(run: Any, tmp_path: Path, by: str) -> None:
    net: Run = run(3)
    trainer, middle, worker = net.comms
    state = weights()
    first = {name: array.copy() for name, array in state.items()}
    pub = net.keep(Publisher(trainer, SCHEMA, base=named(state), log=DeltaLog(tmp_path / "t"), sign=KEY))
    server = trainer
    if by == "relay":
        server = middle
        zero = loaded(state).at
        assert zero is not None
        net.keep(Relay(middle, SCHEMA, base=zero, log=DeltaLog(tmp_path / "r"), upstream=[trainer.peer_id]))
    shadow = loaded(state)
    rx = net.keep(Receiver(worker, shadow, upstream=[server.peer_id], filter=mine, pubkey=KEY.public))
    for number in (1, 2, 3):
        step(state, number)
        sent = worker.stats()["transfer_received_bytes"]
        pub.publish(named(state)).wait("durable", WAIT_S)
        update = rx.next(WAIT_S)
        assert update.version == number and {patch.name for patch in update.patches()} == set(filter(mine, state))
        with update.commit():
            pass
        assert holds(shadow, state, first)
        total, tail = manifest_bytes(pub.log, number)
        assert update.stats.received_bytes <= 0.27 * total + tail
        assert worker.stats()["transfer_received_bytes"] - sent <= 0.27 * total + tail


def test_a_filtered_receiver_that_comes_late_gets_its_part_of_a_fold(run: Any, tmp_path: Path) -> None:
    net: Run = run(2)
    trainer, worker = net.comms
    state = weights()
    first = {name: array.copy() for name, array in state.items()}
    pub = net.keep(Publisher(trainer, SCHEMA, base=named(state), log=DeltaLog(tmp_path), sign=KEY))
    shadow = loaded(state)
    for number in range(1, 5):
        step(state, number)
        pub.publish(named(state)).wait("durable", WAIT_S)
    rx = net.keep(Receiver(worker, shadow, upstream=[trainer.peer_id], filter=mine, pubkey=KEY.public))
    update = rx.next(WAIT_S)
    with update.commit():
        pass
    commit_until(rx, 4)
    assert holds(shadow, state, first)
    assert update.stats.received_bytes < 0.35 * update.stats.bytes
    step(state, 5)
    pub.publish(named(state))
    commit_until(rx, 5)
    assert holds(shadow, state, first)


def test_a_step_that_changes_nothing_that_is_owned_moves_the_version(run: Any, tmp_path: Path) -> None:
    net: Run = run(2)
    trainer, worker = net.comms
    state = weights()
    pub = net.keep(Publisher(trainer, SCHEMA, base=named(state), log=DeltaLog(tmp_path)))
    rx = net.keep(Receiver(worker, loaded(state), upstream=[trainer.peer_id], filter=mine))
    state["expert0"][0, 0] ^= 1
    pub.publish(named(state))
    update = rx.next(WAIT_S)
    assert (update.version, update.changed) == (1, 0)
    with update.commit():
        pass
    assert rx.version == 1 and rx.lineage == pub.tip.lineage
