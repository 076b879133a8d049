"""Modes, backends, and which classes a backend has."""

from __future__ import annotations

from enum import Enum
from typing import Any


class DisaggregationMode(Enum):
    NULL = "null"
    PREFILL = "prefill"
    DECODE = "decode"


class TransferBackend(Enum):
    NIXL = "nixl"
    FAKE = "fake"


class KVClassType(Enum):
    KVARGS = "kvargs"
    MANAGER = "manager"
    SENDER = "sender"
    RECEIVER = "receiver"
    BOOTSTRAP_SERVER = "bootstrap_server"


def get_kv_class(transfer_backend: TransferBackend, class_type: KVClassType) -> Any:
    if transfer_backend is TransferBackend.FAKE:
        return {KVClassType.SENDER: object}.get(class_type)
    raise ValueError(f"unsupported transfer backend: {transfer_backend}")
