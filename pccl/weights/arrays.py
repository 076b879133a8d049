"""arrays.py - the integers that weights are kept as, as tensors of their dtype."""

from __future__ import annotations

from typing import Any

import numpy as np

from pccl.weights.errors import SchemaError

__all__ = ["as_torch"]


def as_torch(elements: np.ndarray[Any, Any], dtype: str, shape: tuple[int, ...] | None = None) -> Any:
    """A torch tensor of that dtype over the memory of a flat array of unsigned integers; `shape`: None for flat.

    SchemaError for a dtype that torch does not have.
    """
    import torch

    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise SchemaError(f"torch has no dtype {dtype!r}")
    flat = torch.from_numpy(elements.view(np.uint8)).view(kind)
    return flat if shape is None else flat.reshape(shape)
