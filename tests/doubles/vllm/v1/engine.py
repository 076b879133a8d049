"""vLLM's scheduler and a worker, as far as they speak with a connector: a double that makes real steps.

A prompt is computed in one step, every further token in one. What a scheduler gives to a worker is pickled, as between
two processes. Loads that fail are computed (`kv_load_failure_policy="recompute"`).
"""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole, SupportsHMA
from vllm.v1.cache import NULL_BLOCK, Blocks, Model, tensors_of
from vllm.v1.kv_cache_interface import KVCacheConfig, MambaSpec, SlidingWindowSpec
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request, RequestStatus


class Allocated:
    """KVCacheBlocks."""

    def __init__(self, ids: tuple[list[int], ...]) -> None:
        self._ids = ids

    def get_block_ids(self) -> tuple[list[int], ...]:
        return self._ids


class Engine:
    """`connector`: the class, or None for an engine by itself. `configs`: of its workers, by their rank."""

    def __init__(self, configs: list[Any], cache: KVCacheConfig, connector: Any = None) -> None:
        self.cache = cache
        self.blocks = Blocks(cache.num_blocks)
        self.models = [Model(cache, tensors_of(cache), rank) for rank in range(len(configs))]
        self.model = self.models[0]
        self.requests: dict[str, Request] = {}
        self.ids: dict[str, tuple[list[int], ...]] = {}
        self.params: dict[str, Any] = {}
        self.outputs: list[KVConnectorOutput] = []
        self._finished: set[str] = set()
        self._received: set[str] = set()
        self._failed: set[str] = set()
        self._reported: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        self.scheduler: Any = None
        self.workers: list[Any] = []
        if connector is not None:
            self.scheduler = connector(configs[0], KVConnectorRole.SCHEDULER, cache)
            metadata = {}
            for rank, (config, model) in enumerate(zip(configs, self.models, strict=True)):
                self.workers.append(connector(config, KVConnectorRole.WORKER, cache))
                self.workers[-1].register_kv_caches(model.tensors)
                metadata[rank] = self.workers[-1].get_handshake_metadata()
            self.scheduler.set_xfer_handshake_metadata(pickle.loads(pickle.dumps(metadata)))

    def add(self, request_id: str, prompt: list[int], max_tokens: int, params: Any = None) -> Request:
        request = self.requests[request_id] = Request(request_id, prompt, max_tokens, params)
        if self.scheduler is not None:
            self.scheduler.on_new_request(request)
        return request

    def abort(self, request_id: str) -> None:
        request = self.requests[request_id]
        waits = request.status == RequestStatus.WAITING_FOR_REMOTE_KVS and request_id not in self._received
        request.status = RequestStatus.FINISHED_ABORTED
        self._free_request(request, waits)

    def step(self) -> None:
        """One, with or without anything to compute."""
        runs = [request for request in list(self.requests.values()) if self._schedule(request)]
        output = KVConnectorOutput(set(), set())
        data = None if self.scheduler is None else pickle.dumps(self.scheduler.build_connector_meta(None))
        for worker in self.workers:
            worker.bind_connector_metadata(pickle.loads(data))
            worker.start_load_kv(None)
        tokens = {r.request_id: self._compute(r) for r in runs}
        finished, self._finished = self._finished, set()
        for worker in self.workers:
            worker.wait_for_save()
            self._aggregate(worker.get_finished(finished), output)
            output.invalid_block_ids |= worker.get_block_ids_with_load_errors()
            worker.clear_connector_metadata()
        self._update(tokens, output)

    def _aggregate(self, told: tuple[Any, Any], output: KVConnectorOutput) -> None:
        """A request is finished when all workers have said so."""
        for ids, counts, all_said in zip(
            told, self._reported, (output.finished_sending, output.finished_recving), strict=True
        ):
            for request_id in ids or ():
                counts[request_id] += 1
                if counts[request_id] == len(self.workers):
                    del counts[request_id]
                    all_said.add(request_id)

    def _schedule(self, request: Request) -> bool:
        """Whether it is computed in this step."""
        if RequestStatus.is_finished(request.status):
            return False
        if request.status == RequestStatus.WAITING_FOR_REMOTE_KVS:
            if request.request_id not in self._received:
                return False
            self._received.discard(request.request_id)
            self._promote(request)
        if request.status == RequestStatus.WAITING and not self._admit(request):
            return False
        request.status = RequestStatus.RUNNING
        return True

    def _promote(self, request: Request) -> None:
        if request.request_id in self._failed:
            self._failed.discard(request.request_id)
            if not request.num_computed_tokens:
                self._free_ids(request)
                request.status = RequestStatus.WAITING
                return
        elif request.num_computed_tokens == request.num_tokens:
            request.num_computed_tokens -= 1
        request.status = RequestStatus.RUNNING

    def _admit(self, request: Request) -> bool:
        """Gives it blocks; False: it waits for what is loaded into them."""
        known = self._prefix(request)
        local = min(len(known) * self._block_size(), request.num_tokens - 1)
        external, later = 0, False
        if self.scheduler is not None:
            answers = [self.scheduler.get_num_new_matched_tokens(request, local) for _ in range(2)]
            assert answers[0] == answers[1], "asking has no side effects"
            external, later = answers[0]
            assert not later or external > 0
        self._allocate(request, known, local + external)
        if self.scheduler is not None:
            self.scheduler.update_state_after_alloc(request, Allocated(self.ids[request.request_id]), external)
        request.num_computed_tokens = local + external
        if later:
            request.status = RequestStatus.WAITING_FOR_REMOTE_KVS
        return not later

    def _block_size(self) -> int:
        return int(self.cache.kv_cache_groups[0].kv_cache_spec.block_size)

    def _prefix(self, request: Request) -> list[int]:
        """Whole blocks that are here already; models with several groups have none."""
        found: list[int] = []
        while len(self.cache.kv_cache_groups) == 1:
            end = (len(found) + 1) * self._block_size()
            block = self.blocks.find(tuple(request._all_token_ids[:end])) if end <= request.num_tokens else None
            if block is None:
                break
            found.append(self.blocks.hold(block))
        return found

    def _allocate(self, request: Request, known: list[int], computed: int) -> None:
        total = request.num_prompt_tokens + request.max_tokens
        made = []
        for group in self.cache.kv_cache_groups:
            spec = group.kv_cache_spec
            count = 1 if isinstance(spec, MambaSpec) else -(-total // spec.block_size)
            skipped = self._skipped(spec, computed)
            ids = [NULL_BLOCK if at < skipped else self.blocks.take() for at in range(len(known), count)]
            made.append(known + ids)
        self.ids[request.request_id] = tuple(made)

    def _skipped(self, spec: Any, computed: int) -> int:
        """Blocks that neither the last of those tokens needs, which may be computed again, nor any after it."""
        if not isinstance(spec, SlidingWindowSpec):
            return 0
        return max(0, computed - spec.sliding_window) // int(spec.block_size)

    def _compute(self, request: Request) -> int:
        ids = self.ids[request.request_id]
        waits = [worker.wait_for_layer_load for worker in self.workers] or [None] * len(self.models)
        return (
            sum(
                model.run(request._all_token_ids, request.num_computed_tokens, ids, wait)
                for model, wait in zip(self.models, waits, strict=True)
            )
            % 251
        )

    def _update(self, tokens: dict[str, int], output: KVConnectorOutput) -> None:
        self.outputs.append(output)
        for request in self.requests.values():
            if request.status == RequestStatus.WAITING_FOR_REMOTE_KVS:
                self._invalid(request, output.invalid_block_ids)
        for request_id, token in tokens.items():
            if self._usable(self.requests[request_id], output.invalid_block_ids):
                self._ran(self.requests[request_id], token)
        if self.scheduler is not None:
            self.scheduler.update_connector_output(output)
        for request_id in output.finished_recving or ():
            request = self.requests[request_id]
            if request.status == RequestStatus.WAITING_FOR_REMOTE_KVS:
                self._received.add(request_id)
            else:
                assert RequestStatus.is_finished(request.status)
                self._free(request)
        for request_id in output.finished_sending or ():
            assert RequestStatus.is_finished(self.requests[request_id].status)
            self._free(self.requests[request_id])

    def _invalid(self, request: Request, invalid: set[int]) -> None:
        groups = self.ids[request.request_id]
        wrong = [at for ids in groups for at, block in enumerate(ids) if block in invalid]
        if wrong:
            whole = wrong[0] * self._block_size() if len(groups) == 1 else 0
            request.num_computed_tokens = min(request.num_computed_tokens, whole)
            self._failed.add(request.request_id)

    def _usable(self, request: Request, invalid: set[int]) -> bool:
        """Whether what was computed is of use; if not, the next step begins where the load has failed."""
        before = request.num_computed_tokens
        self._invalid(request, invalid)
        failed = request.request_id in self._failed
        self._failed.discard(request.request_id)
        assert not failed or request.num_computed_tokens < before
        return not failed

    def _ran(self, request: Request, token: int) -> None:
        request.num_computed_tokens = request.num_tokens
        if len(self.cache.kv_cache_groups) == 1:
            size = self._block_size()
            for at in range(request.num_tokens // size):
                self.blocks.learn(tuple(request._all_token_ids[: (at + 1) * size]), self.ids[request.request_id][0][at])
        request._all_token_ids.append(token)
        if len(request.output) >= request.max_tokens:
            request.status = RequestStatus.FINISHED_LENGTH_CAPPED
            self._free_request(request, False)

    def _free_request(self, request: Request, delay: bool) -> None:
        self._finished.add(request.request_id)
        ids = self._moved_on(request)
        if self.scheduler is not None:
            if isinstance(self.scheduler, SupportsHMA):
                kept, params = self.scheduler.request_finished_all_groups(request, ids)
            else:
                kept, params = self.scheduler.request_finished(request, ids[0])
            delay = delay or kept
            self.params[request.request_id] = params
        if not delay:
            self._free(request)

    def _moved_on(self, request: Request) -> tuple[list[int], ...]:
        """Its blocks, without those that windows have left."""
        ids = self.ids.get(request.request_id, tuple([] for _ in self.cache.kv_cache_groups))
        for group, mine in zip(self.cache.kv_cache_groups, ids, strict=True):
            for at in range(min(len(mine), self._skipped(group.kv_cache_spec, request.num_computed_tokens))):
                self.blocks.free(mine[at])
                mine[at] = NULL_BLOCK
        return ids

    def _free(self, request: Request) -> None:
        self._free_ids(request)
        del self.requests[request.request_id]

    def _free_ids(self, request: Request) -> None:
        for ids in self.ids.pop(request.request_id, ()):
            for block in ids:
                self.blocks.free(block)
