"""messages.py - the control messages of docs/protocol.md 1.2: their shape, their limits, their bytes.

One message = one msgpack array [type, v, field, ...]. `decode` either gives a message whose every field has been
checked, or raises ProtocolError: no other error, whatever the bytes. Whether a message makes sense *now* is decided
by the machines (coordinator/membership.py, session.py).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec
from msgspec import Meta, Struct, structs

from pccl.errors import ProtocolError
from pccl.types import ADDRESS_BYTES_MAX, PEER_ID_BYTES, STREAMS_LIMIT

VERSION: Final = 1
MESSAGE_BYTES_MAX: Final = 4 << 20
MEMBERS_MAX: Final = 4096
PENDING_MAX: Final = 16384
TEXT_MAX: Final = 400
TOKEN_CHARS_MAX: Final = 1024
LINKS_MAX: Final = 1024
LINK_STATUS_MAX: Final = 1024
PAIRS_MAX: Final = 1 << 16
CONTACTS_MAX: Final = 1024
BOUNDARY_MAX: Final = 1 << 31  # that an epoch may begin at: nobody counts from there beyond what fits

PeerId = Annotated[bytes, Meta(min_length=PEER_ID_BYTES, max_length=PEER_ID_BYTES)]
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
Address = Annotated[str, Meta(max_length=ADDRESS_BYTES_MAX, pattern=r"\A[!-~]+:[0-9]{1,6}\Z")]
Name = Annotated[str, Meta(max_length=255)]
Text = Annotated[str, Meta(max_length=TEXT_MAX)]
Reason = Annotated[str, Meta(max_length=4 * TEXT_MAX)]
U8 = Annotated[int, Meta(ge=0, lt=1 << 8)]
U32 = Annotated[int, Meta(ge=0, lt=1 << 32)]
U64 = Annotated[int, Meta(ge=0)]  # msgpack itself stops at 2**64
#: Which of the links that two peers have had one is.
LinkNumber = Annotated[int, Meta(ge=1, lt=1 << 62)]
Boundary = Annotated[int, Meta(ge=0, le=BOUNDARY_MAX)]
Small = Annotated[int, Meta(ge=-(1 << 31), lt=1 << 31)]
Seconds = Annotated[float, Meta(ge=0.0, le=1e9)]
Pairs = Annotated[tuple[tuple[U32, U32], ...], Meta(max_length=PAIRS_MAX)]
#: What a peer's line carries, up and down, and what went over it of late, likewise, in bytes/s; 0: not known.
Line = tuple[U64, U64, U64, U64]
#: How often, by name.
Counts = Annotated[tuple[tuple[Name, U64], ...], Meta(max_length=256)]
Triples = Annotated[tuple[tuple[U32, U32, U32], ...], Meta(max_length=PAIRS_MAX)]


class WrongVersion(ProtocolError):
    """A message of another control version: answered with Refused, where the others are dropped."""


class Part(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Base of what messages are made of."""


class OpRef(Part, frozen=True):
    """OpName on the wire."""

    boundary: U32
    lane: U64
    seq: U32


class Pending(Part, frozen=True):
    """A pending op of a Frozen. `needs`: peers that it cannot do without; `everyone`: nor without any participant."""

    op: OpRef
    finished: bool
    pair: bool
    needs: Annotated[tuple[PeerId, ...], Meta(max_length=2)]
    what: Text
    everyone: bool = False


class Verdict(Part, frozen=True):
    """How an op ended by the coordinator's word."""

    op: OpRef
    status: U8
    text: Reason


class LinkReport(Part, frozen=True):
    """What a peer has measured on its link to another; 0: nothing new. The loss is in packets per million, or
    LOSS_UNKNOWN."""

    peer: PeerId
    rtt_us: U32
    bytes_per_s: U64
    loss_ppm: U32


class Achieved(Part, frozen=True):
    """What large all-reduces of an epoch took at a peer since it last said so: stretches of time in which one or more
    of them were in flight, their bytes, and how long the stretches were in all.
    """

    epoch: U32
    stretches: U32
    bytes: U64
    busy_us: U64


class Member(Part, frozen=True):
    """A member of an epoch; its rank is its position. `weight`: its share of a large mesh all-reduce. `inbound`: it can
    be dialled, as far as the coordinator knows.
    """

    peer: PeerId
    since: Boundary
    address: Address
    host: Name
    weight: U32 = 0
    region: Annotated[int, Meta(ge=0, lt=1 << 16)] = 0
    inbound: bool = True


class Contact(Part, frozen=True):
    """A peer of another group, and the incarnation of the link to it."""

    member: Member
    number: LinkNumber


