"""``pccl bench``: how long collectives take here, and how long gloo's take in the same processes.

A time is the median over iterations of the slowest peer's time. Both sides use the system's TCP congestion control
unless ``--congestion`` is given; gloo cannot be told, so with ``--vs gloo`` that name must be the system's default.
Nothing of the system is changed; a network namespace of its own is the place to try another one for both.
"""

from __future__ import annotations

import json
import secrets
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

import pccl
from pccl.cli._fleet import Fleet, prefixed_sink
from pccl.cli._units import ListOf, format_bytes, format_ms
from pccl.cli.bench_transfer import transfer
from pccl.cli.launch import peer_environment

DTYPES = ("float32", "float64", "float16", "bfloat16", "int32", "int64")
CONGESTION_FILE = Path("/proc/sys/net/ipv4/tcp_congestion_control")
WORKER = "import sys; sys.path.insert(0, sys.argv.pop(1)); from pccl.cli.bench_worker import main; main()"
TRY_IN_NAMESPACE = (
    "unshare --net sh -c 'ip link set lo up && ip route replace local 127.0.0.1 dev lo table local congctl {name} && "
    "pccl bench ...', without --congestion"
)

Row = dict[str, Any]


def check_congestion(name: str | None, versus: str | None) -> None:
    """Refuses a comparison under two different congestion controls."""
    if not name or not versus:
        return
    default = CONGESTION_FILE.read_text().strip() if CONGESTION_FILE.exists() else "unknown"
    if name != default:
        raise click.UsageError(
            f"--congestion {name} would give pccl another congestion control than {versus}, which gets the system's "
            f"default, {default}. To compare both under {name}, as root: " + TRY_IN_NAMESPACE.format(name=name)
        )


class Gathered:
    """The samples of the peers, as they arrive; a row is complete when all have sent theirs."""

    def __init__(self, peers: int) -> None:
        self.peers = peers
        self.of_size: dict[int, list[dict[str, list[float]]]] = {}
        self.complete: list[int] = []
        self.show = prefixed_sink(False)

    def sink(self, index: int, is_error: bool, line: bytes) -> None:
        if is_error or not line.startswith(b"{"):
            self.show(index, True, line)
            return
        found = json.loads(line)
        samples = self.of_size.setdefault(found["bytes"], [])
        samples.append(found["samples"])
        if len(samples) == self.peers:
            self.complete.append(found["bytes"])

    def median_ms(self, size: int, side: str) -> float | None:
        """Median over iterations of the slowest peer."""
        lists = [samples[side] for samples in self.of_size[size] if side in samples]
        return statistics.median(map(max, zip(*lists, strict=True))) if lists else None


def row_of(gathered: Gathered, size: int, job: dict[str, Any]) -> Row:
    """One line of the result; times are per tensor; ratio below 1 means that pccl is faster than gloo, fused_gain above
    1 that one call with all tensors is faster than one op for each.
    """
    ours, fused, gloo = (gathered.median_ms(size, side) for side in ("ours", "fused", "gloo"))
    assert ours is not None
    return {
        "op": "all_reduce",
        "peers": gathered.peers,
        "bytes": size,
        "dtype": job["dtype"],
        "in_place": job["in_place"],
        "in_flight": job["in_flight"],
        "iterations": len(gathered.of_size[size][0]["ours"]),
        "ours_ms": round(ours, 4),
        "gloo_ms": None if gloo is None else round(gloo, 4),
        "ratio": None if gloo is None else round(ours / gloo, 3),
        "ours_ops_per_s": round(1000 / ours, 1),
        "fused_ms": None if fused is None else round(fused, 4),
        "fused_gain": None if fused is None else round(ours / fused, 2),
    }


def measure(peers: int, job: dict[str, Any], versus: str | None, report: Any) -> list[Row]:
    """One run with so many peers; reports each row as it is complete."""
    from pccl.coordinator.server import Coordinator

    secret = secrets.token_hex(32)
    coordinator = Coordinator(bind="tcp://127.0.0.1:0", run="bench", secret=secret, min_peers=peers, lease_s=60.0)
    coordinator.start()
    gathered = Gathered(peers)
    rows: list[Row] = []
    try:
        with tempfile.TemporaryDirectory(prefix="pccl-bench-") as folder:
            work = {**job, "peers": peers, "gloo_store": f"{folder}/store" if versus else ""}
            env = peer_environment(coordinator.address, "bench", secret)
            env |= {"GLOO_SOCKET_IFNAME": "lo", "PCCL_LISTEN": "127.0.0.1:0"}
            package = str(Path(pccl.__file__).parent.parent)
            argv = [sys.executable, "-c", WORKER, package, json.dumps(work)]
            for size in run_workers(peers, argv, env, gathered):
                rows.append(row_of(gathered, size, job))
                report(rows[-1])
    finally:
        coordinator.close()
    return rows


