"""exchange.py - the ops of pccl that the collectives of torch.distributed are made of, with torch's ranks.

The plan orders the peers as it likes, and changes the order; torch's ranks are fixed. So roots, senders and receivers
are named by id, rows of a gather by the ids of their peers, and an all-to-all's rows are put in order afterwards.
A process group has the members it was made with: once one is lost every op is refused, unless the group was told to
go on ("retry"), which all-reduces, broadcasts and barriers can.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from pccl import _native
from pccl._native import Kind
from pccl.arguments import LOSS, as_it_is
from pccl.buffers import Buffer, as_buffer
from pccl.communicator import _transfer_op
from pccl.errors import PeerLost
from pccl.runtime import Op
from pccl.torch.anysource import Anysource
from pccl.torch.rendezvous import Member
from pccl.torch.sparse import Sparse
from pccl.work import Work

__all__ = ["Exchange", "fold"]

OnPeerLoss = Literal["raise", "retry"]


class Exchange:
    """The ops of one process group. Methods start one and return its Work; tensors are flat, CPU, contiguous, those of
    an all-reduce of any layout on a device.
    """

    def __init__(self, member: Member, on_peer_loss: OnPeerLoss) -> None:
        self.member = member
        self.comm = member.comm
        self._loss: OnPeerLoss = on_peer_loss
        self._checked = -1
        self.anysource = Anysource(member, self.recv)
        self.sparse = Sparse(self)

    def all_reduce(self, tensor: Any, op: Any, timeout: float | None, codec: str | None = None) -> Work:
        """In place, of a tensor or a list of tensors."""
        self.check(may_shrink=True)
        return self.comm.all_reduce(tensor, op=op, codec=codec, async_op=True, timeout=timeout, on_peer_loss=self._loss)

    def broadcast(self, tensor: torch.Tensor, root: int, timeout: float | None) -> Work:
        """From a rank."""
        self.check(may_shrink=True)
        peer = self.member.peers[root]
        return self.comm.broadcast(tensor, peer, async_op=True, timeout=timeout, on_peer_loss=self._loss)

    def broadcast_op(self, buffer: Buffer, root: int) -> Op:
        """The same as an op that is not submitted yet."""
        peer = self.member.peers[root]
        request = self.comm._request(Kind.BROADCAST, buffer, buffer, buffer)
        request.root = peer
        op = Op(request, (buffer,), None, as_it_is, f"broadcast from {peer.hex()[:8]}", (peer,))
        op.needs_all = LOSS[self._loss]
        return op

    def barrier(self, timeout: float | None) -> Work:
        """Of all ranks."""
        self.check(may_shrink=True)
        return self.comm.barrier(async_op=True, timeout=timeout, on_peer_loss=self._loss)

    def close(self) -> None:
        """Ends what is in flight with an error, and leaves. Idempotent."""
        self.comm.close()
        self.sparse.close()

    def all_gather(
        self, tensor: torch.Tensor, out: torch.Tensor, timeout: float | None, tag: str | None = None
    ) -> Work:
        """Rows of `out` are by rank. The input may be this rank's row of it, but not overlap it otherwise."""
        source = as_buffer(tensor, writable=False)
        target = as_buffer(out, writable=True)
        own = target.address + self.member.rank * source.nbytes
        if source.nbytes and source.address != own and _overlap(source, target):
            source = as_buffer(tensor.clone(), writable=False)
        return self._exchange(Kind.ALL_GATHER, source, target, source.count, "all_gather", timeout, tag)

    def all_to_all(self, tensor: torch.Tensor, out: torch.Tensor, timeout: float | None) -> Work:
        """Row i of the input goes to rank i; the result's rows are in the order of `Result.peers`."""
        source = as_buffer(tensor, writable=False)
        target = as_buffer(out, writable=True)
        return self._exchange(Kind.ALL_TO_ALL, source, target, source.count // self.member.size, "all_to_all", timeout)

    def _exchange(
        self,
        kind: Kind,
        source: Buffer,
        target: Buffer,
        count: int,
        label: str,
        timeout: float | None,
        tag: str | None = None,
    ) -> Work:
        self.check()
        return self.comm._submit(self.op(kind, source, target, count, label), "raise", tag, timeout)

    def op(self, kind: Kind, source: Buffer, target: Buffer, count: int, label: str) -> Op:
        """An all-gather or all-to-all that is not submitted yet; `count` elements of each rank for each."""
        request = self.comm._request(kind, source, source, target)
        request.shape = 0
        request.count = count
        request.origin = self.member.peers
        op = Op(request, (source, target), None, as_it_is, label)
        op.needs_all = True
        return op

    def send(self, tensor: torch.Tensor, to: int, channel: str, timeout: float | None) -> Work:
        """To a rank. Transfers of one channel between two ranks are matched by order; channels are independent."""
        return self._transfer(tensor, (self.member.rank, to), channel, timeout)

    def recv(self, tensor: torch.Tensor, source: int, channel: str, timeout: float | None) -> Work:
        """From a rank."""
        return self._transfer(tensor, (source, self.member.rank), channel, timeout)

    def _transfer(self, tensor: torch.Tensor, ranks: tuple[int, int], channel: str, timeout: float | None) -> Work:
        """A pccl tag can be in flight once; here any number of transfers of one tag can, so each tag has a lane."""
        self.check()
        sending = ranks[0] == self.member.rank
        pair = self.member.peers[ranks[0]], self.member.peers[ranks[1]]
        buffer = as_buffer(tensor, writable=not sending)
        request = self.comm._request(Kind.SEND_RECV, buffer, *((buffer, None) if sending else (None, buffer)))
        request.shape = 0
        op = _transfer_op(request, buffer, tensor, pair)
        return self.comm._submit(op, "retry", None, timeout, pair=(pair[0], pair[1] + channel.encode()))

    def check(self, may_shrink: bool = False) -> None:
        """Raises PeerLost if a rank is no longer a member."""
        if may_shrink and self._loss == "retry":
            return
        epoch = self.comm.epoch
        if epoch == self._checked:
            return
        lost = [rank for rank, peer in enumerate(self.member.peers) if peer not in self.comm.peers]
        if lost:
            raise PeerLost(
                f"rank {', '.join(map(str, lost))} of the process group is gone; make a new group, or configure() it",
                peer=self.member.peers[lost[0]],
                epoch=epoch,
            )
        self._checked = epoch


def fold(rows: torch.Tensor, out: torch.Tensor, op: str) -> None:
    """Reduces the rows of a matrix into a flat tensor, as an all-reduce would: the kernels and their order are its."""
    target = as_buffer(out, writable=True)
    _native.reduce(
        _bytes(out),
        [_bytes(row) for row in rows],
        dtype=target.dtype,
        redop=_native.RedOp[op.upper()],
        count=target.count,
        divisor=len(rows),
    )


def _bytes(tensor: torch.Tensor) -> Any:
    return tensor.view(torch.uint8).numpy()


def _overlap(a: Any, b: Any) -> bool:
    return bool(a.address < b.address + b.nbytes and b.address < a.address + a.nbytes)
