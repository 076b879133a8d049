"""One all-reduce of many tensors: packed by dtype into few ops, and the results written where they belong.

A call becomes *parts*, each one op of the engine: the tensors of one dtype in their order, up to BUCKET_BYTES of them,
copied into memory of their own; a tensor that is alone in its part is read where it lies. Inputs are written to only
when every part has succeeded, so after an error all of them hold what they held. Each part carries a hash of the whole
list: peers whose lists differ in any dtype or shape find out from the first frame.
"""

from __future__ import annotations

import itertools
import threading
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from pccl import _native
from pccl._native import Kind, OpRequest
from pccl.arguments import ALGORITHMS, as_it_is, choice, codec_of, label_of, output_of, redop_of
from pccl.buffers import DTYPE_NAMES, Buffer, as_buffer
from pccl.errors import ArgumentError, PcclError
from pccl.runtime import Op, Runtime
from pccl.work import Work, together

__all__ = ["BUCKET_BYTES", "Described", "Fused", "Part", "digest_of", "in_words", "join", "layout"]

BUCKET_BYTES = 16 << 20
_FLOAT32 = DTYPE_NAMES.index("float32")  # of the op that stands for a list without tensors
_SHAPES_SHOWN = 3
_COPY_HERE_BYTES = 32 << 20  # more is copied by a thread of its own: the control thread has a lease to renew

Described = tuple[tuple[int, tuple[int, ...]], ...]


# -- which tensors travel together -----------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Part:
    """What travels as one op: which tensors of the list, and at which byte each begins."""

    dtype: int
    members: tuple[int, ...]
    offsets: tuple[int, ...]
    nbytes: int


@lru_cache(maxsize=256)
def layout(sizes: tuple[tuple[int, int], ...], bucket_bytes: int = BUCKET_BYTES) -> tuple[Part, ...]:
    """The parts of a list of tensors, given as (dtype, bytes). Pure: equal lists have equal parts.

    Tensors without elements are in none, so that no op can finish without everybody's data. A list of nothing still is
    a call: one op without elements.
    """
    parts: list[tuple[int, list[int], list[int]]] = []
    ends: list[int] = []
    filling: dict[int, int] = {}
    for index, (dtype, nbytes) in enumerate(sizes):
        if not nbytes:
            continue
        place = filling.get(dtype)
        if place is None or ends[place] > bucket_bytes - nbytes:
            place = filling[dtype] = len(parts)
            parts.append((dtype, [], []))
            ends.append(0)
        parts[place][1].append(index)
        parts[place][2].append(ends[place])
        ends[place] += nbytes
    if not parts:
        return (Part(_FLOAT32, (), (), 0),)
    return tuple(Part(dtype, tuple(m), tuple(o), end) for (dtype, m, o), end in zip(parts, ends, strict=True))


@lru_cache(maxsize=256)
def digest_of(described: Described) -> int:
    """Tells lists apart: what the ops of a call carry, so that peers find out."""
    return zlib.crc32(repr(described).encode())


def in_words(described: Described) -> str:
    """So many tensors, the first few of them, and a number that tells lists apart."""
    shown = [f"{DTYPE_NAMES[dtype]}{list(shape)}" for dtype, shape in described[:_SHAPES_SHOWN]]
    more = ["..."] if len(described) > _SHAPES_SHOWN else []
    return f"{len(described)} tensors {digest_of(described):08x}: {', '.join(shown + more)};"


# -- one call --------------------------------------------------------------------------------------------------------


class Fused:
    """One call: its ops, not yet submitted, and where their results go. Making it copies what is packed."""

    def __init__(
        self, tensors: Sequence[Any], out: Any, op: str, algorithm: str, codec: str | None, bucket_bytes: int
    ) -> None:
        """Raises ArgumentError or TypeError, which name the tensor."""
        self.shown = tensors if out is None else out
        self._sources = [
            as_buffer(tensor, writable=out is None, what=f"tensor[{i}]") for i, tensor in enumerate(tensors)
        ]
        self._targets = self._sources if out is None else _outputs(out, self._sources)
        _check_apart(self._sources, self._targets)
        self._wanted = op, algorithm, codec
        self._described: Described = tuple((source.dtype, source.shape) for source in self._sources)
        self._back: list[tuple[int, int, int]] = []
        parts = layout(tuple((source.dtype, source.nbytes) for source in self._sources), bucket_bytes)
        self.ops = [self._op(part, number, len(parts)) for number, part in enumerate(parts)]

    @property
    def back_bytes(self) -> int:
        """How much `write_back` copies."""
        return sum(nbytes for _, _, nbytes in self._back)

    def write_back(self) -> None:
        """Copies the results of all ops to the tensors."""
        if self._back:
            _native.copy_pieces(*zip(*self._back, strict=True))

    def _op(self, part: Part, number: int, count: int) -> Op:
        source = self._packed(part)
        target, pieces = self._target(part, source, count)
        self._back += pieces
        op, algorithm, codec = self._wanted
        request = OpRequest(
            0,
            Kind.ALL_REDUCE,
            part.dtype,
            redop_of(op, source),
            choice("algorithm", algorithm, ALGORITHMS),
            zlib.crc32(f"fused {number}".encode(), digest_of(self._described)),
            source.count,
            source.address,
            target.address,
            codec=codec_of(codec, algorithm, source),
        )
        label = f"{label_of(op, algorithm, codec)} of {in_words(self._described)}"
        shown = [self.shown[index] for index in part.members]
        return Op(request, (source, target), shown, as_it_is, label)

    def _packed(self, part: Part) -> Buffer:
        if len(part.members) == 1:
            return self._sources[part.members[0]]
        members = [self._sources[index] for index in part.members]
        memory = _memory(part, sum(member.count for member in members))
        to = [memory.address + offset for offset in part.offsets]
        _native.copy_pieces(to, [member.address for member in members], [member.nbytes for member in members])
        return memory

    def _target(self, part: Part, source: Buffer, count: int) -> tuple[Buffer, list[tuple[int, int, int]]]:
        """Where the op writes, and what is then to be copied from there. In place only if nothing else can fail."""
        if len(part.members) == 1:
            target = self._targets[part.members[0]]
            if count == 1 or target.address != source.address:
                return target, []
        memory = _memory(part, source.count)
        targets = [self._targets[index] for index in part.members]
        return memory, [
            (target.address, memory.address + offset, target.nbytes)
            for target, offset in zip(targets, part.offsets, strict=True)
        ]


