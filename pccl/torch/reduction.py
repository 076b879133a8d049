"""reduction.py - what the reductions of torch.distributed are in pccl, by dtype.

On bool a sum, and a maximum, is "or", a product, and a minimum, is "and": results are 0 or 1. PREMUL_SUM is a sum of
what each rank has multiplied by its factor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["BITWISE", "factor_of", "name_of", "sparse_name_of"]

_KINDS: Any = dist.ReduceOp.RedOpType
_NAMES = {
    _KINDS.SUM: "sum",
    _KINDS.AVG: "avg",
    _KINDS.PRODUCT: "prod",
    _KINDS.MIN: "min",
    _KINDS.MAX: "max",
    _KINDS.BAND: "band",
    _KINDS.BOR: "bor",
    _KINDS.BXOR: "bxor",
}
_OF_BOOL = {"sum": "max", "prod": "min"}

#: Folds the rows of a matrix of integers; pccl's engine has none of them.
BITWISE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "band": lambda rows: reduce(torch.bitwise_and, rows),
    "bor": lambda rows: reduce(torch.bitwise_or, rows),
    "bxor": lambda rows: reduce(torch.bitwise_xor, rows),
}


def name_of(op: Any, dtype: torch.dtype, what: str) -> str:
    """pccl's name of the reduction. Raises TypeError if there is none for the dtype, ValueError if there is none."""
    kind = getattr(op, "op", op)
    if kind == _KINDS.PREMUL_SUM:
        if not dtype.is_floating_point:
            raise TypeError(f"{what}: ReduceOp.PREMUL_SUM is for floating types, not {dtype}")
        return "sum"
    name = _NAMES.get(kind)
    if name is None:
        supported = ", ".join([*_NAMES.values(), "premul_sum"])
        raise ValueError(f"{what}: {kind} is not supported (supported: {supported})")
    if dtype.is_floating_point or dtype.is_complex:
        if name in BITWISE:
            raise TypeError(f"{what}: ReduceOp.{name.upper()} is for integers and bool, not {dtype}")
        return name
    if name == "avg":
        raise TypeError(f"{what}: ReduceOp.AVG does not exist for {dtype}: integers have no exact mean")
    return _OF_BOOL.get(name, name) if dtype is torch.bool else name


def sparse_name_of(op: Any, dtype: torch.dtype) -> str:
    """ "sum" or "avg", of sparse tensors. Raises as `name_of`, and TypeError for bool and for other reductions."""
    what = "all_reduce of a sparse tensor"
    name = name_of(op, dtype, what)
    if name not in ("sum", "avg"):
        raise TypeError(
            f"{what}: {getattr(op, 'op', op)} of {dtype} is not there; SUM, AVG and PREMUL_SUM of numbers are"
        )
    return name


def factor_of(op: Any) -> float | None:
    """By what this rank multiplies its tensor before it is added, for PREMUL_SUM; None for other reductions."""
    if getattr(op, "op", op) != _KINDS.PREMUL_SUM:
        return None
    return float(op.__getstate__()[1])  # a number, or a tensor with one
