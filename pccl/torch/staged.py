"""staged.py - collectives of process groups on tensors of devices, as pieces for pccl/device/pipeline.py.

Rows are by torch's ranks, as in exchange.py. Results are put into the outputs as they come, so that after an error
these are undefined; where an output is, or may be, an input too they land in memory of their own first.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pccl._native import Kind
from pccl.buffers import Buffer, as_buffer
from pccl.device.pieces import Piece, cut
from pccl.device.pipeline import Call
from pccl.device.streams import Copies, device_of
from pccl.runtime import Op
from pccl.torch.exchange import Exchange, fold
from pccl.torch.reduction import BITWISE
from pccl.torch.staging import all_equal, as_moved, as_reduced, check
from pccl.work import Work

__all__ = ["Staged"]

Tensors = Sequence[torch.Tensor]
MakeOp = Callable[[Buffer, Buffer, int], Op]  # source, target, number of the piece


class Staged:
    """The ops of one process group on tensors of devices; each method starts one and returns its Work."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def broadcast(self, tensor: torch.Tensor, root: int, timeout: float | None) -> Work:
        """From a rank, in place."""
        member = self._exchange.member
        self._exchange.check(may_shrink=True)
        is_root = member.rank == root
        flat, land = (_read(tensor, "broadcast"), []) if is_root else _written(tensor, "broadcast", (tensor,))
        slices = list(cut(flat.numel(), flat.element_size()))

        def op(source: Buffer, target: Buffer, number: int) -> Op:
            made = self._exchange.broadcast_op(target, root)
            made.request.shape = _shape("broadcast", number, len(slices), flat)
            return made

        pieces = [_Broadcast(op, number, flat[s], is_root) for number, s in enumerate(slices)]
        return self._start([tensor], pieces, land, "broadcast", timeout)

    def all_gather(self, tensor: torch.Tensor, outputs: Tensors, timeout: float | None) -> Work:
        """Into a tensor for each rank; the input may be this rank's."""
        all_equal(list(outputs), self._exchange.member.size, tensor, "all_gather: outputs")
        self._exchange.check()
        source = _read(tensor, "all_gather: input")
        rank = self._exchange.member.rank
        if any(_overlap(source, row) and source.data_ptr() != outputs[rank].data_ptr() for row in outputs):
            source = source.clone()
        places = [_written(row, "all_gather: output", ()) for row in outputs]
        slices = list(cut(source.numel(), source.element_size(), len(outputs)))

        def op(own: Buffer, rows: Buffer, number: int) -> Op:
            made = self._exchange.op(Kind.ALL_GATHER, own, rows, own.count, "all_gather")
            made.request.shape = _shape("all_gather", number, len(slices), source)
            return made

        pieces = [_Gather(op, k, source[s], [flat[s] for flat, _ in places], rank) for k, s in enumerate(slices)]
        land = [copy for _, copies in places for copy in copies]
        return self._start([tensor, *outputs], pieces, land, "all_gather", timeout)

    def reduce_scatter(self, rows: Tensors, output: torch.Tensor, op_name: str, timeout: float | None) -> Work:
        """Of a tensor for each rank."""
        self._exchange.check()
        target, land = _written(output, "reduce_scatter: output", rows, as_reduced)
        sources = [_read(row, "reduce_scatter: input", as_reduced) for row in rows]
        slices = list(cut(target.numel(), target.element_size(), 2 * len(rows)))

        def op(source: Buffer, received: Buffer, number: int) -> Op:
            count = source.count // len(rows)
            made = self._exchange.op(Kind.ALL_TO_ALL, source, received, count, "reduce_scatter")
            made.request.shape = _shape(f"reduce_scatter {op_name}", number, len(slices), target)
            return made

        pieces = [
            _Scatter(op, number, [source[s] for source in sources], target[s], op_name)
            for number, s in enumerate(slices)
        ]
        return self._start([output, *rows], pieces, land, "reduce_scatter", timeout)

    def _start(self, tensors: Tensors, pieces: Sequence[Piece], land: Copies, what: str, timeout: float | None) -> Work:
        """TypeError if the tensors are not on one device."""
        first = tensors[0]
        for tensor in tensors:
            if tensor.device != first.device:
                raise TypeError(f"{what}: a tensor is on {tensor.device}, another on {first.device}")
        runtime = self._exchange.comm._runtime
        words = f"{what} on a device of {str(first.dtype).removeprefix('torch.')}{list(first.shape)}"
        call = Call(runtime, device_of(first, what), pieces, land, None, words)
        return runtime.stager().start(call, None, timeout)


