"""errors.py - what can go wrong in the world, as types; and which pccl_err is which.

The buffer rule, for every error of an op: inputs hold what they held before the call (also in place, where `in` is
`out`); an output that is not also the input is undefined. An op that failed on one surviving peer failed on all of
them, except where a class says otherwise.
"""

from __future__ import annotations

from pccl.types import Status


class PcclError(Exception):
    """Base of all. `peer` (16 bytes), `epoch` and `op` (in words) are None where they do not apply.

    Buffers: inputs are restored; an output that is not also the input is undefined.
    """

    def __init__(
        self, message: str, *, peer: bytes | None = None, epoch: int | None = None, op: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.peer = peer
        self.epoch = epoch
        self.op = op

    def __str__(self) -> str:
        facts = [
            f"peer {self.peer.hex()[:8]}" if self.peer is not None else "",
            f"epoch {self.epoch}" if self.epoch is not None else "",
            f"op {self.op}" if self.op is not None else "",
        ]
        text = ", ".join(fact for fact in facts if fact)
        return f"{self.message} ({text})" if text else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.peer, self.epoch, self.op))


class PeerLost(PcclError):
    """A peer that the op cannot do without is gone, or the op was asked to raise on any loss.

    Buffers: inputs are restored; an output that is not also the input is undefined. The communicator is usable.
    """


class Evicted(PeerLost):
    """The coordinator removed this very peer: every op of its communicator ends so. Make a new communicator.

    Buffers: inputs are restored; outputs are undefined. Other peers may have committed the op among themselves.
    """


class TooFewPeers(PcclError):
    """The epoch has fewer members than `min_peers`: no op runs until enough have joined.

    Buffers: inputs are restored (or were never touched, when the op was refused); outputs are undefined.
    """


class Timeout(PcclError, TimeoutError):
    """A deadline passed. The text names who was waited for, and for what.

    Buffers: for an op, inputs are restored and outputs are undefined. A wait that timed out while the op goes on
    changes nothing: the buffers stay borrowed until the op ends.
    """


class ProtocolError(PcclError):
    """Bytes from the network were malformed, of another version, or came out of turn.

    Buffers: inputs are restored; outputs are undefined.
    """


class AuthError(PcclError):
    """The other side does not know the run's secret (or is no pccl coordinator at all). No op was started."""


class TlsMissing(PcclError):
    """TLS is wanted, and OpenSSL cannot be loaded; the text says what to install. Nothing was started."""


class MismatchError(PcclError):
    """Peers called the op with a different shape, dtype, op, count or codec; the text names both sides.

    Buffers: inputs are restored; outputs are undefined. The communicator is usable.
    """


class TransferError(PcclError):
    """A transfer could not be done: no source is left that has the bytes, or has them right; the text says what became
    of each. `name`: what was fetched. `chunk`: the one that came wrong, `peer`: from whom; None where they do not
    apply. `cause`: "gone", "lost", "digest", "protocol", "size" or "memory"; of a push also "timeout" or "cancelled":
    so the fetch of the accepting peer ended.

    Buffers: of the target, the chunks that `Fetch.have()` names hold what the offer holds, all others are undefined;
    nothing is written to it any more. What is offered is not changed by any error.
    """

    def __init__(
        self,
        message: str,
        *,
        peer: bytes | None = None,
        epoch: int | None = None,
        op: str | None = None,
        name: str = "",
        chunk: int | None = None,
        cause: str = "",
    ) -> None:
        super().__init__(message, peer=peer, epoch=epoch, op=op)
        self.name = name
        self.chunk = chunk
        self.cause = cause

    def __reduce__(self) -> tuple[object, ...]:
        facts = {"name": self.name, "chunk": self.chunk, "cause": self.cause}
        return (*super().__reduce__(), facts)


class ForkError(PcclError):
    """A forked child used its parent's communicator: it must make its own. Nothing was touched."""


class CoordinatorLost(PcclError):
    """The coordinator could not be reached for too long: every op of the communicator ends so.

    Buffers: inputs are restored; outputs are undefined. Whether other peers committed the op is unknown.
    """


class StateError(PcclError):
    """A coordinator's durable state cannot be read or written: damaged, of another run, of a newer pccl, in use, or
    the disk is full. The text names the place. No op is concerned.
    """


class Closed(PcclError):
    """The communicator was closed. Buffers: inputs are restored; whether other peers committed the op is unknown."""


class Cancelled(PcclError):
    """The op was cancelled, here or on another peer. Buffers: inputs are restored; outputs are undefined."""


class ArgumentError(PcclError, ValueError):
    """An argument is wrong. Nothing happened, nothing is borrowed."""


class HungError(PcclError):
    """A thread of pccl's did not end in time; the text says which, and where it is. What it holds is not given back."""


class ResourceError(PcclError, MemoryError):
    """Memory or a budget is exhausted. Nothing happened, nothing is borrowed."""


class DeviceError(PcclError):
    """An accelerator failed to copy to or from pinned memory, or had none to give; the text is its own. It concerns
    this peer alone: the others' ops end with Cancelled or Timeout, or well if only the copy of the result failed.

    Buffers: host memory is as for any error. What the device's memory holds is for the device to say.
    """


_CLASSES: dict[int, type[PcclError]] = {
    Status.EINVAL: ArgumentError,
    Status.ENOMEM: ResourceError,
    Status.EPROTO: ProtocolError,
    Status.EAUTH: AuthError,
    Status.EMISMATCH: MismatchError,
    Status.EPEER: PeerLost,
    Status.EFEW: TooFewPeers,
    Status.ETIMEOUT: Timeout,
    Status.ECLOSED: Closed,
    Status.EEVICTED: Evicted,
    Status.ELOST: CoordinatorLost,
    Status.ECANCELLED: Cancelled,
}


def class_of(status: int) -> type[PcclError]:
    """The class of a pccl_err; PcclError itself for those without one of their own."""
    return _CLASSES.get(status, PcclError)


def error_of(
    status: int, message: str, *, peer: bytes | None = None, epoch: int | None = None, op: str | None = None
) -> PcclError:
    """The exception of a pccl_err, ready to raise."""
    return class_of(status)(message, peer=peer, epoch=epoch, op=op)


def _rebuild(kind: type[PcclError], message: str, peer: bytes | None, epoch: int | None, op: str | None) -> PcclError:
    return kind(message, peer=peer, epoch=epoch, op=op)