class Plan(Part, frozen=True):
    """What the coordinator chose for an epoch, what it expects of it (0: nothing is known), and why."""

    streams: Annotated[int, Meta(ge=1, le=STREAMS_LIMIT)]
    segment_bytes: Annotated[int, Meta(ge=64, le=1 << 20, multiple_of=64)]
    mesh_bytes_max: U64
    large_algorithm: Annotated[int, Meta(ge=0, le=3)] = 0
    predicted_s: Seconds = 0.0
    reason: Reason = ""
    one_round_bytes_max: U64 = 0


class PeerStatus(Part, frozen=True):
    """One peer in a Status; rank -1 while it waits. `ops`, `bytes`: since the peer began."""

    peer: PeerId
    rank: Small
    host: Name
    pid: U32
    address: Address
    since: U32
    boundary: U32
    epoch: U32
    ops_per_s: float
    bytes_per_s: float
    heard_s: float
    connected: bool
    inbound: bool = True
    ops: U64 = 0
    bytes: U64 = 0


class LinkStatus(Part, frozen=True):
    """One direction of a link in a Status, by rank, as the sender has measured it: 0 (the loss: LOSS_UNKNOWN) is not
    known. `state`: "up", "suspected" (an end says that it is dead) or "broken" (plans do without it); `via`: the rank
    over which its streams go instead, or -1.
    """

    sender: U32
    receiver: U32
    rtt_us: U32
    bytes_per_s: U64
    loss_ppm: U32
    streams: U32
    state: Name = "up"
    via: Small = -1


class LogEntry(Part, frozen=True):
    """One decision: how long ago, in which epoch, about whom, what, why."""

    age_s: float
    epoch: U32
    peer: Annotated[bytes, Meta(max_length=PEER_ID_BYTES)]
    what: Name
    reason: Reason


class Reality(Part, frozen=True):
    """How the plan in use does, in seconds for 64 MiB: expected by the figures as they are, and achieved (0: no large
    all-reduce yet); the bytes of all that were timed.
    """

    expected_s: Seconds
    achieved_s: Seconds
    timed_bytes: U64


class GroupStatus(Part, frozen=True):
    """One group in a Status. `reality` is None as long as nothing is known about the paths. `links`: none where there
    would be more than LINK_STATUS_MAX. Since this process began: `counts`, decisions by the word of the log; `losses`,
    members that are gone, by why.
    """

    group: U32
    state: Name
    epoch: U32
    from_boundary: U32
    min_peers: U32
    form_peers: U32
    plan: Plan | None
    members: Annotated[tuple[PeerStatus, ...], Meta(max_length=MEMBERS_MAX)]
    waiting: Annotated[tuple[PeerStatus, ...], Meta(max_length=MEMBERS_MAX)]
    log: Annotated[tuple[LogEntry, ...], Meta(max_length=1024)]
    reality: Reality | None = None
    links: Annotated[tuple[LinkStatus, ...], Meta(max_length=LINK_STATUS_MAX)] = ()
    counts: Counts = ()
    losses: Counts = ()


class Message(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=True):
    """Base of all messages. The first field is always `v`."""

    v: Annotated[int, Meta(ge=0, lt=1 << 16)]
    VERSION: ClassVar[int] = VERSION


class Join(Message, frozen=True):
    """A peer asks to enter; `guest`: not yet, it wants to fetch from the members before."""

    run: Name
    group: U32
    peer: PeerId
    addresses: Annotated[tuple[Address, ...], Meta(min_length=1, max_length=16)]
    host: Name
    pid: U32
    wire: U32
    guest: bool = False


class Heartbeat(Message, frozen=True):
    """Renews the lease. `ops` and `bytes` count from the start of the peer. `links`, `achieved`, `line`: what is new.

    `oldest`: no op of an earlier boundary is pending at the peer, and none will be. `busy`: ops or transfers are under
    way there.
    """

    boundary: U32
    epoch: U32
    oldest: U32
    ops: U64
    bytes: U64
    links: Annotated[tuple[LinkReport, ...], Meta(max_length=LINKS_MAX)] = ()
    achieved: Achieved | None = None
    line: Line | None = None
    busy: bool = False


class Held(Message, frozen=True):
    """Answer to Hold: "I shall not enter this boundary without your word"."""

    hold: U32
    boundary: Boundary


class Frozen(Message, frozen=True):
    """Answer to Freeze. `lanes`: how many ops of each lane were posted, by boundary.

    Its entries hold for later boundaries too, up to the next entry; the last one is that of `boundary`.
    """

    change: U32
    boundary: U32
    lanes: Annotated[dict[U32, Annotated[dict[U64, U32], Meta(max_length=PENDING_MAX)]], Meta(max_length=PENDING_MAX)]
    pending: Annotated[tuple[Pending, ...], Meta(max_length=PENDING_MAX)]


