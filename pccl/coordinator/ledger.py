"""ledger.py - a run whose decisions are written before anybody hears of them, and survive the process.

Takes what a Run takes and gives effects; those that rest on a decision only once the store has it. While the store
cannot be written (a full disk) nothing more is decided: what was decided last is held back and tried again, what peers
say waits its turn, in order. Heartbeats are answered, so that peers go on with all that needs no decision. Without a
store it is the Run and no more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from pccl import messages as m
from pccl.coordinator import snapshot
from pccl.coordinator.events import Effect, Record, Send
from pccl.coordinator.run import Run
from pccl.coordinator.store import Store
from pccl.errors import ProtocolError, StateError

RETRY_S = 0.25
#: Messages that wait for the store; what comes then is dropped, as by a connection that breaks.
WAITING_MAX = 65536

Step = Callable[[float], list[Effect]]


class Ledger:
    """Not thread-safe: the caller holds a lock."""

    def __init__(self, run: Run, store: Store | None = None) -> None:
        self.run = run
        self.store = store
        self._written: dict[int, int] = {}  # group: its revision in the store
        self._held: list[Effect] = []
        self._waiting: deque[Step] = deque()
        self._asked: set[tuple[bytes, bytes]] = set()  # requests among those, which peers repeat
        self._beats: dict[bytes, m.Heartbeat] = {}
        self._retry_at = 0.0

    def open(self, clock: Callable[[], float]) -> list[Effect]:
        """Takes up what there is, perhaps after a long wait for its turn: leases begin when that is over. StateError if
        it cannot be read, or this incarnation cannot be written.
        """
        if self.store is None:
            return []
        saved = self.store.begin(self.run.name)
        self.run.incarnation, self.run.state = saved.incarnation, self.store.where
        return self._step(clock(), lambda now: self.run.restore(now, saved.groups))

    # -- as a Run -----------------------------------------------------------------------------------------------

    def bytes_from(self, now: float, peer: bytes, data: bytes) -> list[Effect]:
        """A frame has come."""
        if self.run.trouble:
            return self._while_blocked(now, peer, data)
        return self._step(now, lambda now: self.run.bytes_from(now, peer, data))

    def disconnected(self, now: float, peer: bytes) -> list[Effect]:
        """The control connection of a peer was closed."""
        return self._in_turn(now, lambda now: self.run.disconnected(now, peer))

    def reconnected(self, now: float, peer: bytes) -> list[Effect]:
        """A peer whose control connection was closed has a new one."""
        return self._in_turn(now, lambda now: self.run.reconnected(now, peer))

    def dialled(self, now: float, peer: bytes, address: str | None) -> list[Effect]:
        """A dial-back has ended."""
        return self._in_turn(now, lambda now: self.run.dialled(now, peer, address))

    def tick(self, now: float) -> list[Effect]:
        """Time has passed."""
        if not self.run.trouble:
            return self._step(now, self.run.tick)
        return self._try_again(now) if now >= self._retry_at else []

    def next_deadline(self) -> float | None:
        """When `tick` is due; None: not before something happens."""
        return self._retry_at if self.run.trouble else self.run.next_deadline()

    def status(self, now: float) -> m.Status:
        """What `pccl status` shows."""
        return self.run.status(now)

    # -- written before it is said ------------------------------------------------------------------------------

    def _step(self, now: float, step: Step) -> list[Effect]:
        effects = step(now)
        try:
            self._write()
        except StateError as error:
            self._held, self.run.trouble, self._retry_at = effects, str(error), now + RETRY_S
            return [self._remark(now, f"{error}: nothing is decided until it can be written")]
        return effects

    def _write(self) -> None:
        """Writes what is not in the store yet; most events change nothing of it."""
        if self.store is None:
            return
        groups = self.run.groups.values()
        news = {group.group: group for group in groups if self._written.get(group.group, 0) != group.revision}
        if news:
            self.store.save({number: snapshot.encode(group.export()) for number, group in news.items()})
            self._written.update((number, group.revision) for number, group in news.items())

    def _try_again(self, now: float) -> list[Effect]:
        try:
            self._write()
        except StateError as error:
            self.run.trouble, self._retry_at = str(error), now + RETRY_S
            return []
        effects, self._held, self.run.trouble = [*self._held, self._remark(now, "written again")], [], ""
        beats, self._beats = self._beats, {}
        for peer, beat in reversed(beats.items()):  # who was alive meanwhile is heard before anything is judged
            self._waiting.appendleft(_beat_again(self.run, peer, beat))
        while self._waiting and not self.run.trouble:
            effects += self._step(now, self._waiting.popleft())
        if not self._waiting:
            self._asked.clear()
        return effects

    # -- while it cannot be written -----------------------------------------------------------------------------

    def _in_turn(self, now: float, step: Step) -> list[Effect]:
        if not self.run.trouble:
            return self._step(now, step)
        if len(self._waiting) < WAITING_MAX:
            self._waiting.append(step)
        return []

    def _while_blocked(self, now: float, peer: bytes, data: bytes) -> list[Effect]:
        """Says what rests on no decision; the rest waits."""
        try:
            message = m.decode_at_coordinator(data)
        except ProtocolError:
            return self.run.bytes_from(now, peer, data)
        if isinstance(message, m.StatusRequest):
            return self.run.message(now, peer, message)
        if isinstance(message, m.Heartbeat):
            if not self.run.knows(peer):
                return []
            self._beats[peer] = message
            return [Send(peer, m.Ack(m.VERSION, message.boundary, 0))]
        if isinstance(message, m.Join | m.Leave):
            if (peer, data) in self._asked:
                return []
            self._asked.add((peer, data))
        return self._in_turn(now, lambda now: self.run.message(now, peer, message))

    def _remark(self, now: float, text: str) -> Record:
        return Record(now, 0, 0, b"", "state", m.clip(text), warning=True)


def _beat_again(run: Run, peer: bytes, beat: m.Heartbeat) -> Step:
    return lambda now: run.message(now, peer, beat)
