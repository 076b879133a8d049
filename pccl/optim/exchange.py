"""exchange.py - how the deltas of a fragment become one mean: what is sent, and what is made of what comes back.

Every contribution travels with a header, gathered beside it: weight, whether it counts, norms. A peer with a NaN or an
infinite value, or with weight 0, contributes zeros and says so; the others divide by the weights of those who took
part, which all of them know alike. Everything is summed in the order of ranks or by the owners of an all-reduce, so the
mean is the same bytes everywhere.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pccl.optim import averages
from pccl.optim.line import Comm, Waits
from pccl.optim.master import Fragment
from pccl.optim.sparse_codec import ErrorFeedback, accumulate, payload_bytes

__all__ = ["Dense", "Exchange", "Header", "Lot", "Radial", "Sparse"]

_HEADER = struct.Struct("<dII")
_FINITE = 1 << 31  # beside the steps


@dataclass(frozen=True, slots=True)
class Header:
    """What a peer says of its contribution. `weight` 0.0: it does not count. `steps`: inner steps that are in it.
    `finite`: False if it was left out for a NaN or an infinity. `replica`: the number that its shards have in common.
    `norms`: per tensor, where the aggregation wants them."""

    weight: float
    steps: int
    finite: bool
    replica: int
    norms: tuple[float, ...] = ()

    def pack(self) -> Tensor:
        """As bytes; the same number on every peer."""
        head = _HEADER.pack(self.weight, self.steps | (_FINITE if self.finite else 0), self.replica)
        data = head + struct.pack(f"<{len(self.norms)}d", *self.norms)
        return torch.frombuffer(bytearray(data), dtype=torch.uint8)

    @classmethod
    def unpack(cls, row: Tensor) -> Header:
        """From bytes of `pack`."""
        data = bytes(row.numpy())
        weight, steps, replica = _HEADER.unpack_from(data)
        norms = struct.unpack(f"<{(len(data) - _HEADER.size) // 8}d", data[_HEADER.size :])
        return cls(weight, steps & ~_FINITE, bool(steps & _FINITE), replica, norms)


@dataclass(slots=True)
class Lot:
    """The buffers of a fragment on its way: this replica's delta, which nothing changes before the mean has landed; the
    mean; what is sent, which belongs to the op until it has ended."""

    delta: Tensor
    mean: Tensor
    weight: float
    sent: Tensor | None = None


class Exchange(Protocol):
    """One way to average the deltas of a fragment."""

    def norms(self, fragment: Fragment, delta: Tensor) -> tuple[float, ...]:
        """What the header says besides the weight; as many numbers for every delta of the fragment."""

    def begin(self, comm: Comm, fragment: Fragment, lot: Lot, **options: Any) -> Waits:
        """Starts the op; again, with the same delta, where one could not be done."""

    def finish(self, fragment: Fragment, lot: Lot, result: Any, headers: Sequence[Header]) -> None:
        """lot.mean <- the average, from the op's result and the participants' headers in the order of its peers."""

    def dropped(self, fragment: Fragment, lot: Lot) -> None:
        """The contribution is in nobody's mean and will not be sent again."""

    def own(self, fragment: Fragment) -> dict[str, Tensor]:
        """What this replica keeps from round to round, for its checkpoint; shared."""


class Dense:
    """The weighted mean, by one all-reduce of the float32 deltas, which the codec may shrink on the wire."""

    def __init__(self, codec: str | None) -> None:
        self._codec = codec

    def norms(self, fragment: Fragment, delta: Tensor) -> tuple[float, ...]:
        return ()

    def begin(self, comm: Comm, fragment: Fragment, lot: Lot, **options: Any) -> Waits:
        lot.sent = _weighed(lot.delta, lot.weight)
        return _reduce(comm, lot, self._codec, options)

    def finish(self, fragment: Fragment, lot: Lot, result: Any, headers: Sequence[Header]) -> None:
        averages.weighted_mean(lot.mean, sum(header.weight for header in headers))

    def dropped(self, fragment: Fragment, lot: Lot) -> None:
        pass

    def own(self, fragment: Fragment) -> dict[str, Tensor]:
        return {}


