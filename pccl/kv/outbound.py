"""outbound.py - one send: its machine, where its blocks are, and the regions through which they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pccl.errors import ArgumentError
from pccl.kv import messages as m
from pccl.kv.binding import data_key, packed, seeds
from pccl.kv.codecs import CODECS
from pccl.kv.convert import GroupMatch, Match
from pccl.kv.handles import Send
from pccl.kv.mail import Correspondence, Regions
from pccl.kv.memory import Array, Ids, Memory, Numbers, coalesce, digests
from pccl.kv.send import SendMachine, SendUnit
from pccl.kv.source import Cached, Source, Staged
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
    """`need`, `tags`: of each of the receiver's groups, by position; `blocks`: ours that they are made of; `hashed`:
    whether the tags are of hashes, and must be told; `codecs`: by which each travels.
    """

    ticket: Ticket
    memory: Memory
    match: Match
    blocks: list[Ids]
    need: list[Mask]
    tags: list[Numbers]
    hashed: list[bool]
    codecs: list[str]
    handle: Send
    since: float
    deadline_at: float
    lease_s: float
    offer: str | None = None
    machine: SendMachine = field(init=False)
    mail: Correspondence | None = None
    units: dict[str, SendUnit] = field(init=False)
    nbytes: int = 0
    #: Of memory that it converts into.
    staging_bytes: int = 0
    #: What its machine said, and its user, before it had that.
    opening: list[Any] = field(default_factory=list)
    early: list[Any] = field(default_factory=list)
    wire_bytes: int = 0
    #: Regions of parcels, and their plain bytes; of all of them.
    parcels: dict[int, tuple[Any, int]] = field(default_factory=dict)
    parcel_bytes: int = 0
    regions: list[Any] = field(default_factory=list)
    _views: dict[int, Array] = field(default_factory=dict)
    _shown: list[Source] = field(default_factory=list)
    _sources: dict[tuple[int, int], Source] = field(default_factory=dict)
    _places: list[dict[int, int] | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        units, groups = [], []
        self.units = {}
        for number, (found, wanted) in enumerate(zip(self.match.groups, self.ticket.layout.groups, strict=True)):
            sources = [self._source(found, number, layer) for layer in range(len(wanted.layers))]
            for layer, (name, source) in enumerate(zip(wanted.layers, sources, strict=True)):
                size, codec = wanted.bytes_per_block_layer, self.codecs[number]
                self.units[name] = SendUnit(number, layer, self.need[number], size, codec)
                self._sources[number, layer] = source
                units.append(self.units[name])
            nbytes = int(self.need[number].sum()) * wanted.bytes_per_block_layer * len(sources)
            self.nbytes += nbytes
            is_raw = self.codecs[number] == "raw"
            if nbytes and is_raw:
                self._shown += sources
                self.wire_bytes += nbytes
            need = np.packbits(self.need[number], bitorder="little").tobytes()
            tags = self.tags[number].astype("<u8").tobytes() if self.hashed[number] else b""
            ids = self.blocks[number] if found.plain else np.arange(self.need[number].size)
            places = (tuple(source.place for source in sources), packed(ids)) if is_raw else ((), b"")
            groups.append(m.Grouping(*places, need, tags, self.codecs[number]))
            self._places.append(None)
        self.handle.positions = self.positions
        self.staging_bytes = sum(source.staging_bytes for source in self._shown if isinstance(source, Staged))
        left_s = max(0.0, self.deadline_at - self.since)
        message = m.Open(self.ticket.transfer, left_s, tuple(groups))
        self.machine = SendMachine(message, units, self.since, self.deadline_at, self.lease_s)

    def _source(self, found: GroupMatch, number: int, layer: int) -> Source:
        blocks = self.blocks[number]
        if found.plain:
            return Cached(self.memory, found.group, found.layers[layer], blocks)
        region = len(self.memory.views) + len(self._sources) + layer
        return Staged(self.memory, found, layer, blocks, self.need[number].size, region)

    @property
    def transfer(self) -> bytes:
        """Its id."""
        return self.ticket.transfer

    @property
    def peer(self) -> bytes:
        """The receiver."""
        return self.ticket.peer

    @property
    def priority(self) -> str:
        """As the receiver wants it."""
        return self.ticket.priority

    def deadline(self) -> float:
        """When Tick is due."""
        return self.machine.deadline()

    def positions(self, layer: str, blocks: Sequence[int] | Ids | None) -> tuple[SendUnit, Ids]:
        """Which of a unit's positions these blocks are. Raises ArgumentError. Any thread."""
        unit = self.units.get(layer)
        if unit is None:
            raise ArgumentError(f"the receiver wants no layer {layer!r}")
        if blocks is None:
            return unit, np.arange(unit.need.size, dtype=np.int64)
        if not self.match.groups[unit.group].plain:
            raise ArgumentError(f"layer {layer!r} is converted: it is ready with all of its blocks, or not at all")
        ids = self.blocks[unit.group]
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
        """Offers a region over each of the buffers, of which nothing is available yet. MemoryError: of none."""
        for source in self._shown:
            if isinstance(source, Staged):
                source.allocate()
        self._views = {source.place[0]: source.view for source in self._shown}
        return [
            regions.offer_region(data_key(self.transfer, number), 1, view, None, whole=False)
            for number, view in self._views.items()
        ]

    def expose(self, regions: Regions, unit: SendUnit, positions: Ids) -> None:
        """These can be read from now on."""
        source = self._sources[unit.group, unit.layer]
        key = data_key(self.transfer, source.place[0])
        begins, sizes = coalesce(np.sort(source.offsets(positions)), source.nbytes)
        for begin, size in zip(begins.tolist(), sizes.tolist(), strict=True):
            regions.quietly("extend", key, 1, begin, size)

    def to_stage(self, unit: SendUnit) -> Staged | None:
        """What must be filled before it is exposed, if anything."""
        source = self._sources[unit.group, unit.layer]
        return source if isinstance(source, Staged) else None

    def hide(self, regions: Regions) -> None:
        """Nothing can be read any more, soon."""
        for number in self._views:
            regions.quietly("withdraw", data_key(self.transfer, number), 1)

    def encode(self, unit: SendUnit, parts: Ids) -> tuple[Array, Numbers]:
        """Parts of a unit by its codec, and the digests of what they are decoded to. Takes a while; any thread."""
        found, codec = self.match.groups[unit.group], CODECS[unit.codec]
        position, part = np.divmod(parts, unit.split)
        cells = self.memory.parts(found.group, found.layers[unit.layer], unit.split)
        slabs = cells[self.blocks[unit.group][position], part]
        data = codec.encode(slabs, found.target)
        if not codec.lossless:
            codec.decode(data, slabs, found.target)
        offsets = np.arange(parts.size, dtype=np.uint64) * np.uint64(slabs.shape[1])
        of = self._seeds_of(unit, position)[np.arange(parts.size), part]
        return data, digests(slabs.reshape(-1), offsets, slabs.shape[1], of)

    def _seeds_of(self, unit: SendUnit, positions: Ids) -> Numbers:
        """A row for each, of all its parts."""
        wanted = self.ticket.layout.groups[unit.group]
        tag = self.tags[unit.group][positions]
        of = seeds(self.transfer, wanted.name, wanted.layers[unit.layer], tag, unit.split)
        return of.reshape(-1, unit.split)

    def to_hash(self, unit: SendUnit, positions: Ids) -> tuple[Array, Numbers, int, Numbers]:
        """(buffer, offsets, bytes, seeds) of the parts."""
        source = self._sources[unit.group, unit.layer]
        offsets, size = spread(source.offsets(positions), source.nbytes)
        return source.view, offsets, size, self._seeds_of(unit, positions).ravel()


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
