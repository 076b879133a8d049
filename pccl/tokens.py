"""tokens.py - short-lived tokens by which a peer enters a run whose secret it does not have (docs/protocol.md 1.9).

Pure: `mint` and `refusal` are for who has the secret, `read` for everybody. Times are seconds since 1970.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass, field
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct
from zmq.utils import z85

from pccl.errors import ArgumentError
from pccl.keys import KeyPair, curve_pair, derive, pair_of
from pccl.messages import TOKEN_CHARS_MAX, Key

__all__ = ["DAY_S", "TTL_MAX_S", "Token", "guest_pair", "mint", "read", "refusal"]

PREFIX: Final = "pccl-token-1."
DAY_S: Final = 86400
TTL_MAX_S: Final = 30 * DAY_S
MAC_BYTES: Final = 32


class _Body(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    run: Annotated[str, Meta(max_length=255)]
    expires_s: Annotated[int, Meta(ge=0, lt=1 << 40)]
    nonce: Annotated[bytes, Meta(min_length=16, max_length=16)]
    coordinator: Key
    guest: Key


@dataclass(slots=True, frozen=True)
class Token:
    """What a token says; whether it holds only its coordinator knows."""

    text: str = field(repr=False)
    run: str
    expires_s: int
    coordinator: bytes  # its public key, in Z85
    guest: KeyPair = field(repr=False)


_decoder = msgspec.msgpack.Decoder(_Body)


def guest_pair(secret: bytes, run: str, day: int) -> KeyPair:
    """The CURVE keys of those whose token expires on that day since 1970."""
    return curve_pair(secret, run, f"guest {day}")


def mint(secret: bytes, run: str, ttl_s: float, now_s: float) -> str:
    """A token that is good for so long. ArgumentError without a secret, or for a time that cannot be."""
    if not secret:
        raise ArgumentError("a token is made from the run's secret, and there is none")
    if not 1 <= ttl_s <= TTL_MAX_S:
        raise ArgumentError(f"a token is good for 1 s to {TTL_MAX_S // DAY_S} days, not for {ttl_s:g} s")
    if len(run) > 255:
        raise ArgumentError("the name of a run has 255 characters at most")
    expires_s = int(now_s + ttl_s)
    guest = guest_pair(secret, run, expires_s // DAY_S)
    coordinator = curve_pair(secret, run, "coordinator").public
    body = msgspec.msgpack.encode(
        _Body(run, expires_s, secrets.token_bytes(16), z85.decode(coordinator), z85.decode(guest.secret))
    )
    return PREFIX + base64.urlsafe_b64encode(body + _mac(secret, run, body)).decode().rstrip("=")


def read(text: str) -> Token:
    """What it says. ArgumentError, which does not repeat it, for what is no token."""
    body = _body(text)
    if body is None:
        raise ArgumentError(f"this is no token of pccl: one begins with {PREFIX!r} and comes from pccl token")
    guest = pair_of(body.guest)
    return Token(text, body.run, body.expires_s, z85.encode(body.coordinator), guest)


def refusal(secret: bytes, run: str, text: str, now_s: float) -> str:
    """Why the token does not open this run now; "" if it does."""
    body = _body(text)
    if body is None or not secret:
        return "it is no token of this run"
    if body.run != run:
        return f"it is a token of run {body.run!r}"
    data = _bytes(text)
    if not hmac.compare_digest(data[-MAC_BYTES:], _mac(secret, run, data[:-MAC_BYTES])):
        return "it was not made with the secret of this run"
    if now_s >= body.expires_s:
        return f"it expired at {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(body.expires_s))} UTC"
    return ""


def _mac(secret: bytes, run: str, body: bytes) -> bytes:
    return hmac.new(derive(secret, run, "token"), body, hashlib.sha256).digest()


def _bytes(text: str) -> bytes:
    encoded = text.removeprefix(PREFIX)
    return base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)


def _body(text: str) -> _Body | None:
    if not text.startswith(PREFIX) or len(text) > TOKEN_CHARS_MAX:
        return None
    try:
        return _decoder.decode(_bytes(text)[:-MAC_BYTES])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
