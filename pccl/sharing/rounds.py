"""rounds.py - sync_state: makes named tensors and scalars equal on all peers, moving only the chunks that differ.

A round has five steps, each ending with the same knowledge on every peer, because a collective gives the same result to
all who survive it:

1. summaries  all_gather of 72 bytes: digests of the key set and of the content, strategy, freshness. All equal: done.
2. schemas    key sets, dtypes or shapes differ: all_gather of them in words, MismatchError everywhere.
3. election   which content is the right one (a pure function of the summaries).
4. transfer   who holds it offers it; who does not fetches the tree of digests and the chunks that differ from all of
              the holders at once, into staging memory, each verified by its digest.
5. vote       all_gather: has everybody everything, what differed, what came from whom. Only if every survivor holds
              everything is anything written to the user's tensors.

If a peer is lost on the way, the survivors finish the round without a commit and begin another; what was received and
verified is kept if the same content is chosen again.
"""

from __future__ import annotations

import json
import secrets
import struct
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from pccl.errors import (
    ArgumentError,
    Evicted,
    MismatchError,
    PcclError,
    PeerLost,
    ProtocolError,
    Timeout,
    TransferError,
)
from pccl.sharing.content import Content
from pccl.sharing.depot import Pull, Stock
from pccl.sharing.election import STRATEGIES, Strategy, Summary, describe_differences, elect
from pccl.sharing.report import Difference, SyncReport, differences_of, flags_of
from pccl.sharing.staging import Staging
from pccl.transfer.transfers import Wish
from pccl.work import Result

__all__ = ["Peers", "Sync", "sync_state"]

_SLOWEST_BYTES_PER_S = 1 << 20  # a transfer is given so much more time than any other op
_SPARE_ROUNDS = 3
_TAG = "pccl.sync_state"
_COUNT = struct.Struct("<Q")

_RETRY, _COMPLETE, _IMPOSSIBLE = range(3)


class Peers(Protocol):
    """What sync_state needs of a communicator."""

    @property
    def peer_id(self) -> bytes: ...
    @property
    def boundary(self) -> int: ...
    @property
    def entered(self) -> int: ...
    @property
    def op_timeout(self) -> float: ...
    @property
    def depot(self) -> Stock: ...
    def stager(self) -> Any: ...
    def all_gather(self, tensor: Any, *, tag: str, timeout: float) -> Result: ...


def sync_state(
    comm: Peers,
    entries: dict[str, Any],
    strategy: Strategy = "majority",
    allow_drift: Sequence[str] = (),
    *,
    timeout: float | None = None,
) -> SyncReport:
    """Makes `entries` equal on all peers of the epoch; every peer calls it. Blocks; Ctrl-C interrupts.

    `entries`: tensors and arrays of any plain dtype, shape and layout (bool, complex, 0-d and empty ones too),
    overwritten where they differ; int, float, bool, str, bytes, None and numpy scalars, replaced in the dict.
    `strategy`: "majority": the content that most peers hold wins (ties: that of the lowest rank); "send": this peer's
    content counts and beats every "majority"; "receive": it does not count. A peer that entered the run at the present
    boundary counts as "receive" unless nobody else is there. `allow_drift`: entries that may differ between peers; only
    peers that are outdated otherwise receive them.

    Costs one hash over the content and one small collective when everything is equal. Where something differs, only
    chunks of 256 KiB (more beyond 16 GiB) that differ are moved, from all peers that hold the right ones at once; the
    report names them. They are received into memory of their own, so an outdated peer needs the size of what it
    receives once more.

    Tensors on devices are read through pinned memory, by pieces, for their digests. Only where something differs do
    those that hold the right ones copy all of theirs to host memory, until the call ends. The caller's current stream
    comes first; on return everything is there.

    When it returns, and after that until the next call, this peer offers the entries to joiners (`prefetch_state`), but
    not those of a share with tensors on devices: their memory is read, without a copy, and kept alive until then. It
    may be written to at any time.

    Raises MismatchError on every peer when keys, dtypes or shapes differ, or when nobody offers content; Timeout when
    `timeout` seconds (default: the communicator's op_timeout, and a second per MiB of the content) pass; TypeError and
    ArgumentError for entries that cannot be synchronised; and what any collective raises. After every error the entries
    are whole: as they were, on every peer that raises (after a prefetch: the mixture that it left).
    """
    if strategy not in STRATEGIES:
        raise ArgumentError(f"strategy must be one of {', '.join(map(repr, STRATEGIES))}, not {strategy!r}")
    content = Content(entries, frozenset(allow_drift), strategy == "send", comm.stager)
    for share in content.shares:
        share.read()
    return Sync(comm, content, strategy, timeout).run()


