"""clocks.py - aligns the clocks of peers by moments that they have in common. Pure.

An op commits at a peer when all have finished it and their words have arrived, so its ends on two peers lie no further
apart than a one-way delay between them; the epochs that the coordinator announces arrive like that too. So the
difference of two clocks is the median of the differences of such moments, within a one-way delay, whatever the wall
clocks say. Clocks run at different speeds: one median for each minute, and lines between.

One peer's wall clock is the common one. Who shares no moment with it may share some with another that does; who shares
none with anybody keeps his own wall clock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import median

from pccl.trace.files import PeerTrace
from pccl.trace.records import End, Epoch

__all__ = ["Clock", "align", "key_of"]

WINDOW_NS = 60 * 10**9
WINDOW_MOMENTS = 16
#: With so many moments in common nobody looks for a peer with more.
ENOUGH = 64


@dataclass(slots=True, frozen=True)
class Clock:
    """How a peer's wall clock becomes the common one.

    `moments`: by how many it is known, 0: by none, the wall clock counts; None: it is the common one. `within_ns`: so
    close to the median were nine in ten of the differences. `times`, `offsets`: what to add at which time.
    """

    moments: int | None
    within_ns: int
    times: tuple[int, ...] = (0,)
    offsets: tuple[int, ...] = (0,)

    def common(self, wall_ns: int) -> int:
        """The common time at a time of the peer's wall clock, in nanoseconds."""
        at = bisect_right(self.times, wall_ns)
        if not 0 < at < len(self.times):
            return wall_ns + self.offsets[max(0, at - 1)]
        begin, end = self.times[at - 1 : at + 1]
        before, after = self.offsets[at - 1 : at + 1]
        return wall_ns + before + (after - before) * (wall_ns - begin) // (end - begin)


def key_of(end: End, epochs: dict[int, tuple[str, ...]]) -> Hashable | None:
    """What is equal for the ends of one op on several peers, and of no other op: members have ids that are never used
    again. None: the file no longer says who was in the epoch.
    """
    members = epochs.get(end.epoch)
    return None if members is None else (end.epoch, members, end.name)


def align(peers: Sequence[PeerTrace]) -> list[Clock]:
    """A clock for each."""
    moments = [_moments(peer) for peer in peers]
    order = sorted(range(len(peers)), key=lambda i: -len(moments[i]))
    clocks: dict[int, Clock] = {order[0]: Clock(None, 0)}
    left = order[1:]
    while left:
        index, known, common = _best(moments, left, list(clocks))
        left.remove(index)
        clocks[index] = _clock(moments[index], moments[known], clocks[known], common) if common else Clock(0, 0)
    return [clocks[i] for i in range(len(peers))]


def _moments(peer: PeerTrace) -> dict[Hashable, int]:
    """When it was what others know too, by its wall clock."""
    found: dict[Hashable, int] = {}
    epochs: dict[int, tuple[str, ...]] = {}
    for record in peer.records:
        if isinstance(record, Epoch):
            epochs[record.epoch] = record.members
            found.setdefault((record.epoch, record.members), peer.wall_ns(record.t))
        elif isinstance(record, End) and record.outcome == "ok":
            key = key_of(record, epochs)
            if key is not None:
                found[key] = peer.wall_ns(record.t)
    return found


def _best(moments: list[dict[Hashable, int]], left: list[int], known: list[int]) -> tuple[int, int, list[Hashable]]:
    """Who is next, by whom, and by which moments: none if nobody left has any in common with those that are known."""
    best: tuple[int, int, list[Hashable]] = (left[0], known[0], [])
    for index in left:
        for other in known:
            common = moments[index].keys() & moments[other].keys()
            if len(common) > len(best[2]):
                best = (index, other, list(common))
            if len(common) >= ENOUGH:
                return best
    return best


def _clock(own: dict[Hashable, int], other: dict[Hashable, int], clock: Clock, common: list[Hashable]) -> Clock:
    pairs = sorted((own[key], clock.common(other[key]) - own[key]) for key in common)
    windows: list[list[tuple[int, int]]] = [[]]
    for pair in pairs:
        last = windows[-1]
        if len(last) >= WINDOW_MOMENTS and pair[0] - last[0][0] >= WINDOW_NS:
            windows.append([])
        windows[-1].append(pair)
    if len(windows) > 1 and len(windows[-1]) < WINDOW_MOMENTS:
        rest = windows.pop()
        windows[-1] += rest
    found = Clock(
        len(pairs),
        0,
        tuple(round(median(time for time, _ in window)) for window in windows),
        tuple(round(median(offset for _, offset in window)) for window in windows),
    )
    errors = sorted(abs(time + offset - found.common(time)) for time, offset in pairs)
    return Clock(found.moments, errors[len(errors) * 9 // 10], found.times, found.offsets)
