"""sync_state: make named tensors and scalars equal on all peers, moving only what differs.

Stands on the public collectives of a communicator alone. A round has five steps, each a function, each ending with the
same knowledge on every peer, because a collective gives the same result to all who survive it:

1. summaries  all_gather of 64 bytes: digests of the key set and of the content, strategy, freshness. All equal: done.
2. schemas    key sets, dtypes or shapes differ: all_gather of them in words, MismatchError everywhere.
3. election   which content is the right one (a pure function of the summaries).
4. transfer   all_gather of the digest of every entry; who sends which piece to whom (a pure function); send and recv
              into staging memory, verified by digest.
5. vote       all_gather of one byte. Only if every survivor holds everything is anything written to the user's tensors.

If a peer is lost on the way, the survivors finish the round without a commit and begin another; what was received and
verified is kept if the same content is chosen again. Replacing step 4 (`plan_pieces`, `_Transfer`) is enough to move
less than whole entries.
"""

from __future__ import annotations

import json
import secrets
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np
import xxhash

from pccl import buffers
from pccl.errors import ArgumentError, Evicted, MismatchError, PcclError, PeerLost, ProtocolError, Timeout
from pccl.work import Result, Work

__all__ = ["Strategy", "SyncReport", "sync_state"]

Strategy = Literal["majority", "send", "receive"]
Bytes = np.ndarray[Any, Any]

_STRATEGIES: tuple[str, ...] = get_args(Strategy)
_MAJORITY, _SEND, _RECEIVE = range(3)
_SUMMARY = struct.Struct("<BBBxIQ16s16s16s")
_ENTRY = struct.Struct("<16sQ")
_VERSION = 1
_PIECE_BYTES = 256 << 20  # at most 1 GiB
_WINDOW = 64  # pieces in flight per peer
_WINDOW_BYTES = 1 << 30
_HASH_BYTES = 1 << 30
_SLOWEST_BYTES_PER_S = 1 << 20  # a transfer is given so much more time than any other op
_SPARE_ROUNDS = 3
_NAMED_DIFFERENCES = 8
_TAG = "pccl.sync_state"

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
    def all_gather(self, tensor: Any, *, tag: str, timeout: float) -> Result: ...
    def send(
        self,
        tensor: Any,
        dst: bytes,
        *,
        tag: str,
        async_op: Literal[True],
        timeout: float,
        on_peer_loss: Literal["raise"],
    ) -> Work: ...
    def recv(
        self,
        tensor: Any,
        src: bytes,
        *,
        tag: str,
        async_op: Literal[True],
        timeout: float,
        on_peer_loss: Literal["raise"],
    ) -> Work: ...


