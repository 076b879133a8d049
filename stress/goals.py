"""goals.py - what is wanted of the figures of bench_all.py's steps, and whether they are so. Pure.

A step's rows are the JSON objects it printed, one per line. The WAN's targets are judged where they are measured
(wan/bench/targets.py) and only counted here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure of a step, made of its rows, that is to be at most so much, or at least; None: it was not measured."""

    step: str
    what: str
    figure: Callable[[Sequence[Row]], float | None]
    limit: float
    at_least: bool = False

    def judge(self, rows: Sequence[Row]) -> Row:
        """What was wanted, what was found, whether it is enough."""
        found = self.figure(rows)
        good = None if found is None else found >= self.limit if self.at_least else found <= self.limit
        wanted = f"{'>=' if self.at_least else '<='} {self.limit:g}"
        return {"step": self.step, "what": self.what, "wanted": wanted, "found": found, "ok": good}


def where(name: str, **known: Any) -> Callable[[Sequence[Row]], float | None]:
    """A column of the rows that hold what is known; the largest, as with the best instruction set there is."""
    return lambda rows: largest(row[name] for row in rows if all(row[key] == value for key, value in known.items()))


def least(name: str) -> Callable[[Sequence[Row]], float | None]:
    """A column of the row where it is least."""
    return lambda rows: min((row[name] for row in rows), default=None)


def slowest_gain(rows: Sequence[Row]) -> float | None:
    """How many times faster than a plain ring the plan is that gains the least."""
    return min((row["speedup"] for row in rows if row["bytes"] == 64 * MIB), default=None)


def messages_of(event: str) -> Callable[[Sequence[Row]], float | None]:
    """The most messages per event of a kind."""
    return lambda rows: largest(row["messages"] / row["trials"] for row in rows if row["event"] == event)


def largest(values: Any) -> float | None:
    return max((value for value in values if value is not None), default=None)


def broken(rows: Sequence[Row]) -> float | None:
    """How many rows say of themselves that they are not what was wanted."""
    judged = [row["ok"] for row in rows if "ok" in row]
    return float(judged.count(False)) if judged else None


def unlikely(rows: Sequence[Row]) -> float | None:
    """How much is wrong with how modes learn."""
    return float(sum(len(row["missed"]) for row in rows)) if rows else None


def missed(rows: Sequence[Row]) -> float | None:
    """How many of the WAN's targets were missed."""
    judged = [target["ok"] for row in rows for target in row["targets"]]
    return float(judged.count(False)) if judged else None


GOALS = (
    *(Goal("tcp", f"64 MiB, {n} peers: ours / gloo", where("ratio", peers=n, bytes=64 * MIB), 1.15) for n in (2, 4)),
    Goal("tcp", "1 MiB, 2 peers: ms", where("ours_ms", peers=2, bytes=MIB), 1.5),
    Goal("tcp", "1 KiB, 2 peers: ms", where("ours_ms", peers=2, bytes=1024), 0.7),
    Goal("tcp", "1 KiB, 4 peers: ms", where("ours_ms", peers=4, bytes=1024), 2),
    Goal(
        "in_flight",
        "1 KiB, 64 at once, 4 peers: op/s",
        where("ours_ops_per_s", peers=4, bytes=1024),
        5000,
        at_least=True,
    ),
    Goal(
        "fused", "200 of 1 KiB, 4 peers: one by one / fused", where("fused_gain", peers=4, bytes=1024), 3, at_least=True
    ),
    Goal(
        "fused",
        "200 of 64 KiB, 4 peers: one by one / fused",
        where("fused_gain", peers=4, bytes=64 << 10),
        1,
        at_least=True,
    ),
    Goal("shm", "64 MiB, 2 peers: ours / gloo", where("ratio", peers=2, bytes=64 * MIB), 0.6),
    Goal("shm", "64 MiB, 4 peers: ours / gloo", where("ratio", peers=4, bytes=64 * MIB), 0.75),
    *(
        Goal("kernels", f"int8 {way}: GB/s", where("gb_per_s", kernel=f"int8 {way}"), 5, at_least=True)
        for way in ("encode", "decode")
    ),
    *(
        Goal("kernels", f"e3m0 {way}: GB/s", where("gb_per_s", kernel=f"e3m0 {way}"), 3, at_least=True)
        for way in ("encode", "decode")
    ),
    Goal("kill", "wrong results", where("wrong"), 0),
    Goal("kill", "median ms until the next result", where("median_ms"), 300),
    Goal("kill", "worst ms until the next result", where("worst_ms"), 1000),
    Goal("join", "wrong results", where("wrong"), 0),
    Goal("join", "ops of others that began anew", where("aborted"), 0),
    Goal("join", "median ms until the first result", where("median_ms"), 100),
    Goal("plans", "64 MiB, plain ring / ours, where it is least", slowest_gain, 1, at_least=True),
    Goal("plans", "CPU ms of the longest planning", where("plan_cpu_ms"), 1000),
    Goal("coordinator", "messages per advance() when nobody waits", messages_of("advance"), 0),
    Goal("transfer", "256 MiB in 1 MiB chunks: Gbit/s", where("gbit_per_s", chunk_bytes=MIB), 20, at_least=True),
    Goal("transfer", "256 MiB in 64 KiB chunks: Gbit/s", where("gbit_per_s", chunk_bytes=64 << 10), 15, at_least=True),
    Goal("transfers", "256 MiB, any pieces: the least part of the link", least("share"), 0.9, at_least=True),
    Goal("torch", "64 MiB, 2 ranks: torch.distributed / native", where("ratio"), 1.1),
    *(Goal(step, "rows that miss their goal", broken, 0) for step in ("kv", "kv_wan", "weights")),
    Goal(
        "kv_codecs",
        "bf16 of independent values: part of the bytes",
        where("of_plain", cache="normal", codec="bf16-exp"),
        0.75,
    ),
    Goal("weights_bytes", "bits of A / entropy", where("a_over_iid"), 1.02),
    Goal(
        "weights_speed", "B encode: part of memcpy's speed", where("of_memcpy", kernel="B encode"), 0.15, at_least=True
    ),
    Goal("state", "join / what the lines take", where("join_ratio"), 1.25),
    Goal("state", "a step meanwhile / before", where("step_ratio"), 1.1),
    Goal("optim", "figures that are not as they should be", unlikely, 0),
    Goal("wan", "targets missed (see wan.txt)", missed, 0),
)
