"""sparse.py - all-reduces of sparse COO tensors: who has how many elements, then all of them to everybody, then a sum.

Two rounds of all-gathers. The first, of a few numbers, is an op like any other and begins with the call. The second has
the size that the first told, so it is begun by a thread of the group's, for one call after the other, in the order of
the calls, which is the same on all ranks. Every rank adds the same tensors in the same order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from queue import SimpleQueue
from typing import Any

import torch

from pccl.errors import MismatchError, PcclError
from pccl.torch.owner import Described
from pccl.torch.staging import as_reduced
from pccl.work import Pending, Work

__all__ = ["Part", "Sparse"]

DIMS_MAX = 16
_HALVES = (torch.float16, torch.bfloat16)
_WHAT = "all_reduce of a sparse tensor"


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank brings: indices of (sparse dimensions, n), values of (n, dense elements), both of this host."""

    indices: torch.Tensor
    values: torch.Tensor
    shape: torch.Size
    dense_dims: int

    @staticmethod
    def of(tensor: torch.Tensor, factor: float | None) -> Part:
        """The tensor's, each index once, times `factor` if there is one. ValueError: it has too many dimensions;
        TypeError: the dtype cannot be reduced.
        """
        if tensor.dim() > DIMS_MAX:
            raise ValueError(f"{_WHAT}: it has {tensor.dim()} dimensions, {DIMS_MAX} at most can be")
        held = tensor.detach().to("cpu").coalesce()
        values = held.values() if factor is None else held.values() * factor
        flat = values.reshape(values.shape[0], values.shape[1:].numel()).contiguous()
        as_reduced(flat.view(-1), _WHAT)
        return Part(held.indices().contiguous(), flat, held.shape, held.dense_dim())

    def described(self) -> torch.Tensor:
        """In numbers: how many elements, and what must be the same on all ranks."""
        shape = [len(self.shape), *self.shape] + [0] * (DIMS_MAX - len(self.shape))
        return torch.tensor([self.values.shape[0], self.dense_dims, *shape])

    def padded(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices and values of so many elements; behind its own are zeros."""
        own = self.values.shape[0]
        indices = self.indices.new_zeros(self.indices.shape[0], count)
        values = self.values.new_zeros(count, self.values.shape[1])
        indices[:, :own], values[:own] = self.indices, self.values
        return indices, values

    def whole(self, indices: torch.Tensor, values: torch.Tensor, count: int) -> torch.Tensor:
        """The tensor of the rank that brought these, of which `count` elements are not padding; halves as float32."""
        dense = self.shape[len(self.shape) - self.dense_dims :]
        values = values[:count].reshape(count, *dense)
        values = values.float() if values.dtype in _HALVES else values
        # What comes from others is looked at: an index that is out of range would write elsewhere.
        return torch.sparse_coo_tensor(indices[:, :count], values, self.shape, is_coalesced=True, check_invariants=True)


class Sparse:
    """Those of one process group."""

    def __init__(self, exchange: Any) -> None:
        self._exchange = exchange
        self._lock = threading.Lock()  # so that jobs are in the order of the first ops
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def all_reduce(self, part: Part, mean: bool, timeout: float | None) -> Pending[torch.Tensor]:
        """Begins one: the sum, or the mean, of all ranks' tensors. MismatchError, later: their shapes differ."""
        ended: Pending[torch.Tensor] = Pending(Described(self._exchange.member, _WHAT), 0)
        mine = part.described()
        told = mine.new_empty(self._exchange.member.size, len(mine))
        with self._lock:
            first = self._exchange.all_gather(mine, told.view(-1), timeout)
            self._jobs.put(lambda: _settle(ended, lambda: self._total(part, first, told, mean, timeout)))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="pccl-sparse", daemon=True)
                self._thread.start()
        return ended

    def close(self) -> None:
        """What is in flight has ended, or ends with an error; the thread goes."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _total(self, part: Part, first: Work, told: torch.Tensor, mean: bool, timeout: float | None) -> torch.Tensor:
        first.wait()
        _check(part, told)
        counts = told[:, 0].tolist()
        mine = part.padded(max(counts))
        rows = [padded.new_empty(len(counts), *padded.shape) for padded in mine]
        works = [
            self._exchange.all_gather(padded.view(-1), row.view(-1), timeout, tag=f"pccl.torch sparse {number}")
            for number, (padded, row) in enumerate(zip(mine, rows, strict=True))
        ]
        for work in works:
            work._ended(None)  # both, so that their tags are free for the next call
        for work in works:
            work.wait()
        total = reduce(torch.add, map(part.whole, *rows, counts))
        return (total / len(counts) if mean else total).to(part.values.dtype)


def _check(part: Part, told: torch.Tensor) -> None:
    """MismatchError unless all ranks brought tensors of one shape."""
    mine = part.described()[1:]
    for rank, row in enumerate(told[:, 1:]):
        if not torch.equal(row, mine):
            dense, dims, *shape = row.tolist()
            raise MismatchError(
                f"{_WHAT}: rank {rank} has the shape {shape[:dims]}, of which {dense} dimensions are dense; "
                f"this rank {list(part.shape)}, of which {part.dense_dims} are"
            )


def _settle(ended: Pending[torch.Tensor], call: Callable[[], torch.Tensor]) -> None:
    """Ends it with what a call gives or raises."""
    try:
        total = call()
    except PcclError as error:
        ended._resolve(None, error)
    except Exception as error:  # noqa: BLE001 - whoever waits gets it
        ended._resolve(None, PcclError(f"{_WHAT}: {error!r}"))
    else:
        ended._resolve(total, None)
