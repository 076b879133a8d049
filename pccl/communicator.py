"""The public face: `Communicator`, which `connect` (joining.py) makes.

Every collective has one implementation: it describes the op (buffers, kind, who it cannot do without), the runtime
names and submits it, and the caller either waits here (the default) or takes the Work (`async_op=True`). Options that
all of them share:

`tag`           None: the op is matched with the others' by order: the k-th untagged op since the last `advance()` on
                one peer meets the k-th on every other. A str, bytes or int: matched by name, in any order; a tag can be
                used again once its op has ended here.
`async_op`      True: return a Work at once. The tensors belong to the op until the Work is done.
`timeout`       seconds until the op ends with Timeout on every peer (default: the communicator's `op_timeout`).
`on_peer_loss`  "retry" (default): start again with the survivors, from the preserved input; "raise": end with PeerLost
                on every peer.
`priority`      "high", "normal" (default) or "low": whose data this peer sends first on a link that several ops share,
                segment by segment; of a lower class that waits one segment in 16 still goes. Only what this peer sends
                depends on it; peers need not agree. Not for recv and barrier, which send
                no data.

Tensors are torch CPU tensors, numpy arrays, or anything with DLPack or the buffer protocol; contiguous; float64,
float32, float16, bfloat16, (u)int8 to (u)int64. Any size, 0 included. After an error inputs hold what they held, also
in place; an output that is not the input is undefined (see pccl/errors.py). all_reduce takes CUDA tensors as well, of
any layout; everything else refuses them with TypeError.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from pccl._native import Kind, OpRequest
from pccl.arguments import (
    ALGORITHMS,
    LOSS,
    PRIORITIES,
    AlgorithmName,
    OnPeerLoss,
    PriorityName,
    RedOpName,
    as_it_is,
    choice,
    codec_of,
    label_of,
    output_of,
    redop_of,
    rows_of,
    span_of,
)
from pccl.buffers import Buffer, as_buffer, empty_like, is_away
from pccl.errors import ArgumentError, PeerLost
from pccl.fused import BUCKET_BYTES, Fused, join
from pccl.lanes import Tag
from pccl.runtime import Op, Runtime, left_open, shape_hash
from pccl.sharing import PrefetchReport, Strategy, SyncReport, join_state, prefetch_state, sync_state
from pccl.types import EpochView, PlanInfo
from pccl.work import Result, Work

if TYPE_CHECKING:
    from pccl.device.pipeline import Stager
    from pccl.sharing.depot import Depot
    from pccl.transfer import Transfers

__all__ = ["Communicator"]

Peer = int | bytes

_CLOSE_TIMEOUT_S = 2.0  # for the goodbye, and once more for the engine's thread


class Communicator:
    """This process's membership in one group of a run. Made by `connect`; a context manager; usable from any thread.

    The module's header describes the options that all collectives share. Every collective may raise, besides what it
    names itself: ArgumentError and TypeError (nothing has happened), MismatchError, PeerLost, TooFewPeers, Timeout,
    Cancelled, CoordinatorLost, Evicted, Closed and ForkError. With `async_op=True` what goes wrong in flight is raised
    by the Work.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._finalizer = weakref.finalize(self, left_open, runtime, _CLOSE_TIMEOUT_S)
        self._finalizer.atexit = False

    def __enter__(self) -> Communicator:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        runtime = self._runtime
        if runtime.closed:
            return f"<pccl.Communicator {runtime.peer_id.hex()[:8]} closed>"
        if runtime.control.hosts is not None:
            return f"<pccl.Communicator {runtime.peer_id.hex()[:8]} a guest>"
        where = f"rank {self.rank} of {self.world_size}, epoch {self.epoch}, boundary {self.boundary}"
        return f"<pccl.Communicator {runtime.peer_id.hex()[:8]} {where}>"

    # -- facts -------------------------------------------------------------------------------------------------------

    @property
    def peer_id(self) -> bytes:
        """This peer's id: 16 random bytes, never reused."""
        return self._runtime.peer_id

    @property
    def peers(self) -> tuple[bytes, ...]:
        """Ids of the peers that take part in an op called now, in the order of their ranks, this one included."""
        self._runtime.check_pid()
        with self._runtime.control.lock:
            return self._runtime.view().participants(self._runtime.control.boundary)

    @property
    def rank(self) -> int:
        """Position of this peer in `peers`; -1 if it is no longer a member. Ranks change with the epoch, ids do not."""
        peers = self.peers
        return peers.index(self.peer_id) if self.peer_id in peers else -1

    @property
    def world_size(self) -> int:
        """Number of peers that take part in an op called now."""
        return len(self.peers)

    @property
    def epoch(self) -> int:
        """Number of the membership in which an op called now would run."""
        self._runtime.check_pid()
        return self._runtime.view().epoch

    @property
    def plan(self) -> PlanInfo:
        """How an op called now moves its bytes, the time that this was expected to take, and why it was chosen."""
        self._runtime.check_pid()
        return self._runtime.view().plan

    @property
    def boundary(self) -> int:
        """How many boundaries the run has passed here; a joiner enters at the run's boundary, not at 0."""
        self._runtime.check_pid()
        return self._runtime.control.boundary

    @property
    def entered(self) -> int:
        """The boundary at which this peer entered the run; equal to `boundary` until its first `advance()`."""
        self._runtime.check_pid()
        members = self._runtime.view().members
        return next((member.since for member in members if member.id == self.peer_id), 0)

    @property
    def op_timeout(self) -> float:
        """Default deadline of an op, in seconds."""
        return self._runtime.settings.op_timeout

    @property
    def transfers(self) -> Transfers:
        """Named bytes that this peer offers to others or fetches from them; see pccl.transfer."""
        self._runtime.check()
        return self._runtime.transfers

    @property
    def depot(self) -> Depot:
        """What this peer keeps of its state on offer; for pccl.sharing."""
        return self._runtime.depot()

    def stager(self) -> Stager:
        """Through which tensors of devices go; for pccl.sharing."""
        return self._runtime.stager()

    def stats(self) -> dict[str, Any]:
        """Counters since the communicator was made; "links": one dict per peer; "ops": how many ended, by kind and
        outcome; "waits": how often and how long threads were blocked, by what. Never blocks.
        """
        self._runtime.check()
        engine = self._runtime.engine
        totals = {name: getattr(stats, name) for stats in (engine.stats(),) for name in stats.__slots__}
        links = [{name: getattr(link, name) for name in link.__slots__} for link in engine.links()]
        return {**totals, "links": links, **self._runtime.tally.facts()}

    # -- collectives -------------------------------------------------------------------------------------------------

    @overload
    def all_reduce(
        self, tensor: Any, *, op: RedOpName = ..., out: Any = ..., algorithm: AlgorithmName = ...,
        codec: str | None = ..., tag: Tag = ..., async_op: Literal[False] = ..., timeout: float | None = ...,
        on_peer_loss: OnPeerLoss = ..., priority: PriorityName = ...,
    ) -> Result: ...  # fmt: skip
    @overload
    def all_reduce(
        self, tensor: Any, *, async_op: Literal[True], op: RedOpName = ..., out: Any = ...,
        algorithm: AlgorithmName = ..., codec: str | None = ..., tag: Tag = ..., timeout: float | None = ...,
        on_peer_loss: OnPeerLoss = ..., priority: PriorityName = ...,
    ) -> Work: ...  # fmt: skip
    def all_reduce(
        self,
        tensor: Any,
        *,
        op: RedOpName = "sum",
        out: Any = None,
        algorithm: AlgorithmName = "auto",
        codec: str | None = None,
        tag: Tag = None,
        async_op: bool = False,
        timeout: float | None = None,
        on_peer_loss: OnPeerLoss = "retry",
        priority: PriorityName = "normal",
    ) -> Result | Work:
        """Reduces tensors of one shape and dtype over all peers; every peer gets the same bytes.

        `tensor` may be a list or tuple of tensors, of any dtypes, equal on all peers in number, dtypes and shapes;
        `out` then is one too. They are copied together, by dtype, and travel as one op for every 16 MiB (Result.parts);
        a larger tensor is an op of its own. An error of one is the error of the call, and no input is written before
        all have succeeded: after an error every tensor of the list holds what it held. The options hold for each of the
        ops: a peer lost between two of them has taken part in one and not in the other (result.parts).

        In place, or into `out` (same dtype and size). `op`: "sum", "avg" (floating types only; divides by the number of
        peers that took part), "prod", "min", "max". `algorithm`: "auto" leaves it to the plan; "one_round" (everybody
        sends everything to all) takes the mesh when that would be more than 64 MiB. `codec`: float32 travels as "bf16",
        "fp16", "int8" or "e3m0" (blocks of 256; errors and NaN policy: csrc/codec.h), folded in float32, by the mesh or
        in one round. The result's tensor is `out`, else `tensor`.

        CUDA tensors, all of a call on one device, and on devices on all peers, go by pieces through pinned memory
        (docs/torch.md); Result.parts has their ops. Nothing waits for the device: the op takes what the current stream
        gives, and when the call, or `Work.wait`, returns, it is the current stream of the caller that waits for the
        last copies. A peer lost meanwhile may have taken part in some pieces and not in others, as with a list: where
        that matters take "avg", or on_peer_loss="raise". Raises DeviceError if the device fails.
        """
        if is_away(tensor):
            work = self._all_reduce_staged(
                tensor, out, op=op, algorithm=algorithm, codec=codec, on_peer_loss=on_peer_loss, priority=priority,
                tag=tag, timeout=timeout,
            )  # fmt: skip
            return work if async_op else work.wait()
        if isinstance(tensor, list | tuple):
            work = self._all_reduce_list(
                Fused(tensor, out, op, algorithm, codec, BUCKET_BYTES), on_peer_loss, tag, timeout, priority
            )
            return work if async_op else work.wait()
        source = as_buffer(tensor, writable=out is None)
        target = source if out is None else output_of(out, source, source.count)
        request = self._request(Kind.ALL_REDUCE, source, source, target)
        request.redop = redop_of(op, source)
        request.algorithm = choice("algorithm", algorithm, ALGORITHMS)
        request.codec = codec_of(codec, algorithm, source)
        work = self._submit(
            Op(request, (source, target), tensor if out is None else out, as_it_is, label_of(op, algorithm, codec)),
            on_peer_loss,
            tag,
            timeout,
            priority,
        )
        return work if async_op else work.wait()

    @overload
    def reduce_scatter(
        self, tensor: Any, *, op: RedOpName = ..., out: Any = ..., tag: Tag = ...,
        async_op: Literal[False] = ..., timeout: float | None = ..., on_peer_loss: OnPeerLoss = ...,
        priority: PriorityName = ...,
    ) -> Result: ...  # fmt: skip
    @overload
    def reduce_scatter(
        self, tensor: Any, *, async_op: Literal[True], op: RedOpName = ..., out: Any = ...,
        tag: Tag = ..., timeout: float | None = ..., on_peer_loss: OnPeerLoss = ...,
        priority: PriorityName = ...,
    ) -> Work: ...  # fmt: skip
    def reduce_scatter(
        self,
        tensor: Any,
        *,
        op: RedOpName = "sum",
        out: Any = None,
        tag: Tag = None,
        async_op: bool = False,
        timeout: float | None = None,
        on_peer_loss: OnPeerLoss = "retry",
        priority: PriorityName = "normal",
    ) -> Result | Work:
        """Reduces tensors of one shape over all peers and leaves each peer one span of the flattened result.

        The result's tensor is this peer's span, flat; `offset` is where it begins in the flattened input. The spans of
        all peers cover the input; how they are cut depends on who took part. `out`: scratch of the input's dtype and
        size, of which only the span is written; without it memory is reserved lazily. The input is not changed.
        """
        source = as_buffer(tensor, writable=False)
        whole = empty_like(tensor, source.shape) if out is None else out
        target = output_of(whole, source, source.count)
        request = self._request(Kind.REDUCE_SCATTER, source, source, target)
        request.redop = redop_of(op, source)
        work = self._submit(
            Op(request, (source, target), whole, span_of, f"reduce_scatter {op}"), on_peer_loss, tag, timeout, priority
        )
        return work if async_op else work.wait()

    @overload
    def all_gather(
        self, tensor: Any, *, out: Any = ..., tag: Tag = ..., async_op: Literal[False] = ...,
        timeout: float | None = ..., on_peer_loss: OnPeerLoss = ..., priority: PriorityName = ...,
    ) -> Result: ...  # fmt: skip
    @overload
    def all_gather(
        self, tensor: Any, *, async_op: Literal[True], out: Any = ..., tag: Tag = ...,
        timeout: float | None = ..., on_peer_loss: OnPeerLoss = ..., priority: PriorityName = ...,
    ) -> Work: ...  # fmt: skip
    def all_gather(
        self,
        tensor: Any,
        *,
        out: Any = None,
        tag: Tag = None,
        async_op: bool = False,
        timeout: float | None = None,
        on_peer_loss: OnPeerLoss = "retry",
        priority: PriorityName = "normal",
    ) -> Result | Work:
        """Gives every peer the tensors of all, which must have one shape and dtype.

        The result's tensor has shape (result.world_size, *tensor.shape), rows in the order of `result.peers`. `out`:
        room for (world_size, *tensor.shape) at the time of the call; if peers are lost only its first rows are used.
        """
        source = as_buffer(tensor, writable=False)
        with self._runtime.control.lock:
            world = len(self._participants())
            whole = empty_like(tensor, (world, *source.shape)) if out is None else out
            target = output_of(whole, source, source.count * world)
            request = self._request(Kind.ALL_GATHER, source, source, target)
            work = self._submit(
                Op(request, (source, target), whole, rows_of, "all_gather"), on_peer_loss, tag, timeout, priority
            )
        return work if async_op else work.wait()

    @overload
    def broadcast(
        self, tensor: Any, root: Peer = ..., *, tag: Tag = ..., async_op: Literal[False] = ...,
        timeout: float | None = ..., on_peer_loss: OnPeerLoss = ..., priority: PriorityName = ...,
    ) -> Result: ...  # fmt: skip
    @overload
    def broadcast(
        self, tensor: Any, root: Peer = ..., *, async_op: Literal[True], tag: Tag = ...,
        timeout: float | None = ..., on_peer_loss: OnPeerLoss = ..., priority: PriorityName = ...,
    ) -> Work: ...  # fmt: skip
    def broadcast(
        self,
        tensor: Any,
        root: Peer = 0,
        *,
        tag: Tag = None,
        async_op: bool = False,
        timeout: float | None = None,
        on_peer_loss: OnPeerLoss = "retry",
        priority: PriorityName = "normal",
    ) -> Result | Work:
        """Copies the root's tensor into everybody's, in place. `root`: a rank of the current epoch, or a peer's id.

        Ends with PeerLost on every peer when the root is lost, also where it was called only then: such a call counts,
        as everywhere, so that the next ops meet. The result's tensor is `tensor`.
        """
        with self._runtime.control.lock:
            root_id = self._id("root", root)
            is_root = root_id == self.peer_id
            buffer = as_buffer(tensor, writable=not is_root)
            request = self._request(Kind.BROADCAST, buffer, buffer, buffer, root_id)
            request.root = root_id
            label = f"broadcast from {root_id.hex()[:8]}"
            work = self._submit(
                Op(request, (buffer,), tensor, as_it_is, label, (root_id,)), on_peer_loss, tag, timeout, priority
            )
        return work if async_op else work.wait()

    @overload
    def all_to_all(
        self, tensor: Any, *, out: Any = ..., tag: Tag = ..., async_op: Literal[False] = ...,
        timeout: float | None = ..., on_peer_loss: OnPeerLoss = ..., priority: PriorityName = ...,
    ) -> Result: ...  # fmt: skip
    @overload
    def all_to_all(
        self, tensor: Any, *, async_op: Literal[True], out: Any = ..., tag: Tag = ...,
        timeout: float | None = ..., on_peer_loss: OnPeerLoss = ..., priority: PriorityName = ...,
    ) -> Work: ...  # fmt: skip
    def all_to_all(
        self,
        tensor: Any,
        *,
        out: Any = None,
        tag: Tag = None,
        async_op: bool = False,
        timeout: float | None = None,
        on_peer_loss: OnPeerLoss = "retry",
        priority: PriorityName = "normal",
    ) -> Result | Work:
        """Sends row i of the tensor to the peer of rank i; gives the rows that all peers had for this one.

        `tensor`: shape (world_size, ...) by the ranks at the time of the call. The result's tensor has
        result.world_size rows in the order of `result.peers`; rows for peers that were lost are dropped. `out`: room
        for as many rows as the input; not the input itself.
        """
        source = as_buffer(tensor, writable=False)
        with self._runtime.control.lock:
            peers = self._participants()
            if not source.shape or source.shape[0] != len(peers):
                raise ArgumentError(
                    f"all_to_all wants one row per peer, {len(peers)}, and got a tensor of shape {source.shape}"
                )
            whole = empty_like(tensor, source.shape) if out is None else out
            target = output_of(whole, source, source.count)
            if source.count and target.address == source.address:
                raise ArgumentError("all_to_all cannot work in place")
            request = self._request(Kind.ALL_TO_ALL, source, source, target)
            request.shape = shape_hash(source.shape[1:])
            request.count = source.count // len(peers)
            request.origin = peers
            work = self._submit(
                Op(request, (source, target), whole, rows_of, "all_to_all"), on_peer_loss, tag, timeout, priority
            )
        return work if async_op else work.wait()

    # -- point to point, barrier -------------------------------------------------------------------------------------

    @overload
    def send(
        self, tensor: Any, dst: Peer, *, tag: Tag = ..., async_op: Literal[False] = ...,
        timeout: float | None = ..., on_peer_loss: OnPeerLoss = ..., priority: PriorityName = ...,
    ) -> Result: ...  # fmt: skip
    @overload
    def send(
        self, tensor: Any, dst: Peer, *, async_op: Literal[True], tag: Tag = ...,
        timeout: float | None = ..., on_peer_loss: OnPeerLoss = ..., priority: PriorityName = ...,
    ) -> Work: ...  # fmt: skip
    def send(
        self,
        tensor: Any,
        dst: Peer,
        *,
        tag: Tag = None,
        async_op: bool = False,
        timeout: float | None = None,
        on_peer_loss: OnPeerLoss = "retry",
        priority: PriorityName = "normal",
    ) -> Result | Work:
        """Sends a tensor to one peer, which must call `recv` with a tensor of the same shape and dtype.

        Untagged transfers of one direction between two peers are matched by order. The sender succeeds when the
        receiver has everything. The loss of either ends it with PeerLost; there is nobody to retry with. The result's
        tensor is None.
        """
        buffer = as_buffer(tensor, writable=False)
        request = self._request(Kind.SEND_RECV, buffer, buffer, None)
        work = self._transfer(
            lambda *pair: _transfer_op(request, buffer, None, pair), dst, True, on_peer_loss, tag, timeout, priority
        )
        return work if async_op else work.wait()

    @overload
    def recv(
        self, tensor: Any, src: Peer, *, tag: Tag = ..., async_op: Literal[False] = ...,
        timeout: float | None = ..., on_peer_loss: OnPeerLoss = ...,
    ) -> Result: ...  # fmt: skip
    @overload
    def recv(
        self, tensor: Any, src: Peer, *, async_op: Literal[True], tag: Tag = ...,
        timeout: float | None = ..., on_peer_loss: OnPeerLoss = ...,
    ) -> Work: ...  # fmt: skip
    def recv(
        self,
        tensor: Any,
        src: Peer,
        *,
        tag: Tag = None,
        async_op: bool = False,
        timeout: float | None = None,
        on_peer_loss: OnPeerLoss = "retry",
    ) -> Result | Work:
        """Receives what one peer sends, into `tensor`; see `send`. The result's tensor is `tensor`. After an error it
        is undefined.
        """
        buffer = as_buffer(tensor, writable=True)
        request = self._request(Kind.SEND_RECV, buffer, None, buffer)
        work = self._transfer(
            lambda *pair: _transfer_op(request, buffer, tensor, pair), src, False, on_peer_loss, tag, timeout
        )
        return work if async_op else work.wait()

    @overload
    def barrier(
        self, *, tag: Tag = ..., async_op: Literal[False] = ..., timeout: float | None = ...,
        on_peer_loss: OnPeerLoss = ...,
    ) -> Result: ...  # fmt: skip
    @overload
    def barrier(
        self, *, async_op: Literal[True], tag: Tag = ..., timeout: float | None = ..., on_peer_loss: OnPeerLoss = ...
    ) -> Work: ...  # fmt: skip
    def barrier(
        self,
        *,
        tag: Tag = None,
        async_op: bool = False,
        timeout: float | None = None,
        on_peer_loss: OnPeerLoss = "retry",
    ) -> Result | Work:
        """Ends when every peer has called it. The result's tensor is None."""
        request = self._request(Kind.BARRIER, None, None, None)
        work = self._submit(Op(request, (), None, as_it_is, "barrier"), on_peer_loss, tag, timeout)
        return work if async_op else work.wait()

    # -- membership and state ----------------------------------------------------------------------------------------

    def enter(self, timeout: float | None = None) -> EpochView:
        """A guest (`connect(enter=False)`) becomes a member, at the others' next boundary; returns the first epoch.
        Blocks at most `timeout` seconds (default: that of `connect`); raises what `connect` does. Of a member: nothing.
        """
        runtime = self._runtime
        runtime.check()
        with runtime.waiting("enter"):
            return runtime.control.enter(runtime.settings.join_timeout if timeout is None else timeout)

    def advance(self, timeout: float | None = None) -> EpochView:
        """Passes a boundary: the point where joiners may enter. Call it once per step, on every peer; returns the epoch
        from here on.

        Costs no round trip when nobody waits to join; ops in flight go on. With fewer peers left than the run asks for
        it waits for joiners, or raises TooFewPeers at once if the communicator was made with too_few="raise". Waits
        until the ops of calls on CUDA tensors have begun; all others have when they are called. Blocks at most
        `timeout` seconds (default: the communicator's `op_timeout`), then raises Timeout without having passed.
        Untagged ops are counted anew from each boundary.
        """
        runtime = self._runtime
        runtime.check()
        settings = runtime.settings
        seconds = settings.op_timeout if timeout is None else timeout
        begin_ns = time.monotonic_ns()
        try:
            runtime.flush(seconds)
            seconds -= (time.monotonic_ns() - begin_ns) / 1e9
            return runtime.control.advance(seconds, wait_for_peers=settings.too_few == "wait")
        finally:
            runtime.waited(0, begin_ns, "advance")

    def sync_state(
        self,
        entries: dict[str, Any],
        strategy: Strategy = "majority",
        allow_drift: Sequence[str] = (),
        *,
        timeout: float | None = None,
    ) -> SyncReport:
        """Makes the entries (tensors, arrays, scalars by name) equal on all peers, moving only the chunks that differ.
        See pccl.sharing.sync_state.
        """
        self._runtime.check()
        with self._runtime.waiting("sync_state"):
            return sync_state(self, entries, strategy, allow_drift, timeout=timeout)

    def prefetch_state(
        self, entries: dict[str, Any], allow_drift: Sequence[str] = (), *, timeout: float | None = None
    ) -> PrefetchReport:
        """A guest fetches what members hold of the entries while these go on, so that its first `sync_state` has little
        to move. See pccl.sharing.prefetch_state.
        """
        self._runtime.check()
        with self._runtime.waiting("prefetch_state"):
            return prefetch_state(self, entries, allow_drift, timeout=timeout)

    def join_state(
        self, entries: dict[str, Any], allow_drift: Sequence[str] = (), *, timeout: float | None = None
    ) -> tuple[PrefetchReport, SyncReport]:
        """A guest fetches the state, enters and synchronises: `prefetch_state`, `enter` and `sync_state` in one call,
        which is faster. See pccl.sharing.join_state.
        """
        self._runtime.check()
        with self._runtime.waiting("join_state"):
            return join_state(self, entries, allow_drift, timeout=timeout)

    def sources(self) -> tuple[bytes, ...]:
        """Ids of the peers that this one can fetch from: of a guest the members, of a member the others."""
        self._runtime.check()
        hosts = self._runtime.control.hosts
        return tuple(peer for peer in self.peers if peer != self.peer_id) if hosts is None else hosts

    def close(self) -> None:
        """Leaves the run. Idempotent; any thread; returns within seconds. Ops in flight end with Closed, their inputs
        restored.
        """
        self._finalizer.detach()
        self._runtime.close(_CLOSE_TIMEOUT_S)

    # -- the inside --------------------------------------------------------------------------------------------------

    def _submit(
        self,
        op: Op,
        on_peer_loss: str,
        tag: Tag,
        timeout: float | None,
        priority: str = "normal",
        pair: tuple[bytes, bytes] | None = None,
    ) -> Work:
        op.needs_all = choice("on_peer_loss", on_peer_loss, LOSS)
        op.request.priority = choice("priority", priority, PRIORITIES)
        return self._runtime.submit(op, tag, pair, timeout)

    def _all_reduce_list(self, call: Fused, on_peer_loss: str, tag: Tag, timeout: float | None, priority: str) -> Work:
        for op in call.ops:
            op.needs_all = choice("on_peer_loss", on_peer_loss, LOSS)
            op.request.priority = choice("priority", priority, PRIORITIES)
        self._runtime.submit_parts(call.ops, tag, timeout)
        return join(self._runtime, call)

    def _all_reduce_staged(self, tensor: Any, out: Any, **options: Any) -> Work:
        from pccl.device.reduce import all_reduce

        return all_reduce(self._runtime, tensor, out, **options)

    def _participants(self) -> tuple[bytes, ...]:
        self._runtime.check()
        return self._runtime.participants()

    def _request(
        self,
        kind: Kind,
        described: Buffer | None,
        source: Buffer | None,
        target: Buffer | None,
        extra: bytes = b"",
    ) -> OpRequest:
        return OpRequest(
            0,
            kind,
            0 if described is None else described.dtype,
            0,
            0,
            shape_hash(() if described is None else described.shape, extra),
            0 if described is None else described.count,
            0 if source is None else source.address,
            0 if target is None else target.address,
        )

    def _id(self, what: str, peer: Peer) -> bytes:
        """The id of a peer given by rank or id, be it a member or not. Raises ArgumentError for what is neither."""
        peers = self._participants()
        if isinstance(peer, bytes):
            if len(peer) != 16:
                raise ArgumentError(f"{what}: a peer's id has 16 bytes, got {len(peer)}")
            return peer
        if not 0 <= peer < len(peers):
            raise ArgumentError(f"{what}: rank {peer} does not exist, the epoch has {len(peers)} peers")
        return peers[peer]

    def _member(self, what: str, peer: Peer) -> bytes:
        """The same of a member. Raises PeerLost for an id that is gone."""
        found = self._id(what, peer)
        if found not in self._participants():
            raise PeerLost(f"{what}: that peer is not a member", peer=found, epoch=self.epoch)
        return found

    def _transfer(
        self,
        op_of: Callable[[bytes, bytes], Op],
        other: Peer,
        sending: bool,
        on_peer_loss: str,
        tag: Tag,
        timeout: float | None,
        priority: str = "normal",
    ) -> Work:
        with self._runtime.control.lock:
            other_id = self._member("dst" if sending else "src", other)
            if other_id == self.peer_id:
                raise ArgumentError("a peer cannot send to itself")
            pair = (self.peer_id, other_id) if sending else (other_id, self.peer_id)
            return self._submit(op_of(*pair), on_peer_loss, tag, timeout, priority, pair)


def _transfer_op(request: OpRequest, buffer: Buffer, tensor: Any, pair: tuple[bytes, bytes]) -> Op:
    request.root, request.target = pair
    return Op(request, (buffer,), tensor, as_it_is, f"send {pair[0].hex()[:8]} -> {pair[1].hex()[:8]}", pair, pair=True)
