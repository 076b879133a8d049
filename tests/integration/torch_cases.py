"""One program per collective of torch.distributed, for any backend: what goes in depends on rank and case alone.

Values are small integers, so that sums and products are exact in every dtype and backends must agree to the bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional_collectives

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool)
SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (5,), (4, 3), (2, 0, 3), (70_000,))
ARITHMETIC = ("SUM", "PRODUCT", "MIN", "MAX")
OF_FLOATS = ("AVG", "PREMUL_SUM")
BITS = ("BAND", "BOR", "BXOR")


@dataclass(frozen=True)
class Place:
    """Where a case runs. `strided`: tensors are not contiguous; gloo wants them so. `device`: where they lie."""

    group: Any
    ranks: tuple[int, ...]
    strided: bool = False
    device: str = "cpu"

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group)

    @property
    def size(self) -> int:
        return len(self.ranks)

    def filled(
        self, dtype: torch.dtype, shape: tuple[int, ...], salt: int = 0, rank: int | None = None
    ) -> torch.Tensor:
        """A tensor of this rank's numbers."""
        rank = self.rank if rank is None else rank
        count = torch.Size(shape).numel()
        low = 0 if dtype in (torch.uint8, torch.bool) else -2
        numbers = (torch.arange(count) * 7 + rank * 11 + salt * 5) % 5 + low
        if dtype is torch.bool:
            numbers = numbers > 1
        return self.laid_out(numbers.to(dtype).view(shape))

    def laid_out(self, tensor: torch.Tensor) -> torch.Tensor:
        """With every second element of a larger memory, if so wanted."""
        if not self.strided or not tensor.dim():
            return tensor.clone().to(self.device)
        wide = torch.zeros(*tensor.shape[:-1], tensor.shape[-1] * 2, dtype=tensor.dtype, device=self.device)
        wide[..., ::2] = tensor
        return wide[..., ::2]

    def empty(self, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """Memory for a result."""
        return self.laid_out(torch.zeros(shape, dtype=dtype))

    def reduced(self, op: str, tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """What a reduction is called with. gloo has no PREMUL_SUM: there the sum of what is multiplied already. Factors
        are powers of two, as a number or as a tensor, so that products are exact.
        """
        if op != "PREMUL_SUM":
            return tensor, getattr(dist.ReduceOp, op)
        factor = 0.5**self.rank
        if dist.get_backend(self.group) == "gloo":
            return tensor * factor, dist.ReduceOp.SUM
        return tensor, dist._make_nccl_premul_sum(torch.tensor(factor) if self.rank % 2 else factor)

    def root(self, number: int) -> int:
        """The global rank of a rank of the group."""
        return self.ranks[number]


Case = Callable[[Place], list[torch.Tensor]]


def all_reduce(op: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Case:
    def run(p: Place) -> list[torch.Tensor]:
        tensor, reduction = p.reduced(op, p.filled(dtype, shape))
        dist.all_reduce(tensor, reduction, group=p.group)
        return [tensor]

    return run


def sparse(op: str, dtype: torch.dtype, shape: tuple[int, ...], sparse_dims: int) -> Case:
    """Every rank has another number of elements, rank 0 none; some indices more than once. gloo has neither halves nor
    AVG for them: there halves are float32, and the sum is divided here.
    """

    def run(p: Place) -> list[torch.Tensor]:
        count = 3 * p.rank
        places = [(torch.arange(count) * (5 + dim) + p.rank) % shape[dim] for dim in range(sparse_dims)]
        values = p.filled(dtype, (count, *shape[sparse_dims:])).contiguous()
        is_gloo = dist.get_backend(p.group) == "gloo"
        held = torch.sparse_coo_tensor(
            torch.stack(places), values.float() if is_gloo and dtype.itemsize == 2 else values, shape,
            check_invariants=True,
        )  # fmt: skip
        is_mean = is_gloo and op == "AVG"
        tensor, reduction = p.reduced("SUM" if is_mean else op, held)
        work = dist.all_reduce(tensor, reduction, group=p.group, async_op=True)
        beside = p.filled(dtype, (5,)).contiguous()
        dist.all_reduce(beside, group=p.group)
        work.wait()
        found = tensor.coalesce()
        total = found.values() / p.size if is_mean else found.values()
        return [found.indices(), total.to(dtype), beside]

    return run


def all_reduce_coalesced(op: str, dtype: torch.dtype) -> Case:
    def run(p: Place) -> list[torch.Tensor]:
        called = [p.reduced(op, p.filled(dtype, shape, salt)) for salt, shape in enumerate(((3,), (0,), (2, 5)))]
        with dist.distributed_c10d._coalescing_manager(p.group, async_ops=True) as manager:
            for tensor, reduction in called:
                dist.all_reduce(tensor, reduction, group=p.group)
        manager.wait()
        return [tensor for tensor, _ in called]

    return run


def reduce(op: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Case:
    def run(p: Place) -> list[torch.Tensor]:
        tensor, reduction = p.reduced(op, p.filled(dtype, shape))
        dist.reduce(tensor, p.root(p.size - 1), reduction, group=p.group)
        return [tensor] if p.rank == p.size - 1 else []

    return run


def reduce_scatter(op: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Case:
    def run(p: Place) -> list[torch.Tensor]:
        out = p.empty(dtype, shape)
        called = [p.reduced(op, p.filled(dtype, shape, salt)) for salt in range(p.size)]
        dist.reduce_scatter(out, [tensor for tensor, _ in called], called[0][1], group=p.group)
        return [out]

    return run


def reduce_scatter_tensor(op: str, dtype: torch.dtype, rows: int) -> Case:
    def run(p: Place) -> list[torch.Tensor]:
        out = p.empty(dtype, (rows, 3))
        tensor, reduction = p.reduced(op, p.filled(dtype, (rows * p.size, 3)))
        dist.reduce_scatter_tensor(out, tensor, reduction, group=p.group)
        return [out]

    return run


def reduce_scatter_coalesced(dtype: torch.dtype) -> Case:
    def run(p: Place) -> list[torch.Tensor]:
        outs = [p.empty(dtype, (2,)), p.empty(dtype, (1, 3))]
        inputs = [p.filled(dtype, (2 * p.size,), 1), p.filled(dtype, (p.size, 3), 2)]
        with dist.distributed_c10d._coalescing_manager(p.group, async_ops=True) as manager:
            for out, tensor in zip(outs, inputs, strict=True):
                dist.reduce_scatter_tensor(out, tensor, group=p.group)
        manager.wait()
        return outs

    return run


def broadcast(dtype: torch.dtype, shape: tuple[int, ...]) -> Case:
    def run(p: Place) -> list[torch.Tensor]:
        tensor = p.filled(dtype, shape)
        dist.broadcast(tensor, p.root(p.size - 1), group=p.group)
        return [tensor]

    return run


def all_gather(dtype: torch.dtype, shape: tuple[int, ...]) -> Case:
    def run(p: Place) -> list[torch.Tensor]:
        outs = [p.empty(dtype, shape) for _ in range(p.size)]
        dist.all_gather(outs, p.filled(dtype, shape), group=p.group)
        return outs

    return run


def all_gather_into_tensor(dtype: torch.dtype, rows: int, in_place: bool) -> Case:
    def run(p: Place) -> list[torch.Tensor]:
        out = p.empty(dtype, (rows * p.size, 2))
        tensor = p.filled(dtype, (rows, 2))
        if in_place:
            own = out.narrow(0, rows * p.rank, rows)
            own.copy_(tensor)
            tensor = own
        dist.all_gather_into_tensor(out, tensor, group=p.group)
        return [out]

    return run


def all_gather_coalesced(dtype: torch.dtype) -> Case:
    def run(p: Place) -> list[torch.Tensor]:
        outs = [p.empty(dtype, (2 * p.size,)), p.empty(dtype, (p.size, 3))]
        inputs = [p.filled(dtype, (2,), 1), p.filled(dtype, (1, 3), 2)]
        with dist.distributed_c10d._coalescing_manager(p.group, async_ops=True) as manager:
            for out, tensor in zip(outs, inputs, strict=True):
                dist.all_gather_into_tensor(out, tensor, group=p.group)
        manager.wait()
        return outs

    return run


def gather(dtype: torch.dtype, shape: tuple[int, ...]) -> Case:
    def run(p: Place) -> list[torch.Tensor]:
        outs = [p.empty(dtype, shape) for _ in range(p.size)] if p.rank == 0 else None
        dist.gather(p.filled(dtype, shape), outs, dst=p.root(0), group=p.group)
        return outs or []

    return run


def scatter(dtype: torch.dtype, shape: tuple[int, ...]) -> Case:
    def run(p: Place) -> list[torch.Tensor]:
        out = p.empty(dtype, shape)
        last = p.size - 1
        inputs = [p.filled(dtype, shape, salt) for salt in range(p.size)] if p.rank == last else None
        dist.scatter(out, inputs, src=p.root(last), group=p.group)
        return [out]

    return run


def all_to_all_even(dtype: torch.dtype, rows: int) -> Case:
    def run(p: Place) -> list[torch.Tensor]:
        out = p.empty(dtype, (rows * p.size, 3))
        dist.all_to_all_single(out, p.filled(dtype, (rows * p.size, 3)), group=p.group)
        return [out]

    return run


def all_to_all_uneven(dtype: torch.dtype) -> Case:
    """Rank a sends (a + 2 b) % 3 rows to rank b."""

    def run(p: Place) -> list[torch.Tensor]:
        given = [(p.rank + 2 * other) % 3 for other in range(p.size)]
        taken = [(other + 2 * p.rank) % 3 for other in range(p.size)]
        out = p.empty(dtype, (sum(taken), 2))
        dist.all_to_all_single(out, p.filled(dtype, (sum(given), 2)), taken, given, group=p.group)
        return [out]

    return run


def ring_of_transfers(dtype: torch.dtype, shape: tuple[int, ...]) -> Case:
    """Two tags, received in the other order than sent, and two transfers of each."""

    def run(p: Place) -> list[torch.Tensor]:
        if p.size == 1:
            return []
        to, source = p.root((p.rank + 1) % p.size), p.root((p.rank - 1) % p.size)
        kept = [p.filled(dtype, shape, salt) for salt in range(4)]
        works = [dist.isend(tensor, to, p.group, tag=salt % 2) for salt, tensor in enumerate(kept)]
        outs = [p.empty(dtype, shape) for _ in range(4)]
        works += [dist.irecv(outs[salt], source, p.group, tag=salt % 2) for salt in (1, 3, 0, 2)]
        for work in works:
            work.wait()
        return outs

    return run


def from_anybody(dtype: torch.dtype, shape: tuple[int, ...]) -> Case:
    """Rank 0 takes two messages of each from whoever comes first, then one of each from ranks that it names."""

    def run(p: Place) -> list[torch.Tensor]:
        if p.rank:
            for salt in range(3):
                if salt == 2:
                    dist.barrier(group=p.group)
                dist.send(p.filled(dtype, shape, salt), p.root(0), p.group, tag=3)
            return []
        taken: dict[tuple[int, int], torch.Tensor] = {}
        for _ in range(2 * (p.size - 1)):
            out = p.empty(dtype, shape)
            source = dist.recv(out, None, p.group, tag=3)
            taken[source, sum(rank == source for rank, _ in taken)] = out
        dist.barrier(group=p.group)
        for rank in range(1, p.size):
            taken[p.root(rank), 2] = p.empty(dtype, shape)
            dist.recv(taken[p.root(rank), 2], p.root(rank), p.group, tag=3)
        return [taken[key] for key in sorted(taken)]

    return run


def batch_of_transfers(dtype: torch.dtype) -> Case:
    def run(p: Place) -> list[torch.Tensor]:
        others = [number for number in range(p.size) if number != p.rank]
        outs = [p.empty(dtype, (3,)) for _ in others]
        ops = [dist.P2POp(dist.isend, p.filled(dtype, (3,), other), p.root(other), p.group) for other in others]
        ops += [dist.P2POp(dist.irecv, out, p.root(other), p.group) for out, other in zip(outs, others, strict=True)]
        for work in dist.batch_isend_irecv(ops) if ops else []:
            work.wait()
        return outs

    return run


def functional(p: Place) -> list[torch.Tensor]:
    """What DTensor and compiled programs call."""
    tensor = p.filled(torch.float32, (2 * p.size, 3))
    found = [
        functional_collectives.all_reduce(tensor, "sum", p.group),
        functional_collectives.all_gather_tensor(tensor, 0, p.group),
        functional_collectives.reduce_scatter_tensor(tensor, "sum", 0, p.group),
        functional_collectives.all_to_all_single(tensor, None, None, p.group),
        functional_collectives.broadcast(tensor, p.size - 1, p.group),
        *functional_collectives.all_reduce_coalesced([tensor, tensor + 1], "max", p.group),
    ]
    return [each.wait() if hasattr(each, "wait") else each for each in found]


def objects(p: Place) -> list[torch.Tensor]:
    """Every collective of objects; what they give, as bytes."""
    mine: Any = {"rank": p.rank, "text": "x" * (10 + 100 * p.rank)}
    every: list[Any] = [None] * p.size
    dist.all_gather_object(every, mine, group=p.group)
    gathered: list[Any] | None = [None] * p.size if p.rank == 0 else None
    dist.gather_object(mine, gathered, dst=p.root(0), group=p.group)
    told: list[Any] = [mine, p.rank] if p.rank == p.size - 1 else [None, None]
    dist.broadcast_object_list(told, src=p.root(p.size - 1), group=p.group)
    given: list[Any] = [None]
    dist.scatter_object_list(given, every if p.rank == 0 else None, src=p.root(0), group=p.group)
    dist.barrier(group=p.group)
    return [torch.frombuffer(bytearray(repr((every, gathered, told, given)).encode()), dtype=torch.uint8)]


def cases() -> Iterator[tuple[str, Case]]:
    """All of them, with names."""
    for dtype in FLOATS + INTEGERS:
        ops = ARITHMETIC + (OF_FLOATS if dtype in FLOATS else BITS)
        name = str(dtype).removeprefix("torch.")
        for op, shape in itertools.product(ops, SHAPES):
            yield f"all_reduce {op} {name}{list(shape)}", all_reduce(op, dtype, shape)
        for op in ("SUM",) + (OF_FLOATS if dtype in FLOATS else ()) if dtype is not torch.bool else ():
            for shape, dims in (((7,), 1), ((9, 3), 1), ((4, 6), 2)):
                yield f"all_reduce sparse {op} {name}{list(shape)}", sparse(op, dtype, shape, dims)
        for op in ops:
            yield f"all_reduce_coalesced {op} {name}", all_reduce_coalesced(op, dtype)
            yield f"reduce {op} {name}", reduce(op, dtype, (5,))
            yield f"reduce_scatter {op} {name}", reduce_scatter(op, dtype, (4, 3))
            yield f"reduce_scatter_tensor {op} {name}", reduce_scatter_tensor(op, dtype, 3)
        yield f"reduce_scatter_tensor of nothing {name}", reduce_scatter_tensor("SUM", dtype, 0)
        yield f"reduce_scatter_tensor coalesced {name}", reduce_scatter_coalesced(dtype)
        for shape in SHAPES:
            yield f"broadcast {name}{list(shape)}", broadcast(dtype, shape)
            yield f"all_gather {name}{list(shape)}", all_gather(dtype, shape)
            yield f"gather {name}{list(shape)}", gather(dtype, shape)
            yield f"scatter {name}{list(shape)}", scatter(dtype, shape)
            yield f"send and recv {name}{list(shape)}", ring_of_transfers(dtype, shape)
        for rows, in_place in itertools.product((0, 3, 5000), (False, True)):
            yield f"all_gather_into_tensor {rows} {in_place} {name}", all_gather_into_tensor(dtype, rows, in_place)
        yield f"all_gather_into_tensor coalesced {name}", all_gather_coalesced(dtype)
        for rows in (0, 3, 5000):
            yield f"all_to_all_single {rows} {name}", all_to_all_even(dtype, rows)
        yield f"all_to_all_single uneven {name}", all_to_all_uneven(dtype)
        yield f"recv from any source {name}", from_anybody(dtype, (5,))
        yield f"batch_isend_irecv {name}", batch_of_transfers(dtype)
    yield "broadcast complex64", broadcast(torch.complex64, (5,))
    yield "all_reduce SUM complex64", all_reduce("SUM", torch.complex64, (5,))
    yield "functional", functional
    yield "objects", objects
