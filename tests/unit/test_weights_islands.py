"""A payload whose slots come in any order: what has come with a gap before it is read meanwhile, as it is."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.weights_reads import Reads, slots_of

from pccl.weights.certificate import Certificate, Version
from pccl.weights.layout import SPECIAL, start_of
from pccl.weights.manifest import RECORD, Prelude
from pccl.weights.payload import Payload, Reader, Writer
from pccl.weights.stream import StreamIn

BLOCKS = 60
SOURCE = b"source"


def pieces_of(seed: int, largest: int) -> list[bytes]:
    """A payload as its publisher writes it: prelude, chunks, and what comes after the last of them."""
    rng = np.random.default_rng(seed)
    base = Version(3, bytes(32))
    writer = Writer(Prelude(base, 4, bytes(32)))
    pieces = [writer.begin()]
    for block in range(0, BLOCKS, 2):
        pieces.append(writer.add(block, rng.bytes(int(rng.integers(1, largest)))))
    pieces.append(writer.close_chunks())
    certificate = Certificate(bytes(32), 1, 4, base.lineage, bytes(32), bytes(32), writer.root)
    pieces.append(writer.end([bytes(16)] * BLOCKS, certificate, b"")[0])
    return [piece for piece in pieces if piece]


class Coming:
    """A stream whose slots are answered one by one, and a reader of all that is there."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.payload = Payload(b"".join(pieces))
        self.begun = [0, *accumulate(map(len, pieces))]
        self.slots = slots_of(*pieces)
        self.reads = Reads()
        self.found: dict[int, bytes] = {}
        self.twice = 0
        self.stream = StreamIn(
            self.reads, "s", 1, max(self.slots) + 2, [SOURCE],  # type: ignore[arg-type]
            on_grown=lambda stream: self.read(), on_slot=lambda *_: None, on_failed=lambda *_: None,
        )  # fmt: skip
        self.reader = Reader(self.stream.memory)

    def read(self) -> None:
        for block, encoded in self.reader.beyond(self.stream.islands, BLOCKS):
            self.twice += block in self.found
            self.found[block] = encoded
        self.found.update(self.reader.grow(self.stream.contiguous, BLOCKS))

    def answer(self, index: int) -> None:
        self.reads.take(SOURCE, index).answer(self.slots[index])

    def readable(self, there: list[tuple[int, int]]) -> set[int]:
        """Blocks whose records are whole in these bytes, behind a place where a record is known to begin."""
        found = set()
        for a, b in there:
            first = min((start for start in self.begun if start >= a), default=b)
            for record in self.payload.manifest.records:
                if first <= record.offset - RECORD.size and record.offset + record.nbytes <= b:
                    found.add(record.block)
        return found

    def there(self, come: list[int]) -> list[tuple[int, int]]:
        """What the slots hold that have come, those that touch as one."""
        spans: list[tuple[int, int]] = []
        for a, b in sorted(self._span(index) for index in come):
            spans[-1:] = [(spans[-1][0], b)] if spans and spans[-1][1] == a else [*spans[-1:], (a, b)]
        return spans

    def _span(self, index: int) -> tuple[int, int]:
        if index >= SPECIAL:
            return start_of(index), start_of(index + 1)
        used, start = (int.from_bytes(bytes(self.slots[index][at : at + n]), "little") for at, n in ((8, 4), (16, 8)))
        return start, start + used


@given(st.integers(0, 5), st.sampled_from([3_000, 20_000, 90_000]), st.data())
@settings(max_examples=40, deadline=None)
def test_each_record_is_read_as_soon_as_it_can_be_and_as_it_is(seed: int, largest: int, data: Any) -> None:
    one = Coming(pieces_of(seed, largest))
    right = dict(one.payload.blocks())
    come: list[int] = []
    for index in data.draw(st.permutations(sorted(one.slots))):
        one.answer(index)
        come.append(index)
        assert one.found.keys() == one.readable(one.there(come))
        assert one.found == {block: right[block] for block in one.found}
    assert one.stream.complete and one.found == right and not one.twice
    assert one.reader.chunks.leaves == list(one.payload.manifest.leaves)[: len(one.reader.chunks.leaves)]


def test_where_a_record_begins_is_a_hint() -> None:
    """A source that says so of places where none does: all that is read from the beginning on is as it was."""
    data = b"".join(pieces_of(1, 20_000))
    one = Coming([data[at : at + 50_001] for at in range(0, len(data), 50_001)])
    right = dict(one.payload.blocks())
    for index in sorted(one.slots, reverse=True):
        one.answer(index)
    assert one.stream.complete and {block: one.found[block] for block in right} == right
