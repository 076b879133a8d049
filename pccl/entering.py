"""entering.py - the keys with which a peer enters its run: from the secret, or, for a token, from the coordinator.

A guest (docs/protocol.md 1.9) asks before it opens a port, over a connection of its own; then it is a peer like others.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

import zmq
import zmq.utils.z85

from pccl import messages as m
from pccl.config import Settings
from pccl.errors import AuthError, CoordinatorLost, PcclError, ProtocolError
from pccl.keys import KeyPair, RunKeys, as_secret, pair_of, run_keys
from pccl.loop import monitor_event
from pccl.tokens import Token, read

__all__ = ["keys_of"]

ASK_AGAIN_S = 1.0
FAILED_HANDSHAKES_MAX = 2
_FAILED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL


def keys_of(settings: Settings) -> RunKeys:
    """The run's keys. With a token it blocks until the coordinator answers, for `join_timeout` seconds at most; Ctrl-C
    interrupts. Raises AuthError, CoordinatorLost, ProtocolError, or PcclError if no socket can be had.
    """
    if not settings.token:
        return run_keys(as_secret(settings.secret), settings.run)
    token = read(settings.token)
    if token.run != settings.run:
        raise AuthError(f"the token is for run {token.run!r}, not {settings.run!r}")
    try:
        with _Asker(settings.coordinator.split(","), token) as asker:
            return asker.ask(settings.join_timeout)
    except zmq.ZMQError as error:
        raise PcclError(f"no connection to a coordinator at {settings.coordinator}: {error}") from error


class _Asker:
    """One connection to each of the coordinators that stand by for each other; only one of them serves."""

    def __init__(self, endpoints: Sequence[str], token: Token) -> None:
        self._endpoints = list(endpoints)
        self._where = ", ".join(endpoints)
        self._token = token
        self._failed = 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        self._sockets: list[zmq.Socket[bytes]] = []
        self._monitors: list[zmq.Socket[bytes]] = []
        try:
            for endpoint in endpoints:
                self._connect(endpoint)
        except zmq.ZMQError:
            self._context.destroy(linger=0)
            raise

    def _connect(self, endpoint: str) -> None:
        guest = self._context.socket(zmq.DEALER)
        guest.setsockopt(zmq.LINGER, 0)
        guest.setsockopt(zmq.IPV6, 1)
        guest.setsockopt(zmq.IMMEDIATE, 1)
        guest.setsockopt(zmq.MAXMSGSIZE, m.MESSAGE_BYTES_MAX)
        guest.setsockopt(zmq.ROUTING_ID, b"\x02" + secrets.token_bytes(15))
        guest.setsockopt(zmq.CURVE_SERVERKEY, self._token.coordinator)
        guest.setsockopt(zmq.CURVE_PUBLICKEY, self._token.guest.public)
        guest.setsockopt(zmq.CURVE_SECRETKEY, self._token.guest.secret)
        monitor = guest.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | _FAILED)
        guest.connect(endpoint)
        self._sockets.append(guest)
        self._monitors.append(monitor)
        self._poller.register(guest, zmq.POLLIN)
        self._poller.register(monitor, zmq.POLLIN)

    def __enter__(self) -> _Asker:
        return self

    def __exit__(self, *exc: object) -> None:
        for guest in self._sockets:
            guest.disable_monitor()
        self._context.destroy(linger=0)

    def ask(self, timeout_s: float) -> RunKeys:
        """Asks whoever is connected, and again when nobody answers."""
        deadline, again = time.monotonic() + timeout_s, 0.0
        while (now := time.monotonic()) < deadline:
            if now >= again:
                self._send()
                again = now + ASK_AGAIN_S
            for ready, _ in self._poller.poll(int(1000 * (min(again, deadline) - now)) + 1):
                if ready in self._monitors:
                    again = min(again, self._on_monitor(self._monitors.index(ready), again))
                else:
                    return self._keys(ready.recv())
        raise CoordinatorLost(f"no coordinator answered at {self._where} within {timeout_s:g} s")

    def _send(self) -> None:
        request = m.encode(m.KeysRequest(m.VERSION, self._token.text))
        for guest in self._sockets:
            try:
                guest.send(request, zmq.NOBLOCK)
            except zmq.Again:
                continue  # not connected

    def _on_monitor(self, number: int, again: float) -> float:
        """When to ask again: at once on a new connection. A refusal by ZAP is final: what spoke has the run's keys."""
        event, _ = monitor_event(self._monitors[number].recv_multipart(copy=False))
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            return 0.0
        self._failed += 1
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH or self._failed >= FAILED_HANDSHAKES_MAX:
            expires = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(self._token.expires_s))
            reason = f"another secret or run, or the token is too old (it expires at {expires} UTC)"
            raise AuthError(f"{self._where} refuses the handshake: {reason}")
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:  # then libzmq does not dial again by itself
            self._sockets[number].disconnect(self._endpoints[number])
            self._sockets[number].connect(self._endpoints[number])
        return again

    def _keys(self, data: bytes) -> RunKeys:
        answer = m.decode_at_peer(data)
        if isinstance(answer, m.Refused):
            kind = AuthError if answer.kind == "token" else ProtocolError
            raise kind(f"the coordinator refuses this peer: {answer.reason}")
        if not isinstance(answer, m.Keys):
            raise ProtocolError(f"a {type(answer).__name__} is no answer to a token")
        return RunKeys(answer.data, answer.tls, KeyPair(self._token.coordinator, b""), pair_of(answer.peer))
