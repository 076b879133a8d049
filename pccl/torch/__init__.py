"""torch.distributed on pccl: importing this registers the backend "pccl"; `docs/torch.md`.

    import pccl.torch
    torch.distributed.init_process_group("pccl")

Every rank is a peer of one run, whose coordinator rank 0 holds (or PCCL_COORDINATOR names); every process group is a
group of that run, with links of its own.
"""

from __future__ import annotations

import torch.distributed as dist

from pccl.torch import hooks
from pccl.torch.group import Options, ProcessGroup, create

__all__ = ["Options", "ProcessGroup", "hooks"]

dist.Backend.register_backend("pccl", create, extended_api=True, devices=["cpu", "cuda"])
