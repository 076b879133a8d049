"""records.py - what a trace file holds: one JSON object a line, told apart by "e".

Times `t` are nanoseconds of this host's monotonic clock; the first line of every file says what the wall clock showed
at one of them. An op's name is (boundary, lane, seq), the same on every peer. Unknown fields are ignored, unknown kinds
are not.
"""

from __future__ import annotations

import msgspec

__all__ = [
    "VERSION",
    "Begin",
    "Dropped",
    "End",
    "Epoch",
    "Fault",
    "Fetch",
    "Freeze",
    "Link",
    "Name",
    "Record",
    "Submit",
    "Wait",
]

VERSION = 1

Name = tuple[int, int, int]


class _Record(msgspec.Struct, frozen=True, tag_field="e"):
    """One line."""


class Begin(_Record, frozen=True, tag="begin"):
    """The first line of a file. `part`: how many files of this peer there were before it."""

    t: int
    wall_ns: int
    run: str
    group: int
    peer: str
    host: str
    pid: int
    part: int
    version: int


class Submit(_Record, frozen=True, tag="submit"):
    """A thread has called an op. `row`: what it is shown beside, its tag for one. `nbytes`: of its tensor here."""

    t: int
    token: int
    name: Name
    what: str
    row: str
    nbytes: int
    thread: str


class End(_Record, frozen=True, tag="end"):
    """An op has ended here. `engine_ns`: how long the engine had it. `outcome`: "ok", or the name of the error."""

    t: int
    token: int
    name: Name
    what: str
    row: str
    outcome: str
    epoch: int
    retries: int
    sent_bytes: int
    received_bytes: int
    world_size: int
    algorithm: str
    engine_ns: int


class Wait(_Record, frozen=True, tag="wait"):
    """A thread of the user's was blocked, from `t` to `end`; by the op with this token, if it is not 0."""

    t: int
    end: int
    what: str
    token: int
    thread: str


class Freeze(_Record, frozen=True, tag="freeze"):
    """The coordinator has begun a change; ops stand still until the epoch that ends it."""

    t: int
    change: int


class Epoch(_Record, frozen=True, tag="epoch"):
    """A membership, from this boundary on. `change`: the freeze that it ends, 0: none. `committed`, `failed`: ops that
    the coordinator has judged.
    """

    t: int
    epoch: int
    change: int
    from_boundary: int
    members: tuple[str, ...]
    committed: int = 0
    failed: int = 0


class Link(_Record, frozen=True, tag="link"):
    """The link to a peer came (`cause` "") or went."""

    t: int
    peer: str
    cause: str


class Fetch(_Record, frozen=True, tag="fetch"):
    """Byte ranges came from a peer, or did not: part of a transfer or of shared state. `engine_ns`: how long it
    took.
    """

    t: int
    peer: str
    outcome: str
    nbytes: int
    engine_ns: int


class Fault(_Record, frozen=True, tag="fault"):
    """The engine reports an op: "overdue" or "mismatch". `peer`: who is waited for, or who called otherwise."""

    t: int
    kind: str
    token: int
    peer: str


class Dropped(_Record, frozen=True, tag="dropped"):
    """So many records, in all, have found no room."""

    t: int
    count: int


Record = Begin | Submit | End | Wait | Freeze | Epoch | Link | Fetch | Fault | Dropped
