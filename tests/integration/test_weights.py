"""Weights between real engines over loopback: what is published is what is committed, whatever happens in between."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration.conftest import SECRET
from integration.weights_model import SCHEMA, digest_of, equals, loaded, step, tensors, weights
from integration.weights_run import WAIT_S, Run, commit_until
from integration.weights_run import run as run  # a fixture

import pccl
from pccl.errors import Timeout
from pccl.weights import (
    DeltaLog,
    LineageError,
    LogError,
    Publisher,
    Receiver,
    Relay,
    SchemaError,
    ShardSpec,
    SigningKey,
    files,
)


def pair(net: Run, state: dict[str, Any], shadow: Any, log: Path, **options: Any) -> tuple[Publisher, Receiver]:
    """A publisher of a state, and one who follows it with a shadow of that."""
    pub = net.keep(Publisher(net.comms[0], SCHEMA, base=tensors(state), log=DeltaLog(log), **options))
    return pub, net.keep(Receiver(net.comms[1], shadow, upstream=[net.comms[0].peer_id]))


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
    one = net.keep(Relay(near, SCHEMA, base=loaded(state), log=DeltaLog(tmp_path / "1"), upstream=[trainer.peer_id]))
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


def test_a_publisher_that_starts_again_follows_its_log(run: Any, tmp_path: Path) -> None:
    net = run(2)
    state = weights()
    first = tensors(weights())
    shadow = loaded(state)
    pub = Publisher(net.comms[0], SCHEMA, base=first, log=DeltaLog(tmp_path))
    for number in (1, 2):
        step(state, number)
        pub.publish(tensors(state)).wait("durable", WAIT_S)
    pub.close()
    again = net.keep(Publisher(net.comms[0], SCHEMA, base=first, log=DeltaLog(tmp_path)))
    assert (again.tip, again.epoch) == (pub.tip, 2)
    assert all(elements.tobytes() == state[name].tobytes() for name, elements in again.tensors())
    rx = net.keep(Receiver(net.comms[1], shadow, upstream=[net.comms[0].peer_id]))
    step(state, 3)
    again.publish(tensors(state))
    commit_until(rx, 3)
    assert equals(shadow, state)
    other = tensors(weights(2))
    with pytest.raises(LineageError):
        Publisher(net.comms[1], SCHEMA, base=other, log=DeltaLog(tmp_path), name="other")


def test_a_full_disk_moves_nothing(run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    state = weights()
    shadow = loaded(state)
    pub, rx = pair(run(2), state, shadow, tmp_path)
    step(state, 1)
    pub.publish(tensors(state)).wait("durable", WAIT_S)
    commit_until(rx, 1)

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        step(state, 2)
        with pytest.raises(LogError, match="No space left"):
            pub.publish(tensors(state)).wait("durable", WAIT_S)
    assert pub.tip.version == rx.version == 1
    step(state, 3)
    pub.publish(tensors(state)).wait("durable", WAIT_S)
    commit_until(rx, 2)
    assert equals(shadow, state)


def test_an_engine_that_raises_leaves_the_version(run: Any, tmp_path: Path) -> None:
    state = weights()
    shadow = loaded(state)
    before = weights()
    pub, rx = pair(run(2), state, shadow, tmp_path)
    step(state, 1)
    pub.publish(tensors(state))
    update = rx.next(WAIT_S)
    with pytest.raises(ZeroDivisionError), update.commit():
        raise ZeroDivisionError
    assert rx.version == 0 and equals(shadow, before)
    with update.commit():
        pass
    assert rx.version == 1 and equals(shadow, state)
    with pytest.raises(pccl.PcclError, match="committed already"), update.commit():
        pass


def test_nobody_waits_for_a_receiver_but_max_staleness(run: Any, tmp_path: Path) -> None:
    """One that never commits holds one update, whatever is published; then one commit brings it to the newest."""
    state = weights()
    shadow = loaded(state)
    pub, rx = pair(run(2), state, shadow, tmp_path, max_staleness=3)
    first = rx_is_known(pub)
    assert first == (1, 0)
    for number in range(1, 4):
        step(state, number)
        pub.publish(tensors(state), timeout=WAIT_S).wait("durable", WAIT_S)
    with pytest.raises(Timeout, match="4 versions behind"):
        pub.publish(tensors(state), timeout=0.1)
    assert pub.tip.version == 3
    commit_until(rx, 3)
    step(state, 4)
    pub.publish(tensors(state), timeout=WAIT_S).wait("all", WAIT_S) if commit_soon(rx, 4) else None
    assert equals(shadow, state)


def rx_is_known(pub: Publisher) -> tuple[int, int]:
    with pub._source.changed:
        assert pub._source.changed.wait_for(lambda: pub.receivers()[0] > 0, WAIT_S)
    return pub.receivers()


def commit_soon(rx: Receiver, version: int) -> threading.Thread:
    thread = threading.Thread(target=commit_until, args=(rx, version))
    thread.start()
    return thread


def test_a_state_comes_back_as_a_new_version(run: Any, tmp_path: Path) -> None:
    state = weights()
    shadow = loaded(state)
    pub, rx = pair(run(2), state, shadow, tmp_path)
    kept = {}
    for number in range(1, 6):
        step(state, number)
        kept[number] = {name: array.copy() for name, array in state.items()}
        pub.publish(tensors(state)).wait("encoded", WAIT_S)
    pub.roll_back(2).wait("durable", WAIT_S)
    commit_until(rx, 6)
    assert equals(shadow, kept[2])


def test_shards_are_published_where_they_are(run: Any, tmp_path: Path) -> None:
    state = weights()
    shadow = loaded(state)
    pub, rx = pair(run(2), state, shadow, tmp_path)
    step(state, 1)
    whole = tensors(state)
    parts = [("norm", whole["norm"]), ("bias", whole["bias"]), ("codes", whole["codes"])]
    for name in ("embed", "head"):
        cut = whole[name].shape[0] // 3
        parts += [(name, whole[name][:cut], ShardSpec(0)), (name, whole[name][cut:], ShardSpec(cut))]
    pub.publish(parts)
    commit_until(rx, 1)
    assert equals(shadow, state)
    with pytest.raises(SchemaError, match="from row 4000"):
        pub.publish([("head", whole["head"], ShardSpec(4000))])
    with pytest.raises(SchemaError, match="no tensor 'tail'"):
        pub.publish([("tail", whole["head"])])


def test_the_next_source_is_taken_when_one_is_lost(run: Any, tmp_path: Path) -> None:
    net = run(3)
    state = weights()
    trainer, middle, worker = net.comms
    pub = net.keep(Publisher(trainer, SCHEMA, base=tensors(state), log=DeltaLog(tmp_path / "t")))
    relay = Relay(middle, SCHEMA, base=loaded(state), log=DeltaLog(tmp_path / "r"), upstream=[trainer.peer_id])
    shadow = loaded(state)
    rx = net.keep(Receiver(worker, shadow, upstream=[middle.peer_id, trainer.peer_id]))
    step(state, 1)
    pub.publish(tensors(state)).wait("relays", WAIT_S)
    commit_until(rx, 1)
    relay.close()
    for number in (2, 3):
        step(state, number)
        pub.publish(tensors(state)).wait("durable", WAIT_S)
    commit_until(rx, 3)
    assert equals(shadow, state)
    back = net.keep(
        Relay(middle, SCHEMA, base=loaded(weights()), log=DeltaLog(tmp_path / "r"), upstream=[trainer.peer_id])
    )
    step(state, 4)
    pub.publish(tensors(state)).wait("relays", WAIT_S)
    commit_until(rx, 4)
    assert equals(shadow, state) and back.error is None
    assert back.version == 4


def test_a_relay_folds_for_who_comes_late(run: Any, tmp_path: Path) -> None:
    net = run(3)
    state = weights()
    trainer, middle, worker = net.comms
    pub = net.keep(Publisher(trainer, SCHEMA, base=tensors(state), log=DeltaLog(tmp_path / "t")))
    late = loaded(state)
    relay = net.keep(
        Relay(middle, SCHEMA, base=loaded(state), log=DeltaLog(tmp_path / "r"), upstream=[trainer.peer_id])
    )
    for number in range(1, 8):
        step(state, number)
        pub.publish(tensors(state)).wait("durable", WAIT_S)
    pub.publish(tensors(state)).wait("relays", WAIT_S)
    rx = net.keep(Receiver(worker, late, upstream=[middle.peer_id]))
    commit_until(rx, 8)
    assert equals(late, state) and relay.error is None


class Peer:
    """A receiver's process: what it prints, line by line."""

    def __init__(self, net: Run, source: bytes, shadow: Path, key: SigningKey) -> None:
        script = Path(__file__).with_name("weights_peer.py")
        arguments = [net.address, SECRET, source.hex(), str(shadow), key.public.hex()]
        self.process = subprocess.Popen(
            [sys.executable, str(script), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.said: list[tuple[int, str]] = []
        self.news = threading.Condition()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            version, digest = line.split()
            with self.news:
                self.said.append((int(version), digest))
                self.news.notify_all()

    def wait_for(self, version: int) -> None:
        with self.news:
            assert self.news.wait_for(lambda: self.said and self.said[-1][0] >= version, WAIT_S)

    def kill(self) -> None:
        self.process.kill()
        self.close()

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(WAIT_S)
        self._thread.join(WAIT_S)
        self.process.stdout.close()


def test_receivers_that_are_killed_at_any_time(run: Any, tmp_path: Path) -> None:
    """SIGKILL of a real process again and again while versions come; whatever it says of a version is that version."""
    net = run(1)
    rng = np.random.default_rng(7)
    key = SigningKey()
    state = weights()
    pub = net.keep(Publisher(net.comms[0], SCHEMA, base=tensors(state), log=DeltaLog(tmp_path / "log"), sign=key))
    digests = {0: digest_of(state)}
    peers: list[Peer] = []
    for _ in range(5):
        peer = Peer(net, net.comms[0].peer_id, tmp_path / "shadow", key)
        peers.append(peer)
        peer.wait_for(0)
        for _ in range(int(rng.integers(1, 4))):
            step(state, pub.tip.version + 1)
            pub.publish(tensors(state)).wait("durable", WAIT_S)
            digests[pub.tip.version] = digest_of(state)
        peer.wait_for(int(rng.integers(0, pub.tip.version + 1)))
        peer.kill()
    last = Peer(net, net.comms[0].peer_id, tmp_path / "shadow", key)
    last.wait_for(pub.tip.version)
    last.close()
    for peer in [*peers, last]:
        versions = [version for version, _ in peer.said]
        assert versions == sorted(set(versions))
        assert all(digests[version] == digest for version, digest in peer.said)
    assert last.said[-1] == (pub.tip.version, digest_of(state))
