"""The base classes of SGLang's transfer backends, as its documentation describes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import Any


class StateType(str, Enum):
    """Components of a cache that are no pages of keys and values."""

    MAMBA = "mamba"
    SWA = "swa"


@dataclass
class KVTransferMetric:
    transfer_latency_s: float | None = None
    alloc_latency_s: float | None = None
    transfer_total_bytes: int | None = None


class KVArgs:
    """Fields are set one by one; some are not, in some modes."""

    engine_rank: int
    kv_data_ptrs: list[int]
    kv_data_lens: list[int]
    kv_item_lens: list[int]
    aux_data_ptrs: list[int]
    aux_data_lens: list[int]
    aux_item_lens: list[int]
    state_types: list[StateType]
    state_data_ptrs: list[list[int]]
    state_data_lens: list[list[int]]
    state_item_lens: list[list[int]]
    page_size: int
    system_dp_rank: int | None
    pp_rank: int
    dcp_size: int = 1


class KVPoll:
    Failed = 0
    Bootstrapping = 1
    WaitingForInput = 2
    Transferring = 3
    Success = 4


class BaseKVManager(ABC):
    @abstractmethod
    def __init__(
        self, args: KVArgs, disaggregation_mode: Any, server_args: Any, is_mla_backend: bool | None = False
    ): ...

    @abstractmethod
    def register_to_bootstrap(self) -> None: ...


class BaseKVSender(ABC):
    @abstractmethod
    def __init__(
        self,
        mgr: BaseKVManager,
        bootstrap_addr: str,
        bootstrap_room: int,
        dest_tp_ranks: list[int],
        pp_rank: int,
        req_has_disagg_prefill_dp_rank: bool = False,
    ): ...

    @abstractmethod
    def init(self, num_kv_indices: int, aux_index: int | None = None) -> None: ...

    @abstractmethod
    def send(self, kv_indices: Any, state_indices: list[Any] | None = None, token_position_offset: int = 0) -> None: ...

    def pop_decode_prefix_len(self) -> int:
        return 0

    def should_send_kv_chunk(self, num_pages: int, last_chunk: bool) -> bool:
        return num_pages > 0

    @abstractmethod
    def get_transfer_metric(self) -> KVTransferMetric: ...

    @abstractmethod
    def poll(self) -> int: ...

    @abstractmethod
    def failure_exception(self) -> None: ...

    def clear(self) -> None:
        return None

    def abort(self) -> None:
        return None


class BaseKVReceiver(ABC):
    @abstractmethod
    def __init__(self, mgr: BaseKVManager, bootstrap_addr: str, bootstrap_room: int | None = None): ...

    @abstractmethod
    def init(self, prefill_dp_rank: int) -> None: ...

    @abstractmethod
    def send_metadata(
        self,
        kv_indices: Any,
        aux_index: int | None = None,
        state_indices: list[Any] | None = None,
        decode_prefix_len: int | None = None,
    ) -> None: ...

    @abstractmethod
    def poll(self) -> int: ...

    @abstractmethod
    def failure_exception(self) -> None: ...

    def clear(self) -> None:
        return None

    def abort(self) -> None:
        return None


class BaseKVBootstrapServer(ABC):
    @abstractmethod
    def __init__(self, host: str, port: int): ...
