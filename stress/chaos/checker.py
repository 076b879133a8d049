"""Holds a chaos run against what pccl promises, from what its processes wrote down. Pure: a history in, findings out.

P1 one result · P2 inputs survive · P3 joins never disturb · P4 link faults are not peer faults · P5 bounded waiting ·
P6 nothing is trusted · P7 coordinator restarts are survived · P8 bit parity. Faults count as excuses only: who was
killed, paused or cut off from the coordinator may lose its membership; who only lost links may not.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass

from stress.chaos.history import EVICTIONS, FOREVER, Event, Fault, History, OpName, Track

#: An op may end with these at a peer that is no survivor any more.
OUTSIDE = {"Evicted", "CoordinatorLost", "Closed"}
#: Which promise an error breaks that nothing excuses.
ERRORS = {"Timeout": "P5", "MismatchError": "P1", "ProtocolError": "P6", "AuthError": "P6", "TooFewPeers": "P4"}
#: So much of the machine's own slowness is forgiven.
ADVANCE_S_MAX = 2.0
CALM_S = 1.5
CLOSE_S_MAX = 6.0
OP_S_MAX = 60.0 + 5.0
EVICTED_AFTER_S = 15.0
RESTLESS = {"join", "hold", "freeze", "epoch", "release", "stall", "leave", "lost", "lease", "disconnected"}
#: Ends of processes that are as they should be: left, was told that it is out, was not let in.
EXITS = {0, 3, 4}
#: Faults between a peer and the coordinator.
CUT_OFF = ("isolate", "isolate_long", "control_corrupt")
GROWTH_MAX = 0.05
FDS_SLACK = 8
RSS_SLACK_KB = 8 << 10
WARM_S = 60.0
GROWTH_S_MIN = 600.0
SAMPLES_MIN = 15


@dataclass(frozen=True, slots=True)
class Broken:
    """A promise that did not hold, where, and by what it is known."""

    promise: str
    where: str
    detail: str
    t: float = 0.0


def judge(history: History, lease_s: float) -> list[Broken]:
    """Everything that is wrong."""
    found: list[Broken] = []
    for check in (one_result, inputs, boundaries, joins, calm_advances, evictions, waiting, processes, parity, growth):
        found += check(history, lease_s) if check is evictions else check(history)
    return sorted(found, key=lambda broken: (broken.promise, broken.t))


# -- P1 and P6: one result -------------------------------------------------------------------------------------------


def one_result(history: History) -> Iterator[Broken]:
    """Compares the ends of each op."""
    tracks = history.by_peer()
    ops: dict[OpName, list[tuple[Track, Event]]] = {}
    for track in tracks.values():
        for name, end in track.ends.items():
            ops.setdefault(name, []).append((track, end))
    for name, ends in sorted(ops.items()):
        committed = [(track, end) for track, end in ends if end["ok"]]
        for track, end in ends:
            yield from _own_end(history, name, track, end)
        if committed:
            yield from _agreement(tracks, name, committed)
            yield from _others(history, tracks, name, ends, committed[0][1])


def _own_end(history: History, name: OpName, track: Track, end: Event) -> Iterator[Broken]:
    """What is wrong with one end by itself."""
    where = f"op {name} {end['kind']} at {track.name}"
    if end["ok"] and end["wrong"]:
        promise = "P6" if any(fault.kind == "corrupt" for fault in history.faults) else "P1"
        yield Broken(promise, where, f"wrong bytes: {end['wrong']}; of {', '.join(end['peers'])}", end["t"])
    if end["ok"] or end["error"] in OUTSIDE or end["error"] == "skipped":
        return
    if end["error"] == "PeerLost" and end["kind"] == "broadcast":
        return
    yield Broken(ERRORS.get(end["error"], "P1"), where, f"{end['error']}: {end['text']}", end["t"])


def _agreement(tracks: dict[str, Track], name: OpName, committed: list[tuple[Track, Event]]) -> Iterator[Broken]:
    first_track, first = committed[0]
    for track, end in committed:
        where = f"op {name} {end['kind']} at {track.name}"
        if track.peer not in end["peers"]:
            yield Broken("P1", where, f"committed without having taken part: {end['peers']}", end["t"])
        for what in ("epoch", "peers", "digest"):
            if end[what] != first[what]:
                detail = f"{what} {end[what]}, at {first_track.name} {first[what]}"
                yield Broken("P1", where, detail, end["t"])


def _others(
    history: History, tracks: dict[str, Track], name: OpName, ends: list[tuple[Track, Event]], committed: Event
) -> Iterator[Broken]:
    """Nobody who survived has another outcome."""
    for track, end in ends:
        if not end["ok"] and end["error"] not in OUTSIDE:
            where = f"op {name} {end['kind']} at {track.name}"
            yield Broken("P1", where, f"ended with {end['error']}, and was committed elsewhere", end["t"])
    for peer in committed["peers"]:
        track = tracks.get(peer)
        where = f"op {name} {committed['kind']} of {peer}"
        if track is None:
            yield Broken("P1", where, "a participant that nobody knows", committed["t"])
        elif name not in track.begins and committed["kind"] not in ("broadcast", "barrier"):
            yield Broken("P1", f"{where} ({track.name})", "committed with a peer that never called it", committed["t"])
        elif name not in track.ends and track.survived:
            yield Broken("P1", f"{where} ({track.name})", "committed, and no end at a survivor", committed["t"])


def inputs(history: History) -> Iterator[Broken]:
    """P2."""
    for track in history.tracks.values():
        for name, end in track.ends.items():
            if not end["ok"] and not end["intact"]:
                where = f"op {name} {end['kind']} at {track.name}"
                yield Broken("P2", where, f"its input is changed after {end['error']}", end["t"])


# -- P3: boundaries and joins ----------------------------------------------------------------------------------------


def boundaries(history: History) -> Iterator[Broken]:
    """Each one is passed, in order, and each op is called once."""
    for track in history.tracks.values():
        for name in track.doubles:
            yield Broken("P3", f"op {name} at {track.name}", "called or ended twice: a boundary came again")
        at = track.entered
        for event in track.advances:
            if event["b"] != at + 1:
                yield Broken("P3", track.name, f"after boundary {at} came {event['b']}", event["t"])
            at = event["b"]


def joins(history: History) -> Iterator[Broken]:
    """A joiner takes part from its boundary on: in no op before, and in every op after while it lives."""
    tracks = history.by_peer()
    for track in tracks.values():
        for name, end in track.ends.items():
            if not end["ok"]:
                continue
            for peer in end["peers"]:
                other = tracks.get(peer)
                if other is not None and name[0] < other.entered:
                    detail = f"{other.name} took part, which entered at boundary {other.entered}"
                    yield Broken("P3", f"op {name} at {track.name}", detail, end["t"])
    changes = sorted(event["t"] for event in history.decisions if event["what"] in ("freeze", "epoch"))
    for track in tracks.values():
        for name, end in track.ends.items():
            if end["ok"] and end["retries"] > _within(changes, end["t"] - end["s"] - 10.0, end["t"]):
                yield Broken("P3", f"op {name} at {track.name}", f"{end['retries']} retries without a change", end["t"])


def _within(times: list[float], since: float, until: float) -> int:
    return bisect.bisect_right(times, until) - bisect.bisect_left(times, since)


def calm_advances(history: History) -> Iterator[Broken]:
    """While nobody comes or goes advance() waits for nobody."""
    restless = sorted(event["t"] for event in history.decisions if event["what"] in RESTLESS)
    for track in history.tracks.values():
        for event in track.advances:
            since = event["t"] - event["s"]
            if event["s"] < ADVANCE_S_MAX or _within(restless, since - CALM_S, event["t"]) or _held(history, since):
                continue
            if not any(fault.touches(since, event["t"]) and _stops(fault) for fault in history.of(track.name)):
                detail = f"advance() took {event['s']:.2f} s, and nobody came or went"
                yield Broken("P3", f"boundary {event['b']} at {track.name}", detail, event["t"])


def _held(history: History, at: float) -> bool:
    """Whether somebody waited to join then: members hold for a joiner also while the coordinator is dead."""
    said = [event for event in history.decisions if event["what"] in ("hold", "epoch", "release") and event["t"] <= at]
    return bool(said) and max(said, key=lambda event: event["t"])["what"] == "hold"


def _stops(fault: Fault) -> bool:
    return fault.kind in ("stop", "stop_long")


# -- P4 and P7: who may lose its membership --------------------------------------------------------------------------


def evictions(history: History, lease_s: float) -> Iterator[Broken]:
    """Only who was killed, paused, or cut off from the coordinator."""
    tracks = history.by_peer()
    for event in history.decisions:
        track = tracks.get(event["peer"])
        if event["what"] not in EVICTIONS or track is None or event["t"] >= min(track.outside, history.stopped):
            continue
        if not _excused(history, track, event["t"], lease_s):
            yield Broken("P4", track.name, f"evicted ({event['what']}: {event['reason']})", event["t"])
    for track in history.tracks.values():
        for end in (track.gone, track.refused):
            if end is None or end["error"] not in OUTSIDE or _excused(history, track, end["t"], lease_s):
                continue
            promise = "P7" if end["error"] == "CoordinatorLost" else "P4"
            yield Broken(promise, track.name, f"{end['error']}: {end['text']}", end["t"])


def _excused(history: History, track: Track, t: float, lease_s: float) -> bool:
    """A pause beyond the lease, or so long without the coordinator that what was lost is sent again too late."""
    since = t - lease_s - EVICTED_AFTER_S
    for fault in history.of(track.name):
        long = min(fault.end, t) - fault.begin
        if _stops(fault) and long > lease_s / 2 and fault.touches(since, t):
            return True
        if fault.kind in CUT_OFF and long > lease_s / 2 and fault.touches(since, t):
            return True
    return False


# -- P5: waiting -----------------------------------------------------------------------------------------------------


def waiting(history: History) -> Iterator[Broken]:
    """Ops, joins and goodbyes end in time."""
    for event in history.stuck:
        yield Broken("P5", event["name"], f"{event['why']} (boundary {event['boundary']})", event["t"])
    for track in history.tracks.values():
        for name, begin in track.begins.items():
            if name not in track.ends and track.killed == FOREVER and not history.stuck:
                yield Broken("P5", f"op {name} {begin['kind']} at {track.name}", "it has no end", begin["t"])
        for name, end in track.ends.items():
            if end["ok"] and end["s"] > OP_S_MAX:
                yield Broken("P5", f"op {name} at {track.name}", f"it took {end['s']:.1f} s", end["t"])
        if track.refused is not None and track.refused["error"] not in OUTSIDE:
            text = f"{track.refused['error']}: {track.refused['text']}"
            yield Broken("P5", track.name, f"was not let in: {text}", track.refused["t"])
        stopped = any(_stops(fault) for fault in history.of(track.name))
        if track.closed is not None and track.closed["s"] > CLOSE_S_MAX and not stopped:
            yield Broken("P5", track.name, f"close() took {track.closed['s']:.1f} s", track.closed["t"])


def processes(history: History) -> Iterator[Broken]:
    """Each ended by itself, or was killed by us."""
    killed = {track.name for track in history.tracks.values() if track.killed < FOREVER}
    killed |= {fault.name for fault in history.faults if fault.kind in ("hub_kill", "failover")}
    stuck = {event["name"] for event in history.stuck}
    for event in history.exits:
        if event["code"] in EXITS or event["name"] in killed or (stuck and event["code"] == -9):
            continue
        how = f"signal {-event['code']}" if event["code"] < 0 else f"exit code {event['code']}"
        yield Broken("P6", event["name"], f"the process died: {how}; see its .err", event["t"])


# -- P8: state -------------------------------------------------------------------------------------------------------


def parity(history: History) -> Iterator[Broken]:
    """After a synchronisation all hold what they should, and the same."""
    digests: dict[int, tuple[str, str]] = {}
    for track in history.by_peer().values():
        for event in track.syncs:
            where = f"sync_state at boundary {event['b']} at {track.name}"
            if not event["ok"]:
                yield Broken(ERRORS.get(event["error"], "P8"), where, f"{event['error']}: {event['text']}", event["t"])
                continue
            if not event["exact"]:
                yield Broken("P8", where, "the state is not what it should be", event["t"])
            name, digest = digests.setdefault(event["b"], (track.name, event["digest"]))
            if digest != event["digest"]:
                yield Broken("P8", where, f"digest {event['digest']}, at {name} {digest}", event["t"])


# -- what a run costs in the long term -------------------------------------------------------------------------------


def samples(history: History, name: str) -> tuple[list[int], list[int]]:
    """Descriptors and KiB of a process, after warm-up, while the run lasted."""
    rows = [
        event["of"][name]
        for event in history.usage
        if name in event["of"] and history.begun + WARM_S <= event["t"] <= history.calm
    ]
    return [fds for fds, _ in rows], [rss for _, rss in rows]


def held(values: list[int]) -> tuple[int, int]:
    """What is held in the first fifth and in the last: the lower quartile, because large ops come and go above it."""
    part = max(1, len(values) // 5)
    return sorted(values[:part])[part // 4], sorted(values[-part:])[part // 4]


def growth(history: History) -> Iterator[Broken]:
    """Of those that live through the whole of a run that is long enough to tell."""
    if history.calm - history.begun < GROWTH_S_MIN or not history.usage:
        return
    for name in history.usage[-1]["of"]:
        for what, values, slack in zip(
            ("descriptors", "KiB"), samples(history, name), (FDS_SLACK, RSS_SLACK_KB), strict=True
        ):
            if len(values) < SAMPLES_MIN or not _since_the_begin(history, name):
                continue
            first, last = held(values)
            if last > first * (1 + GROWTH_MAX) + slack:
                yield Broken("growth", name, f"{what}: {first} after warm-up, {last} at the end", history.calm)


def _since_the_begin(history: History, name: str) -> bool:
    return name in history.usage[0]["of"]
