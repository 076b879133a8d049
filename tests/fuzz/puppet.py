"""puppet.py - one peer of the fuzzer: a real Peer and a real engine, without a thread, on a simulated network.

What it says and what it hears passes through the fuzzer, which may change it.
"""

from __future__ import annotations

import hashlib
from collections import deque

from pccl import _native as native
from pccl import messages as m
from pccl.errors import ProtocolError
from pccl.peer import Peer
from pccl.session import State
from pccl.types import Event, EventKind, Identity, OpInfo, OpName, OpRequest

RUN = "run"
INBOX_MAX = 64


def peer_id(index: int, life: int = 0) -> bytes:
    """Of a puppet in one of its lives, or of a stranger."""
    return hashlib.blake2b(bytes([index, life]), digest_size=16).digest()


class Puppet:
    """A process that calls barriers."""

    def __init__(self, sim: native.Sim, index: int, life: int = 0) -> None:
        self.index = index
        self.life = life
        self.id = peer_id(index, life)
        self.engine = native.Engine(
            native.EngineConfig(
                peer_id=self.id, run=b"r" * 16, key=b"k" * 32, transport="sim", listen=f"sim:{index}", sim=sim
            )
        )
        identity = Identity(self.id, RUN, 0, (f"sim:{index}",), f"host{index}", index)
        self.ops: dict[int, OpInfo] = {}
        self.ended: dict[int, Event] = {}
        self.inbox: deque[bytes] = deque(maxlen=INBOX_MAX)
        self.peer = Peer(identity, self.engine, self.ops.get)
        self._called: dict[int, int] = {}  # by boundary
        self._tokens = 0

    def take(self, now: float, data: bytes) -> None:
        """What Control does with a frame: nothing but a ProtocolError may come of any bytes."""
        try:
            message = m.decode_at_peer(data)
        except ProtocolError:
            return
        self.peer.on_message(now, message)

    def call(self, deadline_ns: int = 0) -> int:
        """Calls a barrier; gives its token, 0 if it is no member."""
        if self.peer.state is not State.MEMBER:
            return 0
        boundary = self.peer.boundary
        seq = self._called.get(boundary, 0)
        self._called = {boundary: seq + 1}
        self._tokens += 1
        name = OpName(boundary, 0, seq)
        self.ops[self._tokens] = OpInfo("barrier", (), False, name)
        self.engine.submit(
            OpRequest(self._tokens, native.Kind.BARRIER, 0, 0, 0, 0, 0, 0, 0, name=name, deadline_ns=deadline_ns)
        )
        return self._tokens

    def turn(self, now: float) -> None:
        """The engine's turn, and what it reports."""
        self.engine.step(int(now * 1e9))
        events = self.engine.events()
        for event in self.peer.on_engine(now, events):
            if event.kind == EventKind.OP:
                assert event.token in self.ops, "an op ended that nobody called, or twice"
                del self.ops[event.token]
                self.ended[event.token] = event

    def close(self) -> None:
        """Gives everything back. The engine asserts that its memory is whole again."""
        self.engine.close()
        self.engine.free()
