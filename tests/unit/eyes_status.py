"""A Status with something of everything in it, for the tests of what is made of one."""

from __future__ import annotations

from pccl import messages as m
from pccl.types import LOSS_UNKNOWN


def pid(number: int) -> bytes:
    return bytes([number] * 16)


def peer(number: int, rank: int, **more: object) -> m.PeerStatus:
    fixed = (f"host{number}", 100 + number, f"10.0.0.{number}:5", 0, 7 + number, 2, 12.5, 3e6, 0.25, True)
    return m.PeerStatus(pid(number), rank, *fixed, ops=10 * number, bytes=1000 * number, **more)  # type: ignore[arg-type]


def example() -> m.Status:
    """A run with a member by each of two reasons lost, a joiner, a link with figures and one that is broken."""
    log = (
        m.LogEntry(9.0, 1, pid(9), "join", "10.0.0.9:5 on <b>host9</b>, pid 109"),
        m.LogEntry(3.0, 2, pid(9), "lost", "its control connection closed; <script>alert(1)</script>"),
    )
    links = (
        m.LinkStatus(0, 1, 80_000, 50_000_000, 120, 3),
        m.LinkStatus(1, 0, 0, 0, LOSS_UNKNOWN, 3, "broken", 0),
    )
    group = m.GroupStatus(
        0,
        "stable",
        4,
        30,
        2,
        3,
        m.Plan(3, 262144, 1 << 20, 2, 1.5, "the mesh is faster"),
        (peer(1, 0), peer(2, 1)),
        (peer(3, -1),),
        log,
        m.Reality(1.75, 2.25, 1 << 30),
        links,
        (("epoch", 4), ("freeze", 2), ("join", 5), ("lease", 1), ("lost", 1), ("restart", 1), ("suspect", 3)),
        (("lease", 1), ("leave", 1), ("lost", 1)),
    )
    return m.Status(m.VERSION, "demo", 61.0, 7, (group,), incarnation=2, state="run.state")
