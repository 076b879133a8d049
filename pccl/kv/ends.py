"""ends.py - how a transfer is, and how it ends: states, causes, and the errors that users see."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from pccl.errors import ArgumentError, PcclError

__all__ = [
    "End",
    "EndError",
    "State",
    "TicketUsed",
    "TransferAborted",
    "TransferExpired",
    "TransferFailed",
    "TransferUnknown",
    "error_of",
]


class State(str, Enum):
    """Of one side of a transfer. The last four are terminal."""

    RESERVED = "reserved"
    STREAMING = "streaming"
    FINISHING = "finishing"
    ENDING = "ending"
    COMMITTED = "committed"
    ABORTED = "aborted"
    EXPIRED = "expired"
    FAILED = "failed"

    @property
    def terminal(self) -> bool:
        """Whether none follows."""
        return self in (State.COMMITTED, State.ABORTED, State.EXPIRED, State.FAILED)


@dataclass(slots=True, frozen=True)
class End:
    """A terminal state, and why."""

    state: State
    cause: str = ""
    text: str = ""


class EndError(PcclError):
    """A transfer of KV blocks did not commit. `cause` says why in a word.

    Buffers: of the receiver's blocks, those that were needed are undefined; all are free again on both sides, and
    nothing reads or writes them any more.
    """

    def __init__(
        self,
        message: str,
        *,
        peer: bytes | None = None,
        epoch: int | None = None,
        op: str | None = None,
        cause: str = "",
    ) -> None:
        super().__init__(message, peer=peer, epoch=epoch, op=op)
        self.cause = cause

    @property
    def retriable(self) -> bool:
        """Whether the same may go well a little later, with a new ticket or pull: somebody was full ("busy",
        "no_space"), and nothing is wrong.
        """
        return self.cause in _FULL

    def __reduce__(self) -> tuple[object, ...]:
        return (*super().__reduce__(), {"cause": self.cause})


class TransferAborted(EndError):
    """Somebody, here or there, aborted or cancelled it; `cause` is what they said."""


class TransferExpired(EndError, TimeoutError):
    """Its time is over: `cause` "deadline" or "lease"."""


class TransferFailed(EndError):
    """`cause`: "checksum", "incomplete", "protocol", "gone" (no such offer or memory there any more), "lost" (the
    other peer is), "ticket", "busy", "no_space", "layout", "closed".
    """


class TransferUnknown(TransferFailed, LookupError):
    """The peer has no such offer (or not any more: `cause` "gone"), knows no such ticket ("ticket"), or has never
    answered ("lost").
    """


class TicketUsed(ArgumentError):
    """The ticket has opened a send before. Nothing happened."""


_FULL = ("busy", "no_space")
_UNKNOWN = ("gone", "ticket")
_ERRORS = {State.ABORTED: TransferAborted, State.EXPIRED: TransferExpired, State.FAILED: TransferFailed}


def error_of(end: End, peer: bytes | None, what: str, answered: bool = True) -> EndError:
    """What `wait` raises for an end that is no commit. `answered`: the peer has said anything about it."""
    text = f": {end.text}" if end.text else ""
    unknown = end.state is State.FAILED and end.cause in (_UNKNOWN if answered else (*_UNKNOWN, "lost"))
    kind = TransferUnknown if unknown else _ERRORS[end.state]
    return kind(f"{end.state.value} ({end.cause}){text}", peer=peer, op=what, cause=end.cause)
