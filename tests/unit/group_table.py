"""A Membership on a table, for its tests: a clock, mailboxes, and short ways to say what peers say."""

from __future__ import annotations

from pccl import messages as m
from pccl.coordinator.events import Effect, Event, From, Send, Tick
from pccl.coordinator.membership import Membership
from pccl.coordinator.settings import Settings
from pccl.coordinator.steps import State
from pccl.types import Cause, OpName

V = m.VERSION


def pid(number: int) -> bytes:
    return bytes([number]) * 16


A, B, C, D = (pid(n) for n in (1, 2, 3, 4))


def join(peer: bytes, wire: int = 1, run: str = "run", group: int = 0) -> m.Join:
    return m.Join(V, run, group, peer, (f"10.0.0.{peer[0]}:1",), f"host{peer[0]}", 1, wire)


class Table:
    """A Membership with a clock and a mailbox per peer."""

    def __init__(self, **options: object) -> None:
        self.machine = Membership(0, Settings(**{"lease_s": 10.0, **options}))  # type: ignore[arg-type]
        self.now = 100.0
        self.effects: list[Effect] = []

    def __call__(self, event: Event) -> list[tuple[bytes, m.ToPeer]]:
        self.now += 0.001
        self.effects = self.machine.handle(self.now, event)
        return [(effect.peer, effect.message) for effect in self.effects if isinstance(effect, Send)]

    def say(self, peer: bytes, message: m.ToCoordinator) -> list[tuple[bytes, m.ToPeer]]:
        return self(From(peer, message))

    def wait(self, seconds: float, *alive: bytes) -> list[tuple[bytes, m.ToPeer]]:
        """Time passes; some peers send heartbeats."""
        sent = []
        end = self.now + seconds
        while self.now < end:
            self.now += 1.0
            for peer in alive:
                sent += self.say(peer, m.Heartbeat(V, 0, self.machine.epoch, 0, 0, 0))
            sent += self(Tick())
        return sent

    def formed(self, *peers: bytes) -> Table:
        for peer in peers:
            self.say(peer, join(peer))
        assert self.state is State.STABLE
        return self

    @property
    def state(self) -> State:
        return self.machine.state

    @property
    def members(self) -> list[bytes]:
        return list(self.machine.members)


def group(*peers: bytes, **options: object) -> Table:
    return Table(min_peers=len(peers), **options).formed(*peers)


def of(kind: type, sent: list[tuple[bytes, m.ToPeer]]) -> dict[bytes, m.ToPeer]:
    return {peer: message for peer, message in sent if type(message) is kind}


def frozen(change: int, boundary: int = 0, lanes: dict[int, int] | None = None, *pending: m.Pending) -> m.Frozen:
    """`lanes`: those of the present boundary."""
    return m.Frozen(V, change, boundary, {boundary: lanes or {}}, pending)


def pend(
    name: OpName, finished: bool = False, pair: bool = False, needs: tuple[bytes, ...] = (), everyone: bool = False
) -> m.Pending:
    return m.Pending(m.OpRef(*name), finished, pair, needs, f"op {name.seq}", everyone)


def fault(kind: str, name: OpName, epoch: int, peer: bytes = b"") -> m.OpFault:
    return m.OpFault(V, kind, m.OpRef(*name), epoch, peer, "mine", "theirs")  # type: ignore[arg-type]


def suspect(peer: bytes, cause: Cause) -> m.Suspect:
    return m.Suspect(V, peer, cause, 104, 1)


X = OpName(0, 0, 0)
