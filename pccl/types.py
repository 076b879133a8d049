"""types.py - the plain values that cross the package's inner borders: engine, session, control, communicator.

Decides nothing. Numbers that the C API also knows (`Status`, `EventKind`, `Cause`) must equal those of
`csrc/include/pccl_api.h`. Peer ids are 16 random bytes everywhere; `short_id` is how people see them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

import numpy as np

PEER_ID_BYTES = 16
REGION_KEY_BYTES = 16
ADDRESS_BYTES_MAX = 79
#: Streams that a link can have at most: LIMIT_STREAMS of csrc/limits.h.
STREAMS_LIMIT = 64


class Status(IntEnum):
    """pccl_err."""

    OK = 0
    EINVAL = 1
    ENOMEM = 2
    EAGAIN = 3
    EIO = 4
    EPROTO = 5
    EAUTH = 6
    EMISMATCH = 7
    EPEER = 8
    EFEW = 9
    ETIMEOUT = 10
    ECLOSED = 11
    EEVICTED = 12
    ELOST = 13
    ECANCELLED = 14
    EGONE = 15


class EventKind(IntEnum):
    """pccl_event_kind."""

    OP = 1
    LINK_UP = 2
    LINK_DOWN = 3
    FROZEN = 4
    MISMATCH = 5
    OVERDUE = 6
    REFUSED = 7
    FETCH = 8
    WITHDRAWN = 9
    ASKED = 10


class Cause(IntEnum):
    """pccl_cause: why a link went down."""

    NONE = 0
    EOF = 1
    RESET = 2
    REFUSED = 3
    SILENT = 4
    PROTOCOL = 5
    UNREACHABLE = 6


class Algorithm(IntEnum):
    """pccl_algorithm."""

    AUTO = 0
    RING = 1
    MESH = 2
    TWO_LEVEL = 3
    ONE_ROUND = 4


class Priority(IntEnum):
    """pccl_priority."""

    NORMAL = 0
    HIGH = 1
    LOW = 2


class OpName(NamedTuple):
    """The name of an op within a group: the same on every peer, kept when the op is retried."""

    boundary: int
    lane: int
    seq: int


#: {boundary: {lane: ops called}}. An entry holds for later boundaries as well, up to the next entry; the last one is
#: that of the present boundary.
Lanes = dict[int, dict[int, int]]


class OpDesc(NamedTuple):
    """What the description of an op says (pccl_op_desc). `algorithm`: the one taken; `nbytes`: before any codec."""

    is_all_reduce: bool
    algorithm: int
    codec: int
    nbytes: int


@dataclass(slots=True, frozen=True)
class OpState:
    """A pending op at the moment of a freeze. `finished`: this peer holds the whole result."""

    name: OpName
    token: int
    finished: bool


@dataclass(slots=True, frozen=True)
class OpInfo:
    """What the communicator knows about a pending op.

    `what` is the op in words. `needs`: the peers it cannot do without (root of a broadcast, both of a send/recv).
    `pair`: only the peers in `needs` take part. `everyone`: it cannot do without any of its participants.
    """

    what: str
    needs: tuple[bytes, ...]
    pair: bool
    name: OpName
    everyone: bool = False


@dataclass(slots=True, frozen=True)
class MemberConfig:
    """One member of an epoch as the engine wants it (pccl_member). `dial`: this side dials; `address` "": self.

    `weight`: its share of a large mesh all-reduce, all 0 for equal ones. `streams` of the link to it, 0: the epoch's.
    `via`: rank of the member through which it is reached, None: directly. `incarnation`: which of the links that the
    two have had it is, 0 for that of their epochs.
    """

    id: bytes
    since: int
    dial: bool
    address: str
    weight: int = 0
    region: int = 0
    streams: int = 0
    via: int | None = None
    incarnation: int = 0


@dataclass(slots=True, frozen=True)
class EpochConfig:
    """An epoch as the engine wants it (pccl_epoch). Rank = position in `members`; verdicts: (op, Status)."""

    epoch: int
    from_boundary: int
    change: int
    members: list[MemberConfig]
    verdicts: list[tuple[OpName, int]]
    streams: int
    segment_bytes: int
    mesh_bytes_max: int
    large_algorithm: int = 0
    one_round_bytes_max: int = 0


#: Instead of a loss in packets per million, which a transport tells late or never.
LOSS_UNKNOWN = 2**32 - 1


@dataclass(slots=True, frozen=True)
class LinkStats:
    """One link of an engine (pccl_link_stats). `rtt_us`, `bytes_per_s` 0, `loss_ppm` LOSS_UNKNOWN: not yet known."""

    peer: bytes
    streams: int
    rtt_us: int
    bytes_per_s: int
    loss_ppm: int
    sent_bytes: int
    received_bytes: int
    unacked_frames: int


@dataclass(slots=True, frozen=True)
class LineStats:
    """What an engine knows about its peer's line (pccl_stats): bytes/s, 0 for not known; and the bytes it has sent."""

    up_bytes_per_s: int = 0
    down_bytes_per_s: int = 0
    sent_bytes: int = 0
    went_up_bytes_per_s: int = 0
    went_down_bytes_per_s: int = 0


