"""sglang.py - SGLang's disaggregation (its KV managers, senders, receivers and bootstrap server) over pools of pccl.

    PCCL_SGLANG='{"connect": {"address": "tcp://hub:29400", "group": 3}}' \\
        python -m sglang.launch_server --disaggregation-mode prefill --disaggregation-transfer-backend pccl ...

after `install()` has been called in the server's processes (docs/kv_adapters.md says how). This file alone needs
sglang: nothing of pccl imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

from sglang.srt.disaggregation.base.conn import (
    BaseKVBootstrapServer,
    BaseKVManager,
    BaseKVReceiver,
    BaseKVSender,
    KVArgs,
    KVPoll,
    KVTransferMetric,
)

import pccl
import pccl.kv as kv
from pccl.config import sglang_json
from pccl.errors import ArgumentError, PcclError
from pccl.kv.adapters.sglang_bootstrap import Server, fetch, register
from pccl.kv.adapters.sglang_layout import caches_of
from pccl.kv.adapters.sglang_rooms import Receiving, Sending
from pccl.kv.adapters.sglang_settings import Rank, Settings, Topology

__all__ = [
    "PcclKVBootstrapServer",
    "PcclKVManager",
    "PcclKVReceiver",
    "PcclKVSender",
    "install",
    "kv_class",
]

NAME = "pccl"
_REGISTER_S = 30.0
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_POLLS = {
    "failed": KVPoll.Failed,
    "bootstrapping": KVPoll.Bootstrapping,
    "waiting": KVPoll.WaitingForInput,
    "transferring": KVPoll.Transferring,
    "success": KVPoll.Success,
}


class PcclKVManager(BaseKVManager):  # type: ignore[misc]
    """One in each worker: a pool of its caches, in a run that P and D are members of."""

    #: Of SGLang's schedulers: no worker's part is another one's.
    is_dummy_cp_rank = False

    def __init__(
        self, args: Any, disaggregation_mode: Any, server_args: Any, is_mla_backend: bool | None = False
    ) -> None:
        """Joins the run; a worker of P tells the bootstrap server. Blocks until it is done. Raises ArgumentError that
        names the setting, the buffer or the way of parallelism; as pccl.connect; Timeout.
        """
        self.kv_args, self.server_args, self.disaggregation_mode = args, server_args, disaggregation_mode
        self.settings = Settings.of(sglang_json())
        _check(args, server_args, self.settings)
        model_id = self.settings.model_id or f"{server_args.model_path}@{getattr(server_args, 'revision', None) or ''}"
        self.caches = caches_of(args, model_id, server_args.kv_cache_dtype)
        self.dp_rank = getattr(args, "system_dp_rank", None) or 0
        connect = dict(self.settings.connect)
        connect["group"] = int(connect.get("group", 0)) + self.dp_rank * server_args.tp_size + args.engine_rank
        self.comm: pccl.Communicator = pccl.connect(**connect)
        #: What is known of prefill servers, by their address.
        self.prefill_info_table: dict[str, Topology] = {}
        try:
            self.pool = kv.register(
                self.comm,
                self.caches.layout,
                self.caches.buffers,
                name=self.settings.pool,
                early_s=self.settings.deadline_s,
            )
            if disaggregation_mode.value == "prefill":
                self.register_to_bootstrap()
        except BaseException:
            self.comm.close()
            raise

    @property
    def rank(self) -> Rank:
        """What others must know of this worker."""
        args = self.server_args
        return Rank(
            dp_rank=self.dp_rank,
            tp_rank=self.kv_args.engine_rank,
            dp_size=args.dp_size,
            tp_size=args.tp_size,
            peer=self.comm.peer_id.hex(),
            pool=self.settings.pool,
            page_size=self.caches.page_tokens,
            kv_cache_dtype=args.kv_cache_dtype,
            follows_room=args.load_balance_method == "follow_bootstrap_room",
        )

    def register_to_bootstrap(self) -> None:
        """Blocks until the server has this worker, 30 s at most: Timeout."""
        host = (self.server_args.dist_init_addr or "").rpartition(":")[0] or self.server_args.host
        port = self.server_args.disaggregation_bootstrap_port
        register(_ANY_HOST.get(host, host), port, self.rank, _REGISTER_S)

    def try_ensure_parallel_info(self, bootstrap_addr: str) -> bool:
        """Whether the workers of a prefill server are known by now. Asks it if not: blocks for a round trip."""
        if bootstrap_addr not in self.prefill_info_table:
            found = fetch(bootstrap_addr)
            if isinstance(found, str):
                return False
            self.prefill_info_table[bootstrap_addr] = found
        return True

    def close(self) -> None:
        """Ends all transfers, and leaves the run; nothing touches the caches when it returns. Idempotent."""
        self.pool.close()
        self.comm.close()


class _End:
    """What senders and receivers have."""

    kv_mgr: PcclKVManager
    _room: Sending | Receiving

    def poll(self) -> int:
        """A KVPoll; never blocks. Failed and Success: nothing touches the request's memory any more."""
        return int(_POLLS[self._room.stage()])

    @property
    def conclude_state(self) -> int | None:
        """Failed or Success, when it is."""
        found = self.poll()
        return found if found in (KVPoll.Failed, KVPoll.Success) else None

    def abort(self) -> None:
        """Ends it on both sides, at once; `poll` tells when it is. Does not block."""
        self._room.abort("aborted by the engine")

    def failure_exception(self) -> None:
        """Raises why it failed: an EndError or another PcclError. What goes on (another worker has failed) is ended
        before it raises, so that the engine may free the request's memory: blocks for milliseconds.
        """
        self._room.raise_error()

    def clear(self) -> None:
        """Nothing: what has ended is not remembered."""


