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


def of_size(peers: int, nbytes: int, name: str) -> Callable[[Sequence[Row]], float | None]:
    """A column of the row of `pccl bench` with so many peers and bytes."""
    return lambda rows: largest(row[name] for row in rows if (row["peers"], row["bytes"]) == (peers, nbytes))


def kernel(name: str) -> Callable[[Sequence[Row]], float | None]:
    """GB/s of float32 with the best instruction set that there is: the one in use."""
    return lambda rows: largest(row["gb_per_s"] for row in rows if row["kernel"] == name)


def in_chunks(nbytes: int) -> Callable[[Sequence[Row]], float | None]:
    """Gbit/s of `pccl bench transfer` with chunks of so many bytes."""
    return lambda rows: largest(row["gbit_per_s"] for row in rows if row["chunk_bytes"] == nbytes)


def least(name: str) -> Callable[[Sequence[Row]], float | None]:
    """A column of the row where it is least."""
    return lambda rows: min((row[name] for row in rows), default=None)


def only(name: str) -> Callable[[Sequence[Row]], float | None]:
    """A column of the only row."""
    return lambda rows: largest(row[name] for row in rows)


def slowest_gain(rows: Sequence[Row]) -> float | None:
    """How many times faster than a plain ring the plan is that gains the least."""
    return min((row["speedup"] for row in rows if row["bytes"] == 64 * MIB), default=None)


def messages_of(event: str) -> Callable[[Sequence[Row]], float | None]:
    """The most messages per event of a kind."""
    return lambda rows: largest(row["messages"] / row["trials"] for row in rows if row["event"] == event)


def largest(values: Any) -> float | None:
    return max((value for value in values if value is not None), default=None)


def missed(rows: Sequence[Row]) -> float | None:
    """How many of the WAN's targets were missed."""
    judged = [target["ok"] for row in rows for target in row["targets"]]
    return float(judged.count(False)) if judged else None


GOALS = (
    *(Goal("tcp", f"64 MiB, {n} peers: ours / gloo", of_size(n, 64 * MIB, "ratio"), 1.15) for n in (2, 4)),
    Goal("tcp", "1 MiB, 2 peers: ms", of_size(2, MIB, "ours_ms"), 1.5),
    Goal("tcp", "1 KiB, 2 peers: ms", of_size(2, 1024, "ours_ms"), 0.7),
    Goal("tcp", "1 KiB, 4 peers: ms", of_size(4, 1024, "ours_ms"), 2),
    Goal("in_flight", "1 KiB, 64 at once, 4 peers: op/s", of_size(4, 1024, "ours_ops_per_s"), 5000, at_least=True),
    Goal("fused", "200 of 1 KiB, 4 peers: one by one / fused", of_size(4, 1024, "fused_gain"), 3, at_least=True),
    Goal("fused", "200 of 64 KiB, 4 peers: one by one / fused", of_size(4, 64 << 10, "fused_gain"), 1, at_least=True),
    Goal("shm", "64 MiB, 2 peers: ours / gloo", of_size(2, 64 * MIB, "ratio"), 0.6),
    Goal("shm", "64 MiB, 4 peers: ours / gloo", of_size(4, 64 * MIB, "ratio"), 0.75),
    *(Goal("kernels", f"int8 {way}: GB/s", kernel(f"int8 {way}"), 5, at_least=True) for way in ("encode", "decode")),
    *(Goal("kernels", f"e3m0 {way}: GB/s", kernel(f"e3m0 {way}"), 3, at_least=True) for way in ("encode", "decode")),
    Goal("kill", "wrong results", only("wrong"), 0),
    Goal("kill", "median ms until the next result", only("median_ms"), 300),
    Goal("kill", "worst ms until the next result", only("worst_ms"), 1000),
    Goal("join", "wrong results", only("wrong"), 0),
    Goal("join", "ops of others that began anew", only("aborted"), 0),
    Goal("join", "median ms until the first result", only("median_ms"), 100),
    Goal("plans", "64 MiB, plain ring / ours, where it is least", slowest_gain, 1, at_least=True),
    Goal("plans", "CPU ms of the longest planning", only("plan_cpu_ms"), 1000),
    Goal("coordinator", "messages per advance() when nobody waits", messages_of("advance"), 0),
    Goal("transfer", "256 MiB in 1 MiB chunks: Gbit/s", in_chunks(MIB), 20, at_least=True),
    Goal("transfer", "256 MiB in 64 KiB chunks: Gbit/s", in_chunks(64 << 10), 15, at_least=True),
    Goal("transfers", "256 MiB, any pieces: the least part of the link", least("share"), 0.9, at_least=True),
    Goal("wan", "targets missed (see wan.txt)", missed, 0),
)
