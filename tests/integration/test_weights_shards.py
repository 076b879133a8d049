"""Trainer ranks that own shards make one version together, or none: processes, some of which are killed."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.conftest import SECRET
from integration.weights_model import RANKS, SCHEMA, equals, loaded, shards_of, step, tensors, weights
from integration.weights_run import WAIT_S, Run, apart, commit_until

from pccl.errors import PeerLost, Timeout
from pccl.weights import (
    DamageError,
    DeltaLog,
    LogError,
    Publisher,
    Receiver,
    SchemaError,
    ShardPublisher,
    SigningKey,
    WeightsError,
    files,
)

KEY = SigningKey()


class Rank:
    """See weights_rank.py."""

    def __init__(self, net: Run, lead: bytes, rank: int, group: int) -> None:
        script = Path(__file__).with_name("weights_rank.py")
        arguments = [net.address, SECRET, lead.hex(), str(rank), str(group)]
        self.process = subprocess.Popen(
            [sys.executable, str(script), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.peer_id = bytes.fromhex(self.says())

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, what: str, number: int) -> None:
        assert self.process.stdin is not None
        print(what, number, file=self.process.stdin, flush=True)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def close(self) -> None:
        self.process.communicate(timeout=WAIT_S)


@pytest.fixture
def net(cluster: Any) -> Iterator[Run]:
    made = apart(cluster, 2)
    yield made
    made.close()


class Trainer:
    """The lead, with shard 0, and the other ranks, in processes; and a receiver of all."""

    def __init__(self, net: Run, log: Path) -> None:
        self.net, self.lead = net, net.comms[0]
        self.state = weights()
        self.ids: list[bytes] = []
        base = tensors(self.state)
        self.pub = net.keep(
            Publisher(self.lead, SCHEMA, base=base, log=DeltaLog(log), sign=KEY, ranks=lambda: self.ids)
        )
        self.ranks = [net.keep(Rank(net, self.lead.peer_id, rank, 10 + rank)) for rank in range(1, RANKS)]
        self.ids[:] = [rank.peer_id for rank in self.ranks]
        self.shadow = loaded(self.state)
        upstream = [self.lead.peer_id]
        self.rx = net.keep(Receiver(net.comms[1], self.shadow, upstream=upstream, pubkey=KEY.public))

    def step(self, number: int, ranks: list[Rank]) -> Any:
        """The lead's part, and those of some others."""
        step(self.state, number)
        for rank in ranks:
            rank.tell("step", number)
        return self.pub.publish(shards_of(tensors(self.state), 0))


def head_of(pub: Publisher) -> bytes:
    """What a publisher holds, after it has ended all that it does."""
    pub.close()
    return dict(pub.tensors())["head"].tobytes()


def test_ranks_make_one_version_together(net: Run, tmp_path: Path) -> None:
    trainer = Trainer(net, tmp_path)
    sizes = []
    for number in (1, 2, 3):
        ticket = trainer.step(number, trainer.ranks)
        sizes.append(ticket.wait("durable", WAIT_S).bytes)
        assert [rank.says() for rank in trainer.ranks] == [str(number)] * 2
        commit_until(trainer.rx, number)
        assert equals(trainer.shadow, trainer.state)
    assert max(sizes) < 1.1 * min(sizes)
    sent = trainer.lead.stats()["transfer_received_bytes"]
    trainer.step(4, trainer.ranks).wait("durable", WAIT_S)
    assert trainer.lead.stats()["transfer_received_bytes"] - sent < SCHEMA.nbytes // 4


def test_a_rank_that_is_killed_leaves_the_version_and_another_takes_its_place(net: Run, tmp_path: Path) -> None:
    """SIGKILL when the others' parts are there: no version. With a new rank in its place the next one has it all."""
    trainer = Trainer(net, tmp_path)
    one, two = trainer.ranks
    trainer.step(1, trainer.ranks).wait("durable", WAIT_S)
    assert (one.says(), two.says()) == ("1", "1")
    ticket = trainer.step(2, [one])
    two.kill()
    with pytest.raises(PeerLost, match="part of version 2"):
        ticket.wait("durable", WAIT_S)
    assert one.says().startswith("failed")
    assert trainer.pub.tip.version == 1
    commit_until(trainer.rx, 1)
    with pytest.raises(Timeout):
        trainer.rx.next(0.3)
    again = net.keep(Rank(net, trainer.lead.peer_id, 2, 20))
    trainer.ids[1] = again.peer_id
    trainer.step(3, [one, again]).wait("durable", WAIT_S)
    assert (one.says(), again.says()) == ("2", "2")
    commit_until(trainer.rx, 2)
    assert equals(trainer.shadow, trainer.state)


def test_a_rank_that_is_killed_while_its_part_comes_leaves_the_version(net: Run, tmp_path: Path) -> None:
    """Its first part, which is all of its shards, at a pace that the test can interrupt."""
    trainer = Trainer(net, tmp_path)
    one, two = trainer.ranks
    two.tell("limit", 1_000_000)
    assert two.says() == "limited"
    before = trainer.lead.stats()["transfer_received_bytes"]
    part = sum(value.nbytes for _, value, *_ in shards_of(tensors(trainer.state), 1))
    ticket = trainer.step(1, [one, two])
    news = threading.Event()
    while trainer.lead.stats()["transfer_received_bytes"] - before < part + 600_000:
        assert not ticket.done("durable")
        news.wait(0.01)
    two.kill()
    with pytest.raises(PeerLost, match="part of version 1"):
        ticket.wait("durable", WAIT_S)
    assert one.says().startswith("failed") and trainer.pub.tip.version == 0
    assert not list(tmp_path.glob("d*.pccl"))


