"""admission.py - whose control connections a coordinator takes, and what it answers to guests (docs/protocol.md 1.9).

Peers have a key that only the run's secret gives; guests have that of the day on which their token expires, and may ask
for the run's keys and nothing else.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable

import zmq.utils.z85

from pccl import messages as m
from pccl.errors import ArgumentError, ProtocolError
from pccl.keys import run_keys
from pccl.refusals import Refusals
from pccl.tokens import DAY_S, TTL_MAX_S, guest_pair, refusal

__all__ = ["GUEST", "PEER", "Admission", "check_open"]

PEER, GUEST = "peer", "guest"


class Admission:
    """Not thread-safe: the loop's thread alone. `wall_s`: the hour, in seconds since 1970."""

    def __init__(self, secret: bytes, run: str, wall_s: Callable[[], float] = time.time) -> None:
        self._wall_s = wall_s
        self._secret = secret
        self._run = run
        self._keys = run_keys(secret, run)
        self._guests: dict[int, bytes] = {}  # public keys by day
        self._refusals = Refusals("a token")

    def zap(self, request: list[bytes]) -> list[bytes]:
        """The answer to ZAP: version, request, status, text, user, metadata. What comes: version, request, domain,
        address, identity, mechanism, key.
        """
        key = zmq.utils.z85.encode(request[6]) if len(request) == 7 and len(request[6]) == 32 else b""
        user = self.user_of(key) if request[5:6] == [b"CURVE"] else ""
        if not user:
            address = request[3].decode(errors="replace") if len(request) > 3 else "somebody"
            self._refusals.note(time.monotonic(), f"{_plain(address)}: its key is not of this run, or is too old")
        code, text = (b"200", b"OK") if user else (b"400", b"not a key of this run")
        return [b"1.0", request[1] if len(request) > 1 else b"", code, text, user.encode(), b""]

    def user_of(self, key: bytes) -> str:
        """PEER, GUEST, or "" for who is let in as neither; by a public key in Z85."""
        if key == self._keys.peer.public:
            return PEER
        return GUEST if self._secret and key in self._guest_keys() else ""

    def answer(self, data: bytes, address: str) -> m.Keys | m.Refused | None:
        """What a guest at an address is told; None: it was no request for keys."""
        try:
            request = m.decode_at_coordinator(data)
        except m.WrongVersion as error:
            return m.Refused(m.VERSION, "version", m.clip(str(error)))
        except ProtocolError:
            return None
        if not isinstance(request, m.KeysRequest):
            return None
        reason = refusal(self._secret, self._run, request.token, self._wall_s())
        if reason:
            self._refusals.note(time.monotonic(), f"{_plain(address)}: {reason}")
            return m.Refused(m.VERSION, "token", m.clip(f"the token is refused: {reason}"))
        keys = self._keys
        return m.Keys(m.VERSION, keys.data, keys.tls, zmq.utils.z85.decode(keys.peer.secret))

    def _guest_keys(self) -> set[bytes]:
        """Of the days of tokens that may hold: from yesterday, whose guests are told that they are late."""
        today = int(self._wall_s()) // DAY_S
        days = range(today - 1, today + TTL_MAX_S // DAY_S + 1)
        self._guests = {day: self._guests.get(day) or guest_pair(self._secret, self._run, day).public for day in days}
        return set(self._guests.values())


def _plain(address: str) -> str:
    """IPv4 as such."""
    return address.removeprefix("::ffff:")


def check_open(host: str, secret: bytes, insecure: bool) -> None:
    """ArgumentError if others than this host's processes could reach a run that has no secret, and nobody said so."""
    if secret or insecure or _is_loopback(host):
        return
    raise ArgumentError(
        f"a run without a secret would be open to everybody who reaches {host}: give one (the variable PCCL_SECRET or "
        "--secret-file), listen on loopback (--bind tcp://127.0.0.1:29400), or say --insecure"
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
