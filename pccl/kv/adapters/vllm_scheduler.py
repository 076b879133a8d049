"""vllm_scheduler.py - the scheduler's half of the vLLM connector: which blocks are offered, pulled and let go of. Pure.

A router sends a prompt to P with {"do_remote_decode": True}, and what P's answer says to D, unchanged. P keeps the
blocks of a prompt that has been computed until somebody has pulled them, or its lease is over. D pulls what its own
cache lacks; whoever needs nothing, or goes away, sets P free by a pull of nothing. Nothing here raises for what
requests say: they are served without a transfer, and the log says why.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from pccl.errors import ArgumentError
from pccl.kv.adapters.vllm_layout import Facts
from pccl.kv.adapters.vllm_orders import Offering, Orders, Pulling, Remote

__all__ = ["Scheduler"]

log = logging.getLogger("pccl.kv.vllm")
_DONE = ("FINISHED_LENGTH_CAPPED", "FINISHED_STOPPED")


class Scheduler:
    """`pool`: its name. `layers`: loads are waited for layer by layer, within the step that begins them. `peers`: of
    this engine's workers, once they are known.
    """

    def __init__(self, groups: Sequence[Facts], pool: str, layers: bool = False) -> None:
        self._layers = layers
        self.peers: list[str] = []
        self._groups, self._pool = groups, pool
        self._has_state = any(group.kind == "state" for group in groups)
        self._orders = Orders()
        self._pulling: set[str] = set()
        self._offered: dict[str, str] = {}  # transfer -> request
        self._transfers: dict[str, str] = {}  # request -> transfer

    def new_request(self, request: Any) -> None:
        """Recurrent state is good for exactly the tokens that made it, and D computes the last one: P must not."""
        params = request.kv_transfer_params or {}
        tokens = request.prompt_token_ids
        if self._has_state and params.get("do_remote_decode") and tokens and len(tokens) > 1:
            tokens.pop()
            request._all_token_ids.pop()
            request.num_prompt_tokens -= 1
            request.max_tokens = 1

    def matched(self, request: Any, computed: int) -> tuple[int, bool]:
        """How many tokens more than those P has of the prompt; True: to be loaded while other requests go on."""
        params = request.kv_transfer_params or {}
        remote = _remote(request) if params.get("do_remote_prefill") else None
        count = 0 if remote is None else self._tokens(request, remote) - computed
        return (count, not self._layers) if count > 0 else (0, False)

    def allocated(self, request: Any, blocks: Any, count: int) -> None:
        """So many tokens are to be loaded into these blocks, of which the first hold what is here already."""
        params = request.kv_transfer_params or {}
        if not params.get("do_remote_prefill"):
            return
        params["do_remote_prefill"] = False  # once for each request
        remote = _remote(request)
        if remote is None:
            return
        if not count:
            self._release(request, remote)
            return
        end = self._tokens(request, remote)
        into, first = {}, {}
        for group, ids in zip(self._groups, blocks.get_block_ids(), strict=True):
            part = group.part(ids, end - count, end)
            skipped = max(0, remote.first[group.name] - part.first)
            into[group.name] = part.ids[skipped:]
            first[group.name] = part.first + skipped - remote.first[group.name]
        self._orders.pulls.append(Pulling(request.request_id, remote.transfer_id, remote.peers, into, first))
        if not self._layers:
            self._pulling.add(request.request_id)

    def take_orders(self) -> Orders:
        """What the workers are to begin in this step."""
        orders, self._orders = self._orders, Orders()
        return orders

    def ended(self, sent: Iterable[str], received: Iterable[str]) -> None:
        """What the workers say. What is not known (any more) is nothing."""
        self._pulling.difference_update(received)
        for request in sent:
            transfer = self._transfers.pop(request, None)
            if transfer is not None:
                del self._offered[transfer]

    def finished(self, request: Any, block_ids: Sequence[Sequence[int]]) -> tuple[bool, dict[str, Any] | None]:
        """Whether its blocks are kept until a worker names the request, and what goes to D."""
        params = request.kv_transfer_params or {}
        if params.get("do_remote_prefill"):  # it ended before it had any blocks
            params["do_remote_prefill"] = False
            remote = _remote(request)
            if remote is not None:
                self._release(request, remote)
            return False, None
        if request.request_id in self._pulling:
            self._orders.aborts.append(request.request_id)
            return True, None
        if not params.get("do_remote_decode") or request.status.name not in _DONE:
            return False, None
        return self._offer(request, params, block_ids)

    def _offer(
        self, request: Any, params: dict[str, Any], block_ids: Sequence[Sequence[int]]
    ) -> tuple[bool, dict[str, Any] | None]:
        transfer = params.get("transfer_id") or request.request_id
        if not self.peers or not isinstance(transfer, str) or len(transfer) > 255 or transfer in self._offered:
            log.warning(
                "%s is not offered: no workers are known, or transfer_id is wrong or in use", request.request_id
            )
            return False, None
        tokens: int = request.num_computed_tokens
        parts = {group.name: group.part(ids, 0, tokens) for group, ids in zip(self._groups, block_ids, strict=True)}
        if not any(part.ids for part in parts.values()):
            return False, None
        self._offered[transfer], self._transfers[request.request_id] = request.request_id, transfer
        blocks = {name: part.ids for name, part in parts.items()}
        self._orders.offers.append(Offering(request.request_id, transfer, blocks))
        return True, {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "transfer_id": transfer,
            "peers": self.peers,
            "pool": self._pool,
            "tokens": tokens,
            "first": {name: part.first for name, part in parts.items()},
        }

    def _tokens(self, request: Any, remote: Remote) -> int:
        """So many of the prompt can be had; 0: none, for a reason that the log names."""
        why, tokens = "", min(remote.tokens, int(request.num_prompt_tokens))
        if remote.pool != self._pool or len(remote.peers) != len(self.peers):
            why = f"P has pools {remote.pool!r} in {len(remote.peers)} workers"
        elif set(remote.first) != {group.name for group in self._groups}:
            why = f"P has other groups: {sorted(remote.first)}"
        elif not all(group.covered(remote.first[group.name], tokens) for group in self._groups):
            why = f"P has blocks from {remote.first} on alone"
        elif self._has_state and remote.tokens != request.num_prompt_tokens - 1:
            why = f"P has the state after {remote.tokens} tokens of {request.num_prompt_tokens}"
        if why:
            log.warning("%s is computed here: %s", request.request_id, why)
            return 0
        return self._whole(tokens, request.num_prompt_tokens) if self._layers else tokens

    def _whole(self, tokens: int, prompt: int) -> int:
        """So many can be loaded while the next ones are computed: what comes later must not be written over. A block
        that P has computed to its end of the prompt holds the same as what is computed here.
        """
        size = self._groups[0].block_tokens
        return prompt - 1 if tokens == prompt else tokens // size * size

    def _release(self, request: Any, remote: Remote) -> None:
        self._orders.pulls.append(Pulling(request.request_id, remote.transfer_id, remote.peers, {}, {}))


def _remote(request: Any) -> Remote | None:
    try:
        return Remote.of(request.kv_transfer_params)
    except ArgumentError as error:
        log.warning("%s is computed here: %s", request.request_id, error.message)
        return None