class PcclKVSender(_End, BaseKVSender):  # type: ignore[misc]
    """P's side of a request."""

    def __init__(
        self,
        mgr: PcclKVManager,
        bootstrap_addr: str,
        bootstrap_room: int,
        dest_tp_ranks: Sequence[int],
        pp_rank: int,
        req_has_disagg_prefill_dp_rank: bool = False,
    ) -> None:
        self.kv_mgr, self.bootstrap_room = mgr, bootstrap_room
        self._room: Sending = Sending(mgr.pool, mgr.caches, mgr.settings, bootstrap_room)

    def pop_decode_prefix_len(self) -> int:
        """Tokens of the prompt that D has already."""
        return self._room.prefix

    def init(self, num_kv_indices: int, aux_index: int | None = None) -> None:
        """So many pages will be sent, and with the last of them slot `aux_index` of what goes with the first token."""
        self._room.init(num_kv_indices, aux_index)

    def should_send_kv_chunk(self, num_pages: int, last_chunk: bool) -> bool:
        """The last one, though it be empty."""
        return num_pages > 0 or last_chunk

    def send(self, kv_indices: Any, state_indices: Sequence[Any] | None = None, token_position_offset: int = 0) -> None:
        """The next pages are computed: they must not be written to before `poll` is terminal. Does not block."""
        self._room.send(kv_indices, state_indices)

    def get_transfer_metric(self) -> Any:
        """Of a request that has succeeded."""
        return KVTransferMetric(transfer_latency_s=self._room.duration_s, transfer_total_bytes=self._room.nbytes)