def _memory(part: Part, count: int) -> Buffer:
    array = np.empty(part.nbytes, np.uint8)
    address, hold = _native.pin(array)
    return Buffer(address, part.nbytes, part.dtype, count, (count,), (array, hold))


def _outputs(out: Any, sources: Sequence[Buffer]) -> list[Buffer]:
    if not isinstance(out, list | tuple) or len(out) != len(sources):
        what = f"one of {len(out)}" if isinstance(out, list | tuple) else type(out).__name__
        raise ArgumentError(f"out must be a list of {len(sources)} tensors, one for each input, not {what}")
    return [
        output_of(tensor, source, source.count, f"out[{i}]")
        for i, (tensor, source) in enumerate(zip(out, sources, strict=True))
    ]


def _check_apart(sources: Sequence[Buffer], targets: Sequence[Buffer]) -> None:
    """What is written overlaps nothing else that is written, and no input but its own."""
    order = sorted((i for i, target in enumerate(targets) if target.nbytes), key=lambda i: targets[i].address)
    begins = [targets[i].address for i in order]
    for left, right in itertools.pairwise(order):
        if targets[left].address + targets[left].nbytes > targets[right].address:
            raise ArgumentError(f"tensors {min(left, right)} and {max(left, right)} of the result share memory")
    for i, source in enumerate(sources):
        at = bisect_right(begins, source.address + source.nbytes - 1) - 1 if source.nbytes else -1
        while at >= 0 and begins[at] + targets[order[at]].nbytes > source.address:
            if order[at] != i:
                raise ArgumentError(f"out[{order[at]}] shares memory with tensor[{i}]")
            at -= 1


# -- its end ---------------------------------------------------------------------------------------------------------


def join(runtime: Runtime, call: Fused) -> Work:
    """One Work for all ops of a call that was submitted."""
    tokens = [op.request.token for op in call.ops]
    work = Work(_Owner(runtime, call.ops[0].describe(), tokens), tokens[0])
    _Join(runtime, call, work)
    return work


class _Owner:
    """What the Work asks. Holds no memory of the call's."""

    def __init__(self, runtime: Runtime, words: str, tokens: list[int]) -> None:
        self._runtime = runtime
        self._words = words
        self._tokens = tokens

    def check_pid(self) -> None:
        """Raises ForkError in a forked child."""
        self._runtime.check_pid()

    def describe_token(self, token: int) -> str:
        """The call in words."""
        return self._words

    def waited(self, token: int, begin_ns: int) -> None:
        """A thread was blocked by the call."""
        self._runtime.waited(token, begin_ns)

    def cancel_token(self, token: int) -> bool:
        """Asks the coordinator to settle every op of the call; False if all have ended."""
        asked = [self._runtime.cancel_token(one) for one in self._tokens]
        return any(asked)


class _Join:
    """Waits for the ops, on whichever thread ends them. It, and what they were packed in, live as long as any runs."""

    def __init__(self, runtime: Runtime, call: Fused, work: Work) -> None:
        self._runtime = runtime
        self._call = call
        self._work = work
        self._lock = threading.Lock()
        self._left = len(call.ops)
        self._error: PcclError | None = None
        for op in call.ops:
            op.work._when_done(partial(self._one_ended, op.work))

    def _one_ended(self, work: Work) -> None:
        error = work._error
        with self._lock:
            self._left -= 1
            last = self._left == 0
            is_first = error is not None and self._error is None
            self._error = self._error or error
        if is_first and not last:  # nobody wants the others any more, and peers may never call them
            self._runtime.settle(self._call.ops)
        if last and self._error is not None:
            self._work._resolve(None, self._error)
        elif last and self._call.back_bytes > _COPY_HERE_BYTES:
            threading.Thread(target=self._succeed, name="pccl-write-back").start()
        elif last:
            self._succeed()

    def _succeed(self) -> None:
        self._call.write_back()
        results = tuple(op.work._outcome() for op in self._call.ops)
        self._work._resolve(together(results, self._call.shown), None)