class Suspect(Message, frozen=True):
    """A link lost its last stream (or is silent), or never had one: `was_up`. `cause` is a pccl.types.Cause."""

    peer: PeerId
    cause: U8
    errno: Small
    epoch: U32
    was_up: bool = True


class Healed(Message, frozen=True):
    """That link has a stream again; or for the first time, where a detour was taken to be needed."""

    peer: PeerId


class OpFault(Message, frozen=True):
    """An op cannot end by itself; "forgone": the sender, which was to call it, never will. `epoch`: the newest epoch
    that it knew; `peer`: the other one, or b"".
    """

    kind: Literal["mismatch", "overdue", "cancelled", "forgone"]
    op: OpRef
    epoch: U32
    peer: Annotated[bytes, Meta(max_length=PEER_ID_BYTES)]
    mine: Text
    theirs: Text


class Seek(Message, frozen=True):
    """Transfers name these peers, in whatever group, and no others. `links`: those to peers of other groups that the
    sender has, with their numbers. `seek` counts its changes of mind.
    """

    seek: U32
    peers: Annotated[tuple[PeerId, ...], Meta(max_length=CONTACTS_MAX)]
    links: Annotated[tuple[tuple[PeerId, LinkNumber], ...], Meta(max_length=MEMBERS_MAX)]


class ProbeReply(Message, frozen=True):
    """ "I am alive"."""

    probe: U32


class Leave(Message, frozen=True):
    """Graceful; answered with Goodbye."""

    reason: Text


class StatusRequest(Message, frozen=True):
    """From a tool that is not a peer; answered with Status."""

    run: Name


class KeysRequest(Message, frozen=True):
    """From a guest, which has a token and no secret; answered with Keys."""

    token: Annotated[str, Meta(max_length=TOKEN_CHARS_MAX)]


class Welcome(Message, frozen=True):
    """The join is registered; an Epoch follows when its time has come. `notice`: what the peer's user should know."""

    lease_s: Seconds
    min_peers: U32
    waiting_for: U32
    incarnation: U32 = 0
    notice: Reason = ""


class Refused(Message, frozen=True):
    """The join is not possible."""

    kind: Literal["version", "run", "group", "malformed", "closed", "token"]
    reason: Reason


class Keys(Message, frozen=True):
    """What a guest needs to become a peer: the data key, that of TLS, the peers' secret CURVE key."""

    data: Key
    tls: Key
    peer: Key


class Ack(Message, frozen=True):
    """Answers every Heartbeat. `settled`: no op of an earlier boundary is pending at any member."""

    boundary: U32
    settled: U32
    incarnation: U32 = 0


class Hold(Message, frozen=True):
    """Prepare links to these members-to-be, promise a boundary, answer Held. `epoch`: the newest there is.

    Without joiners it is a new plan that awaits the boundary.
    """

    hold: U32
    epoch: U32
    streams: Annotated[int, Meta(ge=1, le=STREAMS_LIMIT)]
    joiners: Annotated[tuple[Member, ...], Meta(max_length=MEMBERS_MAX)]
    incarnation: U32 = 0


class Acquaint(Message, frozen=True):
    """Keep links for transfers to these peers, and no others: to a member the guests, to a guest the members.
    `inbound`: whether the receiver can be dialled.
    """

    peers: Annotated[tuple[Member, ...], Meta(max_length=MEMBERS_MAX)]
    streams: Annotated[int, Meta(ge=1, le=STREAMS_LIMIT)]
    inbound: bool
    incarnation: U32 = 0


class Contacts(Message, frozen=True):
    """Keep links for transfers to these peers of other groups, and no others. `missing`: of those that the receiver
    seeks since `seek`, who cannot be had, and why. `inbound`: whether the receiver can be dialled.
    """

    seek: U32
    contacts: Annotated[tuple[Contact, ...], Meta(max_length=MEMBERS_MAX)]
    missing: Annotated[tuple[tuple[PeerId, Text], ...], Meta(max_length=CONTACTS_MAX)]
    streams: Annotated[int, Meta(ge=1, le=STREAMS_LIMIT)]
    inbound: bool
    incarnation: U32 = 0


class Release(Message, frozen=True):
    """The hold is off."""

    hold: U32
    incarnation: U32 = 0


class Freeze(Message, frozen=True):
    """Freeze the engine, answer Frozen. `epoch`: the newest there is; who has not got it asks for it first."""

    change: U32
    epoch: U32
    incarnation: U32 = 0


