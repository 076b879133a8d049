"""Transfers between real engines over loopback: what arrives, from whom, and what holds when it does not."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import numpy as np
import pytest

import pccl
from pccl.errors import ArgumentError, Cancelled, PeerLost, Timeout, TransferError

MIB = 1 << 20


def content(nbytes: int, seed: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


def at_rank_0(others: Any, first: Any) -> Any:
    """A body: rank 0 fetches when the others have offered; they keep their offers until it has ended."""

    def body(comm: pccl.Communicator) -> Any:
        rank = comm.rank
        kept = None if rank == 0 else others(comm, rank)
        comm.barrier(tag="offered")
        found = first(comm) if rank == 0 else None
        comm.barrier(tag="fetched")
        del kept
        return found

    return body


@pytest.mark.parametrize("transport", ["tcp", "auto"])
@pytest.mark.parametrize("sources", [1, 3])
@pytest.mark.parametrize("nbytes", [0, 1, 5 * MIB + 3, 64 * MIB])
def test_what_is_offered_arrives(cluster: Any, sources: int, nbytes: int, transport: str) -> None:
    data = content(nbytes)

    def fetch(comm: pccl.Communicator) -> None:
        into = np.zeros(nbytes, np.uint8)
        result = comm.transfers.fetch("a", into, sources=range(1, 1 + sources), timeout=60).wait()
        assert result.tensor is into and np.array_equal(into, data)
        assert (result.generation, result.nbytes) == (7, nbytes)
        report = result.report
        assert sum(report.received.values()) >= nbytes
        assert not report.refused and not report.lost
        if nbytes == 64 * MIB:
            assert len(report.received) == sources

    def offer(comm: pccl.Communicator, rank: int) -> Any:
        return comm.transfers.offer("a", data, generation=7, chunk_bytes=65536)

    cluster(1 + sources, at_rank_0(offer, fetch), transport=transport)


def test_torch_tensors_and_awaiting(cluster: Any) -> None:
    torch = pytest.importorskip("torch")
    data = torch.arange(300_000, dtype=torch.bfloat16).reshape(300, 1000)

    def fetch(comm: pccl.Communicator) -> None:
        into = torch.zeros(300, 1000, dtype=torch.bfloat16)

        async def wait() -> Any:
            return await comm.transfers.fetch("t", into, sources=1)

        assert asyncio.run(wait()).tensor is into
        assert torch.equal(into, data)

    cluster(2, at_rank_0(lambda comm, rank: comm.transfers.offer("t", data), fetch))


def test_a_source_with_wrong_bytes_is_refused_and_named(cluster: Any) -> None:
    data = content(8 * MIB)

    def offer(comm: pccl.Communicator, rank: int) -> Any:
        mine = data.copy()
        offer = comm.transfers.offer("a", mine, chunk_bytes=65536)
        if rank == 2:
            mine[:] = 0  # against the rules: it is offered
        return offer

    def fetch(comm: pccl.Communicator) -> None:
        liar = comm.peers[2]
        result = comm.transfers.fetch("a", sources=(1, 2)).wait()
        assert np.array_equal(result.tensor, data)
        assert {peer for _, peer in result.report.refused} == {liar} == set(result.report.lost)
        with pytest.raises(TransferError, match="wrong bytes") as caught:
            comm.transfers.fetch("a", sources=(2,)).wait()
        assert (caught.value.cause, caught.value.peer, caught.value.name) == ("digest", liar, "a")
        assert caught.value.chunk is not None

    cluster(3, at_rank_0(offer, fetch))


def test_other_content_than_wanted_is_refused(cluster: Any) -> None:
    data = content(MIB)

    def offer(comm: pccl.Communicator, rank: int) -> Any:
        return comm.transfers.offer("a", data if rank < 3 else data[::-1].copy(), generation=5)

    def fetch(comm: pccl.Communicator) -> None:
        transfers = comm.transfers
        result = transfers.fetch("a", sources=(3, 1, 2)).wait()
        assert np.array_equal(result.tensor, data), "two against one"
        assert set(result.report.lost) <= {comm.peers[3]}
        with pytest.raises(TransferError, match="other content"):
            transfers.fetch("a", sources=(3,), digest=result.digest).wait()
        with pytest.raises(TransferError, match="generation 5") as caught:
            transfers.fetch("a", sources=(1,), generation=4).wait()
        assert caught.value.cause == "gone"
        with pytest.raises(Timeout, match="does not offer it yet"):
            transfers.fetch("a", sources=(1,), generation=6, timeout=0.3).wait()
        with pytest.raises(TransferError, match="1048576 bytes, the target 5") as caught:
            transfers.fetch("a", np.zeros(5, np.uint8), sources=(1,)).wait()
        assert caught.value.cause == "size"

    cluster(4, at_rank_0(offer, fetch))


def test_what_is_not_offered_yet_is_waited_for(cluster: Any) -> None:
    data = content(MIB)

    def body(comm: pccl.Communicator) -> None:
        if comm.rank == 0:
            fetch = comm.transfers.fetch("late", sources=1)
            assert not fetch.done()
            comm.barrier(tag="asked")
            assert np.array_equal(fetch.wait().tensor, data)
        else:
            comm.barrier(tag="asked")
            comm.transfers.offer("late", data)
        comm.barrier(tag="fetched")

    cluster(2, body)


def test_updates_and_withdrawal(cluster: Any) -> None:
    old, new = content(3 * MIB, 1), content(2 * MIB, 2)

    def body(comm: pccl.Communicator) -> None:
        transfers = comm.transfers
        offer = transfers.offer("w", old) if comm.rank == 1 else None
        comm.barrier(tag="offered")
        if comm.rank == 0:
            assert np.array_equal(transfers.fetch("w", sources=1).wait().tensor, old)
        comm.barrier(tag="fetched")
        if offer is not None:
            with pytest.raises(ArgumentError, match="not later"):
                offer.update(1, new)
            with pytest.raises(ArgumentError, match="already"):
                transfers.offer("w", new)
            offer.update(2, new)
        comm.barrier(tag="updated")
        if comm.rank == 0:
            assert np.array_equal(transfers.fetch("w", sources=1, generation=2).wait().tensor, new)
        comm.barrier(tag="fetched again")
        if offer is not None:
            offer.withdraw()
            offer.withdraw()
            assert "withdrawn" in repr(offer)
            transfers.offer("w", old).withdraw()
        comm.barrier(tag="withdrawn")
        if comm.rank == 0:
            with pytest.raises(Timeout):
                transfers.fetch("w", sources=1, timeout=0.2).wait()
        comm.barrier(tag="end")

    cluster(2, body)


def slow(comm: pccl.Communicator, nbytes: int, seconds: float) -> None:
    """From now on this peer needs so long for so much."""
    comm.transfers.limit("normal", int(nbytes / seconds))


def some_arrived(fetch: Any) -> None:
    """Waits until the first chunks are there."""
    for _ in range(2000):
        if fetch.progress().done_bytes:
            return
        with pytest.raises(Timeout):
            fetch.wait(0.005)
    raise AssertionError("nothing arrives")


def test_after_a_cancel_nothing_is_written(cluster: Any) -> None:
    data = content(64 * MIB)

    def offer(comm: pccl.Communicator, rank: int) -> Any:
        slow(comm, data.size, 5)
        return comm.transfers.offer("a", data)

    def fetch(comm: pccl.Communicator) -> None:
        into = np.zeros(data.size, np.uint8)
        fetch = comm.transfers.fetch("a", into, sources=1)
        some_arrived(fetch)
        began = time.monotonic()
        assert fetch.cancel()
        assert time.monotonic() - began < 1.0
        have = fetch.have()
        into[:] = 0xAA
        with pytest.raises(Cancelled):
            fetch.wait()
        assert not fetch.cancel()
        small = comm.transfers.fetch("b", sources=1, timeout=0.5)  # what is under way on the link passes meanwhile
        with pytest.raises(Timeout):
            small.wait()
        assert (into == 0xAA).all()
        assert any(have)

    cluster(2, at_rank_0(offer, fetch))


def test_a_fetch_goes_on_where_another_stopped(cluster: Any) -> None:
    data = content(32 * MIB)

    def offer(comm: pccl.Communicator, rank: int) -> Any:
        slow(comm, data.size, 2)
        return comm.transfers.offer("a", data)

    def fetch(comm: pccl.Communicator) -> None:
        into = np.zeros(data.size, np.uint8)
        first = comm.transfers.fetch("a", into, sources=1)
        some_arrived(first)
        first.cancel()
        have = first.have()
        there = sum(bin(byte).count("1") for byte in have) * MIB
        assert 0 < there < data.size
        into[:1] ^= 1  # somebody wrote to what was there
        result = comm.transfers.fetch("a", into, sources=1, have=have).wait()
        assert np.array_equal(into, data)
        assert result.report.resumed_bytes == there - MIB
        assert sum(result.report.received.values()) == data.size - there + MIB
        with pytest.raises(TransferError, match="bitmap"):
            comm.transfers.fetch("a", into, sources=1, have=b"").wait()

    cluster(2, at_rank_0(offer, fetch))


def test_withdrawn_while_fetched(cluster: Any) -> None:
    data = content(32 * MIB)

    def body(comm: pccl.Communicator) -> None:
        if comm.rank == 1:
            slow(comm, data.size, 3)
            mine = data.copy()
            offer = comm.transfers.offer("a", mine)
            comm.barrier(tag="offered")
            comm.barrier(tag="some")
            offer.withdraw()
            mine[:] = 0
        else:
            comm.barrier(tag="offered")
            fetch = comm.transfers.fetch("a", sources=1)
            some_arrived(fetch)
            comm.barrier(tag="some")
            with pytest.raises(TransferError, match="withdrawn") as caught:
                fetch.wait()
            assert caught.value.cause == "gone"
            for chunk in range(32):
                if fetch.have()[chunk // 8] >> chunk % 8 & 1:
                    assert np.array_equal(fetch._job.target.whole[chunk * MIB :][:MIB], data[chunk * MIB :][:MIB])
        comm.barrier(tag="end")

    cluster(2, body)


def test_chunks_are_passed_on_as_they_come(cluster: Any) -> None:
    """0 <- 1 <- 2: the source is slow, and the chain takes hardly longer than its first link."""
    data = content(16 * MIB)

    def body(comm: pccl.Communicator) -> float:
        peers, rank = comm.peers, comm.rank
        if rank == 2:
            slow(comm, data.size, 1.5)
            comm.transfers.offer("a", data, chunk_bytes=262144)
        comm.barrier(tag="offered")
        took = 0.0
        if rank < 2:
            result = comm.transfers.fetch("a", sources=peers[rank + 1], relay=True).wait()
            assert np.array_equal(result.tensor, data)
            assert result.offer is not None and result.offer.digest == result.digest
            took = result.report.duration_s
        comm.barrier(tag="fetched")
        if rank < 2:
            result.offer.withdraw()
        comm.barrier(tag="end")
        return took

    last, middle, _ = cluster(3, body)
    assert middle > 0.7
    assert last < middle + 0.7


def test_a_relay_that_fails_is_withdrawn(cluster: Any) -> None:
    data = content(16 * MIB)

    def fetch(comm: pccl.Communicator) -> None:
        fetch = comm.transfers.fetch("a", sources=1, relay=True, timeout=0.5)
        with pytest.raises(Timeout, match="not all of 'a' came in time"):
            fetch.wait()
        comm.transfers.offer("a", data).withdraw()

    def offer(comm: pccl.Communicator, rank: int) -> Any:
        slow(comm, data.size, 20)
        return comm.transfers.offer("a", data)

    cluster(2, at_rank_0(offer, fetch))


def meet(comm: pccl.Communicator) -> None:
    """Lets the guest in, which leaves then: what is called next runs among those who are left."""
    while comm.world_size < 3:
        comm.advance()
    comm.barrier(tag="three")


def test_peers_come_and_go_during_a_fetch(cluster: Any) -> None:
    data = content(32 * MIB)
    coordinator = cluster.coordinator(2)
    asked = threading.Event()
    errors: list[BaseException] = []

    def source() -> None:
        try:
            with cluster.connect(coordinator) as comm:
                slow(comm, data.size, 2)
                comm.transfers.offer("a", data)
                assert asked.wait(20)
                meet(comm)
                comm.barrier(tag="fetched")
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            errors.append(error)

    def guest() -> None:
        try:
            with cluster.connect(coordinator) as comm:
                comm.barrier(tag="three")
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            errors.append(error)

    threads = [threading.Thread(target=source, daemon=True), threading.Thread(target=guest, daemon=True)]
    threads[0].start()
    with cluster.connect(coordinator) as comm:
        fetch = comm.transfers.fetch("a", sources=1 - comm.rank)
        some_arrived(fetch)
        before = comm.epoch
        threads[1].start()
        asked.set()
        meet(comm)
        threads[1].join(20)
        assert np.array_equal(fetch.wait().tensor, data)
        assert not fetch.report.lost
        assert comm.barrier(tag="fetched").world_size == 2
        assert comm.epoch >= before + 2
    for thread in threads:
        thread.join(20)
    assert not errors


def test_arguments(cluster: Any) -> None:
    def body(comm: pccl.Communicator) -> None:
        transfers = comm.transfers
        for sources in ((), (comm.rank,), (5,), (b"short",)):
            with pytest.raises(ArgumentError):
                transfers.fetch("a", sources=sources)
        with pytest.raises(ArgumentError):
            transfers.fetch("a", sources=1, timeout=0)
        with pytest.raises(ArgumentError):
            transfers.fetch("a", sources=1, priority="urgent")  # type: ignore[arg-type]
        with pytest.raises(ArgumentError):
            transfers.limit("low", -1)
        with pytest.raises(TypeError):
            transfers.offer("a", "text")
        with pytest.raises(PeerLost):
            transfers.fetch("a", sources=(bytes(16),)).wait()

    cluster(2, lambda comm: body(comm) if comm.rank == 0 else None)


def test_closing_ends_fetches_and_offers(cluster: Any) -> None:
    coordinator = cluster.coordinator(1)
    comm = cluster.connect(coordinator)
    offer = comm.transfers.offer("a", content(MIB))
    transfers = comm.transfers
    comm.close()
    offer.withdraw()
    for call in (lambda: comm.transfers, lambda: transfers.offer("b", content(5))):
        with pytest.raises(pccl.Closed):
            call()
