"""SimComm: a simulated peer with the face that pccl.optim asks of a communicator, and the driver of its steps.

Ops are the simulator's own: real engines, real control plane. `sync_state` is written anew, since pccl.sharing blocks:
the same summaries, election, vote and writing of chunks, but the content travels by a broadcast of one holder.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pccl.errors import Evicted, MismatchError, PcclError, PeerLost, Timeout
from pccl.optim.line import Call, Steps
from pccl.sharing import scalars
from pccl.sharing.chunks import digests_of
from pccl.sharing.content import Content, Share
from pccl.sharing.election import STRATEGIES, Summary, elect
from pccl.sharing.report import SyncReport, differences_of, flags_of
from pccl.testing import SimPeer
from pccl.testing.program import Work
from pccl.transfer.manifest import Manifest
from pccl.work import Result

OP_TIMEOUT_S = 6.0
PAUSE_S = 0.002  # between the end of a wait and what is done with it: a fault may strike there
_ROOM = 4  # newcomers that may be there when an op ends
_SCALARS_BYTES = 2048
_SPARE_ROUNDS = 3
_PREFIX = "pccl.optim."

Tell = Callable[..., None]


def is_delta(tag: str) -> bool:
    """Not a header, nor what travels at boundaries and in a consensus."""
    return tag.startswith(_PREFIX) and tag.rsplit(".", 1)[1] != "head" and tag.split(".")[2].isdecimal()


@dataclass(frozen=True, slots=True)
class Wait:
    """One wait of a replica, in virtual seconds."""

    what: str
    seconds: float
    timeout: float


class _Pending:
    """An op in flight, whose result is made fit for torch."""

    def __init__(self, comm: SimComm, work: Work, finish: Callable[[Result], Any], timeout: float) -> None:
        self.comm, self.work, self.finish, self.timeout = comm, work, finish, timeout

    def __await__(self) -> Generator[Any, None, Result]:
        result = yield from self.work.__await__()
        return replace(result, tensor=self.finish(result))


class SimComm:
    """The face. `tell(what, *facts)`: what has happened here, for faults that wait for it. `sent`: of every op of the
    outer optimizer, by tag, what this peer has put in."""

    def __init__(self, peer: SimPeer, tell: Tell) -> None:
        self.peer, self.tell = peer, tell
        self.entered = peer.boundary
        self.sent: dict[str, bytes] = {}
        self.waits: list[Wait] = []
        self.synced: Callable[[SyncReport], None] = lambda report: None  # told of every sync_state

    @property
    def peer_id(self) -> bytes:
        return self.peer.id

    @property
    def peers(self) -> tuple[bytes, ...]:
        return self.peer.peers

    @property
    def epoch(self) -> int:
        return self.peer.epoch

    # -- ops ----------------------------------------------------------------------------------------------------------

    def all_reduce(
        self, tensor: Tensor, *, op: str = "sum", out: Tensor | None = None, codec: str | None = None,
        tag: str, async_op: bool, timeout: float | None = None, priority: str = "normal",
    ) -> _Pending:  # fmt: skip
        assert async_op and codec is None and op == "sum"
        target = tensor if out is None else out
        self.sent[tag] = tensor.numpy().tobytes()
        self.note(tag, "sent")
        seconds = timeout or OP_TIMEOUT_S
        work = self.peer.all_reduce(
            tensor.numpy(), op=op, out=target.numpy(), tag=tag, timeout=seconds, priority=priority
        )
        return _Pending(self, work, lambda result: target, seconds)

    def all_gather(
        self, tensor: Tensor, *, tag: str, async_op: bool, timeout: float | None = None, priority: str = "normal"
    ) -> _Pending:
        assert async_op
        self.sent[tag] = tensor.numpy().tobytes()
        self.note(tag, "sent")
        seconds = timeout or OP_TIMEOUT_S
        room = np.empty((len(self.peers) + _ROOM) * tensor.numel(), tensor.numpy().dtype)
        work = self.peer.all_gather(tensor.numpy(), room, tag=tag, timeout=seconds)

        def rows(result: Result) -> Tensor:
            return torch.from_numpy(room[: result.world_size * tensor.numel()].reshape(-1, *tensor.shape))

        return _Pending(self, work, rows, seconds)

    def send(self, tensor: Tensor, to: bytes, *, tag: str, async_op: bool, timeout: float | None = None) -> _Pending:
        assert async_op
        self.note(tag, "sent")
        seconds = timeout or OP_TIMEOUT_S
        return _Pending(self, self.peer.send(tensor.numpy(), to, tag=tag, timeout=seconds), lambda _: None, seconds)

    def recv(
        self, tensor: Tensor, source: bytes, *, tag: str, async_op: bool, timeout: float | None = None
    ) -> _Pending:
        assert async_op
        seconds = timeout or OP_TIMEOUT_S
        work = self.peer.receive(tensor.numpy(), source, tag=tag, timeout=seconds)
        return _Pending(self, work, lambda _: tensor, seconds)

    def advance(self, timeout: float | None = None) -> Any:
        return self.peer.advance(OP_TIMEOUT_S if timeout is None else timeout)

    async def sync_state(
        self, entries: dict[str, Any], strategy: str = "majority", allow_drift: Sequence[str] = ()
    ) -> SyncReport:
        report = await _Sync(self, entries, strategy, allow_drift).run()
        self.synced(report)
        return report

    def note(self, tag: str, what: str) -> None:
        """Tells it of a delta: what, fragment, round, and the attempt where there may be several."""
        if is_delta(tag):
            self.tell(what, *map(int, tag.removeprefix(_PREFIX).split(".")))


async def drive_sim(comm: SimComm, steps: Steps[Any]) -> Any:
    """line.drive under the virtual clock."""
    try:
        pending: Any = next(steps)
        while True:
            begun = comm.peer.now
            is_call = isinstance(pending, Call)
            try:
                value = await (pending.wait() if is_call else pending)
            except PcclError as error:
                _waited(comm, pending, begun)
                pending = steps.throw(error)
            else:
                _waited(comm, pending, begun)
                if not is_call:
                    comm.note(pending.work.tag, "reduced")
                await comm.peer.compute(PAUSE_S)
                pending = steps.send(value)
    except StopIteration as end:
        return end.value


def _waited(comm: SimComm, pending: Any, begun: float) -> None:
    if isinstance(pending, _Pending):
        comm.waits.append(Wait(pending.work.describe(), comm.peer.now - begun, pending.timeout))


# -- sync_state ------------------------------------------------------------------------------------------------------


class _Sync:
    """One call; see pccl/sharing/rounds.py, which it follows step by step."""

    def __init__(self, comm: SimComm, entries: dict[str, Any], strategy: str, allow_drift: Sequence[str]) -> None:
        self.comm, self.strategy = comm, STRATEGIES.index(strategy)
        self.content = Content(entries, frozenset(allow_drift), read_only=False)
        for share in self.content.shares:
            share.read()
        self.nonce = b""
        self.received = 0

    async def run(self) -> SyncReport:
        self.comm.tell("sync")
        rounds, limit = 0, 0
        while True:
            rounds += 1
            peers, summaries = await self._summaries()
            limit = limit or len(peers) + _SPARE_ROUNDS
            if any(summary.schema != summaries[0].schema for summary in summaries):
                raise MismatchError("sync_state: the entries differ between peers")
            chosen = elect(summaries)
            if all(summary.content == summaries[0].content for summary in summaries):
                return SyncReport(self.received, 0, (), None, self._root().hex(), rounds)
            if chosen is None:
                raise MismatchError("sync_state: contents differ, and nobody offers its own: all asked to receive")
            holders = [peer for peer, summary in zip(peers, summaries, strict=True) if summary.content == chosen]
            found = await self._round(chosen, holders, rounds)
            if found is not None:
                names = tuple(sorted(one.entry for one in found if one.peer == self.comm.peer_id))
                return SyncReport(self.received, 0, names, holders[0], self._root().hex(), rounds, found)
            assert rounds < limit, "rounds of sync_state without an end"

    def _root(self) -> bytes:
        return self.content.fixed.manifest("", 1).root

    async def _summaries(self) -> tuple[tuple[bytes, ...], list[Summary]]:
        own = Summary(
            strategy=self.strategy,
            fresh=self.comm.entered == self.comm.peer.boundary,
            whole=True,
            entries=len(self.content.target),
            schema_bytes=len(self.content.schema),
            generation=0,
            schema=self.content.schema_digest,
            content=self._root(),
            nonce=self.comm.peer.random.randbytes(16),
        )
        peers, rows = await self._gather(own.pack(), "pccl.sync_state")
        summaries = [Summary.unpack(row) for row in rows]
        self.nonce = summaries[0].nonce
        return peers, summaries

    async def _round(self, chosen: bytes, holders: Sequence[bytes], number: int) -> Any:
        """What differed on every peer, or None if the round must be repeated."""
        is_outdated = self.comm.peer_id not in holders
        parcels = [await self._parcel(share, holders[0], number) for share in self.content.shares]
        got = [parcel for parcel in parcels if parcel is not None]
        complete = len(got) == len(parcels) and (not is_outdated or got[0][0].root == chosen)
        if is_outdated and complete:
            flags = [_flags(share, *parcel) for share, parcel in zip(self.content.shares, got, strict=True)]
        else:
            flags = [flags_of(share, (), ()) for share in self.content.shares]
        row = np.concatenate([np.array([complete], np.uint8), *flags])
        peers, votes = await self._gather(row, self._tag(number, "vote"))
        if not all(vote[0] for vote in votes):
            return None
        if is_outdated:
            for share, (manifest, parts) in zip(self.content.shares, got, strict=True):
                self._write(share, manifest, parts)
        shares = self.content.shares
        return tuple(d for p, vote in zip(peers, votes, strict=True) for d in differences_of(p, shares, vote[1:]))

    async def _parcel(self, share: Share, root: bytes, number: int) -> tuple[Manifest, list[Any]] | None:
        """A share of the root's, with its digests; None if it is lost."""
        sizes = [part.size for part in share.parts[:-1]]
        box = np.zeros(sum(sizes) + 8 + _SCALARS_BYTES, np.uint8)
        if root == self.comm.peer_id:
            packed = share.parts[-1]
            assert packed.size <= _SCALARS_BYTES
            box[8 : 8 + sum(sizes) + packed.size] = np.concatenate(share.parts)
            box[:8] = np.array([packed.size], "<u8").view(np.uint8)
        else:
            self.comm.tell("download")
        tag = self._tag(number, self.content.name(share))
        try:
            await self.comm.peer.broadcast(box, root, tag=tag, timeout=OP_TIMEOUT_S)
        except (PeerLost, Timeout) as error:
            if isinstance(error, Evicted):
                raise
            return None
        packed_bytes = int(box[:8].view("<u8")[0])
        cuts = np.cumsum([8, *sizes, packed_bytes])
        parts = [box[a:b] for a, b in pairwise(cuts)]
        if root != self.comm.peer_id:
            self.received += sum(part.size for part in parts)
        return _manifest(share, parts), parts

    def _write(self, share: Share, manifest: Manifest, parts: list[Any]) -> None:
        pieces = []
        for chunk in _wrong(share, manifest):
            part, offset = manifest.layout.place(chunk)
            start, end = manifest.span(chunk)
            pieces.append((chunk, parts[part][offset : offset + end - start]))
        self.content.write(share, manifest, pieces, parts[-1].tobytes())

    async def _gather(self, row: Any, tag: str) -> tuple[tuple[bytes, ...], list[Any]]:
        pending = self.comm.all_gather(torch.from_numpy(row.copy()), tag=tag, async_op=True)
        result = await pending
        return result.peers, [one.numpy() for one in result.tensor]

    def _tag(self, number: int, step: str) -> str:
        return f"pccl.sync_state/{self.nonce.hex()}/{number}/{step}"


def _manifest(share: Share, parts: list[Any]) -> Manifest:
    size = share.layout.chunk_bytes
    sizes = tuple(part.size for part in parts)
    return Manifest("", 1, sum(sizes), size, digests_of(parts, size), sizes, 1)


def _wrong(share: Share, manifest: Manifest) -> list[int]:
    """Chunks of the tensors that differ here."""
    return [chunk for chunk in range(share.layout.count) if share.digest(chunk) != manifest.digest(chunk)]


def _flags(share: Share, manifest: Manifest, parts: list[Any]) -> Any:
    values = scalars.unpack(parts[-1].tobytes(), len(share.names))
    wrong = [number for number, (own, new) in enumerate(zip(share.values(), values, strict=True)) if own != new]
    return flags_of(share, _wrong(share, manifest), wrong)