def test_when_the_log_is_full_no_rank_goes_on(net: Run, tmp_path: Path, monkeypatch: Any) -> None:
    lead, other = net.comms
    state = weights()
    base = tensors(state)
    pub = net.keep(Publisher(lead, SCHEMA, base=base, log=DeltaLog(tmp_path), ranks=[other.peer_id]))
    shards = net.keep(ShardPublisher(other, SCHEMA, lead=lead.peer_id, base=base))
    small = {name: value for name, value in base.items() if name not in ("head",)}

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        step(state, 1)
        mine, theirs = pub.publish(small), shards.publish({"head": base["head"]})
        with pytest.raises(LogError):
            mine.wait("durable", WAIT_S)
        with pytest.raises(WeightsError, match="version 1 did not come to be"):
            theirs.wait("durable", WAIT_S)
    step(state, 2)
    mine, theirs = pub.publish(small), shards.publish({"head": base["head"]})
    assert mine.wait("durable", WAIT_S).changed and theirs.wait("durable", WAIT_S).changed
    assert head_of(pub) == state["head"].tobytes()


def test_what_nobody_gives_and_what_is_of_another_state_is_refused(net: Run, tmp_path: Path) -> None:
    lead, other = net.comms
    state = weights()
    base = tensors(state)
    pub = net.keep(Publisher(lead, SCHEMA, base=base, log=DeltaLog(tmp_path), ranks=[other.peer_id]))
    wrong = tensors(weights(2))
    shards = net.keep(ShardPublisher(other, SCHEMA, lead=lead.peer_id, base={"head": wrong["head"]}))
    small = {name: value for name, value in base.items() if name not in ("head",)}
    step(state, 1)
    mine, theirs = pub.publish(small), shards.publish({"norm": base["norm"]})
    with pytest.raises(SchemaError, match="element 0 of 'head'"):
        mine.wait("durable", WAIT_S)
    with pytest.raises(WeightsError, match="element 0 of 'head'"):
        theirs.wait("durable", WAIT_S)
    wrong_head = wrong["head"].copy()
    wrong_head.view("u2")[0, 0] ^= 1
    mine, theirs = pub.publish(small), shards.publish({"head": wrong_head})
    with pytest.raises(DamageError, match="another state") as found:
        mine.wait("durable", WAIT_S)
    assert found.value.peer == other.peer_id
    with pytest.raises(WeightsError, match="another state"):
        theirs.wait("durable", WAIT_S)
    mine, theirs = pub.publish(small), shards.publish({"head": base["head"]})  # whole: its copy was no good
    assert mine.wait("durable", WAIT_S) and theirs.wait("durable", WAIT_S).bytes > SCHEMA.tensors[4].nbytes
    assert head_of(pub) == state["head"].tobytes()


def test_a_part_that_does_not_come_is_waited_for_so_long_and_no_longer(net: Run, tmp_path: Path) -> None:
    lead, other = net.comms
    base = tensors(weights())
    ranks = [other.peer_id]
    pub = net.keep(Publisher(lead, SCHEMA, base=base, log=DeltaLog(tmp_path), ranks=ranks, parts_timeout_s=0.3))
    shards = net.keep(ShardPublisher(other, SCHEMA, lead=lead.peer_id))
    with pytest.raises(Timeout, match=other.peer_id.hex()[:8]):
        pub.publish(base).wait("durable", WAIT_S)
    with shards._changed:
        assert shards._changed.wait_for(lambda: shards._round is not None and shards._round.attempt == 1, WAIT_S)
    late = shards.publish({"head": base["head"]})
    late.wait("encoded", WAIT_S)
    with pytest.raises(Timeout):
        late.wait("durable", 0.05)
    waiting = threading.Thread(target=shards.close)
    waiting.start()
    waiting.join(WAIT_S)
    assert not waiting.is_alive()


def test_a_lead_that_ends_ends_what_is_under_way_and_may_come_again(net: Run, tmp_path: Path) -> None:
    lead, other = net.comms
    state = weights()
    base = tensors(weights())
    options = {"base": base, "ranks": [other.peer_id]}
    pub = Publisher(lead, SCHEMA, log=DeltaLog(tmp_path), **options)
    shards = net.keep(ShardPublisher(other, SCHEMA, lead=lead.peer_id, base=base))
    step(state, 1)
    now = tensors(state)
    small = {name: value for name, value in now.items() if name not in ("head",)}
    left = shards.publish({"head": now["head"]})
    left.wait("encoded", WAIT_S)
    pub.close()
    with pytest.raises(PeerLost, match="the lead of the publishers"):
        left.wait("durable", WAIT_S)
    again = net.keep(Publisher(lead, SCHEMA, log=DeltaLog(tmp_path), **options))
    mine, theirs = again.publish(small), shards.publish({"head": now["head"]})
    assert mine.wait("durable", WAIT_S).bytes < SCHEMA.nbytes // 4
    assert theirs.wait("durable", WAIT_S).bytes < SCHEMA.nbytes // 4 and theirs.version == 1
    again.roll_back(0)
    with shards._changed:
        assert shards._changed.wait_for(lambda: shards._round is not None and shards._round.version == 2, WAIT_S)
    mine, theirs = again.publish(small), shards.publish({"head": now["head"]})
    mine.wait("durable", WAIT_S)
    assert theirs.wait("durable", WAIT_S).bytes > SCHEMA.tensors[4].nbytes  # what it held was of another version
    assert (again.tip.version, theirs.version) == (3, 3)
    assert head_of(again) == state["head"].tobytes()
