"""What a chaos run came to: figures of its history, as one JSON object or as tables."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from stress.chaos.checker import Broken, held, samples
from stress.chaos.history import EVICTIONS, FOREVER, History, Track

SHOWN_MAX = 40


def figures(history: History, broken: Sequence[Broken], seed: int, replay: str, ended_early: str) -> dict[str, Any]:
    """The row of `--json`."""
    ends = [end for track in history.tracks.values() for end in track.ends.values()]
    good = [end for end in ends if end["ok"]]
    decided = Counter(event["what"] for event in history.decisions if event["t"] < history.stopped)
    return {
        "seed": seed,
        "seconds": round(min(history.calm, history.decisions[-1]["t"]) - history.begun, 1) if history.decisions else 0,
        "faults": len(history.faults),
        "kinds": dict(Counter(fault.kind for fault in history.faults)),
        "ops": len({name for track in history.tracks.values() for name in track.ends}),
        "calls": len(ends),
        "commits": len(good),
        "retries": sum(end["retries"] for end in good),
        "errors": dict(Counter(end["error"] for end in ends if not end["ok"])),
        "kills": sum(track.killed < FOREVER for track in history.tracks.values()),
        "joins": sum(track.joined < FOREVER for track in history.tracks.values()),
        "evictions": sum(decided[what] for what in EVICTIONS),
        "changes": decided["freeze"],
        "could_not_write": sum(e["what"] == "state" and "nothing is decided" in e["reason"] for e in history.decisions),
        "leaders": history.leaders,
        "syncs": sum(sync["ok"] for track in history.tracks.values() for sync in track.syncs),
        "corrupted_packets": history.corrupted,
        "recovery_ms": percentiles(recoveries_ms(history)),
        "op_ms": percentiles([end["s"] * 1000 for end in good]),
        "usage": usage(history),
        "broken": [[b.promise, round(b.t - history.begun, 3), b.where, b.detail] for b in broken],
        "ended_early": ended_early,
        "replay": replay,
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    if len(values) < 2:
        return {"max": round(max(values), 1)} if values else {}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {
        "p50": round(cuts[49], 1), "p90": round(cuts[89], 1), "p99": round(cuts[98], 1), "max": round(max(values), 1)
    }  # fmt: skip


def recoveries_ms(history: History) -> list[float]:
    """For each killed member: until the last of those who survived with it has a result without it."""
    found = []
    for victim in history.tracks.values():
        if not victim.joined < victim.killed < history.calm:
            continue
        others = [t for t in history.tracks.values() if t is not victim and t.joined < victim.killed and not t.code]
        firsts = [at for at in (_first_without(track, victim) for track in others) if at is not None]
        if firsts:
            found.append((max(firsts) - victim.killed) * 1000)
    return found


def _first_without(track: Track, victim: Track) -> float | None:
    """When the peer had its first result after the kill without the victim."""
    ends = (end for end in track.ends.values() if end["ok"] and end["t"] > victim.killed)
    return min((end["t"] for end in ends if victim.peer not in end["peers"]), default=None)


def usage(history: History) -> dict[str, dict[str, int]]:
    """Of those that lived all the time: what they held after warm-up and at the end."""
    if not history.usage:
        return {}
    table = {}
    for name in history.usage[-1]["of"]:
        fds, rss = samples(history, name)
        if name in history.usage[0]["of"] and len(fds) > 1:
            (fds_first, fds_last), (rss_first, rss_last) = held(fds), held(rss)
            table[name] = {"fds": fds_first, "fds_end": fds_last, "rss_kb": rss_first, "rss_kb_end": rss_last}
    return table


# -- for people --------------------------------------------------------------------------------------------------------


def show(row: dict[str, Any], console: Console) -> None:
    """Tables."""
    table = Table("what", "", title=f"chaos, seed {row['seed']}", title_justify="left")
    for name, value in row.items():
        if name not in ("broken", "usage", "seed"):
            table.add_row(name, value if isinstance(value, str) else json.dumps(value).strip("{}").replace('"', ""))
    table.add_row("broken promises", str(len(row["broken"])))
    console.print(table)
    if row["usage"]:
        lived = Table("lived all the time", "descriptors", "at the end", "MiB", "at the end")
        for name, of in row["usage"].items():
            sizes = [f"{of[key] / 1024:.1f}" for key in ("rss_kb", "rss_kb_end")]
            lived.add_row(name, str(of["fds"]), str(of["fds_end"]), *sizes)
        console.print(lived)
    for promise, at_s, where, detail in row["broken"][:SHOWN_MAX]:
        console.print(f"[bold]{promise}[/] at {at_s:g} s, {where}: ", end="")
        console.print(detail, markup=False, highlight=False)
