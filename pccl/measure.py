"""measure.py - what a peer tells the coordinator about its links and its line: figures that have changed since then.

Pure. The engine measures (pccl_link_stats, pccl_stats); this only decides what is news: a figure that moved by more
than CHANGE, or one that has been confirmed by traffic since it was sent REFRESH_S ago, so that the coordinator may
forget what nobody has seen for long. A rate that no traffic has confirmed is sent as 0: nothing new.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pccl.messages import Line, LinkReport
from pccl.types import LineStats, LinkStats

CHANGE = 0.1
RTT_NOISE_US = 100
LOSS_CHANGE = 0.5
LOSS_NOISE_PPM = 20
REFRESH_S = 60.0
CONFIRMED_BYTES = 1 << 20

_NOTHING: Line = (0, 0, 0, 0)


@dataclass(slots=True, frozen=True)
class _Told:
    at: float
    rtt_us: int
    bytes_per_s: int
    loss_ppm: int
    sent_bytes: int


class LinkReporter:
    """Remembers what the coordinator was told."""

    def __init__(self) -> None:
        self._told: dict[bytes, _Told] = {}

    def forget(self) -> None:
        """The coordinator may have missed something, or be a new one: all is news."""
        self._told.clear()

    def news(self, now: float, links: Iterable[LinkStats]) -> list[LinkReport]:
        """Reports on the links that there is something to say about."""
        reports = []
        present = set()
        for link in links:
            present.add(link.peer)
            told = self._told.get(link.peer)
            if not (link.rtt_us or link.bytes_per_s) or (told is not None and not _is_news(now, told, link)):
                continue
            rate = link.bytes_per_s if told is None or _is_confirmed(told, link) else 0
            sent = link.sent_bytes if told is None or rate else told.sent_bytes
            reports.append(LinkReport(link.peer, link.rtt_us, rate, link.loss_ppm))
            self._told[link.peer] = _Told(now, link.rtt_us, link.bytes_per_s, link.loss_ppm, sent)
        for peer in [peer for peer in self._told if peer not in present]:
            del self._told[peer]
        return reports


class LineReporter:
    """Remembers what the coordinator was told. That nothing is known is only told where something was."""

    def __init__(self) -> None:
        self._told = LineStats()
        self._at = float("-inf")

    def forget(self) -> None:
        """The coordinator may have missed something, or be a new one: all is news."""
        self._told = LineStats()

    def news(self, now: float, line: LineStats) -> Line | None:
        """The line's figures if there is something to say about it."""
        told = self._told
        confirmed = _figures(line) != _NOTHING and line.sent_bytes >= told.sent_bytes + CONFIRMED_BYTES
        moved = any(_has_moved(*pair) for pair in zip(_figures(told), _figures(line), strict=True))
        if not (moved or (confirmed and now >= self._at + REFRESH_S)):
            return None
        self._told, self._at = line, now
        return _figures(line)


def _figures(line: LineStats) -> Line:
    return line.up_bytes_per_s, line.down_bytes_per_s, line.went_up_bytes_per_s, line.went_down_bytes_per_s


def _has_moved(told: int, found: int) -> bool:
    return abs(found - told) > CHANGE * told


def _is_news(now: float, told: _Told, link: LinkStats) -> bool:
    return (
        abs(link.rtt_us - told.rtt_us) > max(CHANGE * told.rtt_us, RTT_NOISE_US)
        or _has_moved(told.bytes_per_s, link.bytes_per_s)
        or abs(link.loss_ppm - told.loss_ppm) > max(LOSS_CHANGE * told.loss_ppm, LOSS_NOISE_PPM)
        or now >= told.at + REFRESH_S
    )


def _is_confirmed(told: _Told, link: LinkStats) -> bool:
    return link.bytes_per_s != told.bytes_per_s or link.sent_bytes >= told.sent_bytes + CONFIRMED_BYTES