def run_workers(peers: int, argv: Sequence[str], env: dict[str, str], gathered: Gathered) -> Any:
    """Yields each size when its samples are complete; a worker that fails ends the whole."""
    fleet = Fleet(gathered.sink)
    try:
        for index in range(peers):
            fleet.spawn(index, argv, {**env, "PCCL_LAUNCH_INDEX": str(index)})
        while fleet.living:
            for process in fleet.turn(None):
                if process.exit_code != 0:
                    raise click.ClickException(f"peer {process.index} failed with exit code {process.exit_code}")
            while gathered.complete:
                yield gathered.complete.pop(0)
    finally:
        fleet.close()


def show_table(rows: Sequence[Row]) -> None:
    """All rows for people."""
    from rich.console import Console
    from rich.table import Table

    place = " in place" if rows and rows[0]["in_place"] else ""
    table = Table(title=f"all-reduce{place}, median of the slowest peer")
    fused = any(row["fused_ms"] is not None for row in rows)
    headings = ("peers", "size", "dtype", "at once", "pccl ms", "gloo ms", "ratio", "pccl op/s")
    for heading in (*headings, "fused ms") if fused else headings:
        table.add_column(heading, justify="left" if heading == "dtype" else "right", no_wrap=True)
    for row in rows:
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        table.add_row(
            str(row["peers"]),
            format_bytes(row["bytes"]),
            row["dtype"],
            str(row["in_flight"]),
            format_ms(row["ours_ms"]),
            format_ms(row["gloo_ms"]),
            ratio,
            f"{row['ours_ops_per_s']:,.0f}",
            *([format_ms(row["fused_ms"])] if fused else []),
        )
    Console().print(table)


@click.group("bench")
def command() -> None:
    """Measure collectives on this machine, against gloo if asked."""


command.add_command(transfer)


@command.command("all-reduce")
@click.option("--peers", type=ListOf("integers"), default="2", show_default=True, help="How many, comma-separated.")
@click.option("--sizes", type=ListOf("sizes"), default="1KiB,64KiB,1MiB,16MiB,64MiB", show_default=True)
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True)
@click.option("--in-place", is_flag=True, help="Result over the input (gloo always does).")
@click.option("--vs", "versus", type=click.Choice(["gloo"]), help="Measure this in turn with ours; needs torch.")
@click.option(
    "--in-flight", type=click.IntRange(1), default=1, show_default=True, help="Ops at once; times are per op."
)
@click.option("--fused", is_flag=True, help="The ops at once also as one call with all tensors; wants --in-flight.")
@click.option("--iters", default="auto", show_default=True, help="Iterations per size.")
@click.option("--congestion", help="TCP congestion control, as cubic or bbr.  [default: the system's]")
@click.option(
    "--transport",
    type=click.Choice(["auto", "tcp", "tls"]),
    default="auto",
    show_default=True,
    help="Through shared memory, as peers of one host do, or over loopback TCP, plain or with TLS.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per row.")
def all_reduce(
    peers: list[int],
    sizes: list[int],
    dtype: str,
    in_place: bool,
    versus: str | None,
    in_flight: int,
    fused: bool,
    iters: str,
    congestion: str | None,
    transport: str,
    as_json: bool,
) -> None:
    """Time all-reduce between local peers, checking every result.

    A ratio below 1 means that pccl is faster than gloo.
    """
    check_congestion(congestion, versus)
    if iters != "auto" and not (iters.isdigit() and int(iters) > 0):
        raise click.UsageError("--iters is 'auto' or a positive number")
    if fused and in_flight == 1:
        raise click.UsageError("--fused wants several ops at once: --in-flight 200")
    job = {
        "sizes": sizes,
        "dtype": dtype,
        "in_place": in_place,
        "in_flight": in_flight,
        "fused": fused,
        "iterations": 0 if iters == "auto" else int(iters),
        "congestion": congestion or "",
        "transport": transport,
    }

    def report(row: Row) -> None:
        if as_json:
            click.echo(json.dumps(row))
        else:
            click.echo(f"{row['peers']} peers, {format_bytes(row['bytes'])}: {format_ms(row['ours_ms'])} ms", err=True)

    rows = [row for count in peers for row in measure(count, job, versus, report)]
    if not as_json:
        show_table(rows)
