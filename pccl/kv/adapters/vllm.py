"""vllm.py - vLLM's KVConnector (V1) over a pool: D pulls the cache of a prompt from the engine that has prefilled it.

vLLM loads it by its name:

    --kv-transfer-config '{"kv_connector": "PcclConnector", "kv_connector_module_path": "pccl.kv.adapters.vllm",
        "kv_role": "kv_both", "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"connect": {"address": "tcp://hub:29400", "secret": "...", "group": 3}}}'

What it is told besides: Settings (vllm_orders.py). This file alone needs vllm: nothing of pccl imports it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)

from pccl.errors import ArgumentError
from pccl.kv.adapters.vllm_layout import caches_of, groups_of
from pccl.kv.adapters.vllm_orders import Orders, Settings
from pccl.kv.adapters.vllm_scheduler import Scheduler
from pccl.kv.adapters.vllm_worker import Worker

__all__ = ["PcclConnector", "PcclHandshake", "PcclMetadata"]


@dataclass
class PcclMetadata(KVConnectorMetadata):  # type: ignore[misc]
    """Of one step, from the scheduler to its workers."""

    orders: Orders = field(default_factory=Orders)


@dataclass
class PcclHandshake(KVConnectorHandshakeMetadata):  # type: ignore[misc]
    """Of one worker, to its scheduler: the id of the peer that it is, in hex."""

    peer: str


class PcclConnector(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]
    """One in the scheduler, and one in each worker; see vllm_scheduler.py and vllm_worker.py."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        """Raises ArgumentError for a setting, a group of layers or a way of parallelism that is not known here."""
        super().__init__(vllm_config, role, kv_cache_config)
        settings = Settings.of(vllm_config.kv_transfer_config.kv_connector_extra_config)
        self._settings, self._blocks = settings, kv_cache_config.num_blocks
        self._groups = groups_of(kv_cache_config)
        parallel = vllm_config.parallel_config
        if parallel.pipeline_parallel_size != 1:
            raise ArgumentError(f"pipeline_parallel_size is {parallel.pipeline_parallel_size}: only 1 is known here")
        size = parallel.tensor_parallel_size
        self._shard = parallel.rank % size, size
        model = vllm_config.model_config
        self._model_id = settings.model_id or f"{model.model}@{model.revision or ''}"
        self._layers = settings.load == "layers" and [group.kind for group in self._groups] == ["full"]
        is_scheduler = role == KVConnectorRole.SCHEDULER
        self._scheduler = Scheduler(self._groups, settings.pool, self._layers) if is_scheduler else None
        self._worker = Worker(settings, *self._shard) if role == KVConnectorRole.WORKER else None

    # -- in the workers --

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """Joins the run with these caches. Blocks until it is a member. Raises as `caches_of`, pccl.connect."""
        layout, buffers = caches_of(self._model_id, self._groups, kv_caches, self._blocks, self._shard)
        self._working().register(layout, buffers)

    def get_handshake_metadata(self) -> PcclHandshake:
        """Goes to the scheduler of the same engine."""
        return PcclHandshake(self._working().peer)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Begins what the scheduler wants. Does not block, nor raise."""
        self._working().begin(self._get_connector_metadata().orders, self._layers)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """With `load` "layers": blocks until this layer of what the step loads is there, verified, or will not come.
        Else nothing: requests wait outside of the batch until they are complete.
        """
        self._working().wait_layer(layer_name)

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing: what is computed stays where it is until it is pulled."""

    def wait_for_save(self) -> None:
        """Nothing."""

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Requests that have been pulled from here, or that nobody came for; and those that were pulled, or not."""
        return self._working().finished()

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Of the requests that `get_finished` gave in the same step."""
        return self._working().failed()

    def shutdown(self) -> None:
        """Ends all transfers, and leaves the run."""
        if self._worker is not None:
            self._worker.close()

    # -- in the scheduler --

    def set_xfer_handshake_metadata(self, metadata: dict[int, Any]) -> None:
        """The workers, by their rank."""
        self._scheduling().peers = [metadata[rank].peer for rank in sorted(metadata)]

    def on_new_request(self, request: Any) -> None:
        """See Scheduler.new_request."""
        self._scheduling().new_request(request)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """See Scheduler.matched."""
        return self._scheduling().matched(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """See Scheduler.allocated."""
        self._scheduling().allocated(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> PcclMetadata:
        """For the workers' `start_load_kv`."""
        return PcclMetadata(self._scheduling().take_orders())

    def update_connector_output(self, connector_output: Any) -> None:
        """What the workers' `get_finished` gave."""
        sent, received = connector_output.finished_sending, connector_output.finished_recving
        self._scheduling().ended(sent or (), received or ())

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Of models with one group."""
        return self._scheduling().finished(request, (block_ids,))

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """See Scheduler.finished."""
        return self._scheduling().finished(request, block_ids)

    def _working(self) -> Worker:
        assert self._worker is not None, "this is the scheduler's connector"
        return self._worker

    def _scheduling(self) -> Scheduler:
        assert self._scheduler is not None, "this is a worker's connector"
        return self._scheduler
