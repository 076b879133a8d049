"""Receivers serve one another what they have verified: where a relay dies, its neighbours have the rest."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration.conftest import SECRET
from integration.weights_model import SCHEMA, equals, loaded, step, tensors, weights
from integration.weights_run import WAIT_S, Run, apart, commit_until

from pccl.errors import Timeout
from pccl.weights import DamageError, DeltaLog, Publisher, Receiver, SigningKey


class RelayProcess:
    """See weights_relay.py."""

    def __init__(self, net: Run, source: bytes, log: Path, group: int) -> None:
        script = Path(__file__).with_name("weights_relay.py")
        arguments = [net.address, SECRET, source.hex(), str(log), str(group)]
        self.process = subprocess.Popen(
            [sys.executable, str(script), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.peer_id = bytes.fromhex(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def limit(self, bytes_per_s: int) -> None:
        assert self.process.stdin is not None
        print("limit", bytes_per_s, file=self.process.stdin, flush=True)
        assert self._line() == "limited"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    close = kill


class Watched(Receiver):
    """Says when so many slots of a version have come."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.came = threading.Semaphore(0)
        super().__init__(*arguments, **options)

    def on_slot(self, stream: Any, index: int, slot: Any) -> None:
        super().on_slot(stream, index, slot)
        self.came.release()


@pytest.fixture
def net(cluster: Any) -> Iterator[Run]:
    made = apart(cluster, 3)
    yield made
    made.close()


def neighbours_of(rx: Receiver) -> list[bytes]:
    """Waits until it knows some that can be asked."""
    known = threading.Event()

    def look() -> None:
        if rx._follow._neighbours._tips:
            known.set()

    while not known.wait(0.01):
        rx._follow.tell(look)
    return list(rx._follow._neighbours._tips)


def noise(state: dict[str, Any], seed: int) -> None:
    """Everything changes: a delta of as many bytes as the weights have."""
    rng = np.random.default_rng(seed)
    for array in state.values():
        array[...] = rng.integers(0, np.iinfo(array.dtype).max + 1, array.shape, array.dtype)


def test_the_rest_comes_from_a_neighbour_when_the_relay_is_killed(net: Run, tmp_path: Path) -> None:
    """SIGKILL in the middle of a delta. One receiver has another source; the other has only its neighbour."""
    trainer, one, two = net.comms
    state = weights()
    pub = net.keep(Publisher(trainer, SCHEMA, base=tensors(state), log=DeltaLog(tmp_path / "t")))
    relay = net.keep(RelayProcess(net, trainer.peer_id, tmp_path / "r", 3))
    shadows = loaded(state), loaded(state)
    near = net.keep(Receiver(one, shadows[0], upstream=[relay.peer_id, trainer.peer_id]))
    far = net.keep(Watched(two, shadows[1], upstream=[relay.peer_id]))
    step(state, 1)
    pub.publish(tensors(state))
    for rx in (near, far):
        commit_until(rx, 1)
    assert neighbours_of(far) == [one.peer_id] and neighbours_of(near) == [two.peer_id]
    relay.limit(4_000_000)
    before = one.stats()["transfer_sent_bytes"]
    while far.came.acquire(blocking=False):
        pass
    noise(state, 2)
    pub.publish(tensors(state)).wait("durable", WAIT_S)
    for _ in range(3):
        assert far.came.acquire(timeout=WAIT_S)
    relay.kill()
    for rx, shadow in zip((near, far), shadows, strict=True):
        commit_until(rx, 2)
        assert equals(shadow, state)
    assert one.stats()["transfer_sent_bytes"] - before > SCHEMA.nbytes // 4


def test_a_delta_that_a_neighbour_has_comes_when_the_relay_is_gone(net: Run, tmp_path: Path) -> None:
    trainer, one, two = net.comms
    state = weights()
    pub = net.keep(Publisher(trainer, SCHEMA, base=tensors(state), log=DeltaLog(tmp_path / "t")))
    relay = net.keep(RelayProcess(net, trainer.peer_id, tmp_path / "r", 3))
    shadows = loaded(state), loaded(state)
    near = net.keep(Receiver(one, shadows[0], upstream=[relay.peer_id, trainer.peer_id]))
    far = net.keep(Receiver(two, shadows[1], upstream=[relay.peer_id]))
    assert neighbours_of(far) == [one.peer_id]
    relay.kill()
    for number in (1, 2, 3):
        step(state, number)
        pub.publish(tensors(state)).wait("durable", WAIT_S)
        for rx, shadow in zip((near, far), shadows, strict=True):
            commit_until(rx, number)
            assert equals(shadow, state)


def test_what_is_refused_is_served_to_nobody(net: Run, tmp_path: Path) -> None:
    """Of another key: no tip says it, and it is withdrawn."""
    trainer, one, _ = net.comms
    state = weights()
    pub = net.keep(Publisher(trainer, SCHEMA, base=tensors(state), log=DeltaLog(tmp_path), sign=SigningKey()))
    rx = net.keep(Receiver(one, loaded(state), upstream=[trainer.peer_id], pubkey=SigningKey().public))
    step(state, 1)
    pub.publish(tensors(state)).wait("durable", WAIT_S)
    with pytest.raises(DamageError, match="not signed by the key"):
        rx.next(WAIT_S)
    assert rx._share is not None and not rx._share._served


def test_who_does_not_serve_is_nobodys_neighbour(net: Run, tmp_path: Path) -> None:
    trainer, one, two = net.comms
    state = weights()
    pub = net.keep(Publisher(trainer, SCHEMA, base=tensors(state), log=DeltaLog(tmp_path)))
    net.keep(Receiver(one, loaded(state), upstream=[trainer.peer_id], serve=False))
    far = net.keep(Receiver(two, loaded(state), upstream=[trainer.peer_id]))
    with pub._source.changed:
        assert pub._source.changed.wait_for(lambda: pub.receivers()[0] == 2, WAIT_S)
    assert pub._source._serving == [two.peer_id]
    pub.close()
    with pytest.raises(Timeout):
        far.next(0.5)
    assert not far._follow._neighbours._tips