class Sync:
    """One call of sync_state."""

    def __init__(self, comm: Peers, content: Content, strategy: Strategy, timeout: float | None) -> None:
        self.comm = comm
        self.content = content
        self.strategy = STRATEGIES.index(strategy)
        self.timeout = timeout
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.nonce = b""
        self.generation = 0
        self.nbytes = sum(share.nbytes for share in content.shares)
        self.staged: dict[str, Staging] = {}  # what was received and verified, by the name of its share
        self.opened: tuple[tuple[bytes, ...], list[Summary]] | None = None  # summaries of a round that was begun
        self.pulls: list[tuple[Staging, Pull]] = []  # under way
        self.received: Counter[bytes] = Counter()  # bytes by source
        self.sent_bytes = 0

    def open(self) -> None:
        """Begins the first round of a peer that is not whole and whose digests are not known yet: hears what the others
        hold, and asks for the manifest of what was chosen. `run` goes on with it; call `close` in the end.
        """
        self.opened = peers, summaries = self._summaries()
        chosen = elect(summaries)
        if chosen is not None and all(summary.schema == summaries[0].schema for summary in summaries):
            self._begin_pulls(chosen, _holders(chosen, peers, summaries), is_ready=False)

    def go_on(self) -> None:
        """What is here is known, or what it will be: what differs from that is fetched."""
        for staging, pull in self.pulls:
            staging.is_ready = True
            pull.go_on()

    def close(self) -> None:
        """Nothing is fetched any more."""
        for staging, pull in self.pulls:
            pull.cancel()
            staging.keep(pull.have())
            self.received.update(pull.report.received)
        self.pulls = []

    def run(self) -> SyncReport:
        """Rounds until one commits."""
        rounds, limit = 0, 0
        while True:
            rounds += 1
            peers, summaries = self.opened or self._summaries()
            self.opened = None
            limit = limit or len(peers) + _SPARE_ROUNDS
            self._check_schemas(summaries)
            chosen = elect(summaries)
            if all(s.content == summaries[0].content and s.whole for s in summaries):
                return self._end(None, (), (), rounds)
            if chosen is None:
                raise MismatchError("sync_state: contents differ, and nobody offers its own: all asked to receive")
            holders = _holders(chosen, peers, summaries)
            outdated = [peer for peer in peers if peer not in holders]
            done = self._round(chosen, peers, holders, outdated, rounds)
            if done is not None:
                return self._end(holders[0], *done, rounds)
            if rounds >= limit:
                raise PcclError("sync_state: contents kept changing while they were moved; no entry was touched")

    def _round(
        self, chosen: bytes, peers: tuple[bytes, ...], holders: Sequence[bytes], outdated: Sequence[bytes], number: int
    ) -> tuple[tuple[str, ...], tuple[Difference, ...]] | None:
        """Steps 4 and 5. Names of the entries written here and what differed, or None if the round must be repeated."""
        own = self.comm.peer_id
        if own in holders:
            self.staged.clear()
            self._show()
        vote = self._pull(chosen, holders) if own in outdated else _COMPLETE
        rows = self._vote(number, vote, peers)
        if rows is None:
            return None
        found = tuple(d for peer, row in rows.items() for d in differences_of(peer, self.content.shares, row))
        if own in outdated:
            _uninterrupted(self._write)
        return tuple(sorted(d.entry for d in found if d.peer == own)), found

    def _end(
        self, source: bytes | None, names: tuple[str, ...], differences: tuple[Difference, ...], rounds: int
    ) -> SyncReport:
        """Everybody holds the same: it stays on offer, but for what lies on a device."""
        self._show(in_the_end=True)
        for share in self.content.shares:
            self.comm.depot.mixed.discard(self.content.name(share))
        received = sum(self.received.values())
        return SyncReport(received, self.sent_bytes, names, source, self._root().hex(), rounds, differences)

    # -- steps 1 and 2 --

    def _summaries(self) -> tuple[tuple[bytes, ...], list[Summary]]:
        content = self.content
        own = Summary(
            strategy=self.strategy,
            fresh=self.comm.entered == self.comm.boundary,
            whole=content.name(content.fixed) not in self.comm.depot.mixed,
            entries=len(content.target),
            schema_bytes=len(content.schema),
            generation=self.comm.depot.generation,
            schema=content.schema_digest,
            content=self._root(),
            nonce=secrets.token_bytes(16),
        )
        result = self.comm.all_gather(own.pack(), tag=_TAG, timeout=self._seconds(0))
        summaries = [Summary.unpack(row) for row in result.tensor]
        self.nonce = summaries[0].nonce  # later tags are this call's own, whatever became of earlier calls
        self.generation = self.generation or 1 + max(summary.generation for summary in summaries)
        return result.peers, summaries

    def _root(self) -> bytes:
        return self.content.fixed.manifest("", 1).root

    def _check_schemas(self, summaries: Sequence[Summary]) -> None:
        if all(summary.schema == summaries[0].schema for summary in summaries):
            return
        padded = np.zeros(max(summary.schema_bytes for summary in summaries), np.uint8)
        padded[: len(self.content.schema)] = np.frombuffer(self.content.schema, np.uint8)
        result = self.comm.all_gather(padded, tag=self._tag(0, "schema"), timeout=self._seconds(0))
        schemas = [json.loads(row.tobytes().rstrip(b"\0")) for row in result.tensor]
        raise MismatchError(f"sync_state: the entries differ between peers: {describe_differences(schemas)}")

    # -- step 4 --

    def _show(self, in_the_end: bool = False) -> None:
        for share in self.content.shares:
            if share.is_away and in_the_end:
                self.comm.depot.generation = max(self.comm.depot.generation, self.generation)
                self.comm.depot.hide(self.content.name(share))
                continue
            manifest = share.manifest(self.content.name(share), self.generation)
            self.comm.depot.show(manifest, share.parts, [tensor.owner for tensor in share.tensors])

    def _pull(self, chosen: bytes, holders: Sequence[bytes]) -> int:
        """Fetches what differs; the vote of this peer."""
        try:
            if not all(staging.covers for staging, _ in self.pulls):
                self.close()
            if not self.pulls:
                self._begin_pulls(chosen, holders, is_ready=True)
            self.go_on()
            return min(self._settled(staging, pull) for staging, pull in self.pulls)
        finally:
            self.close()

    def _begin_pulls(self, chosen: bytes, holders: Sequence[bytes], is_ready: bool) -> None:
        """What may drift comes from one holder, lest it be a mixture."""
        for share in self.content.shares:
            staging = self.staged.setdefault(self.content.name(share), Staging(share))
            staging.is_ready = is_ready
            is_fixed = share is self.content.fixed
            wish = Wish(generation=self.generation, digest=chosen if is_fixed else None)
            sources = holders if is_fixed else holders[:1]
            name, seconds = self.content.name(share), self._seconds(self.nbytes)
            self.pulls.append((staging, self.comm.depot.pull(name, staging, sources, wish, seconds)))

    def _settled(self, staging: Staging, pull: Pull) -> int:
        try:
            pull.wait()
        except (PeerLost, TransferError, Timeout, ProtocolError) as error:
            if isinstance(error, Evicted):
                raise
            return _RETRY
        finally:
            staging.keep(pull.have())
        return _COMPLETE if staging.complete else _RETRY

    def _write(self) -> None:
        for name, staging in self.staged.items():
            manifest = staging.manifest
            assert manifest is not None and self.content.name(staging.share) == name
            self.content.write(staging.share, manifest, staging.pieces(), staging.packed())

    # -- step 5 --

    def _vote(self, number: int, own: int, peers: tuple[bytes, ...]) -> dict[bytes, Any] | None:
        """What differed on every survivor, if each holds everything; else None."""
        if any(staging.read_only for staging in self.staged.values()):
            own = _IMPOSSIBLE
        row = np.concatenate([np.array([own], np.uint8), self._counts(peers), self._flags(own)])
        seconds = self._seconds(self.nbytes)
        result = self.comm.all_gather(row, tag=self._tag(number, "vote"), timeout=seconds)
        votes = [int(row[0]) for row in result.tensor]
        at = 1 + peers.index(self.comm.peer_id) * _COUNT.size
        sent = [_COUNT.unpack(row[at : at + _COUNT.size].tobytes())[0] for row in result.tensor]
        self.sent_bytes = max(self.sent_bytes, sum(sent))
        if _IMPOSSIBLE in votes:
            raise MismatchError(
                f"sync_state: rank {votes.index(_IMPOSSIBLE)} sends read-only entries, but others' content was chosen"
            )
        if any(vote != _COMPLETE for vote in votes):
            return None
        flags = 1 + len(peers) * _COUNT.size
        return {
            peer: np.unpackbits(np.asarray(row[flags:]), bitorder="little")
            for peer, row in zip(result.peers, result.tensor, strict=True)
        }

    def _counts(self, peers: Sequence[bytes]) -> Any:
        counts = b"".join(_COUNT.pack(self.received[peer]) for peer in peers)
        return np.frombuffer(counts, np.uint8)

    def _flags(self, vote: int) -> Any:
        """One bit for each chunk and scalar of all shares."""
        flags = []
        for share in self.content.shares:
            staging = self.staged.get(self.content.name(share))
            known = staging is not None and vote == _COMPLETE
            wrong = (staging.wrong, staging.wrong_scalars()) if staging is not None and known else ((), ())
            flags.append(flags_of(share, *wrong))
        return np.packbits(np.concatenate(flags), bitorder="little")

    # -- small things --

    def _tag(self, number: int, step: str) -> str:
        return f"{_TAG}/{self.nonce.hex()}/{number}/{step}"

    def _seconds(self, nbytes: int) -> float:
        """How long the next op may take."""
        if self.deadline is None:
            return self.comm.op_timeout + nbytes / _SLOWEST_BYTES_PER_S
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise Timeout(f"sync_state did not end within {self.timeout:g} s")
        return left


def _holders(chosen: bytes, peers: Sequence[bytes], summaries: Sequence[Summary]) -> list[bytes]:
    return [p for p, s in zip(peers, summaries, strict=True) if s.content == chosen and s.whole]


def _uninterrupted(function: Any) -> None:
    """Runs a function to its end even if Ctrl-C comes meanwhile: in a thread, where signals are not handled."""
    errors: list[BaseException] = []

    def body() -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=body, name="pccl-commit")
    thread.start()
    try:
        thread.join()
    except BaseException:
        thread.join()
        raise
    if errors:
        raise errors[0]
