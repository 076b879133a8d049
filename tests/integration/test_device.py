"""Tensors of devices between real peers, with threads in the place of a device's streams (tests/streams.py).

The same with a GPU: test_torch_cuda.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from streams import Threads, far, installed, near

import pccl
import pccl.torch

MIB = 1 << 20
LARGE = 5 * MIB  # elements of float32: five pieces
PATIENCE_S = 60.0


@pytest.fixture
def device() -> Iterator[Threads]:
    """The device of all `far` tensors, and of all peers."""
    with installed() as made:
        yield made


def settled(device: Threads, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor when all that this thread's stream has to do is done."""
    device.mark().synchronize()
    return near(tensor)


def pattern(rank: int) -> torch.Tensor:
    return (torch.arange(7) * 3 + rank * 5) % 7


def repeated(values: torch.Tensor, count: int, dtype: torch.dtype) -> torch.Tensor:
    return values.to(dtype).repeat(-(-count // values.numel()))[:count]


def filled(rank: int, count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return repeated(pattern(rank), count, dtype)


def total(count: int, world: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return repeated(torch.stack([pattern(rank) for rank in range(world)]).sum(0), count, dtype)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 1000, LARGE])
def test_sums(cluster: Any, device: Threads, world: int, count: int) -> None:
    def body(comm: pccl.Communicator) -> None:
        for dtype in (torch.float32, torch.bfloat16, torch.int64):
            tensor = far(filled(comm.rank, count, dtype))
            result = comm.all_reduce(tensor)
            assert result.tensor is tensor
            assert (result.world_size, result.peers, result.retries) == (world, comm.peers, 0)
            assert torch.equal(settled(device, tensor), total(count, world, dtype))

    cluster(world, body)


def test_what_a_large_tensor_becomes(cluster: Any, device: Threads) -> None:
    def body(comm: pccl.Communicator) -> None:
        tensor = far(filled(comm.rank, LARGE))
        result = comm.all_reduce(tensor, op="avg", timeout=PATIENCE_S)
        assert len(result.parts) == 5
        assert result.bytes_received == sum(part.bytes_received for part in result.parts) > 0
        assert torch.equal(settled(device, tensor), total(LARGE, 2) / 2)

    cluster(2, body)


def test_out_lists_and_any_layout(cluster: Any, device: Threads) -> None:
    def body(comm: pccl.Communicator) -> None:
        tensor, out = far(filled(comm.rank, LARGE)), far(torch.zeros(LARGE))
        assert comm.all_reduce(tensor, out=out).tensor is out
        assert torch.equal(settled(device, out), total(LARGE, 2))
        assert torch.equal(settled(device, tensor), filled(comm.rank, LARGE))
        wide = far(filled(comm.rank, 2000))
        comm.all_reduce(wide[::2])
        found = settled(device, wide)
        assert torch.equal(found[::2], total(2000, 2)[::2])
        assert torch.equal(found[1::2], filled(comm.rank, 2000)[1::2])
        tensors = [
            far(filled(comm.rank, 10)),
            far(filled(comm.rank, 6, torch.int32).view(2, 3).t()),
            far(torch.zeros(0)),
            far(filled(comm.rank, LARGE)),
        ]
        assert comm.all_reduce(tensors).tensor is tensors
        assert torch.equal(settled(device, tensors[0]), total(10, 2))
        assert torch.equal(settled(device, tensors[1]), total(6, 2, torch.int32).view(2, 3).t())
        assert torch.equal(settled(device, tensors[3]), total(LARGE, 2))

    cluster(2, body)


def test_codecs_and_algorithms(cluster: Any, device: Threads) -> None:
    def body(comm: pccl.Communicator) -> bytes:
        tensor = far(torch.randn(LARGE, generator=torch.Generator().manual_seed(comm.rank)))
        comm.all_reduce(tensor, op="avg", codec="int8", algorithm="mesh")
        found: bytes = settled(device, tensor).numpy().tobytes()
        return found

    first, *others = cluster(3, body)
    assert all(other == first for other in others)


def test_calls_in_flight_by_order_and_by_tag(cluster: Any, device: Threads) -> None:
    def body(comm: pccl.Communicator) -> None:
        rank = comm.rank
        tensors = [far(filled(rank + k, LARGE)) for k in range(4)]
        works = [
            comm.all_reduce(tensor, async_op=True, tag=tag)
            for tag, tensor in zip((None, "a", "b", None), tensors, strict=True)
        ]
        host = torch.ones(3)
        comm.all_reduce(host)  # of host memory, while they are on their way
        assert host.tolist() == [2, 2, 2]
        for k, (work, tensor) in enumerate(zip(works, tensors, strict=True)):
            work.wait()
            expected = filled(k, LARGE) + filled(k + 1, LARGE)
            assert torch.equal(settled(device, tensor), expected)
        comm.all_reduce(tensors[1], tag="a")  # the tag is free again

    cluster(2, body)


def test_less_pinned_memory_than_the_tensor_has(cluster: Any, device: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two peers with room for one piece of 8 MiB each, at the same time a boundary that waits for the last."""
    monkeypatch.setattr("pccl.config._PINNED_BYTES", "32MiB")

    def body(comm: pccl.Communicator) -> None:
        tensor = far(filled(comm.rank, 32 * MIB))
        work = comm.all_reduce(tensor, async_op=True)
        comm.advance()
        assert torch.equal(settled(device, tensor), filled(comm.rank, 32 * MIB)) or work.done()
        result = work.wait()
        assert len(result.parts) == 16
        assert torch.equal(settled(device, tensor), total(32 * MIB, 2))
        assert comm._runtime.stager().pool.held_bytes <= 32 * MIB

    cluster(2, body)


def test_survivors_go_on_from_what_they_had(cluster: Any, device: Threads) -> None:
    def body(comm: pccl.Communicator) -> Any:
        rank = comm.rank
        if rank == 2:
            comm.all_reduce(far(torch.ones(8)))
            return None
        tensor = far(filled(rank, LARGE))
        comm.all_reduce(far(torch.ones(8)))
        result = comm.all_reduce(tensor)
        assert result.world_size == 2
        return settled(device, tensor)

    found = cluster(3, body, min_peers=2, together=False)
    ranks = [tensor for tensor in found if tensor is not None]
    assert torch.equal(ranks[0], total(LARGE, 2))
    assert torch.equal(ranks[0], ranks[1])


def test_after_an_error_tensors_are_as_they_were(cluster: Any, device: Threads) -> None:
    def body(comm: pccl.Communicator) -> None:
        rank = comm.rank
        tensor = far(filled(rank, LARGE + rank))
        with pytest.raises(pccl.MismatchError):
            comm.all_reduce(tensor)
        assert torch.equal(settled(device, tensor), filled(rank, LARGE + rank))
        if rank == 0:
            with pytest.raises(pccl.Timeout):
                comm.all_reduce(tensor, timeout=0.2, tag="nobody else")
            assert torch.equal(settled(device, tensor), filled(rank, LARGE))
        comm.barrier()
        small = far(filled(rank, LARGE))
        comm.all_reduce(small)  # the next calls meet
        assert torch.equal(settled(device, small), total(LARGE, 2))

    cluster(2, body)


@pytest.mark.parametrize("first", ["who fails", "who waits"])
@pytest.mark.parametrize("pieces", [0, 2, 4])
def test_a_device_that_fails_fails_here_and_at_once_there(
    cluster: Any, device: Threads, pieces: int, first: str
) -> None:
    """Also where all that was begun has ended, and the other has still to call what never comes."""
    failed = threading.Event()

    def broken(begun: list[Any]) -> None:
        committed(begun)
        raise RuntimeError("CUDA error: unspecified launch failure")

    def body(comm: pccl.Communicator) -> str:
        tensor = far(filled(comm.rank, LARGE))
        comm.barrier()
        if comm.rank == 0:
            if first == "who fails":
                comm._runtime.stager()._port = Until(comm, pieces, lambda _: failed.wait(PATIENCE_S))
            with pytest.raises(pccl.Cancelled, match="could not take part"):
                comm.all_reduce(tensor)
        else:
            comm._runtime.stager()._port = Until(comm, pieces, broken)
            with pytest.raises(pccl.DeviceError, match="CUDA error"):
                comm.all_reduce(tensor)
            failed.set()
        assert torch.equal(settled(device, tensor), filled(comm.rank, LARGE))
        comm.barrier()
        return "as it was"

    assert cluster(2, body) == ["as it was", "as it was"]


class Until:
    """A runtime as it is for so many pieces of a call; before each further one, `then` of the earlier ops."""

    def __init__(self, comm: pccl.Communicator, pieces: int, then: Callable[[list[Any]], object]) -> None:
        self._runtime, self._pieces, self._then = comm._runtime, pieces, then
        self._ops: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def hand_over(self, op: Any, *arguments: Any) -> None:
        """See Port."""
        if len(self._ops) >= self._pieces:
            self._then(self._ops)
        self._runtime.hand_over(op, *arguments)
        self._ops.append(op)


def committed(ops: list[Any]) -> None:
    """Blocks until they are."""
    for op in ops:
        op.work.wait()


def test_a_peer_that_goes_between_two_pieces(cluster: Any, device: Threads) -> None:
    """It has taken part in those that were committed; which these are, all survivors see alike."""

    def leave(comm: pccl.Communicator, begun: list[Any]) -> None:
        committed(begun)
        threading.Thread(target=comm.close).start()
        raise pccl.Closed("the communicator is closed")

    def body(comm: pccl.Communicator) -> Any:
        rank = comm.rank
        tensor = far(torch.full((LARGE,), float(rank)))
        comm.barrier()
        if rank == 2:
            comm._runtime.stager()._port = Until(comm, 2, partial(leave, comm))
            with pytest.raises(pccl.Closed):
                comm.all_reduce(tensor, op="avg")
            return None
        result = comm.all_reduce(tensor, op="avg")
        worlds = [part.world_size for part in result.parts]
        assert worlds == [3, 3, 2, 2, 2]
        assert result.world_size == 2
        found = settled(device, tensor)
        assert found[: 2 * MIB].unique().tolist() == [1.0]
        assert found[2 * MIB :].unique().tolist() == [0.5]
        return found

    found = cluster(3, body, min_peers=2, together=False)
    assert torch.equal(found[0], found[1])


def test_closing_ends_what_is_in_flight(cluster: Any, device: Threads) -> None:
    def body(comm: pccl.Communicator) -> None:
        if comm.rank == 0:
            work = comm.all_reduce(far(filled(0, LARGE)), async_op=True)
            comm.close()
            with pytest.raises(pccl.Closed):
                work.wait()
            with pytest.raises(pccl.Closed):
                comm.all_reduce(far(torch.ones(3)))

    cluster(2, body, min_peers=1, together=False)


REFUSED: dict[str, tuple[Callable[[pccl.Communicator], object], str]] = {
    "meta": (lambda comm: comm.all_reduce(torch.zeros(3, device="meta")), "tensor: the tensor is on meta; only"),
    "mixed": (
        lambda comm: comm.all_reduce([far(torch.ones(3)), torch.ones(3)]),
        r"tensor\[1\] is on cpu, the first on priv",
    ),
    "no tensor": (lambda comm: comm.all_reduce([far(torch.ones(3)), 5]), r"tensor\[1\]: a int among"),
    "dtype": (lambda comm: comm.all_reduce(far(torch.zeros(3, dtype=torch.complex64))), "tensor: dtype complex64"),
    "out": (lambda comm: comm.all_reduce(far(torch.ones(3)), out=torch.ones(3)), r"out is on cpu"),
    "size": (lambda comm: comm.all_reduce(far(torch.ones(3)), out=far(torch.ones(4))), "out must hold 3 elements"),
    "list": (lambda comm: comm.all_reduce([far(torch.ones(3))], out=[]), "out must be a list of 1 tensors"),
    "expanded": (lambda comm: comm.all_reduce(far(torch.ones(1)).expand(3)), "elements of the tensor share memory"),
    "op": (lambda comm: comm.all_reduce(far(torch.ones(3, dtype=torch.int32)), op="avg"), "op='avg' does not exist"),
    "codec": (lambda comm: comm.all_reduce(far(torch.ones(3).double()), codec="bf16"), "codec 'bf16' is for float32"),
    "broadcast": (lambda comm: comm.broadcast(far(torch.ones(3))), "the tensor is on privateuseone:0, and only"),
    "all_gather": (lambda comm: comm.all_gather(far(torch.ones(3))), "the tensor is on privateuseone:0, and only"),
}


def test_what_cannot_be_staged_is_named(cluster: Any, device: Threads) -> None:
    def body(comm: pccl.Communicator) -> None:
        for call, words in REFUSED.values():
            with pytest.raises((TypeError, pccl.ArgumentError), match=words):
                call(comm)

    cluster(1, body)


# -- process groups --------------------------------------------------------------------------------------------------


def groups(size: int, body: Callable[[pccl.torch.ProcessGroup, int], Any], **options: Any) -> list[Any]:
    """Runs a function on all ranks of a group, each a thread."""
    store = dist.HashStore()
    found: dict[int, Any] = {}
    errors: list[BaseException] = []

    def rank_of(rank: int) -> None:
        group = pccl.torch.ProcessGroup(options=pccl.torch.Options(**options))
        try:
            group.configure(store, rank, size)
            found[rank] = body(group, rank)
            group.barrier(dist.BarrierOptions()).wait()
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            errors.append(error)
        finally:
            group.shutdown()

    threads = [threading.Thread(target=rank_of, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    if errors:
        raise errors[0]
    assert len(found) == size
    return [found[rank] for rank in range(size)]


def with_op(kind: type, op: Any) -> Any:
    opts = kind()
    opts.reduceOp = op
    return opts


def rooted(kind: type, root: int) -> Any:
    opts = kind()
    opts.rootRank = root
    return opts


Place = Callable[[torch.Tensor], torch.Tensor]


def reductions(group: Any, rank: int, size: int, count: int, dtype: torch.dtype, put: Place) -> list[torch.Tensor]:
    """What the reducing collectives give."""
    op, made = dist.ReduceOp, []
    for name in (op.SUM, op.MAX, *((op.AVG,) if dtype.is_floating_point else (op.BXOR,))):
        tensor = put(filled(rank, count, dtype))
        group.allreduce([tensor], with_op(dist.AllreduceOptions, name)).wait()
        out = put(torch.zeros(count, dtype=dtype))
        source = put(filled(rank, count * size, dtype))
        group._reduce_scatter_base(out, source, with_op(dist.ReduceScatterOptions, name)).wait()
        rows = [put(filled(rank + k, count, dtype)) for k in range(size)]
        listed = put(torch.zeros(count, dtype=dtype))
        group.reduce_scatter([listed], [rows], with_op(dist.ReduceScatterOptions, name)).wait()
        made += [tensor, out, listed]
    reduced = put(filled(rank, count, dtype))
    opts = rooted(dist.ReduceOptions, size - 1)
    group.reduce([reduced], opts).wait()
    many = [put(filled(rank, count, dtype)), put(filled(rank + 1, 3, dtype))]
    group.allreduce_coalesced(many, with_op(dist.AllreduceCoalescedOptions, op.SUM)).wait()
    return [*made, reduced, *many]


def moves(group: Any, rank: int, size: int, count: int, dtype: torch.dtype, put: Place) -> list[torch.Tensor]:
    """What the others give; one of them by pieces in place of its output."""
    sent = put(filled(rank, count, dtype))
    group.broadcast([sent], rooted(dist.BroadcastOptions, size - 1)).wait()
    whole = put(torch.zeros(count * size, dtype=dtype))
    group._allgather_base(whole, put(filled(rank, count, dtype)), c10d.AllgatherOptions()).wait()
    placed = put(torch.zeros(count * size, dtype=dtype))
    own = placed.view(size, -1)[rank] if placed.is_contiguous() else placed[rank * count : (rank + 1) * count]
    own.copy_(filled(rank, count, dtype))
    group._allgather_base(placed, own, c10d.AllgatherOptions()).wait()
    outs = [put(torch.zeros(count, dtype=dtype)) for _ in range(size)]
    group.allgather([outs], [put(filled(rank, count, dtype))], c10d.AllgatherOptions()).wait()
    back = put(torch.zeros(count * size, dtype=dtype))
    group.alltoall_base(back, put(filled(rank, count * size, dtype)), [], [], dist.AllToAllOptions()).wait()
    return [sent, whole, placed, *outs, back]


def strided(tensor: torch.Tensor) -> torch.Tensor:
    wide = torch.zeros(2 * tensor.numel(), dtype=tensor.dtype)
    wide[::2] = tensor
    return wide[::2]


@pytest.mark.parametrize("count", [0, 1, 5, 3 * MIB // 2])
@pytest.mark.parametrize("is_strided", [False, True])
def test_groups_give_on_a_device_what_they_give_in_host_memory(device: Threads, count: int, is_strided: bool) -> None:
    size = 3
    dtypes = (torch.float32,) if count > 5 else (torch.float32, torch.bfloat16, torch.int32, torch.bool)

    def body(group: Any, rank: int) -> None:
        for dtype in dtypes:
            for collectives in (reductions, moves):
                expected = collectives(group, rank, size, count, dtype, torch.clone)
                found = collectives(
                    group,
                    rank,
                    size,
                    count,
                    dtype,
                    lambda tensor: far(strided(tensor) if is_strided else tensor.clone()),
                )
                device.mark().synchronize()
                assert len(found) == len(expected)
                for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
                    assert torch.equal(near(ours), theirs), (collectives.__name__, dtype, number)

    groups(size, body)


def test_a_future_gives_the_tensor_and_no_stream_of_the_program_waits(device: Threads) -> None:
    def body(group: Any, rank: int) -> None:
        tensor = far(filled(rank, LARGE))
        work = group.allreduce([tensor], with_op(dist.AllreduceOptions, dist.ReduceOp.SUM))
        (given,) = work.get_future().wait()
        assert given is tensor
        device.sides["back"].mark().synchronize()
        assert torch.equal(near(tensor), total(LARGE, 2))
        assert work.is_completed()
        assert work.is_success()

    groups(2, body)


def test_an_error_of_a_group_is_raised_and_leaves_the_tensor(device: Threads) -> None:
    def body(group: Any, rank: int) -> None:
        tensor = far(filled(rank, LARGE + rank))
        work = group.allreduce([tensor], with_op(dist.AllreduceOptions, dist.ReduceOp.SUM))
        with pytest.raises(dist.DistBackendError, match="MismatchError"):
            work.wait()
        assert torch.equal(settled(device, tensor), filled(rank, LARGE + rank))
        with pytest.raises(dist.DistBackendError, match="MismatchError"):
            group._allgather_base(
                far(torch.zeros(2 * (5 + rank))), far(torch.zeros(5 + rank)), c10d.AllgatherOptions()
            ).wait()

    groups(2, body)
