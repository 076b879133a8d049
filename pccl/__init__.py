"""pccl: collectives for machines that are far apart, come and go, and are tied together by slow, lossy links.

    import pccl

    with pccl.connect("tcp://host:29400", run="llama", secret=...) as comm:
        comm.all_reduce(gradients, op="avg")

Names are imported when they are first used, so that `import pccl` costs little and loads neither the engine nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pccl.communicator import Communicator
    from pccl.errors import (
        ArgumentError,
        AuthError,
        Cancelled,
        Closed,
        CoordinatorLost,
        DeviceError,
        Evicted,
        ForkError,
        HungError,
        MismatchError,
        PcclError,
        PeerLost,
        ProtocolError,
        ResourceError,
        StateError,
        Timeout,
        TlsMissing,
        TooFewPeers,
        TransferError,
    )
    from pccl.joining import connect
    from pccl.sharing import Difference, PrefetchReport, SyncReport, join_state, prefetch_state, sync_state
    from pccl.types import EpochView, MemberInfo, PlanInfo
    from pccl.work import Result, Work

    __version__: str

_HOMES = {
    "pccl.communicator": ("Communicator",),
    "pccl.errors": (
        "ArgumentError",
        "AuthError",
        "Cancelled",
        "Closed",
        "CoordinatorLost",
        "DeviceError",
        "Evicted",
        "ForkError",
        "HungError",
        "MismatchError",
        "PcclError",
        "PeerLost",
        "ProtocolError",
        "ResourceError",
        "StateError",
        "Timeout",
        "TlsMissing",
        "TooFewPeers",
        "TransferError",
    ),
    "pccl.joining": ("connect",),
    "pccl.sharing": ("Difference", "PrefetchReport", "SyncReport", "join_state", "prefetch_state", "sync_state"),
    "pccl.types": ("EpochView", "MemberInfo", "PlanInfo"),
    "pccl.work": ("Result", "Work"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ArgumentError",
    "AuthError",
    "Cancelled",
    "Closed",
    "Communicator",
    "CoordinatorLost",
    "DeviceError",
    "Difference",
    "EpochView",
    "Evicted",
    "ForkError",
    "HungError",
    "MemberInfo",
    "MismatchError",
    "PcclError",
    "PeerLost",
    "PlanInfo",
    "PrefetchReport",
    "ProtocolError",
    "ResourceError",
    "Result",
    "StateError",
    "SyncReport",
    "Timeout",
    "TlsMissing",
    "TooFewPeers",
    "TransferError",
    "Work",
    "__version__",
    "connect",
    "join_state",
    "prefetch_state",
    "sync_state",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        value: Any = metadata.version("pccl")
    elif name in _HOME_OF:
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
    else:
        raise AttributeError(f"module 'pccl' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