class Radial:
    """The radial-directional average (arXiv 2604.21428): per tensor the mean of the lengths along the mean of the
    directions. The directions are all-reduced, the lengths travel in the headers."""

    def __init__(self, codec: str | None) -> None:
        self._codec = codec

    def norms(self, fragment: Fragment, delta: Tensor) -> tuple[float, ...]:
        return tuple(averages.norms(delta, fragment.slices()))

    def begin(self, comm: Comm, fragment: Fragment, lot: Lot, **options: Any) -> Waits:
        lot.sent = _weighed(averages.directions(lot.delta, fragment.slices()), lot.weight)
        return _reduce(comm, lot, self._codec, options)

    def finish(self, fragment: Fragment, lot: Lot, result: Any, headers: Sequence[Header]) -> None:
        weights = [header.weight for header in headers]
        averages.radial(lot.mean, fragment.slices(), [header.norms for header in headers], weights)

    def dropped(self, fragment: Fragment, lot: Lot) -> None:
        pass

    def own(self, fragment: Fragment) -> dict[str, Tensor]:
        return {}


class Sparse:
    """SparseLoCo (arXiv 2508.15706): the largest values of every chunk in two bits each; what is left out is kept here
    and added to the next delta. Payloads are gathered; every peer adds them up in the order of ranks."""

    def __init__(self, kept: int, chunk: int, decay: float) -> None:
        self._kept, self._chunk, self._decay = kept, chunk, decay
        self._unsent: dict[int, ErrorFeedback] = {}

    def unsent(self, fragment: Fragment) -> ErrorFeedback:
        """What of a fragment's deltas this peer has not sent."""
        key = id(fragment)
        if key not in self._unsent:
            self._unsent[key] = ErrorFeedback(fragment.numel, self._decay, self._kept, self._chunk)
        return self._unsent[key]

    def norms(self, fragment: Fragment, delta: Tensor) -> tuple[float, ...]:
        return ()

    def begin(self, comm: Comm, fragment: Fragment, lot: Lot, **options: Any) -> Waits:
        if lot.sent is None and lot.weight:
            lot.sent = self.unsent(fragment).compress(lot.delta)
        elif lot.sent is None:  # it counts for nothing: what it has not sent stays where it is
            lot.sent = torch.zeros(payload_bytes(fragment.numel, self._kept, self._chunk), dtype=torch.uint8)
        work: Waits = comm.all_gather(lot.sent, async_op=True, **options)
        return work

    def finish(self, fragment: Fragment, lot: Lot, result: Any, headers: Sequence[Header]) -> None:
        counted = [(row, header.weight) for row, header in zip(result.tensor, headers, strict=True) if header.weight]
        rows, weights = [row for row, _ in counted], [weight for _, weight in counted]
        total = accumulate(rows, weights, fragment.numel, self._kept, self._chunk)
        lot.mean.copy_(averages.weighted_mean(total, sum(weights)))

    def dropped(self, fragment: Fragment, lot: Lot) -> None:
        if lot.sent is not None and lot.weight:
            self.unsent(fragment).give_back(lot.sent)

    def own(self, fragment: Fragment) -> dict[str, Tensor]:
        return {"unsent": self.unsent(fragment).state}


def _reduce(comm: Comm, lot: Lot, codec: str | None, options: dict[str, Any]) -> Waits:
    work: Waits = comm.all_reduce(lot.sent, op="sum", out=lot.mean, codec=codec, async_op=True, **options)
    return work


def _weighed(values: Tensor, weight: float) -> Tensor:
    """What is sent: the values times the weight; zeros for 0, whatever the values are."""
    if weight == 1.0:
        return values
    return torch.zeros_like(values) if weight == 0.0 else values * weight
