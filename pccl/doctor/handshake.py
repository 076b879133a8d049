"""handshake.py - the four messages with which each connection of the doctor begins; pure. docs/doctor.md has the table.

The dialler proves first that it knows the secret: who does not learns nothing but the version. Every later version
begins its messages with the same ten bytes, so that a wrong version can be told from a wrong door.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from pccl.doctor.errors import Busy
from pccl.errors import AuthError, PcclError, ProtocolError

__all__ = ["Hello", "Purpose", "Verdict"]

VERSION: Final = 1
MAGIC: Final = b"PCCLDOCT"
HEAD: Final = struct.Struct("<8sH")
HELLO: Final = struct.Struct("<8sHBxI16s32s")
CHALLENGE: Final = struct.Struct("<8sH2x32s")
PROOF_BYTES: Final = 32
VERDICT: Final = struct.Struct("<B3x32s")
SESSION_BYTES: Final = 16
NONCE_BYTES: Final = 32
NO_SESSION: Final = bytes(SESSION_BYTES)


class Purpose(IntEnum):
    """What a connection is for: talk, one stream of a flow, or only to show that it can be made."""

    SESSION = 1
    STREAM = 2
    CALL = 3


class Verdict(IntEnum):
    """The acceptor's answer to a proof."""

    WELCOME = 0
    WRONG_SECRET = 1
    BUSY = 2
    NOT_EXPECTED = 3


@dataclass(frozen=True, slots=True)
class Hello:
    """What a connection is for. `index`: of the stream or the call."""

    purpose: Purpose
    session: bytes
    index: int
    nonce: bytes

    def pack(self) -> bytes:
        """The dialler's first message."""
        return HELLO.pack(MAGIC, VERSION, self.purpose, self.index, self.session, self.nonce)


def check_head(head: bytes) -> None:
    """Raises ProtocolError for what is no doctor, or one of another version."""
    magic, version = HEAD.unpack(head)
    if magic != MAGIC:
        raise ProtocolError("does not speak pccl doctor")
    if version != VERSION:
        raise ProtocolError(
            f"speaks version {version} of pccl doctor, this side version {VERSION}: "
            "install the same pccl on both machines"
        )


def unpack_hello(data: bytes) -> Hello:
    """Raises ProtocolError if there is no such purpose. The head has been checked."""
    _, _, purpose, index, session, nonce = HELLO.unpack(data)
    if purpose not in tuple(Purpose):
        raise ProtocolError(f"asks for an unknown purpose: {purpose}")
    return Hello(Purpose(purpose), session, index, nonce)


def challenge(nonce: bytes) -> bytes:
    """The acceptor's first message."""
    return CHALLENGE.pack(MAGIC, VERSION, nonce)


def proof(key: bytes, said: bytes) -> bytes:
    """The dialler's second message. `said`: HELLO and CHALLENGE, as they travelled."""
    return hmac.digest(key, b"dialler " + said, "sha256")


def proves(key: bytes, said: bytes, given: bytes) -> bool:
    """Whether the dialler knows the secret."""
    return hmac.compare_digest(proof(key, said), given)


def verdict(key: bytes, said: bytes, answer: Verdict) -> bytes:
    """The acceptor's second message; who gave no proof gets none either."""
    return VERDICT.pack(answer, bytes(32) if answer is Verdict.WRONG_SECRET else _signature(key, said, answer))


def judge(key: bytes, said: bytes, data: bytes) -> None:
    """The dialler reads a verdict: returns if it is welcome, and by one who knows the secret. Raises AuthError, Busy or
    ProtocolError.
    """
    code, signature = VERDICT.unpack(data)
    if code not in tuple(Verdict):
        raise ProtocolError(f"gave an unknown verdict: {code}")
    answer = Verdict(code)
    if answer is Verdict.WRONG_SECRET:
        raise AuthError(
            "has another secret or run: PCCL_SECRET (or --secret-file) and --run must be equal on both sides"
        )
    if not hmac.compare_digest(signature, _signature(key, said, answer)):
        raise AuthError("does not know the secret")
    if answer is not Verdict.WELCOME:
        raise _refusal(answer)


def talk_key(key: bytes, said: bytes) -> bytes:
    """Signs what is said on the connection afterwards."""
    return hmac.digest(key, b"talk    " + said, "sha256")


def _refusal(answer: Verdict) -> PcclError:
    if answer is Verdict.BUSY:
        return Busy("is examining another machine: try again when it is done")
    return ProtocolError("did not expect this connection")


def _signature(key: bytes, said: bytes, answer: Verdict) -> bytes:
    return hmac.digest(key, b"acceptor" + bytes([answer]) + said, "sha256")
