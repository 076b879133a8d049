"""hooks.py - DDP communication hooks: gradients travel as bfloat16, int8 or e3m0, and are summed in float32.

    model.register_comm_hook(None, pccl.torch.hooks.int8)

The state is the process group, None for the default one. Every rank gets the same bytes. Unlike torch's bf16_compress,
nothing is added up in the narrow type: each rank's gradients are encoded once, the owner of a part adds them in float32
and encodes the mean once. Buckets of other dtypes than float32, and sparse ones, travel as they are. e3m0 has 4 bits
for a gradient: it is for outer gradients of DiLoCo rather than for every step; PowerSGD is torch's own and works on
this backend.
DDP reads the annotations of a hook, so that they must not be strings: no `annotations` from the future here.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import GradBucket  # type: ignore[attr-defined]

from pccl.torch.group import ProcessGroup

__all__ = ["NAMES", "bf16", "by_name", "e3m0", "int8"]

NAMES = ("bf16", "int8", "e3m0")


def bf16(group: Any, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Half the bytes; 8 significant bits."""
    return _mean(group, bucket, "bf16")


def int8(group: Any, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """A quarter of the bytes; blocks of 256, by their greatest magnitude."""
    return _mean(group, bucket, "int8")


def e3m0(group: Any, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """An eighth of the bytes: a sign and a power of two, by blocks of 256."""
    return _mean(group, bucket, "e3m0")


def by_name(name: str) -> Callable[[Any, GradBucket], torch.futures.Future[torch.Tensor]]:
    """The hook of that name. Raises ValueError for others."""
    hooks = {"bf16": bf16, "int8": int8, "e3m0": e3m0}
    if name not in hooks:
        raise ValueError(f"no hook {name!r}: it must be one of {', '.join(NAMES)}")
    return hooks[name]


def _mean(state: Any, bucket: GradBucket, codec: str) -> torch.futures.Future[torch.Tensor]:
    group = dist.group.WORLD if state is None else state
    if not isinstance(group, ProcessGroup):
        raise TypeError(f"the hook is for process groups of the backend 'pccl', not {type(group).__name__}")
    gradients = bucket.buffer()
    is_coded = gradients.dtype is torch.float32 and not gradients.is_sparse
    future = group.mean(gradients, codec if is_coded else None).get_future()
    mean: torch.futures.Future[torch.Tensor] = future.then(lambda done: done.value()[0])
    return mean
