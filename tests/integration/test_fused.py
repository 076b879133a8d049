"""Lists of tensors reduced between real peers: results, mixtures, losses, mismatches, and what is left after errors."""

from __future__ import annotations

import asyncio
import gc
import re
import threading
import time
import weakref
from typing import Any

import numpy as np
import pytest

import pccl
from pccl import _native, fused
from pccl.fused import BUCKET_BYTES, Fused

DTYPES = ("float32", "float64", "int32", "int64", "uint8", "float16")


def drawn(case: int) -> list[tuple[str, tuple[int, ...]]]:
    """The same list on every peer: up to 40 tensors of all dtypes, some empty, some without dimensions."""
    random = np.random.default_rng(case)
    shapes = [tuple(random.integers(0, 9, random.integers(0, 4))) for _ in range(random.integers(0, 40))]
    return [(DTYPES[random.integers(len(DTYPES))], shape) for shape in shapes]


def tensor(rank: int, place: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    count = int(np.prod(shape))
    return ((np.arange(count) * 3 + place + rank) % 5).astype(dtype).reshape(shape)


def tensors(rank: int, described: list[tuple[str, tuple[int, ...]]]) -> list[np.ndarray[Any, Any]]:
    return [tensor(rank, place, *one) for place, one in enumerate(described)]


def equal(found: Any, expected: Any) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_as_one_by_one(cluster: Any, world: int) -> None:
    def body(comm: pccl.Communicator) -> None:
        for case in range(25):
            described = drawn(case)
            expected = [sum_of(world, place, *one) for place, one in enumerate(described)]
            ours = tensors(comm.rank, described)
            out = [np.full_like(one, 9) for one in ours]
            result = comm.all_reduce(tuple(ours), out=out)
            assert result.tensor is out and equal(out, expected)
            assert equal(ours, tensors(comm.rank, described)), "an input of an out-of-place call has changed"
            result = comm.all_reduce(ours)
            assert result.tensor is ours and equal(ours, expected)
            assert (result.world_size, result.peers, result.retries) == (world, comm.peers, 0)
            assert len(result.parts) == max(1, len({one.dtype for one in ours if one.size}))

    cluster(world, body)


def sum_of(world: int, place: int, dtype: str, shape: tuple[int, ...]) -> Any:
    return np.sum([tensor(rank, place, dtype, shape) for rank in range(world)], axis=0).astype(dtype).reshape(shape)


def test_many_buckets_in_flight(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of several ops each, of lists of different lengths, by order and by tag, awaited in any order."""
    monkeypatch.setattr("pccl.communicator.BUCKET_BYTES", 4096)

    def body(comm: pccl.Communicator) -> None:
        calls = []
        for number in range(12):
            ours = [np.full(300 + k, comm.rank + number, "f4") for k in range(1 + number % 5 * 3)]
            tag = f"t{number}" if number % 3 == 0 else None
            calls.append((number, ours, comm.all_reduce(ours, tag=tag, async_op=True)))
        plain = comm.all_reduce(np.ones(3), async_op=True)
        for number, ours, work in reversed(calls):
            result = work.wait()
            assert all((one == 1 + 2 * number).all() for one in ours) and work.done()
            assert len(result.parts) == -(-len(ours) // 3)
            assert result.bytes_sent == sum(part.bytes_sent for part in result.parts) > 0
        assert (plain.wait().tensor == 2).all()

    cluster(2, body)


def test_torch_numpy_codec_and_await(cluster: Any) -> None:
    torch = pytest.importorskip("torch")

    def body(comm: pccl.Communicator) -> bytes:
        mixed = [torch.ones(3, 2, dtype=torch.bfloat16), np.ones(5, "f4"), torch.ones(4), np.arange(3)]
        work = comm.all_reduce(mixed, op="max", async_op=True, priority="high")

        async def waiting() -> Any:
            return await work

        assert asyncio.run(waiting()).tensor is mixed
        assert mixed[0].dtype == torch.bfloat16 and (mixed[0] == 1).all() and mixed[3].tolist() == [0, 1, 2]
        random = np.random.default_rng(comm.rank)
        ours = [random.standard_normal(500).astype("f4"), random.standard_normal(77).astype("f4")]
        comm.all_reduce(ours, codec="int8", op="avg")
        return b"".join(one.tobytes() for one in ours)

    assert len(set(cluster(2, body))) == 1


@pytest.mark.parametrize("options", [{}, {"algorithm": "ring"}, {"algorithm": "mesh"}, {"codec": "e3m0"}])
def test_every_peer_holds_the_same_bytes(cluster: Any, monkeypatch: pytest.MonkeyPatch, options: Any) -> None:
    """Small ones beside one that is larger than a bucket, of values whose sum depends on the order."""
    monkeypatch.setattr("pccl.communicator.BUCKET_BYTES", 1 << 16)

    def body(comm: pccl.Communicator) -> bytes:
        random = np.random.default_rng(comm.rank)
        ours = [random.standard_normal(count).astype("f4") for count in (5, 100_000, 3000, 0, 12_000, 1)]
        result = comm.all_reduce(ours, op="avg", **options)
        assert [[len(one) for one in part.tensor] for part in result.parts] == [[5], [100_000], [3000, 12_000, 1]]
        return b"".join(one.tobytes() for one in ours)

    assert len(set(cluster(3, body))) == 1


@pytest.mark.parametrize("what", ["number", "shape", "dtype", "op", "codec", "single"])
def test_a_mismatch_names_both_and_leaves_all_as_they_were(cluster: Any, what: str) -> None:
    """The lists differ late, and in how many ops they are; the calls that follow are matched again. Nobody waits for
    the deadline of ops that only one of the two has."""

    def body(comm: pccl.Communicator) -> tuple[str, bytes]:
        ours: Any = [np.full(4, 5, "f4"), np.full((2, 3), 5, "f8"), np.full(6, 5, "f4")]
        options = {}
        if what == "codec":
            ours = [one.astype("f4") for one in ours]
        if comm.rank:
            options = {"op": {"op": "max"}, "codec": {"codec": "int8"}}.get(what, {})
            ours = {
                "number": ours[:2],
                "shape": [*ours[:2], np.full((3, 2), 5, "f4")],
                "dtype": [*ours[:2], np.full(6, 5, "i8")],
                "single": np.full(10, 5, "f4"),
            }.get(what, ours)
        with pytest.raises(pccl.MismatchError) as caught:
            comm.all_reduce(ours, **options)
        assert all((one == 5).all() for one in ours)
        after = [np.ones(3, "f4"), np.ones(3, "i8"), np.ones(3, "f8")]
        comm.all_reduce(after)
        assert all((one == 2).all() for one in after)
        return caught.value.message, comm.peer_id

    found = cluster(2, body, op_timeout=900.0)
    theirs = {"number": "of 2 tensors", "single": "float32[10]", "op": "max of 3", "codec": "sum int8 of 3"}
    for text, _ in found:
        assert "sum of 3 tensors" in text and theirs.get(what, "sum of 3 tensors") in text
        assert all(f"peer {peer_id[:4].hex()} called all_reduce" in text for _, peer_id in found)
        assert len(set(re.findall("tensors ([0-9a-f]{8}):", text))) == 1 + (what in ("number", "shape", "dtype"))


def first_op_only(comm: pccl.Communicator, tensors: list[Any]) -> pccl.Result:
    """What a peer does of a call that it dies in."""
    call = Fused(tensors, None, "sum", "auto", None, BUCKET_BYTES)
    return comm._runtime.submit(call.ops[0], None, None, None).wait()


def test_one_op_of_a_call_fails(cluster: Any) -> None:
    """The first has succeeded everywhere, the second never will: no tensor is written."""

    def body(comm: pccl.Communicator) -> None:
        ours = [np.ones(4, "f4"), np.ones(4, "i8")]
        if comm.rank == 0:
            with pytest.raises(pccl.Timeout, match="not called by peer"):
                comm.all_reduce(ours, timeout=0.5)
            assert all((one == 1).all() for one in ours)
            end = time.monotonic() + 5
            while comm.stats()["ops_failed"] != 1:
                assert time.monotonic() < end, comm.stats()  # the engine publishes a moment later
        else:
            assert first_op_only(comm, ours).world_size == 2
        comm.barrier(tag="over")
        comm.all_reduce(ours)
        assert all((one == 2).all() for one in ours)

    cluster(2, body)


def test_ops_of_a_call_that_end_in_different_epochs(cluster: Any) -> None:
    """One of three dies between the two: the call succeeds, its parts say who took part in each."""

    def body(comm: pccl.Communicator) -> None:
        ours = [np.ones(4, "f4"), np.ones(4, "i8")]
        if comm.rank == 2:
            first_op_only(comm, ours)
            return
        result = comm.all_reduce(ours)
        assert [part.world_size for part in result.parts] == [3, 2] and (ours[0] == 3).all() and (ours[1] == 2).all()
        assert result.epoch == result.parts[1].epoch > result.parts[0].epoch
        assert result.world_size == 2 and result.peers == comm.peers and result.retries == 1
        comm.barrier(tag="end")

    cluster(3, body, min_peers=2, together=False)


def test_the_engine_refuses_a_later_op(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the others are told, or find out at the deadline; the next calls are matched again."""

    def body(comm: pccl.Communicator) -> None:
        ours = [np.ones(4, "f4"), np.ones(4, "i8"), np.ones(4, "f8")]
        if comm.rank == 0:
            ours_is, full, submit = comm._runtime.engine, iter([False, True, False]), _native.Engine.submit

            def refuse_second(engine: Any, request: Any) -> None:
                if engine is ours_is and next(full, False):
                    raise pccl.ResourceError("out of memory")
                submit(engine, request)

            monkeypatch.setattr(_native.Engine, "submit", refuse_second)
        with pytest.raises((pccl.Cancelled, pccl.Timeout) if comm.rank else pccl.ResourceError):
            comm.all_reduce(ours, timeout=1.0)
        assert all((one == 1).all() for one in ours)
        comm.all_reduce(ours)
        assert all((one == 2).all() for one in ours)

    cluster(2, body)


def test_packed_memory_is_let_go_of_at_the_end(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when the collector happens to run, and whoever still holds the Work."""
    made: list[Any] = []
    memory = fused._memory

    def watched(part: Any, count: int) -> Any:
        buffer = memory(part, count)
        made.append(weakref.ref(buffer.owner[0]))
        return buffer

    monkeypatch.setattr(fused, "_memory", watched)
    monkeypatch.setattr(fused, "_COPY_HERE_BYTES", 30)

    def body(comm: pccl.Communicator) -> None:
        for count in (2, 20):  # written back by the control thread, and by one of its own
            ours = [np.full(count, 3, "f4"), np.ones(count, "f4")]
            work = comm.all_reduce(ours, async_op=True)
            work.wait()
            for thread in threading.enumerate():
                if thread.name == "pccl-write-back":
                    thread.join()
            comm.barrier()  # the control thread is past the call
            assert (ours[0] == 3).all() and (ours[1] == 1).all() and work.done()
            assert made and not any(array() is not None for array in made)

    gc.disable()
    try:
        cluster(1, body)
    finally:
        gc.enable()


def test_a_lost_peer(cluster: Any) -> None:
    """One of three leaves without calling: the call of the others starts again, or fails as asked, inputs restored."""

    called = threading.Barrier(3)  # or the others may call when the third has left, and nobody is lost

    def body(comm: pccl.Communicator) -> None:
        rank = comm.rank
        comm.barrier()
        if rank == 2:
            called.wait(60)
            return
        ours, other = ([np.full(9, rank + 1, "f4"), np.full(9, rank + 1, "i8")] for _ in range(2))
        retried = comm.all_reduce(ours, tag="a", async_op=True)
        raising = comm.all_reduce(other, tag="b", async_op=True, on_peer_loss="raise")
        called.wait(60)
        result = retried.wait()
        assert all((one == 3).all() for one in ours) and result.world_size == 2 and result.retries == 1
        with pytest.raises(pccl.PeerLost):
            raising.wait()
        assert all((one == rank + 1).all() for one in other)
        comm.barrier(tag="end")

    cluster(3, body, min_peers=2, together=False)


def test_cancel_timeout_and_close(cluster: Any) -> None:
    over = threading.Event()  # who leaves earlier leaves the other with too few

    def body(comm: pccl.Communicator) -> None:
        ours = [np.ones(4, "f4"), np.ones(4, "i8")]
        if comm.rank == 0:
            work = comm.all_reduce(ours, tag="cancelled", async_op=True)
            assert work.cancel()
            with pytest.raises(pccl.Cancelled):
                work.wait()
            with pytest.raises(pccl.Timeout):
                comm.all_reduce(ours, tag="late", timeout=0.2)
            assert all((one == 1).all() for one in ours)
        comm.barrier()
        if comm.rank == 0:
            work = comm.all_reduce(ours, tag="closed", async_op=True)
            comm.close()
            with pytest.raises(pccl.Closed):
                work.wait()
            assert all((one == 1).all() for one in ours)
            over.set()
        assert over.wait(60)

    cluster(2, body, together=False)


def test_a_call_is_refused_whole(cluster: Any) -> None:
    def body(comm: pccl.Communicator) -> None:
        ours = [np.ones(4, "f4"), np.ones(4, "i8")]
        for options in ({"priority": "x"}, {"timeout": 0}, {"tag": 1.5}, {"on_peer_loss": "x"}, {"algorithm": "x"}):
            with pytest.raises(pccl.ArgumentError):
                comm.all_reduce(ours, **options)
        assert comm.all_reduce(ours).tensor is ours and comm.stats()["ops_failed"] == 0

    cluster(1, body)