class Epoch(Message, frozen=True):
    """The new epoch. `change` 0: from a boundary on (growth, or a new plan).

    By rank: `streams` (a, b, count) where a link has another number than the plan's; `detours` (a, b, via): a reaches b
    through via; `turned` (a, b): not who would dial by their ids and `inbound` dials, but the other one.
    """

    epoch: U32
    from_boundary: Boundary
    change: U32
    members: Annotated[tuple[Member, ...], Meta(min_length=1, max_length=MEMBERS_MAX)]
    plan: Plan
    verdicts: Annotated[tuple[Verdict, ...], Meta(max_length=PENDING_MAX)]
    reason: Reason
    min_peers: U32
    lease_s: Seconds
    streams: Triples = ()
    detours: Triples = ()
    incarnation: U32 = 0
    turned: Pairs = ()


class Probe(Message, frozen=True):
    """Answer ProbeReply."""

    probe: U32
    incarnation: U32 = 0


class Measure(Message, frozen=True):
    """Measure the link to that peer with filler: no more bytes, no longer."""

    peer: PeerId
    bytes: Annotated[int, Meta(ge=1, le=64 << 20)]
    timeout_s: Annotated[float, Meta(ge=1e-3, le=10.0)]
    incarnation: U32 = 0


class Evicted(Message, frozen=True):
    """You are out."""

    reason: Reason
    incarnation: U32 = 0


class Goodbye(Message, frozen=True):
    """Your Leave was carried out."""

    incarnation: U32 = 0


class Status(Message, frozen=True):
    """What `pccl status` shows. `state`: where that is kept, if at all; `trouble`: why it cannot be written."""

    run: Name
    up_s: float
    malformed: U64
    groups: Annotated[tuple[GroupStatus, ...], Meta(max_length=1024)]
    incarnation: U32 = 0
    state: Reason = ""
    trouble: Reason = ""


ToCoordinator = (
    Join | Heartbeat | Held | Frozen | Suspect | Healed | OpFault | Seek | ProbeReply | Leave | StatusRequest
    | KeysRequest
)  # fmt: skip
ToPeer = (
    Welcome | Refused | Keys | Ack | Acquaint | Contacts | Hold | Release | Freeze | Epoch | Probe | Measure | Evicted
    | Goodbye | Status
)  # fmt: skip

#: What only the present incarnation of a coordinator may say: a peer that has heard a later one ignores it.
Word = (
    Welcome | Ack | Acquaint | Contacts | Hold | Release | Freeze | Epoch | Probe | Measure | Evicted | Goodbye
)  # fmt: skip

_encoder = msgspec.msgpack.Encoder()
_to_coordinator: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ToCoordinator)
_to_peer: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ToPeer)
_head: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(list[msgspec.Raw])
_number: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(int)

# Everything msgspec can raise on hostile bytes; a RecursionError comes from deep nesting.
_BAD_BYTES = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError)


def encode(message: Message) -> bytes:
    """The bytes of a message; ProtocolError if they are too many to be accepted."""
    data = _encoder.encode(message)
    if len(data) > MESSAGE_BYTES_MAX:
        raise ProtocolError(f"a {type(message).__name__} of {len(data)} bytes is larger than {MESSAGE_BYTES_MAX}")
    return data


def signed(message: ToPeer, incarnation: int) -> ToPeer:
    """The message as this incarnation of a coordinator says it; 0 has no durable state, and nothing to tell."""
    return structs.replace(message, incarnation=incarnation) if incarnation and isinstance(message, Word) else message


def decode_at_coordinator(data: bytes | memoryview) -> ToCoordinator:
    """A message from a peer. Raises ProtocolError, nothing else."""
    message: ToCoordinator = _decode(_to_coordinator, data)
    return message


def decode_at_peer(data: bytes | memoryview) -> ToPeer:
    """A message from the coordinator. Raises ProtocolError, nothing else."""
    message: ToPeer = _decode(_to_peer, data)
    return message


def plain(value: Any) -> Any:
    """A message as what JSON knows: structs as objects, ids as hex."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def clip(text: str, limit: int = TEXT_MAX) -> str:
    """Text that fits a field."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _decode(decoder: msgspec.msgpack.Decoder[Any], data: bytes | memoryview) -> Any:
    if len(data) > MESSAGE_BYTES_MAX:
        raise ProtocolError(f"a message of {len(data)} bytes is larger than {MESSAGE_BYTES_MAX}")
    try:
        message = decoder.decode(data)
    except _BAD_BYTES as error:
        _raise_if_other_version(data)
        raise ProtocolError(f"a control message does not decode: {clip(str(error))}") from None
    if message.v != VERSION:
        raise WrongVersion(f"control version {message.v} where {VERSION} is spoken")
    return message


def _raise_if_other_version(data: bytes | memoryview) -> None:
    """Another version may have other fields: look at the second element alone."""
    try:
        version = _number.decode(_head.decode(data)[1])
    except (*_BAD_BYTES, IndexError):
        return
    if version != VERSION:
        raise WrongVersion(f"control version {version} where {VERSION} is spoken") from None
