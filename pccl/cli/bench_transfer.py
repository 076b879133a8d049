"""``pccl bench transfer``: how fast one peer fetches what others of this machine offer, digests included.

Every peer is a process. Rank 0 fetches again and again into the same memory; each result is compared with what was
offered. The time is that of the fetch: from the call to the last verified chunk, the median over iterations.
"""

from __future__ import annotations

import json
import os
import secrets
import statistics
import sys
from pathlib import Path
from typing import Any

import click

import pccl
from pccl.cli._fleet import Fleet, prefixed_sink
from pccl.cli._units import ListOf, format_bytes
from pccl.cli.launch import peer_environment

WORKER = "import sys; sys.path.insert(0, sys.argv.pop(1)); from pccl.cli.bench_transfer import work; work()"
WARM_UP = 2

Row = dict[str, Any]


def work() -> None:
    """One peer: offers, or fetches and prints a JSON line for every chunk size."""
    import numpy as np

    job = json.loads(sys.argv[1])
    data = np.random.default_rng(1).integers(0, 256, job["bytes"], np.uint8)
    peers = job["sources"] + 1
    with pccl.connect(congestion=job["congestion"] or None, transport=job["transport"], timeout=60) as comm:
        while comm.world_size < peers:
            comm.barrier()
            comm.advance()
        for size in job["chunks"]:
            name = f"bench {size}"
            offer = None if comm.rank == 0 else comm.transfers.offer(name, data, chunk_bytes=size)
            comm.barrier()
            if offer is None:
                print(json.dumps({"chunk_bytes": size, **fetches(comm, name, data, job)}), flush=True)
            comm.barrier()
            if offer is not None:
                offer.withdraw()


def fetches(comm: Any, name: str, data: Any, job: dict[str, Any]) -> Row:
    """Seconds of every fetch, and what the sources carried in the last."""
    import numpy as np

    into = np.empty_like(data)
    seconds = []
    for number in range(WARM_UP + job["iterations"]):
        into[:: 1 << 12] = 0
        result = comm.transfers.fetch(name, into, sources=range(1, job["sources"] + 1), timeout=120).wait()
        if number == 0 and not np.array_equal(into, data):
            raise SystemExit("what was fetched is not what was offered")
        seconds.append(result.report.duration_s)
    carried = sorted(result.report.received.values())
    return {"seconds": seconds[WARM_UP:], "carried": carried, "retries": result.report.retries}


def row_of(found: Row, job: dict[str, Any]) -> Row:
    """One line of the result."""
    seconds = statistics.median(found["seconds"])
    return {
        "op": "transfer",
        "sources": job["sources"],
        "bytes": job["bytes"],
        "chunk_bytes": found["chunk_bytes"],
        "transport": job["transport"],
        "iterations": len(found["seconds"]),
        "ms": round(seconds * 1e3, 3),
        "gbit_per_s": round(job["bytes"] * 8 / seconds / 1e9, 2),
        "carried": found["carried"],
        "retries": found["retries"],
    }


def measure(job: dict[str, Any], report: Any) -> None:
    """One run; reports each row as it is complete."""
    from pccl.coordinator.server import Coordinator

    secret = secrets.token_hex(32)
    peers = job["sources"] + 1
    coordinator = Coordinator(bind="tcp://127.0.0.1:0", run="bench", secret=secret, min_peers=peers, lease_s=60.0)
    coordinator.start()
    show = prefixed_sink(False)

    def sink(index: int, is_error: bool, line: bytes) -> None:
        if is_error or not line.startswith(b"{"):
            show(index, True, line)
        else:
            report(row_of(json.loads(line), job))

    fleet = Fleet(sink)
    try:
        env = dict(os.environ) | peer_environment(coordinator.address, "bench", secret)
        env["PCCL_LISTEN"] = "127.0.0.1:0"
        argv = [sys.executable, "-c", WORKER, str(Path(pccl.__file__).parent.parent), json.dumps(job)]
        for index in range(peers):
            fleet.spawn(index, argv, {**env, "PCCL_LAUNCH_INDEX": str(index)})
        while fleet.living:
            for process in fleet.turn(None):
                if process.exit_code != 0:
                    raise click.ClickException(f"peer {process.index} failed with exit code {process.exit_code}")
    finally:
        fleet.close()
        coordinator.close()


@click.command("transfer")
@click.option("--sources", type=click.IntRange(1), default=1, show_default=True, help="Peers that offer it.")
@click.option("--bytes", "nbytes", type=ListOf("sizes"), default="256MiB", show_default=True, help="How much.")
@click.option("--chunks", type=ListOf("sizes"), default="1MiB,64KiB", show_default=True, help="Chunk sizes.")
@click.option("--iters", type=click.IntRange(1), default=7, show_default=True, help="Fetches per chunk size.")
@click.option("--congestion", help="TCP congestion control, as cubic or bbr.  [default: the system's]")
@click.option(
    "--transport",
    type=click.Choice(["auto", "tcp"]),
    default="auto",
    show_default=True,
    help="Through shared memory, as peers of one host do, or over loopback TCP.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per row.")
def transfer(
    sources: int,
    nbytes: list[int],
    chunks: list[int],
    iters: int,
    congestion: str | None,
    transport: str,
    as_json: bool,
) -> None:
    """Time fetches between local peers, digests included."""

    def report(row: Row) -> None:
        text = f"{format_bytes(row['bytes'])} in chunks of {format_bytes(row['chunk_bytes'])} from {row['sources']}: "
        click.echo(json.dumps(row) if as_json else f"{text}{row['ms']:.1f} ms, {row['gbit_per_s']:.1f} Gbit/s")

    for size in nbytes:
        job = {
            "sources": sources,
            "bytes": size,
            "chunks": chunks,
            "iterations": iters,
            "congestion": congestion or "",
            "transport": transport,
        }
        measure(job, report)
