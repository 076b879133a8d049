"""Every collective against numpy: dtypes, sizes, worlds of one to five peers, both algorithms.

Values are small whole numbers, so that sums and products are exact in every dtype and in every order; averages are
rounded once, as the engine does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

import numpy as np
import pytest

import pccl

try:
    from ml_dtypes import bfloat16

    EXTRA: list[Any] = [bfloat16]
except ImportError:
    EXTRA = []

DTYPES = [
    *(np.float64, np.float32, np.float16),
    *(np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64),
    *EXTRA,
]
WORLDS = range(1, 6)
OPS: dict[str, Callable[[Any, Any], Any]] = {
    "sum": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
}


def is_float(dtype: Any) -> bool:
    return np.dtype(dtype).kind == "f" or dtype in EXTRA


def values(rank: int, count: int, dtype: Any) -> np.ndarray[Any, Any]:
    """What a peer brings: 0 to 3, another pattern on each rank."""
    return ((np.arange(count) * (rank + 3) + rank) % 4).astype(dtype)


def folded(world: int, count: int, dtype: Any, op: str) -> np.ndarray[Any, Any]:
    """What all of them must get."""
    inputs = [values(rank, count, dtype) for rank in range(world)]
    if op != "avg":
        return reduce(OPS[op], inputs).astype(dtype)
    wide = np.float64 if np.dtype(dtype) == np.float64 else np.float32
    total = reduce(np.add, [array.astype(wide) for array in inputs])
    return (total / wide(world)).astype(dtype)


def sizes(world: int) -> list[int]:
    return sorted({0, 1, world - 1, world, 7, 257, 4099})


def same(found: Any, expected: np.ndarray[Any, Any]) -> bool:
    """Bit for bit, shape and dtype too."""
    return found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()


def reductions() -> Iterator[tuple[Any, str]]:
    for dtype in DTYPES:
        for op in (*OPS, *(["avg"] if is_float(dtype) else [])):
            yield dtype, op


@pytest.mark.parametrize("algorithm", ["auto", "ring", "mesh"])
@pytest.mark.parametrize("world", WORLDS)
def test_all_reduce(cluster: Any, world: int, algorithm: str) -> None:
    def body(comm: pccl.Communicator) -> None:
        for dtype, op in reductions():
            for count in sizes(world) if op in ("sum", "avg") else (257,):
                expected = folded(world, count, dtype, op)
                ours = values(comm.rank, count, dtype)
                other = np.full(count, 9, dtype)
                result = comm.all_reduce(ours, op=op, out=other, algorithm=algorithm)
                assert result.tensor is other
                assert same(other, expected), (dtype, op, count)
                assert same(ours, values(comm.rank, count, dtype)), "the input of an out-of-place op has changed"
                result = comm.all_reduce(ours, op=op, algorithm=algorithm)
                assert result.tensor is ours
                assert same(ours, expected), (dtype, op, count)
                assert (result.world_size, result.peers, result.retries) == (world, comm.peers, 0)

    cluster(world, body)


@pytest.mark.parametrize("algorithm", ["ring", "mesh"])
@pytest.mark.parametrize("world", WORLDS)
def test_all_reduce_of_many_segments(cluster: Any, world: int, algorithm: str) -> None:
    def body(comm: pccl.Communicator) -> None:
        for count in (100003, 1_000_003):
            ours = values(comm.rank, count, np.float32).reshape(1, count)
            comm.all_reduce(ours, algorithm=algorithm)
            assert same(ours, folded(world, count, np.float32, "sum").reshape(1, count))

    cluster(world, body)


@pytest.mark.parametrize("world", WORLDS)
def test_reduce_scatter(cluster: Any, world: int) -> None:
    def body(comm: pccl.Communicator) -> list[tuple[int, int]]:
        spans = []
        for dtype in DTYPES:
            for count in (*sizes(world), 100003):
                expected = folded(world, count, dtype, "sum")
                ours = values(comm.rank, count, dtype)
                result = comm.reduce_scatter(ours)
                end = result.offset + result.tensor.size
                assert same(result.tensor, expected[result.offset : end]), (dtype, count)
                assert same(ours, values(comm.rank, count, dtype))
                spans.append((result.offset, end))
        return spans

    every = cluster(world, body)
    counts = (*sizes(world), 100003)
    for index, spans in enumerate(zip(*every, strict=True)):
        edge = 0
        for begin, end in sorted(spans):
            assert begin in (edge, end), "spans overlap or leave a hole"
            edge = max(edge, end)
        assert edge == counts[index % len(counts)]


@pytest.mark.parametrize("world", WORLDS)
def test_all_gather(cluster: Any, world: int) -> None:
    def body(comm: pccl.Communicator) -> None:
        for dtype in DTYPES:
            for count in (*sizes(world), 100003):
                expected = np.stack([values(rank, count, dtype) for rank in range(world)])
                result = comm.all_gather(values(comm.rank, count, dtype))
                assert same(result.tensor, expected), (dtype, count)
                out = np.empty((world, count), dtype)
                assert same(comm.all_gather(values(comm.rank, count, dtype), out=out).tensor, expected)
                assert same(out, expected)
        scalar = comm.all_gather(np.array(comm.rank, np.int32)).tensor
        assert scalar.tolist() == list(range(world))

    cluster(world, body)


@pytest.mark.parametrize("world", WORLDS)
def test_broadcast(cluster: Any, world: int) -> None:
    def body(comm: pccl.Communicator) -> None:
        for root in range(world):
            for dtype in DTYPES:
                for count in (0, 1, 257, 100003):
                    ours = values(comm.rank, count, dtype)
                    ours.flags.writeable = comm.rank != root
                    comm.broadcast(ours, root=root if count else comm.peers[root])
                    assert same(ours, values(root, count, dtype)), (root, dtype, count)

    cluster(world, body)


@pytest.mark.parametrize("world", WORLDS)
def test_all_to_all(cluster: Any, world: int) -> None:
    def row(source: int, target: int, count: int, dtype: Any) -> np.ndarray[Any, Any]:
        return ((np.arange(count) + 10 * source + target) % 100).astype(dtype)

    def body(comm: pccl.Communicator) -> None:
        for dtype in DTYPES:
            for count in (0, 1, 257, 30011):
                ours = np.stack([row(comm.rank, target, count, dtype) for target in range(world)])
                expected = np.stack([row(source, comm.rank, count, dtype) for source in range(world)])
                assert same(comm.all_to_all(ours).tensor, expected), (dtype, count)

    cluster(world, body)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_send_and_recv_around_a_circle(cluster: Any, world: int) -> None:
    def body(comm: pccl.Communicator) -> None:
        right, left = (comm.rank + 1) % world, (comm.rank - 1) % world
        for dtype in DTYPES:
            for count in (0, 1, 257, 100003):
                theirs = np.empty(count, dtype)
                sending = comm.send(values(comm.rank, count, dtype), right, async_op=True)
                received = comm.recv(theirs, left)
                sent = sending.wait()
                assert sent.tensor is None and received.tensor is theirs
                assert same(theirs, values(left, count, dtype))
                assert received.peers == (comm.peers[left], comm.peer_id)
                assert sent.world_size == received.world_size == 2

    cluster(world, body)


@pytest.mark.parametrize("world", WORLDS)
def test_barrier(cluster: Any, world: int) -> None:
    def body(comm: pccl.Communicator) -> None:
        for _ in range(20):
            result = comm.barrier()
            assert result.tensor is None and result.world_size == world

    cluster(world, body)


@pytest.mark.parametrize("world", [1, 3])
def test_torch_tensors(cluster: Any, world: int) -> None:
    torch = pytest.importorskip("torch")

    def body(comm: pccl.Communicator) -> None:
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8):
            ours = torch.full((5, 7), comm.rank + 1, dtype=dtype)
            comm.all_reduce(ours)
            assert torch.equal(ours, torch.full((5, 7), world * (world + 1) // 2, dtype=dtype))
            gathered = comm.all_gather(torch.tensor([comm.rank], dtype=dtype)).tensor
            assert gathered.dtype == dtype and gathered.flatten().tolist() == list(range(world))
            part = comm.reduce_scatter(torch.ones(11, dtype=dtype))
            assert part.tensor.dtype == dtype and (part.tensor == world).all()
        weight = torch.nn.Parameter(torch.full((4,), float(comm.rank)))
        comm.broadcast(weight, root=world - 1)
        assert weight.tolist() == [world - 1.0] * 4 and weight.requires_grad

    cluster(world, body)


def test_other_buffers(cluster: Any) -> None:
    def body(comm: pccl.Communicator) -> None:
        raw = bytearray([comm.rank + 1] * 5)
        comm.all_reduce(raw)
        assert raw == bytearray([3] * 5)
        gathered = comm.all_gather(bytes([comm.rank])).tensor
        assert gathered.dtype == np.uint8 and gathered.tolist() == [[0], [1]]

    cluster(2, body)


@pytest.mark.parametrize("codec", ["bf16", "fp16", "int8", "e3m0"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_all_reduce_with_codec(cluster: Any, world: int, codec: str) -> None:
    """Near the sum, fewer bytes, and the same bytes on every peer, in place too."""

    def body(comm: pccl.Communicator) -> tuple[bytes, int]:
        array = np.random.default_rng(comm.rank).standard_normal(4099).astype(np.float32)
        result = comm.all_reduce(array, codec=codec)
        return array.tobytes(), result.bytes_sent

    results = cluster(world, body)
    assert len({data for data, _ in results}) == 1
    exact = sum(np.random.default_rng(rank).standard_normal(4099).astype(np.float32) for rank in range(world))
    error = np.linalg.norm(np.frombuffer(results[0][0], np.float32) - exact) / np.linalg.norm(exact)
    limit = {"bf16": 0.01, "fp16": 0.001, "int8": 0.02, "e3m0": 0.4}[codec]
    share = {"bf16": 0.5, "fp16": 0.5, "int8": 0.27, "e3m0": 0.14}[codec]
    assert error < limit
    assert all(sent <= share * 1.05 * 2 * 4 * 4099 for _, sent in results)


def test_priorities_change_no_result(cluster: Any) -> None:
    """Each peer has another one, and another order of ends; the same op of each kind in every class, all in flight."""
    names = ("high", "normal", "low")

    def body(comm: pccl.Communicator) -> None:
        rank, count, world = comm.rank, 50_000, 3
        for turn in range(3):
            works = []
            for index in range(6):
                tensor = values(rank, count, np.int32)
                options: Any = {"priority": names[(rank + index + turn) % 3], "async_op": True}
                works += [
                    comm.all_reduce(tensor, **options),
                    comm.reduce_scatter(values(rank, count, np.int32), **options),
                    comm.all_gather(values(rank, count, np.int32), **options),
                    comm.broadcast(values(rank, count, np.int32), index % 3, **options),
                    comm.all_to_all(np.full((world, count), rank, np.int32), **options),
                ]
                to, source = (rank + 1) % world, (rank - 1) % world
                works += [
                    comm.send(values(rank, count, np.int32), to, **options),
                    comm.recv(np.empty(count, np.int32), source, async_op=True),
                ]
            expected = folded(world, count, np.int32, "sum")
            for index in range(6):
                reduced, scattered, gathered, root, all_to_all, _, received = (work.wait() for work in works[:7])
                del works[:7]
                assert same(reduced.tensor, expected)
                assert same(scattered.tensor, expected[scattered.offset :][: scattered.tensor.size])
                assert all(same(gathered.tensor[k], values(k, count, np.int32)) for k in range(world))
                assert same(root.tensor, values(index % 3, count, np.int32))
                assert (all_to_all.tensor == np.arange(world)[:, None]).all()
                assert same(received.tensor, values((rank - 1) % world, count, np.int32))

    cluster(3, body)
