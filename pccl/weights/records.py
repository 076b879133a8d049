"""records.py - what lines of weights say (line.py), and what streams and lines are called. Pure.

Bytes from the network end in DamageError when they are not what they should be.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from pccl.types import PEER_ID_BYTES
from pccl.weights.certificate import Version
from pccl.weights.errors import DamageError

__all__ = ["Answer", "Part", "Peers", "Round", "State", "Tip"]


class _Record(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """All of them."""

    def encode(self) -> bytes:
        """As msgpack."""
        return msgspec.msgpack.encode(self)


R = TypeVar("R", bound=_Record)


class Tip(_Record):
    """A source's newest version, that of its base, the hash of the schema, and its publisher's epoch. `sizes`: of the
    delta that led there, see Payload; zeros: it is not served.
    """

    version: int
    lineage: bytes
    base: bytes
    schema: bytes
    epoch: int
    sizes: tuple[int, int]

    @property
    def at(self) -> Version:
        """As a Version."""
        return Version(self.version, self.lineage)


class State(_Record):
    """The newest that a follower holds, and whether it wants a way from there. `role`: "receiver", "relay", or "gone".
    `committed`: the version that it serves from. `below`: (followers of followers, the lowest version committed among
    them). `number`: of its wishes, so that an answer can say which it is to. `serves`: others may have deltas of it.
    """

    role: str
    version: int
    lineage: bytes
    committed: int
    wants: int
    number: int
    below: tuple[int, int]
    serves: bool

    @property
    def at(self) -> Version:
        """What it has, as a Version."""
        return Version(self.version, self.lineage)


class Answer(_Record):
    """A source to one follower: the stream that leads on from where that said it was, and the sizes of its payload; or
    why there is none.
    """

    number: int
    stream: str
    slots: int
    sizes: tuple[int, int]
    error: str


class Peers(_Record):
    """Who follows a source and serves others of it: ids, PEERS_MAX at most."""

    ids: list[bytes]

    def check(self) -> None:
        """DamageError if they are no ids."""
        if len(self.ids) > PEERS_MAX or any(len(one) != PEER_ID_BYTES for one in self.ids):
            raise DamageError(f"a line of weights names {len(self.ids)} peers, or what is none")


PEERS_MAX = 48


class Round(_Record):
    """The lead of several publishers: the next version is to follow this one. `attempt`: how many have failed here,
    `error`: why the last did, `blame`: whose part that was, or empty. `joint`: this version was made of all parts.
    """

    version: int
    lineage: bytes
    attempt: int
    joint: bool
    error: str
    blame: bytes

    @property
    def key(self) -> tuple[bytes, int]:
        """What tells rounds apart."""
        return self.lineage, self.attempt


class Part(_Record):
    """What a publisher that is not the lead has for a round: a stream of so many slots."""

    lineage: bytes
    attempt: int
    slots: int

    @property
    def key(self) -> tuple[bytes, int]:
        """Of its round."""
        return self.lineage, self.attempt


#: What a State wants: nothing; one payload to the tip; the next delta as it was published.
WANTS_NOTHING, WANTS_FOLD, WANTS_DELTA = 0, 1, 2


def decode(kind: type[R], data: bytes) -> R:
    """From the network."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError) as error:
        raise DamageError(f"a line of weights says something else than a {kind.__name__}: {error}") from error


def tip_line(name: str) -> str:
    """Of a source, and of a receiver that serves: the newest that it can be asked for."""
    return f"weights/{name}/tip"


def state_line(name: str) -> str:
    """Of a follower."""
    return f"weights/{name}/state"


def answer_line(name: str, follower: bytes) -> str:
    """Of a source, to one follower."""
    return f"weights/{name}/answer/{follower.hex()}"


def peers_line(name: str) -> str:
    """Of a source."""
    return f"weights/{name}/peers"


def round_line(name: str) -> str:
    """Of the lead."""
    return f"weights/{name}/round"


def part_line(name: str) -> str:
    """Of a publisher that is not the lead."""
    return f"weights/{name}/part"


def part_stream(name: str, key: tuple[bytes, int]) -> str:
    """Of such a one, for a round."""
    return f"{name}/part/{key[0].hex()}/{key[1]}"


def live_stream(name: str, base: Version) -> str:
    """The delta from there, before and after it is published."""
    return f"{name}/live/{base.lineage.hex()}"


def fold_stream(name: str, base: Version, at: Version) -> str:
    """A way from there to here."""
    return f"{name}/fold/{base.lineage.hex()}/{at.lineage.hex()}"
