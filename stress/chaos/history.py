"""What a chaos run wrote down, put together: who lived when, what each peer called and saw, and what was done to it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Event = dict[str, Any]
OpName = tuple[int, int]
FOREVER = float("inf")
EVICTIONS = ("lost", "lease")
#: Faults that are over when they are committed.
AT_ONCE = ("kill", "leave", "reset", "control_reset", "hub_kill", "failover")


@dataclass(slots=True)
class Track:
    """One peer's process, from its own lines and the driver's."""

    name: str
    site: str = ""
    peer: str = ""
    entered: int = 0
    started: float = 0.0
    joined: float = FOREVER
    begins: dict[OpName, Event] = field(default_factory=dict)
    ends: dict[OpName, Event] = field(default_factory=dict)
    syncs: list[Event] = field(default_factory=list)
    advances: list[Event] = field(default_factory=list)
    gone: Event | None = None
    refused: Event | None = None
    closed: Event | None = None
    code: int | None = None
    ended: float = FOREVER
    killed: float = FOREVER
    doubles: list[OpName] = field(default_factory=list)

    @property
    def survived(self) -> bool:
        """Neither killed nor told that it is out."""
        return self.killed == FOREVER and self.gone is None

    @property
    def outside(self) -> float:
        """From when on it is no survivor."""
        said = [event["t"] for event in (self.gone, self.closed) if event is not None]
        return min(self.killed, self.ended, *said)


@dataclass(slots=True)
class Fault:
    """What was done, from when to when."""

    kind: str
    name: str
    site: str
    other: str
    begin: float
    end: float
    amount: float = 0.0

    def touches(self, since: float, until: float) -> bool:
        return self.begin <= until and self.end >= since


@dataclass(slots=True)
class History:
    """All of a run."""

    tracks: dict[str, Track] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    decisions: list[Event] = field(default_factory=list)
    usage: list[Event] = field(default_factory=list)
    exits: list[Event] = field(default_factory=list)
    stuck: list[Event] = field(default_factory=list)
    begun: float = 0.0
    calm: float = FOREVER
    stopped: float = FOREVER
    corrupted: int = 0
    leaders: int = 0  # how often a coordinator began to lead

    def by_peer(self) -> dict[str, Track]:
        return {track.peer: track for track in self.tracks.values() if track.peer}

    def of(self, name: str) -> list[Fault]:
        """Faults of that process."""
        return [fault for fault in self.faults if fault.name == name]


def load(directory: Path) -> History:
    """Reads what a run left in its directory. A last line that a killed process did not finish does not count."""
    files = sorted(directory.glob("*.jsonl"))
    lines = {path.stem: _lines(path) for path in files if path.stem != "schedule"}
    return build(lines)


def _lines(path: Path) -> list[Event]:
    text = path.read_bytes()
    return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]


def build(lines: dict[str, list[Event]]) -> History:
    """From the lines of each writer: `driver`, `hub.N`, `hub2.N` and the peers by name."""
    history = History()
    for name, events in lines.items():
        if name == "driver":
            continue
        if name.startswith("hub"):
            history.decisions += [event for event in events if event["e"] == "decision"]
            history.leaders += sum(event["e"] == "serving" for event in events)
            continue
        history.tracks[name] = _track(Track(name), events)
    history.decisions.sort(key=lambda event: event["t"])
    _drive(history, lines.get("driver", []))
    return history


def _track(track: Track, events: Iterable[Event]) -> Track:
    for event in events:
        kind = event["e"]
        if kind == "member":
            track.peer, track.entered, track.joined = event["peer"], event["entered"], event["t"]
        elif kind in ("begin", "end"):
            into = track.begins if kind == "begin" else track.ends
            name = (event["b"], event["n"])
            if name in into:
                track.doubles.append(name)
            into[name] = event
        elif kind == "sync":
            track.syncs.append(event)
        elif kind == "advance":
            track.advances.append(event)
        elif kind in ("gone", "refused", "closed"):
            setattr(track, kind, event)
    return track


def _drive(history: History, events: Iterable[Event]) -> None:
    """The driver's own lines."""
    faults: dict[int, Fault] = {}
    for event in events:
        kind = event["e"]
        track = history.tracks.get(event.get("name", ""))
        if kind == "fault":
            until = event["t"] if event["kind"] in AT_ONCE else FOREVER
            fault = Fault(
                event["kind"], event["name"], event["site"], event["other"], event["t"], until, event["amount"]
            )
            faults[event["id"]] = fault
        elif kind == "mended":
            faults[event["id"]].end = event["t"]
        elif kind == "ended":
            history.exits.append(event)
        elif kind in ("usage", "stuck"):
            getattr(history, kind).append(event)
        elif kind in ("begun", "calm"):
            setattr(history, kind, event["t"])
        elif kind == "stop":
            history.stopped = event["t"]
        elif kind == "corrupted":
            history.corrupted = event["packets"]
        if track is None:
            continue
        if kind == "started":
            track.site, track.started = event["site"], event["t"]
        elif kind == "ended":
            track.ended, track.code = event["t"], event["code"]
        elif kind == "dies" or (kind == "fault" and event["kind"] == "kill"):
            track.killed = min(track.killed, event["t"])
    history.faults = list(faults.values())
