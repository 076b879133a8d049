"""Mail as slots: order, sizes, what is offered ahead and withdrawn; bytes of other peers that are none."""

from __future__ import annotations

import random
import struct

import pytest

from pccl.errors import ProtocolError, ResourceError
from pccl.kv import messages as m
from pccl.kv.slots import AHEAD, HEAD_BYTES, ROOM, SLOT_BYTES, UNREAD_MAX, Head, SlotReader, SlotWriter

TID = bytes(range(16))


def padded(slot: bytes) -> bytes:
    return slot.ljust(SLOT_BYTES, b"\0")


def test_messages_of_all_sizes_arrive_in_order_whatever_order_their_slots_come_in() -> None:
    chance = random.Random(1)
    sent = [chance.randbytes(size) for size in (0, 1, ROOM, ROOM + 1, 5 * ROOM, 0, 40000, 3)]
    writer, reader = SlotWriter(), SlotReader()
    writer.begin()
    filled = {number: padded(slot) for message in sent for number, slot, _ in writer.put(message)}
    got: list[bytes] = []
    asked: list[int] = []
    while len(got) < len(sent):
        asked += reader.wanted()
        assert len(asked) <= AHEAD
        ready = [number for number in asked if number in filled]
        number = chance.choice(ready)
        asked.remove(number)
        got += reader.came(number, filled[number])
    assert got == sent


def test_a_slot_is_filled_only_when_all_that_the_reader_may_ask_for_are_offered() -> None:
    writer, reader = SlotWriter(), SlotReader()
    offered = set(writer.begin())
    withdrawn: set[int] = set()
    for message in (b"x" * 9000,) * 30:
        for number, slot, new in writer.put(message):
            offered.add(new)
            for asked in reader.wanted():
                assert asked in offered - withdrawn
                withdrawn |= set(writer.asked(asked))
            reader.came(number, padded(slot))
    assert len(offered - withdrawn) <= 3 * AHEAD
    assert max(withdrawn) > 40


def test_who_reads_nothing_is_not_written_to_for_ever() -> None:
    writer = SlotWriter()
    writer.begin()
    with pytest.raises(ResourceError, match="unread"):
        for _ in range(UNREAD_MAX + 1):
            writer.put(b"")
    with pytest.raises(ResourceError):
        SlotWriter().put(bytes(m.MESSAGE_BYTES_MAX + 1))


def test_slots_that_are_none_are_refused() -> None:
    slot = struct.pack("<IIQ", 3, 1, 1) + b"abc"
    assert SlotReader().came(1, padded(slot)) == [b"abc"]
    for head in ((ROOM + 1, 1, 1), (3, 2, 1), (3, 1, 2)):
        with pytest.raises(ProtocolError, match="slot 1"):
            SlotReader().came(1, padded(struct.pack("<IIQ", *head)))
    reader = SlotReader()
    with pytest.raises(ProtocolError, match="more than"):
        for number in range(1, m.MESSAGE_BYTES_MAX // ROOM + 3):
            reader.came(number, padded(struct.pack("<IIQ", ROOM, 0, number)))


def test_heads() -> None:
    head = Head.encode(7)
    assert len(head) == HEAD_BYTES and Head.decode(head) == 7
    for place in range(HEAD_BYTES):
        with pytest.raises(ProtocolError):
            Head.decode(head[:place] + bytes([head[place] ^ 1]) + head[place + 1 :])
    with pytest.raises(ProtocolError):
        Head.decode(head[:-1])


EVERY = [
    m.Open(TID, 1.5, (m.Grouping(((0, 0, 64),), bytes(16), b"\x0f", bytes(32)),)),
    m.Ready(TID, 0, 1, bytes(16)),
    m.Sums(TID, 0, 1, 0, 1, bytes(4), bytes(8)),
    m.Coded(TID, 0, 1, 7, 1000, 0, 1, bytes(4), bytes(8)),
    m.Taken(TID, 7),
    m.Finish(TID, b"meta"),
    m.Committed(TID, 1.25e8),
    m.End(TID, "failed", "checksum", "why"),
    m.Pull("request", b"ticket"),
    m.Beat((TID, TID)),
]


@pytest.mark.parametrize("message", EVERY, ids=lambda message: type(message).__name__)
def test_every_message_comes_back_and_none_that_is_damaged_raises_anything_else(message: m.Message) -> None:
    data = m.encode(message)
    assert m.decode(data) == message
    chance = random.Random(2)
    for _ in range(2000):
        broken = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        try:
            m.decode(bytes(broken[: chance.randint(0, len(broken))]))
        except ProtocolError:
            continue


def test_fields_out_of_bounds_are_refused() -> None:
    for wrong in (
        m.End(TID, "committed", "x", ""),
        m.End(TID[:15], "failed", "x", ""),
        m.Finish(TID, bytes(m.META_BYTES_MAX + 1)),
        m.Ready(TID, 0, 0, bytes((1 << 20) + 4)),
        m.Ready(TID, -1, 0, b""),
        m.Open(TID, -1.0, ()),
        m.Coded(TID, 0, 0, 1 << 32, 1, 0, 1, b"", bytes(8)),
        m.Taken(TID, -1),
        m.Committed(TID, float("nan")),
        m.Committed(TID, float("inf")),
        m.Beat((TID,), -1.0),
    ):
        with pytest.raises(ProtocolError):
            m.decode(m.encode(wrong))