class PcclKVReceiver(_End, BaseKVReceiver):  # type: ignore[misc]
    """D's side of a request."""

    require_staging = False

    def __init__(self, mgr: PcclKVManager, bootstrap_addr: str, bootstrap_room: int | None = None) -> None:
        self.kv_mgr, self.bootstrap_addr, self.bootstrap_room = mgr, bootstrap_addr, bootstrap_room or 0
        self._peer: bytes | None = None
        self._room: Receiving = Receiving(mgr.pool, mgr.caches, mgr.settings, self.bootstrap_room)

    def init(self, prefill_dp_rank: int) -> None:
        """Finds the worker of P that has the request. Does not block."""
        info = self.kv_mgr.prefill_info_table.get(self.bootstrap_addr)
        why, rank = f"nothing is known of the prefill server {self.bootstrap_addr}", None
        if info is not None:
            ours = self.kv_mgr.rank
            rank, why = info.rank(prefill_dp_rank, ours.tp_rank), info.differs(ours)
            if rank is None and not why:
                why = f"the prefill server has no worker {ours.tp_rank} of replica {prefill_dp_rank}"
        if rank is None or why:
            self._room.fail(kv.TransferFailed(why, op=f"room {self.bootstrap_room}", cause="gone"))
        else:
            self._peer = bytes.fromhex(rank.peer)

    def poll(self) -> int:
        """See _End."""
        found = super().poll()
        return int(KVPoll.Bootstrapping) if found == KVPoll.WaitingForInput and self._peer is None else found

    def send_metadata(
        self,
        kv_indices: Any,
        aux_index: int | None = None,
        state_indices: Sequence[Any] | None = None,
        decode_prefix_len: int | None = None,
    ) -> None:
        """Pages, slot and states to receive into: not to be touched before `poll` is terminal. Does not block."""
        if self._peer is None:
            self._room.fail(PcclError("send_metadata before init"))
        else:
            self._room.begin(self._peer, kv_indices, aux_index, state_indices, decode_prefix_len or 0)

    def clear(self) -> None:
        """A prefill server that is lost is asked again who it is."""
        if self._room.error is not None:
            self.kv_mgr.prefill_info_table.pop(self.bootstrap_addr, None)


class PcclKVBootstrapServer(BaseKVBootstrapServer):  # type: ignore[misc]
    """See sglang_bootstrap.py."""

    def __init__(self, host: str, port: int) -> None:
        self._server = Server(host, port)
        self.port = self._server.port

    def close(self) -> None:
        """Idempotent."""
        self._server.close()


def kv_class(class_type: Any) -> Any:
    """The class for one of SGLang's KVClassType."""
    return {
        "kvargs": KVArgs,
        "manager": PcclKVManager,
        "sender": PcclKVSender,
        "receiver": PcclKVReceiver,
        "bootstrap_server": PcclKVBootstrapServer,
    }[class_type.value]


def install() -> None:
    """Makes "pccl" one of SGLang's transfer backends. To be called in each process of a server before SGLang's
    schedulers are imported, which take these names from `disaggregation.utils`. Idempotent.
    """
    from sglang.srt import server_args
    from sglang.srt.disaggregation import utils

    known = {member.name: member.value for member in utils.TransferBackend}
    if NAME in known.values():
        return
    before = utils.get_kv_class

    def get_kv_class(transfer_backend: Any, class_type: Any) -> Any:
        return kv_class(class_type) if transfer_backend.value == NAME else before(transfer_backend, class_type)

    utils.TransferBackend = Enum("TransferBackend", {**known, NAME.upper(): NAME})  # type: ignore[misc]
    utils.get_kv_class = get_kv_class
    server_args.add_disagg_transfer_backend_choices([NAME])


def _check(args: Any, server_args: Any, settings: Settings) -> None:
    """ArgumentError: this is not known here."""
    if server_args.device != "cpu" and not settings.host_memory:
        raise ArgumentError(f"the caches lie on {server_args.device!r}: pools are made of host memory")
    for name, found in (
        ("pp_size", server_args.pp_size),
        ("attn_cp_size", getattr(server_args, "attn_cp_size", 1)),
        ("dcp_size", getattr(args, "dcp_size", 1)),
    ):
        if found != 1:
            raise ArgumentError(f"{name} is {found}: only 1 is known here")
    if server_args.enable_dp_attention:
        raise ArgumentError("enable_dp_attention is not known here")
