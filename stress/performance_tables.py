"""performance_tables.py - which tables the performance page has: of which step's rows, and what stands in each column.

Pure. `performance_page.py` puts them into the page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pccl.cli._units import format_bytes, format_ms
from stress.wan.bench.faults import FAULTS
from stress.wan.bench.report import plan_of
from stress.wan.bench.scenarios import SCENARIOS

Row = dict[str, Any]
Columns = dict[str, Callable[[Row], str]]


@dataclass(frozen=True, slots=True)
class Table:
    """Of a step: `pick` makes its lines of the step's rows; `wanted`, lines that there should be, by first column."""

    step: str
    columns: Columns
    pick: Callable[[Sequence[Row]], Sequence[Row]] = list
    wanted: tuple[str, ...] = ()

    def lines(self, rows: Sequence[Row]) -> list[list[str]]:
        """Its cells, a list for each line."""
        return [[cell(row) for cell in self.columns.values()] for row in self.pick(rows)]


def figure(value: float | None) -> str:
    """Three digits; nothing where nothing was measured."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def of(name: str, factor: float = 1.0) -> Callable[[Row], str]:
    """A column of numbers."""
    return lambda row: figure(None if row[name] is None else row[name] * factor)


def text(name: str) -> Callable[[Row], str]:
    """A column of words."""
    return lambda row: str(row[name])


def size(name: str) -> Callable[[Row], str]:
    """A column of bytes."""
    return lambda row: format_bytes(row[name])


def ms(name: str) -> Callable[[Row], str]:
    """A column of milliseconds, where there are some."""
    return lambda row: "" if row.get(name) is None else format_ms(row[name])


def having(**known: Any) -> Callable[[Sequence[Row]], Sequence[Row]]:
    """The rows that hold what is known."""
    return lambda rows: [row for row in rows if all(row.get(key) == value for key, value in known.items())]


def side(name: str) -> Callable[[Row], str]:
    """Seconds of one side of an all-reduce on an emulated WAN."""
    return lambda row: figure(row["sides"].get(name, {}).get("s"))


def judged(name: str) -> Callable[[Row], str]:
    """One figure of a row of an emulated WAN."""
    return lambda row: figure(row["figures"].get(name))


def best_kernels(rows: Sequence[Row]) -> list[Row]:
    """Of each kernel of up to two sources the quickest instruction set, for bytes that lie in a cache and for more."""
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        if row.get("sources", 1) <= 2:
            by_size = found.setdefault(row["kernel"], {})
            if row["gb_per_s"] > by_size.get(row["bytes"], row | {"gb_per_s": 0})["gb_per_s"]:
                by_size[row["bytes"]] = row
    return [
        {
            "kernel": name,
            "isa": sizes[min(sizes)]["isa"],
            "small": sizes[min(sizes)],
            "large": sizes[max(sizes)] if len(sizes) > 1 else None,
        }
        for name, sizes in found.items()
    ]


def rate(part: str) -> Callable[[Row], str]:
    """GB/s and for how many bytes."""
    return lambda row: f"{row[part]['gb_per_s']:.1f} ({format_bytes(row[part]['bytes'])})" if row[part] else ""


def bits(name: str) -> Callable[[Row], str]:
    """Bits for each changed weight."""
    return lambda row: figure(row["bits"][name])


def codecs_on_wan(rows: Sequence[Row]) -> list[Row]:
    """A line for each codec."""
    return [
        {"codec": name, "rate_mbit": row["rate_mbit"], "s": row["sides"][name]["s"], **of_codec(row["figures"], name)}
        for row in rows
        if row["scenario"] == "codecs"
        for name in ("int8", "e3m0")
        if name in row["sides"]
    ]


def of_codec(figures: Row, name: str) -> Row:
    """Its part of the bytes, and how many times faster it is."""
    return {"bytes": figures[f"{name}_bytes"], "speed": figures[f"{name}_speed"]}


ALL_REDUCE: Columns = {
    "peers": text("peers"),
    "size": size("bytes"),
    "pccl, ms": ms("ours_ms"),
    "gloo, ms": ms("gloo_ms"),
    "pccl / gloo": of("ratio"),
}
NETWORK: Columns = {"RTT, ms": of("rtt_ms"), "loss, %": of("loss", 100), "Mbit/s": of("rate_mbit")}

TABLES: dict[str, Table] = {
    "wan": Table(
        "wan",
        {
            "scenario": text("scenario"),
            "size": size("bytes"),
            **NETWORK,
            "bound, s": of("bound_s"),
            "pccl, s": side("ours"),
            "bound / pccl": judged("fraction"),
            "gloo / pccl": judged("vs_gloo"),
            "ring / pccl": judged("vs_ring"),
            "plan, streams": plan_of,
        },
        having(kind="times"),
        tuple(SCENARIOS),
    ),
    "wan codecs": Table(
        "wan",
        {
            "codec": text("codec"),
            "Mbit/s": of("rate_mbit"),
            "s": of("s"),
            "part of float32's bytes": of("bytes"),
            "times as fast as float32": of("speed"),
        },
        codecs_on_wan,
        ("int8", "e3m0"),
    ),
    "wan faults": Table(
        "wan",
        {"fault": text("scenario"), "usually, s": judged("usual_s"), "with the fault, s": judged("fault_s")},
        having(kind="fault"),
        tuple(FAULTS),
    ),
    "transfers": Table(
        "transfers",
        {"pieces of": size("piece_bytes"), **NETWORK, "s": of("s"), "part of the link": of("share")},
    ),
    "tcp": Table("tcp", ALL_REDUCE),
    "shm": Table("shm", ALL_REDUCE),
    "in_flight": Table("in_flight", {**ALL_REDUCE, "at once": text("in_flight"), "op/s": of("ours_ops_per_s")}),
    "fused": Table(
        "fused",
        {
            "peers": text("peers"),
            "tensors of": size("bytes"),
            "how many": text("in_flight"),
            "an op for each, ms": ms("ours_ms"),
            "one call, ms": ms("fused_ms"),
            "times faster": of("fused_gain"),
        },
    ),
    "transfer": Table(
        "transfer",
        {"size": size("bytes"), "chunks of": size("chunk_bytes"), "ms": ms("ms"), "Gbit/s": of("gbit_per_s")},
    ),
    "kernels": Table(
        "kernels",
        {"kernel": text("kernel"), "with": text("isa"), "GB/s in cache": rate("small"), "beyond it": rate("large")},
        best_kernels,
    ),
    "kill": Table(
        "kill",
        {
            "peers": text("peers"),
            "op, MiB": of("mib"),
            "kills": text("trials"),
            "wrong results": text("wrong"),
            "median, ms": ms("median_ms"),
            "worst, ms": ms("worst_ms"),
        },
    ),
    "join": Table(
        "join",
        {
            "op, MiB": of("mib"),
            "joins": text("trials"),
            "wrong results": text("wrong"),
            "ops of others that began anew": text("aborted"),
            "median, ms": ms("median_ms"),
            "worst, ms": ms("worst_ms"),
        },
    ),
    "state": Table(
        "state",
        {
            "state, MiB": of("mib"),
            "a member's line, Mbit/s": of("up_mbit"),
            "what the lines take, s": of("ideal_s"),
            "join, s": of("join_s"),
            "join / lines": of("join_ratio"),
            "steps meanwhile / before": of("step_ratio"),
            "moved for 1 % of drift, %": of("one_percent_moved", 100),
        },
    ),
    "optim": Table(
        "optim",
        {
            "mode": text("mode"),
            "peers": text("peers"),
            "loss, nats": lambda row: f"{row['loss']:.4f}",
            "above data parallel, %": lambda row: f"{row['gap_percent']:+.2f}",
            "sent by one peer, MB": of("bytes_sent", 1e-6),
        },
    ),
    "weights": Table(
        "weights",
        {
            "MiB": of("mib"),
            "changed, %": of("density", 100),
            **NETWORK,
            "regions": text("regions"),
            "receivers": text("receivers"),
            "payload": size("bytes"),
            "times below dense": of("below_dense"),
            "to the last receiver, s": of("last_s"),
        },
        having(op="weights_end_to_end"),
    ),
    "weights others": Table(
        "weights",
        {"others' ways": text("method"), "MiB": of("mib"), "payload": size("bytes"), "s": of("s")},
        having(op="weights_others"),
    ),
    "weights bytes": Table(
        "weights_bytes",
        {
            "data": text("data"),
            "changed, %": of("density", 100),
            "entropy": bits("iid"),
            **{name: bits(name) for name in ("A", "B", "raw", "gap16", "xor")},
            "B below dense, times": of("below_dense"),
        },
    ),
    "weights speed": Table(
        "weights_speed",
        {
            "what": text("kernel"),
            "GB/s": of("gb_per_s"),
            "of memcpy": of("of_memcpy"),
            "GB/s of two threads": of("gb_per_s_2_threads"),
        },
    ),
    "kv": Table(
        "kv",
        {
            "transport": text("transport"),
            "blocks of": size("block_bytes"),
            "push, Gbit/s": of("write_gbit_per_s"),
            "pull, Gbit/s": of("read_gbit_per_s"),
            "one plain socket": of("socket_gbit_per_s"),
            "several": of("streams_gbit_per_s"),
        },
    ),
    "kv codecs": Table(
        "kv_codecs",
        {
            "cache": text("cache"),
            "codec": text("codec"),
            "part of the bytes": of("of_plain"),
            "encode, GB/s": of("encode_gb_per_s"),
            "decode, GB/s": of("decode_gb_per_s"),
            "greatest error": of("error"),
            "pays to, Gbit/s": of("pays_to_gbit_per_s"),
        },
    ),
    "kv wan": Table(
        "kv_wan",
        {
            **NETWORK,
            "blocks of": size("block_bytes"),
            "push, Mbit/s": of("mbit_per_s"),
            "of the best plain": of("share"),
        },
        having(op="kv_wan"),
    ),
    "kv wan codecs": Table(
        "kv_wan",
        {**NETWORK, "codec": text("codec"), "s": of("s"), "of raw's time": of("of_raw"), "of its bytes": of("wire")},
        having(op="kv_codec"),
    ),
    "torch": Table(
        "torch",
        {
            "MiB": of("mib"),
            "ranks": text("ranks"),
            "native, ms": ms("native_ms"),
            "torch.distributed, ms": ms("torch_ms"),
            "gloo, ms": ms("gloo_ms"),
            "torch.distributed / native": of("ratio"),
        },
    ),
    "plans": Table(
        "plans",
        {
            "peers": text("peers"),
            "sites": text("sites"),
            "size": size("bytes"),
            "ring, s": of("ring_s"),
            "pccl, s": of("ours_s"),
            "ring / pccl": of("speedup"),
            "bound / pccl": of("fraction"),
            "algorithm": text("algorithm"),
            "planning, ms of processor time": of("plan_cpu_ms"),
        },
    ),
    "coordinator": Table(
        "coordinator",
        {
            "sessions": text("sessions"),
            "event": text("event"),
            "messages": text("messages"),
            "median, ms": ms("median_ms"),
            "worst, ms": ms("worst_ms"),
            "of the coordinator's processor, ms": ms("coordinator_cpu_ms"),
        },
    ),
}