@dataclass(slots=True, frozen=True)
class SyncReport:
    """What a sync_state did, as seen by this peer.

    `received_bytes`, `sent_bytes`: content moved by this peer, lost rounds included. `entries_received`: names of the
    entries that were overwritten here. `source`: id of the lowest-ranked peer whose content was chosen; None if all
    were equal. `digest`: of the content all peers hold now (entries in `allow_drift` left out), in hex. `rounds`: 1
    unless peers were lost on the way.
    """

    received_bytes: int
    sent_bytes: int
    entries_received: tuple[str, ...]
    source: bytes | None
    digest: str
    rounds: int


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

    Costs one hash over the content and one small collective when everything is equal. Content is received into memory
    of its own, so an outdated peer needs the size of what it receives once more.

    Raises MismatchError on every peer when keys, dtypes or shapes differ, or when nobody offers content; Timeout when
    `timeout` seconds (default: the communicator's op_timeout, and a second per MiB to be moved) pass; TypeError and
    ArgumentError for entries that cannot be synchronised; and what any collective raises. After every error the entries
    are whole: as they were, on every peer that raises.
    """
    if strategy not in _STRATEGIES:
        raise ArgumentError(f"strategy must be one of {', '.join(map(repr, _STRATEGIES))}, not {strategy!r}")
    local = _Local(entries, frozenset(allow_drift), read_only=strategy == "send")
    return _Sync(comm, local, _STRATEGIES.index(strategy), timeout).run()


# -- what this peer holds --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Entry:
    name: str
    label: str  # dtype and shape; "scalar"
    data: Bytes
    owner: Any
    writable: bool
    digest: bytes


class _Local:
    """The entries of this peer as bytes, in the order of their names, with their digests."""

    def __init__(self, entries: dict[str, Any], drift: frozenset[str], read_only: bool) -> None:
        for name in entries:
            if not isinstance(name, str):
                raise TypeError(f"sync_state: keys must be str, got {name!r}")
        if unknown := drift - entries.keys():
            raise ArgumentError(f"sync_state: allow_drift names {sorted(unknown)}, which are no entries")
        self.target = entries
        self.entries = [_entry(name, entries[name], read_only) for name in sorted(entries)]
        self.drift = frozenset(i for i, entry in enumerate(self.entries) if entry.name in drift)
        schema = {entry.name: entry.label + (" (may drift)" if entry.name in drift else "") for entry in self.entries}
        self.schema = json.dumps(schema).encode()

    def content(self) -> bytes:
        """Digest of everything that may not drift."""
        digests = [entry.digest for i, entry in enumerate(self.entries) if i not in self.drift]
        return bytes(xxhash.xxh3_128_digest(b"".join(digests)))

    def write(self, received: Mapping[int, _Staged]) -> None:
        """Overwrites entries with what was received and verified."""
        for index, staged in received.items():
            entry = self.entries[index]
            if entry.label == "scalar":
                self.target[entry.name] = _decode_scalar(staged.data.tobytes())
            else:
                buffers.write_bytes(self.target[entry.name], staged.data)
            entry.digest = staged.digest


@dataclass(slots=True)
class _Staged:
    """An entry on its way in."""

    data: Bytes
    digest: bytes
    verified: bool = False


def _entry(name: str, value: Any, read_only: bool) -> _Entry:
    what = f"sync_state entry {name!r}"
    if not buffers.is_tensor(value):
        data = np.frombuffer(_encode_scalar(value, what), np.uint8)
        return _Entry(name, "scalar", data, None, True, _digest("scalar", data))
    try:
        data, shape, owner = buffers.byte_view(value, writable=True, what=what)
        writable = True
    except ArgumentError:
        if not read_only:
            raise
        data, shape, owner = buffers.byte_view(value, writable=False, what=what)
        writable = False
    label = f"{buffers.describe_dtype(value)}{list(shape)}"
    return _Entry(name, label, data, owner, writable, _digest(label, data))


def _digest(label: str, data: Bytes) -> bytes:
    """16 bytes over what an entry is and what it holds; a scalar's size is part of its bytes."""
    state = xxhash.xxh3_128(label.encode())
    for start in range(0, data.size, _HASH_BYTES):
        state.update(data[start : start + _HASH_BYTES].data)
    return bytes(state.digest())


def _encode_scalar(value: Any, what: str) -> bytes:
    """A type letter and the value, equal for equal values."""
    if value is None:
        return b"n"
    if isinstance(value, np.generic):
        if value.dtype.hasobject:
            raise TypeError(f"{what}: dtype {value.dtype} cannot be sent")
        name = value.dtype.name if value.dtype.kind == "V" else value.dtype.str  # bfloat16 and its kin are kind V
        return b"g" + str(name).encode() + b"|" + bytes(value.tobytes())
    if isinstance(value, bool):
        return b"b1" if value else b"b0"
    if isinstance(value, int):
        return b"i" + value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if isinstance(value, float):
        return b"f" + struct.pack("<d", value)
    if isinstance(value, str):
        return b"s" + value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes | bytearray):
        return b"y" + bytes(value)
    raise TypeError(f"{what}: expected a tensor, an array or a scalar, got {type(value).__name__}")


def _decode_scalar(data: bytes) -> Any:
    """The value that `_encode_scalar` made the bytes of."""
    letter, rest = data[:1], data[1:]
    if letter == b"n":
        return None
    if letter == b"g":
        name, _, raw = rest.partition(b"|") if not rest.startswith(b"|") else _split_after_bar(rest)
        return np.frombuffer(raw, np.dtype(name.decode()))[0]
    if letter == b"b":
        return rest == b"1"
    if letter == b"i":
        return int.from_bytes(rest, "little", signed=True)
    if letter == b"f":
        return struct.unpack("<d", rest)[0]
    if letter == b"s":
        return rest.decode("utf-8", "surrogatepass")
    if letter == b"y":
        return rest
    raise ProtocolError(f"sync_state: a scalar of unknown type {letter!r}")


def _split_after_bar(rest: bytes) -> tuple[bytes, bytes, bytes]:
    """Types of one byte have a bar in their names ("|u1")."""
    name, bar, raw = rest[1:].partition(b"|")
    return b"|" + name, bar, raw


