"""Transfers between peers of different groups of a run, beside the all-reduces of each, and what ends them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration.leaders import SECRET, Leader

import pccl
from pccl.errors import PeerLost, Timeout

PEER = Path(__file__).parent / "transfer_peer.py"
MIB = 1 << 20
NBYTES = 16 * MIB


def content(seed: int, nbytes: int = NBYTES) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


def at_once(*bodies: Callable[[], Any]) -> list[Any]:
    """What each gives, all of them called at the same time; raises what the first raised."""
    found: dict[int, Any] = {}
    errors: list[BaseException] = []

    def run(number: int, body: Callable[[], Any]) -> None:
        try:
            found[number] = body()
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(bodies)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    if errors:
        raise errors[0]
    assert len(found) == len(bodies), "somebody hangs"
    return [found[number] for number in range(len(bodies))]


@contextmanager
def groups(address: str, *sizes: int, **options: Any) -> Iterator[list[list[pccl.Communicator]]]:
    """The peers of each group, by rank."""
    settings = {"secret": SECRET, "listen": "127.0.0.1:0", "timeout": 60.0, "op_timeout": 60.0} | options

    def connect(group: int) -> Callable[[], pccl.Communicator]:
        return lambda: pccl.connect(address, group=group, **settings)  # type: ignore[arg-type]

    joined = at_once(*(connect(group) for group, size in enumerate(sizes) for _ in range(size)))
    with ExitStack() as stack:
        for comm in reversed(joined):
            stack.enter_context(comm)
        made, begin = [], 0
        for size in sizes:
            made.append(sorted(joined[begin : begin + size], key=lambda comm: comm.rank))
            begin += size
        yield made


def some_arrived(fetch: Any, nbytes: int) -> None:
    for _ in range(6000):
        if fetch.progress().done_bytes >= nbytes:
            return
        with pytest.raises(Timeout):
            fetch.wait(0.005)
    raise AssertionError("nothing arrives")


def linked(comm: pccl.Communicator) -> set[bytes]:
    comm.transfers.limit("high", 0)  # nothing new; but an engine that has nothing to do shows no news of its links
    return {link.peer for link in comm._runtime.engine.links()}


def no_longer_linked(comm: pccl.Communicator, peer: bytes) -> None:
    deadline = time.monotonic() + 30.0
    while peer in linked(comm):
        assert time.monotonic() < deadline, "the link stays"
        threading.Event().wait(0.02)


def reducing(comm: pccl.Communicator, until: threading.Event) -> Callable[[], int]:
    """All-reduces of its group, boundary after boundary, until both of its peers see the event; how many."""

    def body() -> int:
        rounds, more = 0, True
        while more:
            total = comm.all_reduce(np.full(MIB, comm.rank + 1.0, np.float32)).tensor
            assert (total == 3.0).all()
            more = comm.all_reduce(np.array([float(until.is_set())], np.float32)).tensor[0] < 2.0
            comm.advance()
            rounds += 1
        return rounds

    return body


def move(mine: pccl.Communicator, other: pccl.Communicator, seed: int) -> None:
    offer = other.transfers.offer(f"theirs {seed}", content(seed))
    for _ in range(3):
        got = mine.transfers.fetch(f"theirs {seed}", sources=other.peer_id).wait().tensor
        assert np.array_equal(got, content(seed))
    offer.withdraw()
    taken = other.transfers.accept(f"mine {seed}")
    mine.transfers.push(f"mine {seed}", content(seed + 1), to=other.peer_id).wait()
    assert np.array_equal(taken.wait().tensor, content(seed + 1))
    assert other.peer_id in linked(mine) and mine.peer_id in linked(other)


@pytest.mark.parametrize("transport", ["tcp", "auto", "tls"])
def test_both_ways_while_each_group_reduces(cluster: Any, transport: str) -> None:
    coordinator = cluster.coordinator(2)
    with groups(coordinator.address, 2, 2, secret=cluster.secret, transport=transport) as made:
        moved = threading.Event()
        epochs = [[comm.epoch for comm in group] for group in made]

        def both_ways() -> None:
            (a, b), (c, d) = made
            try:
                at_once(lambda: move(a, c, 1), lambda: move(d, b, 3), lambda: move(c, a, 5), lambda: move(b, d, 7))
            finally:
                moved.set()

        *rounds, _ = at_once(*(reducing(comm, moved) for group in made for comm in group), both_ways)
        assert min(rounds) > 1
        assert [[comm.epoch for comm in group] for group in made] == epochs, "membership is what it was"
        for comm, other in ((made[0][0], made[1][0]), (made[1][1], made[0][1])):
            no_longer_linked(comm, other.peer_id)
            no_longer_linked(other, comm.peer_id)
        again = made[1][0].transfers.offer("again", content(9))
        got = made[0][0].transfers.fetch("again", sources=made[1][0].peer_id).wait().tensor
        assert np.array_equal(got, content(9))
        again.withdraw()


def test_who_is_in_no_group_is_named(cluster: Any) -> None:
    stranger = bytes(range(16))
    with groups(cluster.coordinator(1).address, 1, secret=cluster.secret) as ((comm,),):
        for begin in (
            lambda: comm.transfers.fetch("a", sources=stranger),
            lambda: comm.transfers.push("a", content(1, MIB), to=stranger),
        ):
            with pytest.raises(PeerLost) as caught:
                begin().wait(20.0)
            assert caught.value.peer == stranger


def test_a_source_that_leaves_is_named_and_others_carry_on(cluster: Any) -> None:
    with groups(cluster.coordinator(1).address, 1, 1, 1, secret=cluster.secret) as ((comm,), (leaving,), (staying,)):
        for source in (leaving, staying):
            source.transfers.limit("normal", 8 * MIB)
            source.transfers.offer("a", content(1))
        alone = comm.transfers.fetch("a", sources=leaving.peer_id)
        both = comm.transfers.fetch("a", sources=[leaving.peer_id, staying.peer_id])
        some_arrived(alone, MIB)
        some_arrived(both, MIB)
        leaving.close()
        with pytest.raises(PeerLost) as caught:
            alone.wait(30.0)
        assert caught.value.peer == leaving.peer_id
        result = both.wait(60.0)
        assert np.array_equal(result.tensor, content(1)) and staying.peer_id in result.report.received


def test_a_source_that_dies_is_named(cluster: Any) -> None:
    coordinator = cluster.coordinator(1, lease_s=1.0)
    argv = [sys.executable, str(PEER), coordinator.address, cluster.secret, str(NBYTES), "4.0"]
    with groups(coordinator.address, 1, secret=cluster.secret, transport="tcp") as ((comm,),):
        source = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PCCL_GROUP": "7"}
        )
        try:
            assert source.stdout is not None
            peer = bytes.fromhex(source.stdout.readline())
            fetch = comm.transfers.fetch("a", sources=peer)
            some_arrived(fetch, MIB)
            source.kill()
            with pytest.raises(PeerLost) as caught:
                fetch.wait(30.0)
            assert caught.value.peer == peer
            no_longer_linked(comm, peer)
        finally:
            source.kill()
            source.communicate()


def test_the_coordinator_dies_and_comes_back_amid(tmp_path: Path) -> None:
    leader = Leader(tmp_path, "--state", "run.state", "--min-peers", "1")
    leader.start()
    try:
        with groups(leader.address, 1, 1, 1) as ((comm,), (source,), (other,)):
            source.transfers.limit("normal", 4 * MIB)
            offer = source.transfers.offer("a", content(1))
            second = other.transfers.offer("b", content(2))
            fetch = comm.transfers.fetch("a", sources=source.peer_id)
            some_arrived(fetch, MIB)
            leader.kill()
            leader.start()
            got = comm.transfers.fetch("b", sources=other.peer_id).wait().tensor
            assert np.array_equal(got, content(2))
            result = fetch.wait()
            assert np.array_equal(result.tensor, content(1)) and not result.report.lost
            no_longer_linked(comm, source.peer_id)
            no_longer_linked(source, comm.peer_id)
            offer.withdraw()
            second.withdraw()
    finally:
        leader.kill()
