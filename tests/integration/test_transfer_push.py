"""Pushes between real engines over loopback: memory that was prepared gets the bytes, nothing else does, and both sides
learn what became of it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pccl
from pccl.errors import ArgumentError, Cancelled, PeerLost, Timeout, TransferError

MIB = 1 << 20


def content(nbytes: int, seed: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


def wait_until(holds: Callable[[], Any], seconds: float = 20.0) -> None:
    """AssertionError if it does not come in time."""
    deadline = time.monotonic() + seconds
    poll = threading.Event()
    while not holds():
        assert time.monotonic() < deadline, f"this does not come within {seconds:g} s"
        poll.wait(0.005)


def between(pusher: Any, accepter: Any) -> Any:
    """A body: rank 0 accepts, the others push."""

    def body(comm: pccl.Communicator) -> Any:
        found = accepter(comm) if comm.rank == 0 else pusher(comm, comm.rank)
        comm.barrier(tag="done")
        return found

    return body


@pytest.mark.parametrize("transport", ["tcp", "auto"])
@pytest.mark.parametrize("first", ["push", "accept"])
@pytest.mark.parametrize("nbytes", [0, 1, 5 * MIB + 3])
def test_what_is_pushed_arrives(cluster: Any, nbytes: int, first: str, transport: str) -> None:
    data = content(nbytes)

    def push(comm: pccl.Communicator, rank: int) -> None:
        if first == "accept":
            comm.barrier(tag="first")
        work = comm.transfers.push("a", data, to=0, generation=3, chunk_bytes=65536, timeout=30)
        if first == "push":
            comm.barrier(tag="first")
        result = work.wait()
        assert (result.name, result.generation, result.nbytes) == ("a", 3, nbytes)

    def accept(comm: pccl.Communicator) -> None:
        into = np.zeros(nbytes, np.uint8)
        if first == "push":
            comm.barrier(tag="first")
        work = comm.transfers.accept("a", into, timeout=30)
        if first == "accept":
            comm.barrier(tag="first")
        result = work.wait()
        assert result.tensor is into and np.array_equal(into, data)
        assert (result.name, result.generation, result.nbytes) == ("a", 3, nbytes)

    cluster(2, between(push, accept), transport=transport)


def test_one_name_again_and_again_into_made_memory_and_awaited(cluster: Any) -> None:
    def push(comm: pccl.Communicator, rank: int) -> None:
        async def all_of_them() -> None:
            for number in range(5):
                result = await comm.transfers.push("a", content(100_000, number), to=comm.peers[0])
                assert result.nbytes == 100_000

        asyncio.run(all_of_them())

    def accept(comm: pccl.Communicator) -> None:
        for number in range(5):
            result = comm.transfers.accept("a").wait()
            assert np.array_equal(result.tensor, content(100_000, number))

    cluster(2, between(push, accept))


def test_who_waits_is_found_at_once(cluster: Any) -> None:
    """The one that accepts does not look around for it: asking for the receipt is what tells it."""

    def push(comm: pccl.Communicator, rank: int) -> float:
        comm.barrier(tag="accepting")
        with pytest.raises(
            Timeout
        ):  # for so long nothing comes; a fetch of what is not offered would ask rarely by now
            comm.transfers.push("nobody accepts it", content(1), to=0, timeout=1.0).wait()
        return comm.transfers.push("a", content(1000), to=0).wait().duration_s

    def accept(comm: pccl.Communicator) -> float:
        work = comm.transfers.accept("a")
        comm.barrier(tag="accepting")
        work.wait()
        return 0.0

    assert max(cluster(2, between(push, accept))) < 0.2


def test_peers_that_push_the_same_bytes_share_the_work_and_others_are_told(cluster: Any) -> None:
    data = content(32 * MIB)

    def push(comm: pccl.Communicator, rank: int) -> None:
        comm.transfers.limit("normal", 1_000_000)  # so that it is under way when the last begins
        comm.barrier(tag="accepting")
        if rank == 3:
            comm.barrier(tag="begun")
            work = comm.transfers.push("a", data[::-1].copy(), to=0, chunk_bytes=65536)
            comm.barrier(tag="heard")
            with pytest.raises(TransferError, match="other content") as caught:
                work.wait()
            assert (caught.value.cause, caught.value.peer, caught.value.name) == ("digest", comm.peers[0], "a")
            return
        work = comm.transfers.push("a", data, to=0, chunk_bytes=65536)
        comm.barrier(tag="begun")
        comm.barrier(tag="heard")
        comm.transfers.limit("normal", 0)
        work.wait()

    def accept(comm: pccl.Communicator) -> None:
        work = comm.transfers.accept("a", np.zeros_like(data))
        comm.barrier(tag="accepting")
        wait_until(lambda: work.report.received)
        comm.barrier(tag="begun")
        wait_until(lambda: comm.peers[3] in work.report.lost)
        comm.barrier(tag="heard")
        result = work.wait()
        assert np.array_equal(result.tensor, data)
        assert set(result.report.received) == {comm.peers[1], comm.peers[2]}

    cluster(4, between(push, accept))


def test_memory_of_another_size_is_refused_and_untouched(cluster: Any) -> None:
    def push(comm: pccl.Communicator, rank: int) -> None:
        with pytest.raises(TransferError, match="the target 5") as caught:
            comm.transfers.push("a", content(MIB), to=0).wait()
        assert (caught.value.cause, caught.value.peer) == ("size", comm.peers[0])

    def accept(comm: pccl.Communicator) -> None:
        into = np.full(5, 7, np.uint8)
        with pytest.raises(TransferError, match="1048576 bytes, the target 5") as caught:
            comm.transfers.accept("a", into).wait()
        assert caught.value.cause == "size" and (into == 7).all()

    cluster(2, between(push, accept))


def test_nobody_accepts_and_nobody_pushes(cluster: Any) -> None:
    def push(comm: pccl.Communicator, rank: int) -> None:
        with pytest.raises(Timeout, match="does not accept 'a'"):
            comm.transfers.push("a", content(MIB), to=0, timeout=0.3).wait()

    def accept(comm: pccl.Communicator) -> None:
        with pytest.raises(Timeout, match="there is no source"):
            comm.transfers.accept("b", timeout=0.3).wait()
        comm.transfers.accept("b", timeout=0.1)  # the name is free again

    cluster(2, between(push, accept))


def test_only_those_that_may_push_do(cluster: Any) -> None:
    at_the_door = threading.Event()  # who comes after the other's end finds nobody that accepts

    def push(comm: pccl.Communicator, rank: int) -> None:
        if rank == 2:
            assert at_the_door.wait(20)
            comm.transfers.push("a", content(1000, rank), to=0, timeout=20).wait()
            return
        work = comm.transfers.push("a", content(1000, rank), to=0, timeout=20)
        wait_until(lambda: work._job._ticket is not None)
        at_the_door.set()
        with pytest.raises(TransferError, match="other content"):
            work.wait()

    def accept(comm: pccl.Communicator) -> None:
        result = comm.transfers.accept("a", sources=2).wait()
        assert np.array_equal(result.tensor, content(1000, 2))

    cluster(3, between(push, accept))


def test_a_cancelled_accept_tells_who_pushes(cluster: Any) -> None:
    def push(comm: pccl.Communicator, rank: int) -> None:
        comm.transfers.limit("normal", MIB)
        data = content(64 * MIB)
        comm.barrier(tag="accepting")
        with pytest.raises(TransferError, match="cancelled") as caught:
            comm.transfers.push("a", data, to=0).wait()
        assert caught.value.cause == "cancelled"

    def accept(comm: pccl.Communicator) -> None:
        into = np.zeros(64 * MIB, np.uint8)
        work = comm.transfers.accept("a", into)
        comm.barrier(tag="accepting")
        wait_until(lambda: work.progress().total_bytes is not None)
        assert work.cancel()
        into[:] = 7
        with pytest.raises(Cancelled):
            work.wait()
        assert (into == 7).all()

    cluster(2, between(push, accept))


def test_a_cancelled_push_is_not_read_any_more(cluster: Any) -> None:
    def push(comm: pccl.Communicator, rank: int) -> None:
        comm.transfers.limit("normal", MIB)
        data = content(64 * MIB)
        work = comm.transfers.push("a", data, to=0)
        comm.barrier(tag="begun")
        assert work.cancel()
        data[:] = 0
        with pytest.raises(Cancelled):
            work.wait()
        assert not work.cancel()

    def accept(comm: pccl.Communicator) -> None:
        work = comm.transfers.accept("a")
        wait_until(lambda: work.progress().total_bytes is not None)
        comm.barrier(tag="begun")
        with pytest.raises(TransferError, match="withdrawn") as caught:
            work.wait()
        assert caught.value.cause == "gone"

    cluster(2, between(push, accept))


def test_a_peer_that_is_gone(cluster: Any) -> None:
    def push(comm: pccl.Communicator, rank: int) -> None:
        work = comm.transfers.push("nobody accepts it", content(1000), to=0, timeout=30)
        comm.barrier(tag="pushed")
        with pytest.raises(PeerLost):
            work.wait()

    def leave(comm: pccl.Communicator) -> None:
        comm.barrier(tag="pushed")
        comm.close()

    def body(comm: pccl.Communicator) -> None:
        leave(comm) if comm.rank == 0 else push(comm, comm.rank)

    cluster(2, body, min_peers=1, together=False)


def test_arguments(cluster: Any) -> None:
    def body(comm: pccl.Communicator) -> None:
        transfers = comm.transfers
        work = transfers.accept("a", timeout=30)
        for call, words in (
            (lambda: transfers.accept("a"), "being accepted already"),
            (lambda: transfers.accept("b", sources=comm.rank), "not this one"),
            (lambda: transfers.accept("", timeout=1), "a name must have"),
            (lambda: transfers.push("a", content(5), to=comm.rank), "to: name at least one peer"),
            (lambda: transfers.push("a", content(5), to=9), "to: rank 9"),
            (lambda: transfers.push("n" * 500, content(5), to=1 - comm.rank), "at most, not 500"),
            (lambda: transfers.push("a", content(5), to=1 - comm.rank, generation=0), "generation"),
        ):
            with pytest.raises(ArgumentError, match=words):
                call()
        first = transfers.push("c", content(5), to=1 - comm.rank)
        with pytest.raises(ArgumentError, match="offered here already"):
            transfers.push("c", content(5), to=1 - comm.rank)
        assert first.cancel() and work.cancel()

    cluster(2, body)