# -- steps 1 to 3: summaries and election ----------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class _Summary:
    """What a peer says of itself."""

    strategy: int
    fresh: bool
    entries: int
    schema_bytes: int
    schema: bytes
    content: bytes
    nonce: bytes

    def pack(self) -> Bytes:
        """As bytes for the wire."""
        return np.frombuffer(
            _SUMMARY.pack(
                _VERSION,
                self.strategy,
                self.fresh,
                self.entries,
                self.schema_bytes,
                self.schema,
                self.content,
                self.nonce,
            ),
            np.uint8,
        )

    @classmethod
    def unpack(cls, row: Bytes) -> _Summary:
        """From the wire."""
        version, strategy, fresh, entries, schema_bytes, schema, content, nonce = _SUMMARY.unpack(row.tobytes())
        if version != _VERSION or strategy > _RECEIVE:
            raise ProtocolError(f"sync_state: a peer speaks version {version} where {_VERSION} is spoken")
        return cls(strategy, bool(fresh), entries, schema_bytes, schema, content, nonce)


def elect(summaries: Sequence[_Summary]) -> bytes | None:
    """The content that shall be everybody's, from the summaries in the order of ranks; None if nobody offers any.

    Peers that send decide alone; else those that take part in the majority and have been here before; else those that
    came just now. The most frequent content wins, ties go to the lowest rank.
    """
    offers = [s for s in summaries if s.strategy == _SEND]
    offers = offers or [s for s in summaries if s.strategy == _MAJORITY and not s.fresh]
    offers = offers or [s for s in summaries if s.strategy == _MAJORITY]
    if not offers:
        return None
    votes = Counter(s.content for s in offers)  # in the order of first appearance, which max keeps
    return max(votes, key=votes.__getitem__)


