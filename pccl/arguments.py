"""What the collectives make of their arguments, and what their results show of the memory that the engine wrote.

Every refusal is an ArgumentError that names the argument and what it could be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pccl._native import RedOp
from pccl.buffers import DTYPE_NAMES, Buffer, as_buffer, flat_slice
from pccl.errors import ArgumentError
from pccl.types import Algorithm, Event, Priority

OnPeerLoss = Literal["retry", "raise"]
RedOpName = Literal["sum", "avg", "prod", "min", "max"]
AlgorithmName = Literal["auto", "ring", "mesh", "two_level", "one_round"]
PriorityName = Literal["high", "normal", "low"]

ALGORITHMS = {algorithm.name.lower(): algorithm for algorithm in Algorithm}
LOSS = {"retry": False, "raise": True}
PRIORITIES = {name: Priority[name.upper()] for name in ("high", "normal", "low")}
_REDOPS = {op.name.lower(): op for op in RedOp}
_CODECS = {"none": 0, "bf16": 1, "fp16": 2, "int8": 3, "e3m0": 4}
_FIRST_INTEGER = DTYPE_NAMES.index("int8")


def choice(what: str, value: Any, choices: Mapping[str, Any]) -> Any:
    """What the name stands for."""
    try:
        return choices[value]
    except (KeyError, TypeError):
        raise ArgumentError(f"{what} must be one of {', '.join(map(repr, choices))}, not {value!r}") from None


def redop_of(op: str, source: Buffer) -> RedOp:
    """The reduction, if it exists for the tensor's dtype."""
    redop: RedOp = choice("op", op, _REDOPS)
    if redop == RedOp.AVG and source.dtype >= _FIRST_INTEGER:
        raise ArgumentError(
            f"op='avg' does not exist for {source.dtype_name}: integers have no exact mean; take 'sum' and divide"
        )
    return redop


def codec_of(codec: str | None, algorithm: str, source: Buffer) -> int:
    """Number of the codec, 0 for none, if the tensor can travel so."""
    number: int = choice("codec", codec or "none", _CODECS)
    if number and (source.dtype_name != "float32" or algorithm not in ("auto", "mesh", "one_round")):
        raise ArgumentError(
            f"codec {codec!r} is for float32 by the mesh or in one round, not {source.dtype_name} by {algorithm!r}"
        )
    return number


def label_of(op: str, algorithm: str, codec: str | None) -> str:
    """An all-reduce in words: what the caller asked for."""
    asked = [word for word in (algorithm, codec or "none") if word not in ("auto", "none")]
    return " ".join(["all_reduce", op, *asked])


def output_of(out: Any, source: Buffer, count: int, what: str = "out") -> Buffer:
    """The memory of a result: the input's dtype, exactly `count` elements, the input itself or apart from it."""
    target = as_buffer(out, writable=True, what=what)
    if target.dtype != source.dtype or target.count != count:
        raise ArgumentError(
            f"{what} must hold {count} elements of {source.dtype_name}, not {target.count} of {target.dtype_name}"
        )
    if target.overlaps(source):
        raise ArgumentError(f"{what} overlaps the input without being the same memory")
    return target


# -- results ---------------------------------------------------------------------------------------------------------


def as_it_is(tensor: Any, event: Event) -> Any:
    """The tensor of a result that fills it."""
    return tensor


def rows_of(tensor: Any, event: Event) -> Any:
    """The rows of those who took part."""
    return tensor[: event.member_count]


def span_of(tensor: Any, event: Event) -> Any:
    """This peer's span, flat."""
    return flat_slice(tensor, event.span_offset, event.span_count)
