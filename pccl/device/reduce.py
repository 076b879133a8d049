"""reduce.py - an all-reduce of tensors in device memory, as pieces for the pipeline.

Tensors of one dtype are a *ground*: flat memory that is read, and flat memory of the device where results are put until
all have come, so that after an error the tensors hold what they held. That is memory of the tensors' size once more;
none is needed by a call of one piece, nor for an `out` apart from the input. A list, or a tensor that is not
contiguous, is packed into such memory before.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pccl._native import Kind, OpRequest
from pccl.arguments import ALGORITHMS, LOSS, PRIORITIES, as_it_is, choice, codec_of, label_of, redop_of
from pccl.buffers import Buffer, as_buffer, describe
from pccl.device.pieces import cut
from pccl.device.pipeline import Call
from pccl.device.streams import Copies, Device, device_of
from pccl.errors import ArgumentError
from pccl.fused import digest_of, in_words
from pccl.lanes import Tag
from pccl.runtime import Op, Runtime
from pccl.work import Work

__all__ = ["all_reduce"]

Tensors = Sequence[torch.Tensor]


def all_reduce(
    runtime: Runtime,
    tensor: Any,
    out: Any,
    *,
    op: str,
    algorithm: str,
    codec: str | None,
    on_peer_loss: str,
    priority: str,
    tag: Tag,
    timeout: float | None,
) -> Work:
    """See Communicator.all_reduce. ArgumentError or TypeError, which name the tensor, before anything happens."""
    sources, targets = _lists(tensor, out)
    names, places = _names("tensor", tensor), _names("tensor" if out is None else "out", tensor)
    device = _device(dict(zip([*names, *places], [*sources, *targets], strict=True)))
    described = [describe(source, what) for source, what in zip(sources, names, strict=True)]
    wanted = _Wanted(described, op, algorithm, codec, choice("on_peer_loss", on_peer_loss, LOSS))
    wanted.priority = choice("priority", priority, PRIORITIES)
    _check_targets(described, targets, places)
    groups: dict[torch.dtype, list[int]] = {}
    for i, source in enumerate(sources):
        groups.setdefault(source.dtype, []).append(i)
    cuts = {
        dtype: list(cut(sum(sources[i].numel() for i in members), dtype.itemsize)) for dtype, members in groups.items()
    }
    wanted.count = sum(map(len, cuts.values()))
    pieces: list[_Piece] = []
    land: list[tuple[torch.Tensor, torch.Tensor]] = []
    with torch.no_grad():
        for dtype, members in groups.items():
            ground = _Ground([sources[i] for i in members], [targets[i] for i in members], wanted.count == 1)
            pieces += [
                _Piece(wanted, len(pieces) + k, ground.source[s], ground.result[s]) for k, s in enumerate(cuts[dtype])
            ]
            land += ground.land
    call = Call(runtime, device, pieces, land, tensor if out is None else out, wanted.words)
    return runtime.stager().start(call, tag, timeout)


class _Wanted:
    """What all pieces of a call have in common: makes their ops."""

    def __init__(
        self, described: Sequence[Buffer], op: str, algorithm: str, codec: str | None, needs_all: bool
    ) -> None:
        shapes = tuple((buffer.dtype, buffer.shape) for buffer in described)
        self.redop = {buffer.dtype: redop_of(op, buffer) for buffer in described}
        self.codec = {buffer.dtype: codec_of(codec, algorithm, buffer) for buffer in described}
        self.algorithm = choice("algorithm", algorithm, ALGORITHMS)
        self.digest = digest_of(shapes)
        self.words = f"{label_of(op, algorithm, codec)} on a device of {in_words(shapes)}"
        self.needs_all = needs_all
        self.priority = 0
        self.count = 0

    def op(self, buffer: Buffer, number: int) -> Op:
        """The op of one piece, in place."""
        request = OpRequest(
            0,
            Kind.ALL_REDUCE,
            buffer.dtype,
            self.redop[buffer.dtype],
            self.algorithm,
            zlib.crc32(f"piece {number} of {self.count}".encode(), self.digest),
            buffer.count,
            buffer.address,
            buffer.address,
            codec=self.codec[buffer.dtype],
        )
        request.priority = self.priority
        op = Op(request, (buffer,), None, as_it_is, f"{self.words} piece {number} of {self.count}")
        op.needs_all = self.needs_all
        return op


@dataclass(eq=False, slots=True)
class _Piece:
    """See Piece."""

    wanted: _Wanted
    number: int
    source: torch.Tensor
    target: torch.Tensor

    @property
    def nbytes(self) -> int:
        """See Piece."""
        return self.source.numel() * self.source.element_size()

    def out(self, memory: torch.Tensor) -> Copies:
        """See Piece."""
        return ((self._view(memory), self.source),)

    def op(self, memory: torch.Tensor) -> Op:
        """See Piece."""
        return self.wanted.op(as_buffer(self._view(memory), writable=True), self.number)

    def back(self, memory: torch.Tensor) -> Copies:
        """See Piece."""
        return ((self.target, self._view(memory)),)

    def _view(self, memory: torch.Tensor) -> torch.Tensor:
        return memory[: self.nbytes].view(self.source.dtype)


class _Ground:
    """The tensors of one dtype: `source`, `result` (flat), and `land`, the copies that come when all has come."""

    def __init__(self, sources: Tensors, targets: Tensors, is_alone: bool) -> None:
        homes = [target.detach() for target in targets]
        if len(sources) == 1 and _is_plain(sources[0]):
            self.source = sources[0].detach().view(-1)
            apart = homes[0].untyped_storage().data_ptr() != self.source.untyped_storage().data_ptr()
            if _is_plain(homes[0]) and (is_alone or apart):
                self.result, self.land = homes[0].view(-1), []
                return
            self.result = torch.empty_like(self.source)
        else:
            self.source = self.result = torch.cat([source.detach().resolve_neg().reshape(-1) for source in sources])
        parts = torch.split(self.result, [home.numel() for home in homes])
        self.land = [(home, part.view(home.shape)) for home, part in zip(homes, parts, strict=True)]


def _is_plain(tensor: torch.Tensor) -> bool:
    return bool(tensor.is_contiguous() and not tensor.is_neg())


# -- arguments -------------------------------------------------------------------------------------------------------


def _lists(tensor: Any, out: Any) -> tuple[Tensors, Tensors]:
    """The tensors that are read, and those that are written."""
    if not isinstance(tensor, list | tuple):
        return [tensor], [tensor if out is None else out]
    if out is not None and (not isinstance(out, list | tuple) or len(out) != len(tensor)):
        raise ArgumentError(f"out must be a list of {len(tensor)} tensors, one for each input")
    return tensor, tensor if out is None else out


def _names(name: str, given: Any) -> list[str]:
    return [f"{name}[{i}]" for i in range(len(given))] if isinstance(given, list | tuple) else [name]


def _device(tensors: dict[str, Any]) -> Device:
    """Where all of them lie, which are given by their names."""
    first: torch.Tensor | None = None
    for what, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{what}: a {type(tensor).__name__} among tensors of devices")
        first = tensor if first is None else first
        if tensor.device != first.device:
            raise TypeError(f"{what} is on {tensor.device}, the first on {first.device}; all must be on one device")
        device = device_of(tensor, what)
    return device


def _check_targets(described: Sequence[Buffer], targets: Tensors, names: Sequence[str]) -> None:
    for buffer, target, what in zip(described, targets, names, strict=True):
        got = describe(target, what)
        if (got.dtype, got.count) != (buffer.dtype, buffer.count):
            raise ArgumentError(
                f"{what} must hold {buffer.count} elements of {buffer.dtype_name}, not {got.count} of {got.dtype_name}"
            )
        if any(stride == 0 and size > 1 for stride, size in zip(target.stride(), target.shape, strict=True)):
            raise ArgumentError(f"{what}: elements of the tensor share memory (it was expanded); pass .contiguous()")
