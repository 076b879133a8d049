"""layout.py - which slots a stream has, and which bytes of a payload are in which. Pure.

Slots are asked for before anybody knows how long the payload will be, so each has a place of its own in the region.
A payload is cut into *body* slots, which grow with what comes before them. The first ones are small, so that the link
has something to do soon; none but these is more than 128 KiB and more than a sixtieth of what comes before it, so that
little waits for a slot to be full, and little is left to be decoded when the last one comes; and of a long payload
there are not too many. What is left behind the last whole one is in *tail* slots, each half as large as the one before,
taken as a number is made of powers of two: a slot travels whole, and so little of it is padding. The *end* is the last
END_ROOM bytes, which are the same in all payloads: a payload is complete when its source says so, and all else can be
there before.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

__all__ = [
    "END", "END_ROOM", "HEAD_BYTES", "SPECIAL", "Part", "Run", "parts_of", "payload_bytes_max", "place", "region_bytes",
    "room", "runs_of", "slots_for", "start_of", "tail_of", "used_of",
]  # fmt: skip

HEAD_BYTES = 32  # of each slot
END, END_ROOM = 0, 8  # the slot, and what is in it

_SLOT_BYTES = 1 << 20  # of each behind _FIRST
_TAIL = (*(1 << log for log in range(19, 12, -1)), (1 << 13) + 512)  # the last: less than the one before
_GROWTH = ((1, 1 << 15), (1, 1 << 16), (127, 1 << 17), (192, 1 << 18), (384, 1 << 19))  # so many, of so many bytes
_FIRST = tuple(nbytes for count, nbytes in _GROWTH for _ in range(count))
_SIZES = (HEAD_BYTES + 32, *_TAIL, *_FIRST)
_PLACES = (0, *accumulate(_SIZES))

#: Slots that stand before those of the body: the end, and the tail.
SPECIAL = 1 + len(_TAIL)

_STARTS = tuple(at - _PLACES[SPECIAL] - number * HEAD_BYTES for number, at in enumerate(_PLACES[SPECIAL:]))


def place(index: int) -> tuple[int, int]:
    """(first byte in the region, bytes) of a slot."""
    if index < len(_SIZES):
        return _PLACES[index], _SIZES[index]
    return _PLACES[-1] + (index - len(_SIZES)) * _SLOT_BYTES, _SLOT_BYTES


def room(index: int) -> int:
    """How many bytes of a payload go into a slot."""
    return END_ROOM if index == END else place(index)[1] - HEAD_BYTES


def start_of(index: int) -> int:
    """The first byte of the payload that is in a slot of the body."""
    return place(index)[0] - _PLACES[SPECIAL] - (index - SPECIAL) * HEAD_BYTES


def slots_for(payload_bytes: int) -> int:
    """How many slots a region must have for payloads of so many bytes."""
    rest = max(0, payload_bytes - END_ROOM)
    if rest < _STARTS[-1]:
        return SPECIAL + bisect_right(_STARTS, rest) - 1
    return len(_SIZES) + (rest - _STARTS[-1]) // (_SLOT_BYTES - HEAD_BYTES)


def payload_bytes_max(slots: int) -> int:
    """The longest payload that so many slots are enough for."""
    return start_of(slots + 1) - 1 + END_ROOM


def region_bytes(slots: int) -> int:
    """Of a region of so many slots."""
    return place(slots)[0]


def tail_of(rest: int) -> Iterator[tuple[int, int]]:
    """(slot, bytes in it) of what is left behind the last whole slot of the body."""
    for index in range(1, SPECIAL):
        if rest >= room(index) or (rest and index == SPECIAL - 1):
            yield index, min(rest, room(index))
            rest -= min(rest, room(index))


def used_of(total: int) -> frozenset[int]:
    """The slots before those of the body that a payload of so many bytes has something in."""
    rest = max(0, total - END_ROOM)
    return frozenset({END, *(index for index, _ in tail_of(rest - start_of(slots_for(total))))})


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes `start` to `end` of a payload, and where they begin in its region."""

    start: int
    end: int
    at: int


@dataclass(frozen=True, slots=True)
class Run:
    """So many bytes of a region from `at` on, and the parts of the payload that are in there, with heads between."""

    at: int
    nbytes: int
    parts: tuple[Part, ...]


def parts_of(total: int, start: int, end: int) -> Iterator[Part]:
    """Bytes `start` to `end` of a payload of `total`, cut where slots end."""
    for index, first, last in _slots(total, start):
        if first >= end:
            return
        low, high = max(first, start), min(last, end)
        if low < high:
            yield Part(low, high, place(index)[0] + HEAD_BYTES + low - first)


def runs_of(total: int, start: int, end: int) -> Iterator[Run]:
    """The same, as what can be read at once."""
    parts: list[Part] = []
    for part in parts_of(total, start, end):
        if parts and part.at != parts[-1].at + parts[-1].end - parts[-1].start + HEAD_BYTES:
            yield _run(parts)
            parts = []
        parts.append(part)
    if parts:
        yield _run(parts)


def _run(parts: list[Part]) -> Run:
    last = parts[-1]
    return Run(parts[0].at, last.at + last.end - last.start - parts[0].at, tuple(parts))


def _slots(total: int, start: int) -> Iterator[tuple[int, int, int]]:
    """(slot, first byte, byte after the last) in the order of the payload, from the one that has byte `start` on."""
    rest = max(0, total - END_ROOM)
    slots = slots_for(total)
    for index in range(min(slots_for(start + END_ROOM), slots), slots):
        yield index, start_of(index), start_of(index + 1)
    at = start_of(slots)
    for index, nbytes in tail_of(rest - at):
        yield index, at, at + nbytes
        at += nbytes
    yield END, rest, total
