"""vllm_worker.py - the worker's half of the vLLM connector: a pool, what it offers and pulls, and how these ended.

Nothing raises while the engine steps: what cannot begin has failed, and is reported as what fails later. A request is
reported once, when nothing touches its blocks any more.
"""

from __future__ import annotations

import contextlib
import logging

import pccl
import pccl.kv as kv
from pccl.errors import PcclError
from pccl.kv.adapters.vllm_orders import Blocks, Offering, Orders, Pulling, Settings
from pccl.kv.layout import Layout
from pccl.kv.memory import Array

__all__ = ["Worker"]

log = logging.getLogger("pccl.kv.vllm")


class Worker:
    """`rank`: among the `size` workers of the engine."""

    def __init__(self, settings: Settings, rank: int, size: int) -> None:
        self._settings, self._rank, self._size = settings, rank, size
        self._comm: pccl.Communicator | None = None
        self._pool: kv.Pool | None = None
        self._offers: dict[str, kv.Offered] = {}
        self._pulls: dict[str, tuple[kv.Receive, Pulling]] = {}
        self._sent: set[str] = set()
        self._received: set[str] = set()
        self._failed: set[int] = set()
        self._layers: set[str] = set()
        self._step: list[str] = []  # requests whose layers are waited for in this step

    def register(self, layout: Layout, buffers: dict[str, list[Array]]) -> None:
        """Joins the run; blocks until it is a member. Raises as pccl.connect and kv.register."""
        arguments = dict(self._settings.connect)
        arguments["group"] = int(arguments.get("group", 0)) + self._rank
        comm = pccl.connect(**arguments)
        try:
            self._pool = kv.register(comm, layout, buffers, name=self._settings.pool)
        except BaseException:
            comm.close()
            raise
        self._comm = comm
        self._layers = set(layout.layer_index)

    @property
    def peer(self) -> str:
        """Its id, in hex."""
        return self.comm.peer_id.hex()

    @property
    def comm(self) -> pccl.Communicator:
        """Where it is a member."""
        assert self._comm is not None, "register_kv_caches has not been called"
        return self._comm

    @property
    def pool(self) -> kv.Pool:
        """Of the caches that were registered."""
        assert self._pool is not None, "register_kv_caches has not been called"
        return self._pool

    def begin(self, orders: Orders, layers: bool = False) -> None:
        """What the scheduler wants. `layers`: what is pulled is waited for by `wait_layer`. Does not block."""
        for offering in orders.offers:
            self._offer(offering)
        for pulling in orders.pulls:
            if pulling.into:
                self._pull(pulling, layers)
            else:
                self._release(pulling.transfer, pulling.peers[self._rank :: self._size])
        for request in orders.aborts:
            if request in self._pulls:
                self.pool.stop(self._pulls[request][0].transfer_id, kv.State.ABORTED, "the request was aborted")

    def wait_layer(self, layer: str) -> None:
        """Blocks until this layer of all that this step pulls is there, verified; others may not be. What fails is
        known to `failed` after `finished`; its blocks hold anything.
        """
        for name in (layer, f"{layer}.k", f"{layer}.v"):
            for request in self._step if name in self._layers else ():
                receive, _ = self._pulls[request]
                with contextlib.suppress(PcclError):
                    receive.wait_layer(name)

    def finished(self) -> tuple[set[str], set[str]]:
        """Requests whose blocks are not read any more by who pulled them, and those whose pulls have ended, since last
        time. `failed` knows by now which of their blocks did not come. Blocks until the pulls of a step that waited
        for layers have ended: their blocks are in use.
        """
        step, self._step = self._step, []
        for request in step:
            receive, pulling = self._pulls.pop(request)
            receive.wait()
            self._judge(receive, pulling)
        for request, (receive, pulling) in list(self._pulls.items()):
            if receive.done():
                del self._pulls[request]
                self._received.add(request)
                self._judge(receive, pulling)
        for request, offered in list(self._offers.items()):
            if offered.free():
                del self._offers[request]
                self._sent.add(request)
                if offered.cause != "withdrawn":
                    log.warning("nobody has pulled %s: %s", request, offered.cause)
        sent, self._sent = self._sent, set()
        received, self._received = self._received, set()
        return sent, received

    def failed(self) -> set[int]:
        """Blocks that did not come, since last time."""
        failed, self._failed = self._failed, set()
        return failed

    def close(self) -> None:
        """Ends all transfers; nothing touches the caches when it returns. Idempotent."""
        if self._pool is not None:
            self._pool.close()
        if self._comm is not None:
            self._comm.close()

    def _offer(self, offering: Offering) -> None:
        try:
            lease_s = self._settings.lease_s
            self._offers[offering.request] = self.pool.offer(offering.transfer, offering.blocks, lease=lease_s)
        except PcclError as error:
            log.warning("%s cannot be offered: %s", offering.request, error.message)
            self._sent.add(offering.request)

    def _pull(self, pulling: Pulling, layers: bool) -> None:
        try:
            receive = self.pool.pull(
                bytes.fromhex(pulling.peers[self._rank]),
                pulling.transfer,
                pulling.into,
                first=pulling.first,
                deadline=self._settings.deadline_s,
                on_failure="recompute",
            )
        except PcclError as error:
            log.warning("%s cannot be pulled: %s", pulling.request, error.message)
            if not layers:
                self._received.add(pulling.request)
            self._fail(pulling.into)
        else:
            self._pulls[pulling.request] = receive, pulling
            if layers:
                self._step.append(pulling.request)

    def _release(self, transfer: str, peers: list[str]) -> None:
        """Nobody needs what these workers of P offer: a pull of nothing tells them. If it fails, their lease ends."""
        nothing: Blocks = {group.name: [] for group in self.pool.layout.groups}
        for peer in peers:
            try:
                self.pool.pull(bytes.fromhex(peer), transfer, nothing, deadline=self._settings.deadline_s)
            except PcclError as error:
                log.warning("%s is not told that nobody needs %s: %s", peer, transfer, error.message)

    def _judge(self, receive: kv.Receive, pulling: Pulling) -> None:
        """Reports what did not come, and sets P free."""
        got = receive.wait(0)
        if got.committed:
            return
        end, into = got.end, pulling.into
        log.warning("%s did not come: %s (%s) %s", pulling.request, end.state.value, end.cause, end.text)
        if len(into) == 1:  # what came is of use by itself
            ((group, ids),) = into.items()
            self._failed.update(ids[at] for at in got.recompute[group])
        else:
            self._fail(into)
        if end.cause not in ("gone", "lost", "closed"):
            self._release(pulling.transfer, [pulling.peers[self._rank]])

    def _fail(self, into: Blocks) -> None:
        self._failed.update(block for ids in into.values() for block in ids)
