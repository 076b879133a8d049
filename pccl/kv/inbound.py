"""inbound.py - one receive: its machine, its blocks, what they mean to an Open, and who waits for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pccl.errors import ProtocolError
from pccl.kv import messages as m
from pccl.kv.binding import coded_key, data_key, seeds, tags, unpacked
from pccl.kv.codecs import CODECS
from pccl.kv.ends import End, State, error_of
from pccl.kv.handles import Receive, Received
from pccl.kv.mail import Correspondence
from pccl.kv.memory import Array, Ids, Memory, Numbers, digests
from pccl.kv.parcel import CodedUnit
from pccl.kv.receive import AskEnded, Decoded, ReceiveMachine
from pccl.kv.ticket import Priority as PriorityName
from pccl.kv.unit import Ask, Mask, Unit
from pccl.transfer.task import Runs
from pccl.types import Priority

__all__ = ["Inbound", "Wish"]

_END_MAX = 1 << 62


@dataclass(slots=True, frozen=True)
class Wish:
    """What the user said. `hedge_s`: after it a hedged receive is given up on, though it goes on. `codecs`: by which
    groups may come.
    """

    request_id: str
    priority: PriorityName
    on_failure: str
    hedge_s: float | None
    codecs: frozenset[str] = frozenset(("raw",))


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
    fenced: bool = False
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
        nbytes = machine.landed_bytes, machine.wire_bytes
        self.handle._resolve(Received(machine.meta, nbytes[0], now - self.since, end, missing, nbytes[1]), None)

    def _hedge_at(self) -> float:
        return float("inf") if self.wish.hedge_s is None else self.since + self.wish.hedge_s

    # -- as an Asker --

    @property
    def priority(self) -> str:
        """See Asker."""
        return self.wish.priority

    @property
    def flowing_bytes(self) -> int:
        """See Asker. What has come in parcels counts until it is decoded: it takes memory."""
        return self.machine.flowing_bytes + self.machine.held_bytes

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
        if ask.parcel is None:
            runs: Runs = ask.runs.copy()
            runs[:, 2] += np.uint64(_address(self.memory.views[ask.unit.here]))
            key = data_key(self.transfer, ask.unit.there)
            ask.unit.digest(ask, self.seeds_of(ask.unit, ask.parts))
        else:
            ask.data = np.empty(ask.nbytes, np.uint8)
            runs = np.array([[0, ask.nbytes, _address(ask.data)]], np.uint64)
            key = coded_key(self.transfer, ask.parcel.number)
        self.machine.posted(ask, self.mail.fetch(key, runs, int(priority), self._ended(ask), ask.digests))
        return ask.nbytes

    def _ended(self, ask: Ask) -> Callable[[int, float], None]:
        return lambda status, now: self.event(self, AskEnded(ask, status))

    def to_decode(self, ask: Ask) -> Callable[[], Decoded]:
        """What is to be done about a parcel that has come: takes a while; on any thread, once."""
        unit, data = ask.unit, ask.data
        ask.data = None
        expected, of = unit.sums[ask.parts], self.seeds_of(unit, ask.parts)
        group = self.memory.layout.groups[unit.group]
        position, part = np.divmod(ask.parts, unit.split)

        def step() -> Decoded:
            if self._unwanted or data is None:
                return Decoded(ask, False)
            try:
                plain = np.empty((ask.parts.size, unit.part_bytes), np.uint8)
                CODECS[unit.codec].decode(data, plain, group)
            except ProtocolError as error:
                return Decoded(ask, False, f"layer {unit.layer} of group {group.name!r}: {error.message}")
            except MemoryError:
                return Decoded(ask, False)
            offsets = np.arange(ask.parts.size, dtype=np.uint64) * np.uint64(unit.part_bytes)
            good = bool((digests(plain.reshape(-1), offsets, unit.part_bytes, of) == expected).all())
            if good and not self._unwanted:
                cells = self.memory.parts(unit.group, unit.layer, unit.split)
                cells[self.blocks[unit.group][position], part] = plain
            return Decoded(ask, good)

        return step

    @property
    def _unwanted(self) -> bool:
        """The blocks are to be let go of: nothing is written to them any more."""
        return self.fenced or self.machine.end is not None

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
        is_raw = grouping.codec == "raw"
        places = unpacked(grouping.blocks, 1 << 32, ids.size if is_raw else 0)
        if len(grouping.layers) != is_raw * len(group.layers) or len(grouping.tags) not in (0, 8 * ids.size):
            raise ProtocolError(f"an Open whose group {group.name!r} is not the one that was wanted")
        if grouping.codec not in self.wish.codecs:
            raise ProtocolError(f"an Open whose group {group.name!r} travels by {grouping.codec!r}: that is not agreed")
        told = np.frombuffer(grouping.tags, "<u8").astype(np.uint64)
        self._tags.append(told if grouping.tags else tags(None, ids.size))
        need = _bits(grouping.need, ids.size)
        if not is_raw:
            return [self._coded(number, layer, need, grouping.codec) for layer in range(len(group.layers))]
        last = int(places.max()) if places.size else 0
        units = []
        for layer, (there, first, step) in enumerate(grouping.layers):
            mine = self.memory.pieces(number, layer, ids)
            if first + step * last + mine.nbytes > _END_MAX:
                raise ProtocolError(f"an Open whose layer {layer} of {group.name!r} lies beyond any memory")
            source = np.uint64(first) + places.astype(np.uint64) * np.uint64(step)
            units.append(Unit(number, layer, there, source, mine.buffer, mine.offsets, mine.nbytes, need.copy()))
        return units

    def _coded(self, number: int, layer: int, need: Mask, codec: str) -> Unit:
        mine = self.memory.pieces(number, layer, self.blocks[number])
        return CodedUnit(number, layer, mine.buffer, mine.offsets, mine.nbytes, need.copy(), codec)


def _bits(data: bytes, count: int) -> Mask:
    if not data:
        return np.ones(count, bool)
    if len(data) != -(-count // 8):
        raise ProtocolError(f"a bitmap of {count} positions has {-(-count // 8)} bytes, not {len(data)}")
    flags: Mask = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[:count].astype(bool)
    return flags


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])