@dataclass(slots=True, frozen=True)
class Event:
    """pccl_event. Fields that a kind does not use are 0 (or 16 zero bytes for `peer`)."""

    kind: int
    status: int = 0
    token: int = 0
    epoch: int = 0
    retries: int = 0
    peer: bytes = bytes(PEER_ID_BYTES)
    cause: int = 0
    sys_errno: int = 0
    desc: int = 0
    shape: int = 0
    member_count: int = 0
    span_offset: int = 0
    span_count: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    duration_ns: int = 0


_NO_PEER = bytes(PEER_ID_BYTES)
_UNNAMED = OpName(0, 0, 0)


@dataclass(slots=True)
class OpRequest:
    """One op as the engine takes it (pccl_op_request). Addresses are borrowed until the op's event; 0 is NULL.

    Not frozen only because one is made for every op and a frozen dataclass takes three times as long to make.
    """

    token: int
    kind: int
    dtype: int
    redop: int
    algorithm: int
    shape: int
    count: int
    input: int
    output: int
    root: bytes = _NO_PEER
    target: bytes = _NO_PEER
    origin: tuple[bytes, ...] = ()
    name: OpName = _UNNAMED
    deadline_ns: int = 0
    codec: int = 0
    priority: int = 0


@dataclass(slots=True, frozen=True)
class EngineStats:
    """Counters of an engine since it was made (pccl_stats)."""

    links: int
    streams: int
    ops_pending: int
    ops_committed: int
    ops_failed: int
    ops_retried: int
    sent_bytes: int
    received_bytes: int
    frames_resent: int
    frames_duplicate: int
    frames_stale: int
    frames_corrupt: int
    parked_bytes: int
    pool_bytes: int
    oldest_boundary: int
    relayed_bytes: int
    frames_copied: int
    up_bytes_per_s: int
    down_bytes_per_s: int
    transfer_sent_bytes: int
    transfer_received_bytes: int
    transfers_pending: int  # fetches that have not ended
    transfers_served: int  # fetches of others that are under way here
    went_up_bytes_per_s: int
    went_down_bytes_per_s: int
    regions: int  # on offer
    conns: int  # streams of the transport, of whatever use
    relays: int  # pairs of them that are passed on between others


@dataclass(slots=True, frozen=True)
class SimPath:
    """One direction between two nodes (pccl_sim_path)."""

    delay_ns: int = 0
    jitter_ns: int = 0
    bytes_per_s: int = 0
    reset_ppm: int = 0
    corrupt_ppm: int = 0
    duplicate_ppm: int = 0
    cut: bool = False
    dials: int = 0


@dataclass(slots=True, frozen=True)
class Region:
    """Memory that others may fetch from (pccl_region). It is borrowed until the WITHDRAWN event with the token."""

    key: bytes  # 16 bytes
    generation: int
    address: int
    nbytes: int
    token: int
    changes: bool = False  # it is written to while it is offered
    watched: bool = False  # an ASKED event tells of each fetch of it that begins


@dataclass(slots=True, frozen=True)
class PartDigests:
    """Digests of what a fetch brings, taken as it comes: of parts of one size, whole ones in each run.

    `seeds`, `found`: uint64, one of each part in the order of the runs; `found` holds the digests (csrc/digests.c) when
    the FETCH event says OK, and is borrowed until then. `bare`: payloads come without checksums.
    """

    part_bytes: int  # a multiple of 8, 16 MiB at most
    seeds: np.ndarray[Any, np.dtype[np.uint64]]
    found: np.ndarray[Any, np.dtype[np.uint64]]
    bare: bool


@dataclass(slots=True, frozen=True)
class FetchRequest:
    """One fetch (pccl_fetch_request). The targets are borrowed until its FETCH event."""

    peer: bytes
    key: bytes  # 16 bytes, of the region
    generation: int
    #: (offset in the region, bytes, address of the target) of each; thousands better as a uint64 array of [runs, 3]
    runs: Sequence[tuple[int, int, int]] | np.ndarray[Any, np.dtype[np.uint64]]
    token: int
    priority: int = 0
    deadline_ns: int = 0
    digests: PartDigests | None = None


