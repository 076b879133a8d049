"""reduction.py - what the reductions of torch.distributed are in pccl, by dtype.

On bool a sum, and a maximum, is "or", a product, and a minimum, is "and": results are 0 or 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["BITWISE", "name_of"]

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
    name = _NAMES.get(getattr(op, "op", op))
    if name is None:
        raise ValueError(f"{what}: {getattr(op, 'op', op)} is not supported (supported: {', '.join(_NAMES.values())})")
    if dtype.is_floating_point or dtype.is_complex:
        if name in BITWISE:
            raise TypeError(f"{what}: ReduceOp.{name.upper()} is for integers and bool, not {dtype}")
        return name
    if name == "avg":
        raise TypeError(f"{what}: ReduceOp.AVG does not exist for {dtype}: integers have no exact mean")
    return _OF_BOOL.get(name, name) if dtype is torch.bool else name
