"""inbound.py - one receive: its machine, its blocks, what they mean to an Open, and who waits for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pccl.errors import ProtocolError
from pccl.kv import messages as m
from pccl.kv.binding import data_key, seeds, tags, unpacked
from pccl.kv.ends import End, State, error_of
from pccl.kv.handles import Receive, Received
from pccl.kv.mail import Correspondence
from pccl.kv.memory import Ids, Memory, Numbers
from pccl.kv.receive import AskEnded, ReceiveMachine
from pccl.kv.unit import Ask, Mask, Unit
from pccl.transfer.task import Runs
from pccl.types import Priority

__all__ = ["Inbound", "Wish"]

_END_MAX = 1 << 62


@dataclass(slots=True, frozen=True)
class Wish:
    """What the user said. `hedge_s`: after it a hedged receive is given up on, though it goes on."""

    request_id: str
    priority: str
    on_failure: str
    hedge_s: float | None


@dataclass(slots=True, eq=False)
class Inbound:
    """See Asker (schedule.py). The thread of transfers alone, once it was handed over. `event`: takes the machine's."""

    transfer: bytes
    memory: Memory
    blocks: list[Ids]
    wish: Wish
    handle: Receive
    since: float
    deadline_at: float
    event: Callable[[Inbound, Any], None]
    machine: ReceiveMachine = field(init=False)
    peer: bytes | None = None
    mail: Correspondence | None = None
    resolved: bool = False
    _tags: list[Numbers] = field(default_factory=list)
    _seeds: dict[Unit, Numbers] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.machine = ReceiveMachine(self.transfer, self.deadline_at, self._build)

    # -- for the user --

    def deadline(self) -> float:
        """When Tick is due, or `hedge`."""
        return min(self.machine.deadline(), float("inf") if self.resolved else self._hedge_at())

    def note_progress(self) -> None:
        """For who looks."""
        self.handle.progress = self.machine.landed_bytes, self.machine.needed_bytes

    def hedge(self, now: float) -> None:
        """Gives up on it, if it is time, though it goes on: what arrives late is of no use to the user any more."""
        if not self.resolved and now >= self._hedge_at():
            self.resolve(End(self.machine.state, "hedge", "it has not come in time"), now)

    def resolve(self, end: End, now: float) -> None:
        """The user's wait is over."""
        self.resolved = True
        if end.state is not State.COMMITTED and self.wish.on_failure == "fail":
            what, answered = f"receive of {self.wish.request_id!r}", bool(self.machine.units)
            self.handle._resolve(None, error_of(end, self.peer, what, answered))
            return
        missing = {} if end.state is State.COMMITTED else self.recompute()
        machine = self.machine
        self.handle._resolve(Received(machine.meta, machine.landed_bytes, now - self.since, end, missing), None)

    def _hedge_at(self) -> float:
        return float("inf") if self.wish.hedge_s is None else self.since + self.wish.hedge_s

    # -- as an Asker --

    @property
    def priority(self) -> str:
        """See Asker."""
        return self.wish.priority

    @property
    def flowing_bytes(self) -> int:
        """See Asker."""
        return self.machine.flowing_bytes

    @property
    def left_bytes(self) -> int:
        """See Asker."""
        return self.machine.left_bytes

    def waiting(self) -> tuple[int, int]:
        """See Asker."""
        return self.machine.waiting()

    def ask(self, ahead: bool, priority: Priority) -> int | None:
        """See Asker."""
        ask = self.machine.take(ahead)
        if ask is None or self.mail is None:
            return None
        runs: Runs = ask.runs.copy()
        runs[:, 2] += np.uint64(_address(self.memory, ask.unit.here))
        key = data_key(self.transfer, ask.unit.there)
        ask.unit.digest(ask, self.seeds_of(ask.unit, ask.parts))
        self.machine.posted(ask, self.mail.fetch(key, runs, int(priority), self._ended(ask), ask.digests))
        return ask.nbytes

    def _ended(self, ask: Ask) -> Callable[[int, float], None]:
        return lambda status, now: self.event(self, AskEnded(ask, status))

    # -- what its blocks are --

    def seeds_of(self, unit: Unit, parts: Ids) -> Numbers:
        """What their digests are bound to."""
        group = self.memory.layout.groups[unit.group]
        if unit not in self._seeds:
            tag = self._tags[unit.group]
            self._seeds[unit] = seeds(self.transfer, group.name, group.layers[unit.layer], tag, unit.split)
        return self._seeds[unit][parts]

    def recompute(self) -> dict[str, Ids]:
        """Positions of each group of which something is missing."""
        found = {}
        for number, group in enumerate(self.memory.layout.groups):
            missing = np.zeros(self.blocks[number].size, bool)
            units = [unit for unit in self.machine.units if unit.group == number]
            for unit in units:
                missing |= ~unit.verified.reshape(-1, unit.split).all(axis=1)
            if not units:
                missing[:] = True
            found[group.name] = np.flatnonzero(missing).astype(np.int64, copy=False)
        return found

    def _build(self, message: m.Open) -> list[Unit]:
        groups = self.memory.layout.groups
        if len(message.groups) != len(groups):
            raise ProtocolError(f"an Open of {len(message.groups)} of {len(groups)} groups")
        units: list[Unit] = []
        for number, grouping in enumerate(message.groups):
            units += self._build_group(number, grouping)
        return units

    def _build_group(self, number: int, grouping: m.Grouping) -> list[Unit]:
        group, ids = self.memory.layout.groups[number], self.blocks[number]
        places = unpacked(grouping.blocks, 1 << 32, ids.size)
        if len(grouping.layers) != len(group.layers) or len(grouping.tags) not in (0, 8 * ids.size):
            raise ProtocolError(f"an Open whose group {group.name!r} is not the one that was wanted")
        told = np.frombuffer(grouping.tags, "<u8").astype(np.uint64)
        self._tags.append(told if grouping.tags else tags(None, ids.size))
        need = _bits(grouping.need, ids.size)
        last = int(places.max()) if places.size else 0
        units = []
        for layer, (there, first, step) in enumerate(grouping.layers):
            mine = self.memory.pieces(number, layer, ids)
            if first + step * last + mine.nbytes > _END_MAX:
                raise ProtocolError(f"an Open whose layer {layer} of {group.name!r} lies beyond any memory")
            source = np.uint64(first) + places.astype(np.uint64) * np.uint64(step)
            units.append(Unit(number, layer, there, source, mine.buffer, mine.offsets, mine.nbytes, need.copy()))
        return units


def _bits(data: bytes, count: int) -> Mask:
    if not data:
        return np.ones(count, bool)
    if len(data) != -(-count // 8):
        raise ProtocolError(f"a bitmap of {count} positions has {-(-count // 8)} bytes, not {len(data)}")
    flags: Mask = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[:count].astype(bool)
    return flags


def _address(memory: Memory, buffer: int) -> int:
    return int(memory.views[buffer].__array_interface__["data"][0])