@dataclass(slots=True, frozen=True)
class MemberInfo:
    """One member of an epoch as users see it. It takes part in ops of boundaries >= `since`."""

    id: bytes
    since: int
    address: str
    host: str


@dataclass(slots=True, frozen=True)
class PlanInfo:
    """How an epoch moves its bytes, as users see it.

    All-reduces of at most `one_round_bytes_max` bytes take one round, those of at most `mesh_bytes_max` the mesh with
    equal spans, larger ones `algorithm`. `streams`: of a link for which no other number was better. `predicted_s`:
    seconds that the planner expected 64 MiB of float32 to take; 0 if it knew nothing about the paths. `reason`: why
    this plan, in words.
    """

    algorithm: Algorithm
    mesh_bytes_max: int
    streams: int
    predicted_s: float
    reason: str
    one_round_bytes_max: int = 0


@dataclass(slots=True, frozen=True)
class EpochView:
    """An epoch as users see it. `paused`: it has fewer members than the run asks for and runs no ops."""

    epoch: int
    from_boundary: int
    members: tuple[MemberInfo, ...]
    paused: bool
    plan: PlanInfo

    def participants(self, boundary: int) -> tuple[bytes, ...]:
        """The peers that take part in ops of `boundary`, in the order of their ranks."""
        return tuple(member.id for member in self.members if member.since <= boundary)


class Engine(Protocol):
    """What the control plane needs of the engine. Every call returns at once; all may come from any thread."""

    @property
    def peer_id(self) -> bytes:
        """The 16 bytes it was made with."""

    @property
    def port(self) -> int:
        """Where it listens."""

    @property
    def event_fd(self) -> int:
        """Readable while there are events."""

    def prepare(self, members: Sequence[MemberConfig], streams: int) -> None:
        """Opens links ahead of an epoch that will need them."""

    def acquaint(self, member: MemberConfig, streams: int) -> None:
        """Keeps a link for transfers to a peer, whether it is in an epoch or not."""

    def unacquaint(self, peer: bytes) -> None:
        """Such a link is not needed any more."""

    def freeze(self, change: int) -> None:
        """Stops all epochs; a FROZEN event with token == change follows, also when frozen already."""

    def frozen(self) -> tuple[list[OpState], Lanes]:
        """After FROZEN: the pending ops, and how many were posted per lane, as of the freeze."""

    def configure(self, config: EpochConfig) -> None:
        """Installs an epoch. Verdicts on ops this engine does not have are ignored."""

    def advance(self, boundary: int) -> None:
        """This peer has reached a boundary."""

    def refusal(self) -> str:
        """Of the last REFUSED event: the other side's address, and why it was refused."""

    def oldest_boundary(self) -> int:
        """That of the oldest pending op; with none pending, the one last reached. It never goes down."""

    def forget(self, boundary: int) -> None:
        """No op of an earlier boundary is pending anywhere: what lanes were then may be forgotten."""

    def fail_all(self, status: int) -> None:
        """Ends every pending op."""

    def abandon(self, token: int, status: int) -> None:
        """Ends one pending op without asking anybody."""

    def measure(self, peer: bytes, nbytes: int, timeout_s: float) -> None:
        """Measures the link to a peer with filler, unless an op or a transfer is under way here. What is found is in
        `links`.
        """

    def is_busy(self) -> bool:
        """Whether ops or transfers are under way here."""

    def events(self) -> list[Event]:
        """Takes all waiting events."""

    def links(self) -> Sequence[LinkStats]:
        """Every link, with what has been measured on it."""

    def line(self) -> LineStats:
        """What has been measured on the line that the long links share."""

    def desc_text(self, desc: int) -> str:
        """A packed description in words."""

    def read_desc(self, desc: int) -> OpDesc | None:
        """What a packed description says; None if it says nothing."""


def short_id(peer: bytes) -> str:
    """The first 8 hex digits: enough to tell peers apart in a log."""
    return peer[:4].hex()


def dials(own: bytes, other: bytes, own_inbound: bool = True, other_inbound: bool = True, turned: bool = False) -> bool:
    """Whether this side of two dials: who can be dialled is dialled; of equals the smaller id dials. `turned`: that
    has failed, so the other way round. Both sides and the coordinator decide by it.
    """
    first = own < other if own_inbound == other_inbound else other_inbound
    return first is not turned


@dataclass(slots=True, frozen=True)
class Identity:
    """Who this peer is and where it is reached."""

    peer: bytes
    run: str
    group: int
    addresses: tuple[str, ...]
    host: str
    pid: int
    wire: int = 1
    coordinator_timeout_s: float = 60.0
    guest: bool = False