# -- pieces ----------------------------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class _Broadcast:
    """See Piece: the root's goes out, the others' come back."""

    make: MakeOp
    number: int
    part: torch.Tensor
    is_root: bool

    @property
    def nbytes(self) -> int:
        """See Piece."""
        return _nbytes(self.part)

    def out(self, memory: torch.Tensor) -> Copies:
        """See Piece."""
        return [(self._view(memory), self.part)] if self.is_root else []

    def op(self, memory: torch.Tensor) -> Op:
        """See Piece."""
        buffer = as_buffer(self._view(memory), writable=True)
        return self.make(buffer, buffer, self.number)

    def back(self, memory: torch.Tensor) -> Copies:
        """See Piece."""
        return [] if self.is_root else [(self.part, self._view(memory))]

    def _view(self, memory: torch.Tensor) -> torch.Tensor:
        return _rows(memory, 0, 1, self.part)[0]


@dataclass(eq=False, slots=True)
class _Gather:
    """See Piece: memory has a row for every rank, of which this rank's goes out and the others' come back."""

    make: MakeOp
    number: int
    source: torch.Tensor
    targets: Tensors
    rank: int

    @property
    def nbytes(self) -> int:
        """See Piece."""
        return _nbytes(self.source) * len(self.targets)

    def out(self, memory: torch.Tensor) -> Copies:
        """See Piece."""
        return [(self._view(memory)[self.rank], self.source)]

    def op(self, memory: torch.Tensor) -> Op:
        """See Piece."""
        rows = self._view(memory)
        return self.make(
            as_buffer(rows[self.rank], writable=False), as_buffer(rows.view(-1), writable=True), self.number
        )

    def back(self, memory: torch.Tensor) -> Copies:
        """See Piece."""
        rows = [(target, row) for target, row in zip(self.targets, self._view(memory), strict=True)]
        own, _ = rows.pop(self.rank)
        return rows if own.data_ptr() == self.source.data_ptr() else [*rows, (own, self.source)]

    def _view(self, memory: torch.Tensor) -> torch.Tensor:
        return _rows(memory, 0, len(self.targets), self.source)


@dataclass(eq=False, slots=True)
class _Scatter:
    """See Piece: memory has what goes to and what comes from every rank; the fold takes the first's place."""

    make: MakeOp
    number: int
    sources: Tensors
    target: torch.Tensor
    op_name: str

    @property
    def nbytes(self) -> int:
        """See Piece."""
        return 2 * len(self.sources) * _nbytes(self.target)

    def out(self, memory: torch.Tensor) -> Copies:
        """See Piece."""
        return list(zip(self._view(memory, 0), self.sources, strict=True))

    def op(self, memory: torch.Tensor) -> Op:
        """See Piece."""
        source, received = (self._view(memory, half).view(-1) for half in (0, 1))
        return self.make(as_buffer(source, writable=False), as_buffer(received, writable=True), self.number)

    def back(self, memory: torch.Tensor) -> Copies:
        """See Piece."""
        folded, received = self._view(memory, 0)[0], self._view(memory, 1)
        if self.op_name in BITWISE:
            folded.copy_(BITWISE[self.op_name](received))
        else:
            fold(received, folded, self.op_name)
        return [(self.target, folded)]

    def _view(self, memory: torch.Tensor, half: int) -> torch.Tensor:
        return _rows(memory, half, len(self.sources), self.target)


# -- memory ----------------------------------------------------------------------------------------------------------


def _rows(memory: torch.Tensor, number: int, count: int, like: torch.Tensor) -> torch.Tensor:
    """One of the matrices in pinned memory, of so many rows, each like a piece."""
    nbytes = count * _nbytes(like)
    return memory[number * nbytes : (number + 1) * nbytes].view(like.dtype).view(count, like.numel())


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _as_moved(flat: torch.Tensor, what: str) -> torch.Tensor:
    return as_moved(flat)


def _read(tensor: torch.Tensor, what: str, as_known: Callable[[Any, str], torch.Tensor] = _as_moved) -> torch.Tensor:
    """The elements of a tensor to read, flat; a view if possible."""
    check(tensor, what)
    return as_known(tensor.detach().resolve_conj().resolve_neg().contiguous().view(-1), what)


def _written(
    tensor: torch.Tensor,
    what: str,
    inputs: Tensors,
    as_known: Callable[[Any, str], torch.Tensor] = _as_moved,
) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    """(where results are put, flat; the copies that bring them home in the end): in the tensor, if it is no input."""
    check(tensor, what)
    home = tensor.detach()
    is_plain = home.is_contiguous() and not home.is_conj() and not home.is_neg()
    if is_plain and not any(_overlap(home, other) for other in inputs):
        return as_known(home.view(-1), what), []
    aside = torch.empty_like(home, memory_format=torch.contiguous_format)
    return as_known(aside.view(-1), what), [(home, aside)]


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether they may share memory."""
    if a.is_contiguous() and b.is_contiguous():
        return a.data_ptr() < b.data_ptr() + _nbytes(b) and b.data_ptr() < a.data_ptr() + _nbytes(a)
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _shape(what: str, number: int, count: int, flat: torch.Tensor) -> int:
    """What peers compare, besides dtype and count."""
    return zlib.crc32(f"{what}: {number} of {count} pieces of {flat.numel()}".encode())