def describe_differences(schemas: Sequence[Mapping[str, str]]) -> str:
    """Names every key that is not the same on all ranks, with both sides."""
    differences = []
    for name in sorted(set().union(*schemas)):
        sides: dict[str, list[int]] = {}
        for rank, schema in enumerate(schemas):
            sides.setdefault(schema.get(name, "missing"), []).append(rank)
        if len(sides) > 1:
            words = ", ".join(f"{label} at rank {', '.join(map(str, ranks))}" for label, ranks in sides.items())
            differences.append(f"{name!r} is {words}")
    more = len(differences) - _NAMED_DIFFERENCES
    return "; ".join(differences[:_NAMED_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")


# -- step 4: plan and transfer ---------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class _Piece:
    """Bytes of one entry that one peer sends to another."""

    entry: int
    source: int  # ranks in the gather of the digests
    target: int
    offset: int
    nbytes: int


@dataclass(slots=True, frozen=True)
class _Catalog:
    """Digest and size of every entry on every peer."""

    peers: tuple[bytes, ...]
    rows: list[list[tuple[bytes, int]]]


def _pieces_for(
    catalog: _Catalog, target: int, holders: Sequence[int], drift: frozenset[int], load: list[int]
) -> Iterator[_Piece]:
    """What an outdated peer needs, each piece from the holder with the least to send; drifting ones from the first."""
    for index, (digest, nbytes) in enumerate(catalog.rows[holders[0]]):
        if catalog.rows[target][index][0] == digest:
            continue
        for offset in range(0, nbytes, _PIECE_BYTES):
            size = min(_PIECE_BYTES, nbytes - offset)
            source = holders[0] if index in drift else min(holders, key=lambda rank: (load[rank], rank))
            load[source] += size
            yield _Piece(index, source, target, offset, size)


def plan_pieces(
    catalog: _Catalog, holders: Sequence[int], outdated: Sequence[int], drift: frozenset[int]
) -> list[_Piece]:
    """All pieces in the order in which both ends work through them: targets take turns, so that none waits for
    another's end.
    """
    load = [0] * len(catalog.peers)
    queues = deque(_pieces_for(catalog, target, holders, drift, load) for target in outdated)
    pieces = []
    while queues:
        queue = queues.popleft()
        piece = next(queue, None)
        if piece is not None:
            pieces.append(piece)
            queues.append(queue)
    return pieces


@dataclass(slots=True)
class _Transfer:
    """Moves this peer's share of the pieces: at most a window at a time, in the plan's order, so that no two peers wait
    crosswise.
    """

    comm: Peers
    local: _Local
    peers: tuple[bytes, ...]
    tag: str
    timeout: float
    sent_bytes: int = 0
    received_bytes: int = 0
    failed: set[int] = field(default_factory=set)  # entries that lack a piece
    _flying: deque[tuple[Work | None, _Piece, bool]] = field(default_factory=deque)
    _flying_bytes: int = 0
    _counts: Counter[tuple[int, int]] = field(default_factory=Counter)

    def run(self, pieces: Sequence[_Piece], staged: Mapping[int, _Staged]) -> None:
        """Returns when all pieces have arrived or failed; a lost peer fails its own pieces only."""
        own = self.peers.index(self.comm.peer_id)
        for piece in pieces:
            if own not in (piece.source, piece.target):
                continue
            while self._flying and (len(self._flying) >= _WINDOW or self._flying_bytes + piece.nbytes > _WINDOW_BYTES):
                self._settle()
            self._post(piece, own == piece.source, staged)
        while self._flying:
            self._settle()

    def _post(self, piece: _Piece, sends: bool, staged: Mapping[int, _Staged]) -> None:
        pair = (piece.source, piece.target)
        tag = f"{self.tag}/{self._counts[pair] % _WINDOW}"  # the op that had this tag before has left the window
        self._counts[pair] += 1
        data = self.local.entries[piece.entry].data if sends else staged[piece.entry].data
        part = data[piece.offset : piece.offset + piece.nbytes]
        other = self.peers[piece.target if sends else piece.source]
        call = self.comm.send if sends else self.comm.recv
        try:
            work = call(part, other, tag=tag, async_op=True, timeout=self.timeout, on_peer_loss="raise")
        except Evicted:
            raise
        except PeerLost:
            work = None
        self._flying.append((work, piece, sends))
        self._flying_bytes += piece.nbytes

    def _settle(self) -> None:
        work, piece, sends = self._flying.popleft()
        self._flying_bytes -= piece.nbytes
        try:
            if work is None:
                raise PeerLost("gone before the piece was called")
            work.wait()
        except Evicted:
            raise
        except PeerLost:
            self.failed.add(-1 if sends else piece.entry)
            return
        if sends:
            self.sent_bytes += piece.nbytes
        else:
            self.received_bytes += piece.nbytes


# -- the rounds ------------------------------------------------------------------------------------------------------


class _Sync:
    """One call of sync_state."""

    def __init__(self, comm: Peers, local: _Local, strategy: int, timeout: float | None) -> None:
        self.comm = comm
        self.local = local
        self.strategy = strategy
        self.timeout = timeout
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.nonce = b""
        self.staged: dict[int, _Staged] = {}  # received and verified, of the content `chosen`
        self.chosen = b""
        self.sent_bytes = 0
        self.received_bytes = 0

    def run(self) -> SyncReport:
        """Rounds until one commits."""
        rounds, limit = 0, 0
        while True:
            rounds += 1
            peers, summaries = self._summaries()
            limit = limit or len(peers) + _SPARE_ROUNDS
            self._check_schemas(summaries)
            if all(summary.content == summaries[0].content for summary in summaries):
                return self._report(None, (), rounds)
            chosen = elect(summaries)
            if chosen is None:
                raise MismatchError(
                    "sync_state: contents differ and every peer asked to receive; nobody offers its own"
                )
            content_of = {peer: summary.content for peer, summary in zip(peers, summaries, strict=True)}
            received = self._round(chosen, content_of, rounds)
            if received is not None:
                source = next(peer for peer in peers if content_of[peer] == chosen)
                return self._report(source, received, rounds)
            if rounds >= limit:
                raise PcclError("sync_state: contents kept changing while they were moved; no entry was touched")

    def _round(self, chosen: bytes, content_of: Mapping[bytes, bytes], number: int) -> tuple[str, ...] | None:
        """Steps 4 and 5. Names of the entries written here, or None if the round must be repeated."""
        if chosen != self.chosen:
            self.chosen = chosen
            self.staged.clear()
        catalog = self._catalog(number)
        holders = [rank for rank, peer in enumerate(catalog.peers) if content_of[peer] == chosen]
        outdated = [rank for rank, peer in enumerate(catalog.peers) if content_of[peer] != chosen]
        if not holders:
            return None  # all sources were lost; every survivor sees the same
        pieces = plan_pieces(catalog, holders, outdated, self.local.drift)
        limit = self._seconds(sum(piece.nbytes for piece in pieces))
        own = catalog.peers.index(self.comm.peer_id)
        wanted = self._prepare(catalog.rows[holders[0]], catalog.rows[own]) if own in outdated else {}
        transfer = _Transfer(self.comm, self.local, catalog.peers, self._tag(number, "piece"), limit)
        transfer.run(pieces, wanted)
        self.sent_bytes += transfer.sent_bytes
        self.received_bytes += transfer.received_bytes
        complete = self._verify(wanted, transfer.failed)
        if not self._vote(number, complete, limit):
            return None
        content = (
            {i: s for i, s in self.staged.items() if s.digest == catalog.rows[holders[0]][i][0]}
            if own in outdated
            else {}
        )
        _uninterrupted(lambda: self.local.write(content))
        return tuple(self.local.entries[index].name for index in sorted(content))

    # -- step 1 and 2 --

    def _summaries(self) -> tuple[tuple[bytes, ...], list[_Summary]]:
        local = self.local
        own = _Summary(
            strategy=self.strategy,
            fresh=self.comm.entered == self.comm.boundary,
            entries=len(local.entries),
            schema_bytes=len(local.schema),
            schema=xxhash.xxh3_128_digest(local.schema),
            content=local.content(),
            nonce=secrets.token_bytes(16),
        )
        result = self.comm.all_gather(own.pack(), tag=_TAG, timeout=self._seconds(0))
        summaries = [_Summary.unpack(row) for row in result.tensor]
        self.nonce = summaries[0].nonce  # later tags are this call's own, whatever became of earlier calls
        return result.peers, summaries

    def _check_schemas(self, summaries: Sequence[_Summary]) -> None:
        if all(summary.schema == summaries[0].schema for summary in summaries):
            return
        padded = np.zeros(max(summary.schema_bytes for summary in summaries), np.uint8)
        padded[: len(self.local.schema)] = np.frombuffer(self.local.schema, np.uint8)
        result = self.comm.all_gather(padded, tag=self._tag(0, "schema"), timeout=self._seconds(0))
        schemas = [json.loads(row.tobytes().rstrip(b"\0")) for row in result.tensor]
        raise MismatchError(f"sync_state: the entries differ between peers: {describe_differences(schemas)}")

    # -- step 4 --

    def _catalog(self, number: int) -> _Catalog:
        """Exchanges the digests of all entries; of those received in an earlier round, what was received."""
        rows = bytearray()
        for index, entry in enumerate(self.local.entries):
            staged = self.staged.get(index)
            held = (entry.digest, entry.data.size) if staged is None else (staged.digest, staged.data.size)
            rows += _ENTRY.pack(*held)
        result = self.comm.all_gather(
            np.frombuffer(rows, np.uint8), tag=self._tag(number, "digests"), timeout=self._seconds(len(rows))
        )
        return _Catalog(result.peers, [list(_ENTRY.iter_unpack(row.tobytes())) for row in result.tensor])

    def _prepare(self, theirs: Sequence[tuple[bytes, int]], ours: Sequence[tuple[bytes, int]]) -> dict[int, _Staged]:
        """Memory for what this peer is about to receive."""
        wanted = {}
        for index, ((digest, nbytes), (held, _)) in enumerate(zip(theirs, ours, strict=True)):
            if digest != held:
                wanted[index] = _Staged(np.empty(nbytes, np.uint8), digest)
        return wanted

    def _verify(self, wanted: Mapping[int, _Staged], failed: set[int]) -> int:
        """Keeps what arrived whole, in `staged`; the vote of this peer."""
        vote = _COMPLETE
        for index, staged in wanted.items():
            entry = self.local.entries[index]
            if not entry.writable:
                return _IMPOSSIBLE
            if index in failed or _digest(entry.label, staged.data) != staged.digest:
                vote = _RETRY
            else:
                self.staged[index] = staged
        return vote

    # -- step 5 --

    def _vote(self, number: int, own: int, seconds: float) -> bool:
        """Whether every survivor holds everything."""
        result = self.comm.all_gather(np.array([own], np.uint8), tag=self._tag(number, "vote"), timeout=seconds)
        votes = [int(row[0]) for row in result.tensor]
        if _IMPOSSIBLE in votes:
            raise MismatchError(
                f"sync_state: rank {votes.index(_IMPOSSIBLE)} sends read-only entries, but others' content was chosen"
            )
        return all(vote == _COMPLETE for vote in votes)

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

    def _report(self, source: bytes | None, names: tuple[str, ...], rounds: int) -> SyncReport:
        return SyncReport(self.received_bytes, self.sent_bytes, names, source, self.local.content().hex(), rounds)


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
