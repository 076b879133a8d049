"""outbound.py - one send: its machine, where its blocks are, and the regions through which they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pccl.errors import ArgumentError
from pccl.kv import messages as m
from pccl.kv.binding import data_key, packed, seeds
from pccl.kv.convert import GroupMatch, Match
from pccl.kv.handles import Send
from pccl.kv.mail import Correspondence, Regions
from pccl.kv.memory import Array, Ids, Memory, Numbers, coalesce
from pccl.kv.send import SendMachine, SendUnit
from pccl.kv.ticket import Ticket
from pccl.kv.unit import Mask, spread

__all__ = ["Outbound", "needed", "per_group"]


def needed(ticket: Ticket, hashes: Sequence[Sequence[Any] | None]) -> list[Mask]:
    """Of each group, which positions the receiver does not have by the hashes that both know."""
    masks = []
    for wanted, known in zip(ticket.wanted, hashes, strict=True):
        mask = np.ones(wanted.blocks, bool)
        for position, theirs in wanted.have.items():
            mask[position] = known is None or bytes(known[position]) != theirs
        masks.append(mask)
    return masks


@dataclass(slots=True, eq=False)
class Outbound:
    """`blocks`, `need`, `tags`: of each of the receiver's groups, in the order of its positions."""

    ticket: Ticket
    memory: Memory
    match: Match
    blocks: list[Ids]
    need: list[Mask]
    tags: list[Numbers]
    handle: Send
    since: float
    deadline_at: float
    lease_s: float
    offer: str | None = None
    machine: SendMachine = field(init=False)
    mail: Correspondence | None = None
    units: dict[str, SendUnit] = field(init=False)
    nbytes: int = 0
    regions: list[Any] = field(default_factory=list)
    _buffers: list[int] = field(default_factory=list)
    _places: list[dict[int, int] | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        units, groups = [], []
        self.units = {}
        for number, (found, wanted) in enumerate(zip(self.match.groups, self.ticket.layout.groups, strict=True)):
            layers = [self._place(found, layer) for layer in found.layers]
            for layer, name in enumerate(wanted.layers):
                self.units[name] = SendUnit(number, layer, self.need[number], wanted.bytes_per_block_layer)
                units.append(self.units[name])
            if self.need[number].any():
                self._buffers += [there for there, _, _ in layers]
                self.nbytes += int(self.need[number].sum()) * wanted.bytes_per_block_layer * len(layers)
            need = np.packbits(self.need[number], bitorder="little").tobytes()
            tags = self.tags[number].astype("<u8").tobytes()
            groups.append(m.Grouping(tuple(layers), packed(self.blocks[number]), need, tags))
            self._places.append(None)
        self._buffers = sorted(set(self._buffers))
        self.handle.positions = self.positions
        left_s = max(0.0, self.deadline_at - self.since)
        message = m.Open(self.ticket.transfer, left_s, tuple(groups))
        self.machine = SendMachine(message, units, self.since, self.deadline_at, self.lease_s)

    @property
    def transfer(self) -> bytes:
        """Its id."""
        return self.ticket.transfer

    @property
    def peer(self) -> bytes:
        """The receiver."""
        return self.ticket.peer

    def deadline(self) -> float:
        """When Tick is due."""
        return self.machine.deadline()

    def positions(self, layer: str, blocks: Sequence[int] | Ids | None) -> tuple[SendUnit, Ids]:
        """Which of a unit's positions these blocks are. Raises ArgumentError. Any thread."""
        unit = self.units.get(layer)
        if unit is None:
            raise ArgumentError(f"the receiver wants no layer {layer!r}")
        ids = self.blocks[unit.group]
        if blocks is None:
            return unit, np.arange(ids.size, dtype=np.int64)
        places = self._places[unit.group]
        if places is None:
            places = self._places[unit.group] = {block: at for at, block in enumerate(ids.tolist())}
        found = [places.get(int(block), -1) for block in blocks]
        if -1 in found:
            at = found.index(-1)
            raise ArgumentError(f"blocks[{at}] is {blocks[at]}, which is no block of this send")
        return unit, np.array(found, np.int64)

    # -- the thread of transfers --

    def show(self, regions: Regions) -> list[Any]:
        """Offers a region over each of the buffers, of which nothing is available yet."""
        key = self.ticket.transfer
        return [
            regions.offer_region(data_key(key, buffer), 1, self.memory.views[buffer], None, whole=False)
            for buffer in self._buffers
        ]

    def expose(self, regions: Regions, unit: SendUnit, positions: Ids) -> None:
        """These can be read from now on."""
        buffer, offsets, nbytes = self._pieces(unit, positions)
        key = data_key(self.ticket.transfer, buffer)
        begins, sizes = coalesce(np.sort(offsets), nbytes)
        for begin, size in zip(begins.tolist(), sizes.tolist(), strict=True):
            regions.quietly("extend", key, 1, begin, size)

    def hide(self, regions: Regions) -> None:
        """Nothing can be read any more, soon."""
        for buffer in self._buffers:
            regions.quietly("withdraw", data_key(self.ticket.transfer, buffer), 1)

    def to_hash(self, unit: SendUnit, positions: Ids) -> tuple[Array, Numbers, int, Numbers]:
        """(buffer, offsets, bytes, seeds) of the parts."""
        buffer, pieces, nbytes = self._pieces(unit, positions)
        offsets, size = spread(pieces, nbytes)
        wanted = self.ticket.layout.groups[unit.group]
        tag = self.tags[unit.group][positions]
        of = seeds(self.ticket.transfer, wanted.name, wanted.layers[unit.layer], tag, unit.split)
        return self.memory.views[buffer], offsets, size, of

    def _pieces(self, unit: SendUnit, positions: Ids) -> tuple[int, Numbers, int]:
        found = self.match.groups[unit.group]
        blocks = self.blocks[unit.group][positions]
        return self.memory.pieces(found.group, found.layers[unit.layer], blocks)

    def _place(self, found: GroupMatch, layer: int) -> tuple[int, int, int]:
        """(buffer, offset of block 0, bytes from one block to the next) of one of our layers."""
        buffer, offsets, _ = self.memory.pieces(found.group, layer, np.array([0, 1], np.int64))
        return buffer, int(offsets[0]), int(offsets[1] - offsets[0])


def per_group(given: Any, names: Sequence[str], what: str) -> list[Any]:
    """One entry for each group of what a user gave by group, or flat where there is one group; None: none."""
    if given is None:
        return [None] * len(names)
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        if len(names) != 1:
            raise ArgumentError(f"{what} must be given by the name of the group, of which there are {len(names)}")
        return [given]
    unknown = set(given) - set(names)
    if unknown:
        raise ArgumentError(f"{what} name a group that is not there: {sorted(map(str, unknown))[0]!r}")
    return [given.get(name) for name in names]


