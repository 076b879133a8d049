"""group.py - the process group: what torch.distributed calls, on what pccl has (exchange.py).

Every method takes the arguments of the C++ interface and returns a Work at once. Contiguous CPU tensors are worked on
where they lie (staging.py); tensors of devices go by pieces where that pays (staged.py), else through host memory as
they are. What pccl has no op for is made of others, see docs/torch.md: a reduce-scatter is an all-to-all and a fold, a
bitwise all-reduce an all-gather and a fold, gather, scatter and an all-to-all of uneven rows are transfers between
pairs.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pccl.buffers import is_away
from pccl.errors import ArgumentError, PcclError
from pccl.torch.exchange import Exchange, OnPeerLoss, fold
from pccl.torch.reduction import BITWISE, factor_of, name_of, sparse_name_of
from pccl.torch.rendezvous import Deadline, Member, Run, enter, open_run, store_at
from pccl.torch.sparse import Part
from pccl.torch.staged import Staged
from pccl.torch.staging import Landing, all_equal, as_moved, as_reduced, check, moved, reduced
from pccl.torch.work import Work, failure

__all__ = ["Options", "ProcessGroup", "create"]

T = TypeVar("T")
Tensors = list[torch.Tensor]

_DEFAULT_TIMEOUT = timedelta(minutes=30)
_live: weakref.WeakSet[ProcessGroup] = weakref.WeakSet()
_run: Run | None = None  # of the groups that torch.distributed knows


@dataclass(frozen=True, slots=True)
class Options:
    """For `pg_options`. `on_peer_loss`: "raise" (default): once a rank is lost every op of the group fails, on all
    ranks; "retry": all-reduces, broadcasts and barriers go on among the survivors.
    """

    on_peer_loss: OnPeerLoss = "raise"


def create(given: Any, options: Options | None) -> ProcessGroup:
    """Makes a group for torch.distributed; all of its ranks call it."""
    global _run
    if options is not None and not isinstance(options, Options):
        raise TypeError(f"pg_options must be pccl.torch.Options, not {type(options).__name__}")
    group = ProcessGroup(given.group_rank, given.group_size, given.timeout, options or Options(), given.group_id)
    deadline = Deadline(given.timeout.total_seconds())
    if _run is None:
        _run = open_run(given.store, group.rank(), group.size(), deadline)
    group._join(_run, given.store, deadline)
    return group


_Base: Any = dist.ProcessGroup  # torch's stubs give each method overloads; the C++ interface calls one of them


class ProcessGroup(_Base):  # type: ignore[misc]
    """The ranks of a group, as peers. Made by torch.distributed, or by hand and then `configure`d."""

    def __init__(
        self,
        rank: int = -1,
        size: int = 0,
        timeout: timedelta = _DEFAULT_TIMEOUT,
        options: Options | None = None,
        name: str = "",
    ) -> None:
        super().__init__(rank, size)
        self._rank, self._size = rank, size
        self._timeout_s = timeout.total_seconds()
        self._options = options or Options()
        self._name, self._desc = name, "undefined"
        self._exchange: Exchange | None = None
        self._left: Callable[[], None] = lambda: None
        _live.add(self)

    # -- who and where -----------------------------------------------------------------------------------------------

    def _join(self, run: Run, store: Any, deadline: Deadline) -> None:
        try:
            member, number = enter(run, store, self._rank, self._size, self._timeout_s, deadline)
        except BaseException:
            _forget(run, -1)
            raise
        run.groups.add(number)
        self._exchange = Exchange(member, self._options.on_peer_loss)
        self._left = partial(_forget, run, number)

    @property
    def member(self) -> Member:
        """The communicator, and the ids of the peers by rank. Raises DistBackendError when the group was shut down."""
        return self._ops.member

    @property
    def _ops(self) -> Exchange:
        if self._exchange is None:
            raise dist.DistBackendError("the process group was shut down, or never configured")
        return self._exchange

    @property
    def _staged(self) -> Staged:
        return Staged(self._ops)

    def rank(self) -> int:
        """This process's rank in the group."""
        return self._rank

    def size(self) -> int:
        """How many ranks the group was made with."""
        return self._size

    getRank, getSize = rank, size

    def getBackendName(self) -> str:
        """The name under which it is registered."""
        return "pccl"

    name = _get_backend_name = getBackendName

    @property
    def group_name(self) -> str:
        """Under which torch.distributed knows it."""
        return self._name

    def getGroupName(self) -> str:
        """As `group_name`."""
        return self._name

    def setGroupName(self, name: str) -> None:
        """Says under which name torch.distributed knows it."""
        self._name = name

    _set_group_name = setGroupName

    @property
    def group_desc(self) -> str:
        """What torch.distributed says it is for."""
        return self._desc

    def getGroupDesc(self) -> str:
        """As `group_desc`."""
        return self._desc

    def setGroupDesc(self, desc: str) -> None:
        """Says what it is for."""
        self._desc = desc

    _set_group_desc = setGroupDesc

    @property
    def _device_types(self) -> list[torch.device]:
        return [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]

    def _get_backend(self, device: torch.device) -> ProcessGroup:
        return self

    supports_splitting = supports_coalescing = supports_time_estimate = False

    def set_timeout(self, timeout: timedelta) -> None:
        """Of ops that name none."""
        self._timeout_s = timeout.total_seconds()

    _set_default_timeout = set_timeout

    def configure(self, store: Any, rank: int, size: int, timeout: timedelta | None = None) -> None:
        """Makes the group anew, of other processes: all of them call it, with a store that no group has been made on,
        as "host:port/prefix" or an object of torch.distributed. What was in flight ends with an error. Returns when all
        are there, at the latest after `timeout` (default: that of ops); raises Timeout, and the group is shut down.
        """
        self.shutdown()
        self._rank, self._size = rank, size
        deadline = Deadline(self._timeout_s if timeout is None else timeout.total_seconds())
        if isinstance(store, str):
            store = store_at(store, deadline)
        self._join(open_run(store, rank, size, deadline), store, deadline)

    def shutdown(self) -> None:
        """Leaves the group. Idempotent; ops in flight end with an error, their inputs restored. On rank 0 of a run's
        last group it waits some seconds for the others to leave too, since the coordinator ends with it.
        """
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.close()
            self._left()

    abort = shutdown

    # -- reductions --------------------------------------------------------------------------------------------------

    def allreduce(self, tensors: Tensors, opts: Any) -> Work:
        """In place, of one tensor, dense or sparse (COO)."""
        return self._all_reduce_one(_one(tensors, "allreduce"), opts)

    def allreduce_coalesced(self, tensors: Tensors, opts: Any) -> Work:
        """In place, of many tensors, copied together."""
        return self._all_reduce(tensors, opts)

    def mean(self, tensor: torch.Tensor, codec: str | None = None) -> Work:
        """All-reduces a tensor of a floating type in place, by AVG; float32 may travel as a codec of `all_reduce`."""
        opts: Any = dist.AllreduceOptions()
        opts.reduceOp = dist.ReduceOp.AVG
        return self._all_reduce_one(tensor, opts, codec)

    def _all_reduce_one(self, tensor: torch.Tensor, opts: Any, codec: str | None = None) -> Work:
        if not tensor.is_sparse:
            return self._all_reduce([tensor], opts, codec)
        if codec is not None:
            raise TypeError(f"all_reduce: {codec} is for dense tensors; sparse ones travel as they are")
        op = sparse_name_of(opts.reduceOp, tensor.dtype)
        part = Part.of(tensor, factor_of(opts.reduceOp))
        ended = self._start(self._ops.sparse.all_reduce, part, op == "avg", self._seconds(opts))

        def finish() -> None:
            with torch.no_grad():
                tensor.copy_(ended.wait())

        return Work([ended], [tensor], finish)

    def _all_reduce(self, tensors: Tensors, opts: Any, codec: str | None = None) -> Work:
        for tensor in tensors:
            check(tensor, "all_reduce")
        ops = {name_of(opts.reduceOp, tensor.dtype, "all_reduce") for tensor in tensors}
        if not tensors:
            return Work([], tensors)
        if len(ops) > 1:  # bool's sum is another op than that of numbers
            works = [self._all_reduce([tensor], opts) for tensor in tensors]
            return _together(works, tensors)
        (op,) = ops
        factor = factor_of(opts.reduceOp)
        landings: list[Landing] = []
        if is_away(tensors) and op not in BITWISE and factor is None:
            views = [as_reduced(tensor.detach(), "all_reduce") for tensor in tensors]
        else:
            landings = [Landing(tensor, "all_reduce", keep=True, factor=factor) for tensor in tensors]
            views = [as_reduced(landing.view, "all_reduce") for landing in landings]
        if op in BITWISE:
            return self._bitwise(views, op, landings, tensors, opts)
        what = views[0] if len(views) == 1 else views
        work = self._start(self._ops.all_reduce, what, op, self._seconds(opts), codec=codec)
        return Work([work], tensors, _landing(landings))

    def _bitwise(self, views: Tensors, op: str, landings: Sequence[Landing], tensors: Tensors, opts: Any) -> Work:
        rows = [view.new_empty(self._size, view.numel()) for view in views]
        works = [
            self._start(self._ops.all_gather, view, row, self._seconds(opts))
            for view, row in zip(views, rows, strict=True)
        ]

        def finish() -> None:
            for view, matrix in zip(views, rows, strict=True):
                view.copy_(BITWISE[op](matrix))
            _land(landings)

        return Work(works, tensors, finish)

    def reduce(self, tensors: Tensors, opts: Any) -> Work:
        """Into the root's tensor; the others' are left as they are. An all-reduce."""
        tensor = _one(tensors, "reduce")
        if self._rank == opts.rootRank:
            return self._all_reduce([tensor], opts)
        check(tensor, "reduce")
        scratch = as_reduced(tensor.detach(), "reduce").clone().view(tensor.dtype)
        work = self._all_reduce([scratch], opts)
        return Work(work._ops, tensors, work.land)

    def reduce_scatter(self, outputs: Tensors, inputs: list[Tensors], opts: Any) -> Work:
        """Of a list of tensors, one for each rank."""
        output, rows = _one(outputs, "reduce_scatter"), _one(inputs, "reduce_scatter")
        all_equal(rows, self._size, output, "reduce_scatter: input_list")
        if is_away(output):
            return self._reduce_scatter_away(output, rows, opts)
        return self._reduce_scatter(output, torch.cat([reduced(row, "input_list") for row in rows]), opts)

    def reduce_scatter_single(self, output: torch.Tensor, tensor: torch.Tensor, opts: Any) -> Work:
        """Of the equal parts of a tensor."""
        if tensor.numel() != output.numel() * self._size or tensor.dtype != output.dtype:
            raise ValueError(
                f"reduce_scatter_tensor: the input must have {self._size} x {output.numel()} elements of "
                f"{output.dtype}, not {tensor.numel()} of {tensor.dtype}"
            )
        if is_away(output):
            return self._reduce_scatter_away(output, _parts(tensor, self._size), opts)
        return self._reduce_scatter(output, reduced(tensor, "reduce_scatter_tensor"), opts)

    def reduce_scatter_single_coalesced(self, outputs: Tensors, inputs: Tensors, opts: Any) -> Work:
        """Of several tensors."""
        works = [self.reduce_scatter_single(out, tensor, opts) for out, tensor in zip(outputs, inputs, strict=True)]
        return _together(works, outputs)

    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def _reduce_scatter(self, output: torch.Tensor, source: torch.Tensor, opts: Any) -> Work:
        op = name_of(opts.reduceOp, output.dtype, "reduce_scatter")
        if (factor := factor_of(opts.reduceOp)) is not None:
            source = source * factor
        landing = Landing(output, "reduce_scatter: output")
        target = as_reduced(landing.view, "reduce_scatter: output")
        rows = source.new_empty(self._size, target.numel())
        work = self._start(self._ops.all_to_all, source, rows, self._seconds(opts))

        def finish() -> None:
            if op in BITWISE:
                target.copy_(BITWISE[op](rows))
            else:
                fold(rows, target, op)
            landing.land()

        return Work([work], [output], finish)

    def _reduce_scatter_away(self, output: torch.Tensor, rows: Tensors, opts: Any) -> Work:
        op = name_of(opts.reduceOp, output.dtype, "reduce_scatter")
        if (factor := factor_of(opts.reduceOp)) is not None:
            rows = [row.detach() * factor for row in rows]
        return Work([self._start(self._staged.reduce_scatter, rows, output, op, self._seconds(opts))], [output])

    # -- copies ------------------------------------------------------------------------------------------------------

    def broadcast(self, tensors: Tensors, opts: Any) -> Work:
        """From the root, in place."""
        tensor = _one(tensors, "broadcast")
        root = self._peer(opts.rootRank, "broadcast: src")
        if is_away(tensor):
            return Work([self._start(self._staged.broadcast, tensor, root, self._seconds(opts))], tensors)
        if root == self._rank:
            op = self._start(self._ops.broadcast, moved(tensor, "broadcast"), root, self._seconds(opts))
            return Work([op], tensors)
        landing = Landing(tensor, "broadcast")
        op = self._start(self._ops.broadcast, as_moved(landing.view), root, self._seconds(opts))
        return Work([op], tensors, landing.land)

    def allgather(self, outputs: list[Tensors], inputs: Tensors, opts: Any) -> Work:
        """Into a list of tensors, one for each rank."""
        return self._all_gather(_one(outputs, "all_gather"), _one(inputs, "all_gather"), opts)

    def allgather_coalesced(self, outputs: list[Tensors], inputs: Tensors, opts: Any) -> Work:
        """Of several tensors, into lists by rank."""
        works = [self._all_gather([of[i] for of in outputs], tensor, opts) for i, tensor in enumerate(inputs)]
        return _together(works, [tensor for of in outputs for tensor in of])

    def _all_gather(self, outputs: Tensors, tensor: torch.Tensor, opts: Any) -> Work:
        all_equal(outputs, self._size, tensor, "all_gather: tensor_list")
        if is_away(tensor):
            return Work([self._start(self._staged.all_gather, tensor, outputs, self._seconds(opts))], outputs)
        source = moved(tensor, "all_gather")
        rows = source.new_empty(self._size, source.numel())
        op = self._start(self._ops.all_gather, source, rows.view(-1), self._seconds(opts))
        return Work([op], outputs, partial(_spread, rows, outputs, range(self._size)))

    def all_gather_single(self, output: torch.Tensor, tensor: torch.Tensor, opts: Any) -> Work:
        """Into one tensor; the input may be this rank's part of it."""
        if output.numel() != tensor.numel() * self._size or output.dtype != tensor.dtype:
            raise ValueError(
                f"all_gather_into_tensor: the output must have {self._size} x {tensor.numel()} elements of "
                f"{tensor.dtype}, not {output.numel()} of {output.dtype}"
            )
        if is_away(tensor) and output.is_contiguous():
            rows = _parts(output, self._size)
            return Work([self._start(self._staged.all_gather, tensor, rows, self._seconds(opts))], [output])
        landing = Landing(output, "all_gather_into_tensor: output")
        source = moved(tensor, "all_gather_into_tensor")
        op = self._start(self._ops.all_gather, source, as_moved(landing.view), self._seconds(opts))
        return Work([op], [output], landing.land)

    def all_gather_single_coalesced(self, outputs: Tensors, inputs: Tensors, opts: Any) -> Work:
        """Of several tensors."""
        works = [self.all_gather_single(out, tensor, opts) for out, tensor in zip(outputs, inputs, strict=True)]
        return _together(works, outputs)

    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def all_to_all_single(
        self, output: torch.Tensor, tensor: torch.Tensor, out_splits: list[int], in_splits: list[int], opts: Any
    ) -> Work:
        """Rows of the first dimension; splits are numbers of them, and equal if none are given."""
        outs = _split(output, out_splits, self._size, "all_to_all_single: output")
        ins = _split(tensor, in_splits, self._size, "all_to_all_single: input")
        if out_splits or in_splits or not tensor.is_contiguous():
            return self._pairwise(outs, ins, [output], opts)
        if output.dtype != tensor.dtype or output.numel() != tensor.numel():
            raise ValueError(
                f"all_to_all_single: {tensor.numel()} elements of {tensor.dtype} do not fit into "
                f"{output.numel()} of {output.dtype}"
            )
        source = moved(tensor, "all_to_all_single")
        rows = torch.empty_like(source).view(self._size, -1)
        op = self._start(self._ops.all_to_all, source, rows.view(-1), self._seconds(opts))
        peers = self.member.peers
        return Work([op], [output], lambda: _spread(rows, outs, [op.wait().peers.index(peer) for peer in peers]))

    alltoall_base = all_to_all_single

    def alltoall(self, outputs: Tensors, inputs: Tensors, opts: Any) -> Work:
        """Of lists of tensors, one for each rank, of any sizes."""
        for what, tensors in (("output", outputs), ("input", inputs)):
            if len(tensors) != self._size:
                raise ValueError(f"all_to_all: expected {self._size} {what} tensors, got {len(tensors)}")
        return self._pairwise(outputs, inputs, outputs, opts)

    def _pairwise(self, outputs: Tensors, inputs: Tensors, tensors: Tensors, opts: Any) -> Work:
        """Every pair on its own."""
        own, ours = outputs[self._rank], inputs[self._rank]
        if own.numel() != ours.numel():
            raise ValueError(f"all_to_all: rank {self._rank} sends itself {ours.numel()} elements, not {own.numel()}")
        with torch.no_grad():
            own.detach().copy_(ours.detach().view(own.shape))
        others = [(self._rank + k) % self._size for k in range(1, self._size)]
        return self._transfers(
            [(other, inputs[other]) for other in others], [(other, outputs[other]) for other in others],
            "all_to_all", tensors, self._seconds(opts),
        )  # fmt: skip

    def gather(self, outputs: list[Tensors], inputs: Tensors, opts: Any) -> Work:
        """To the root, into a list of tensors, one for each rank."""
        tensor = _one(inputs, "gather")
        if self._rank != self._peer(opts.rootRank, "gather: dst"):
            return self._transfers([(opts.rootRank, tensor)], [], "gather", inputs, self._seconds(opts))
        rows = _one(outputs, "gather")
        all_equal(rows, self._size, tensor, "gather: gather_list")
        with torch.no_grad():
            rows[self._rank].detach().copy_(tensor.detach().view(rows[self._rank].shape))
        others = [(rank, row) for rank, row in enumerate(rows) if rank != self._rank]
        return self._transfers([], others, "gather", rows, self._seconds(opts))

    def scatter(self, outputs: Tensors, inputs: list[Tensors], opts: Any) -> Work:
        """From the root, of a list of tensors, one for each rank."""
        tensor = _one(outputs, "scatter")
        if self._rank != self._peer(opts.rootRank, "scatter: src"):
            return self._transfers([], [(opts.rootRank, tensor)], "scatter", outputs, self._seconds(opts))
        rows = _one(inputs, "scatter")
        all_equal(rows, self._size, tensor, "scatter: scatter_list")
        with torch.no_grad():
            tensor.detach().copy_(rows[self._rank].detach().view(tensor.shape))
        others = [(rank, row) for rank, row in enumerate(rows) if rank != self._rank]
        return self._transfers(others, [], "scatter", outputs, self._seconds(opts))

    # -- point to point, barrier -------------------------------------------------------------------------------------

    def send(self, tensors: Tensors, to: int, tag: int) -> Work:
        """To a rank; of one tag in order."""
        to = self._peer(to, "send: dst")
        return self._transfers([(to, _one(tensors, "send"))], [], f"tag {tag}", tensors, self._timeout_s)

    def recv(self, tensors: Tensors, source: int, tag: int) -> Work:
        """From a rank; of one tag in order."""
        source = self._peer(source, "recv: src")
        landing = Landing(_one(tensors, "recv"), "recv")
        view = as_moved(landing.view)
        posted = self._start(self._ops.anysource.recv, view, source, f"tag {tag}", self._timeout_s)
        return Work([posted.op], tensors, partial(_take, posted.view, view, landing), source)

    def recv_anysource(self, tensors: Tensors, tag: int) -> Work:
        """From whoever sends first; all messages of the tag must have one dtype and size."""
        landing = Landing(_one(tensors, "recv"), "recv")
        view = as_moved(landing.view)
        claim = self._start(self._ops.anysource.claim, view, f"tag {tag}")

        def finish() -> None:
            (posted,) = claim.taken
            work.source = posted.rank
            _take(posted.view, view, landing)

        work = Work([claim.op], tensors, finish, limit_s=self._timeout_s)
        return work

    def barrier(self, opts: Any) -> Work:
        """Ends when all ranks have called it."""
        return Work([self._start(self._ops.barrier, self._seconds(opts))], [])

    def _transfers(
        self,
        sends: Sequence[tuple[int, torch.Tensor]],
        recvs: Sequence[tuple[int, torch.Tensor]],
        channel: str,
        tensors: Tensors,
        timeout_s: float,
    ) -> Work:
        landings = [(rank, Landing(tensor, channel)) for rank, tensor in recvs]
        ops = [self._start(self._ops.recv, as_moved(to.view), rank, channel, timeout_s) for rank, to in landings]
        ops += [self._start(self._ops.send, moved(tensor, channel), rank, channel, timeout_s) for rank, tensor in sends]
        return Work(ops, tensors, _landing([to for _, to in landings]))

    # -- the inside --------------------------------------------------------------------------------------------------

    def _start(self, call: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Starts an op. Wrong arguments are raised as they are, everything else as torch.distributed does."""
        try:
            return call(*arguments, **options)
        except ArgumentError:
            raise
        except PcclError as error:
            raise failure(error) from error

    def _seconds(self, opts: Any) -> float:
        seconds = opts.timeout.total_seconds()
        return float(seconds) if seconds > 0 else self._timeout_s

    def _peer(self, rank: int, what: str) -> int:
        if not 0 <= rank < self._size:
            raise ValueError(f"{what}: rank {rank} does not exist, the group has {self._size} ranks")
        return rank


def _one(items: Sequence[Any], what: str) -> Any:
    if len(items) != 1:
        raise ValueError(f"{what}: expected one tensor of this rank, got {len(items)}")
    return items[0]


def _parts(tensor: torch.Tensor, ranks: int) -> Tensors:
    """One for each rank, flat."""
    return list(tensor.detach().reshape(ranks, -1))


def _split(tensor: torch.Tensor, sizes: list[int], ranks: int, what: str) -> Tensors:
    rows = tensor.shape[0] if tensor.dim() else 0
    if not sizes:
        if rows % ranks:
            raise ValueError(f"{what}: {rows} rows cannot be split evenly over {ranks} ranks")
        sizes = [rows // ranks] * ranks
    if len(sizes) != ranks or sum(sizes) != rows:
        raise ValueError(f"{what}: the split sizes {sizes} must be {ranks} numbers with the sum {rows}")
    return list(torch.split(tensor.detach(), sizes))


def _spread(rows: torch.Tensor, outputs: Sequence[torch.Tensor], order: Sequence[int]) -> None:
    """Copies rows, of elements or of their bytes, to tensors: `order` says which row each is."""
    with torch.no_grad():
        for row, output in zip(order, outputs, strict=True):
            output.detach().copy_(rows[row].view(output.dtype).view(output.shape))


def _take(got: torch.Tensor, view: torch.Tensor, landing: Landing) -> None:
    """Brings home what was received, there or elsewhere."""
    if got is not view:
        view.copy_(got)
    landing.land()


def _land(landings: Sequence[Landing]) -> None:
    for landing in landings:
        landing.land()


def _landing(landings: Sequence[Landing]) -> Callable[[], None] | None:
    """None if there is nothing to do."""
    away = [landing for landing in landings if not landing.is_home]
    return partial(_land, away) if away else None


def _together(works: Sequence[Work], tensors: Tensors) -> Work:
    def finish() -> None:
        for work in works:
            work.land()

    return Work([op for work in works for op in work._ops], tensors, finish)


def _forget(run: Run, number: int) -> None:
    global _run
    if run.left(number) and run is _run:
        _run = None


def _shut_down_all() -> None:
    for group in sorted(_live, key=lambda group: group.group_name, reverse=True):
        group.shutdown()


atexit.register(_shut_down_all)
