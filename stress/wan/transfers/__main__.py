"""`python -m stress.wan.transfers`: one site fetches what others offer, in pieces of several sizes, over a long link.

A row for every size: the median time of a fetch of all bytes, from the call to the last verified piece, which part of
what TCP can carry over the link (1448/1500 of its rate) that is, and when the first piece was there. Exit code 1:
something failed, bytes were wrong, or a part was below what was asked for.
"""

from __future__ import annotations

import json
import os
import secrets
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import click

from pccl.cli._units import ListOf, format_bytes

from ..emulator import Emulator
from ..lines import Worker, WorkerError
from ..namespaces import NamespaceError, why_not
from ..router import RouterError
from ..run import main_guard
from ..topology import parse

SCRIPT = Path(__file__).with_name("worker.py")
HUB = Path(__file__).parents[1] / "hub.py"
PORT = 29400
START_S, FETCH_S, END_S = 120.0, 120.0, 10.0
PAYLOAD = 1448 / 1500  # of a wire packet, what TCP can carry
HEADING = f"{'pieces':>9} {'ms':>9} {'Mbit/s':>8} {'of the link':>11} {'first ms':>10} {'again':>6}"

Row = dict[str, Any]


def document(options: Row) -> Row:
    """A hub that only coordinates, one that fetches, and those that offer; each pair has a link of its own."""
    sources = [f"source{number}" for number in range(options["sources"])]
    sites: Row = {"target": {}, **{name: {} for name in sources}, "hub": {"role": "coordinator"}}
    pair = {"rtt_ms": options["rtt_ms"], "rate_mbit": options["rate_mbit"], "loss": options["loss"]}
    return {"name": "transfers", "sites": sites, "defaults": pair}


def row_of(options: Row, piece: int, found: list[Row]) -> Row:
    """What was measured of one size."""
    seconds = statistics.median(answer["seconds"] for answer in found)
    link = options["sources"] * options["rate_mbit"] * 1e6 * PAYLOAD
    bits = options["bytes"] * 8
    return {
        "op": "wan_transfer",
        "piece_bytes": piece,
        **options,
        "rounds": len(found),
        "s": round(seconds, 4),
        "first_s": round(statistics.median(answer["first_s"] for answer in found), 4),
        "mbit_per_s": round(bits / seconds / 1e6, 1),
        "share": round(bits / seconds / link, 3),
        "retries": sum(answer["retries"] for answer in found),
    }


def rows(options: Row, pieces: list[int], rounds: int, settle_s: float) -> Any:
    """One network for all sizes."""
    env = {name: text for name, text in os.environ.items() if not name.startswith("PCCL_")}
    env |= {"RES_OPTIONS": "timeout:1 attempts:1", "OMP_NUM_THREADS": "1"}
    with Emulator(parse(document(options)), large_packets=True) as wan:
        job = {
            "coordinator": f"tcp://{wan.address('hub')}:{PORT}",
            "run": "transfers",
            "secret": secrets.token_hex(32),
            "peers": options["sources"] + 1,
            "bytes": options["bytes"],
            "pieces": pieces,
            "settle_s": settle_s,
        }

        def start(site: str, role: str, script: Path = SCRIPT) -> Worker:
            mine = {**job, "role": role, "address": wan.address(site)}
            return Worker(wan, site, [sys.executable, str(script), json.dumps(mine)], env)

        hub = start("hub", "coordinator", HUB)
        hub.answer(time.monotonic() + START_S)
        sources = [start(site, "source") for site in wan.sites if site.startswith("source")]
        target = start("target", "target")
        for worker in [*sources, target]:
            worker.answer(time.monotonic() + START_S + settle_s)
        for piece in pieces:
            found = []
            for _ in range(rounds):
                target.tell(piece=piece)
                found.append(target.answer(time.monotonic() + FETCH_S))
            yield row_of(options, piece, found)
        for worker in [target, *sources, hub]:
            worker.close(END_S)


def line_of(row: Row) -> str:
    """For people."""
    return (
        f"{format_bytes(row['piece_bytes']):>9} {row['s'] * 1e3:9.0f} {row['mbit_per_s']:8.0f} "
        f"{row['share']:11.2f} {row['first_s'] * 1e3:10.0f} {row['retries']:6}"
    )


@click.command()
@click.option("--rtt", "rtt_ms", type=click.FloatRange(0), default=80.0, show_default=True, help="Milliseconds.")
@click.option(
    "--rate", "rate_mbit", type=click.FloatRange(1), default=500.0, show_default=True, help="Mbit/s per pair."
)
@click.option("--loss", type=click.FloatRange(0, 0.5), default=0.0, show_default=True, help="Of packets.")
@click.option("--sources", type=click.IntRange(1, 8), default=1, show_default=True, help="Peers that offer it.")
@click.option("--bytes", "nbytes", type=ListOf("sizes"), default="256MiB", show_default=True, help="How much.")
@click.option("--pieces", type=ListOf("sizes"), default="16KiB,64KiB,256KiB,1MiB,4MiB", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Fetches of each size.")
@click.option("--settle", "settle_s", default=10.0, show_default=True, help="Seconds until links are known.")
@click.option("--wanted", default=0.9, show_default=True, help="The least part of the link.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per row.")
@click.option("--if-possible", is_flag=True, help="Where no WAN can be emulated: say why, and succeed.")
def main(
    nbytes: list[int],
    pieces: list[int],
    rounds: int,
    settle_s: float,
    wanted: float,
    as_json: bool,
    if_possible: bool,
    **network: Any,
) -> None:
    """Time fetches over an emulated WAN, comparing all bytes."""
    main_guard()
    if reason := why_not():
        click.echo(f"WAN benchmark not run: {reason}", err=True)
        sys.exit(0 if if_possible else 1)
    missed = False
    for size in nbytes:
        if not as_json:
            click.echo(f"{format_bytes(size)} from {network['sources']}\n{HEADING}")
        for row in rows({**network, "bytes": size}, pieces, rounds, settle_s):
            click.echo(json.dumps(row) if as_json else line_of(row))
            missed |= row["share"] < wanted
    sys.exit(int(missed))


if __name__ == "__main__":
    try:
        main(prog_name="python -m stress.wan.transfers")
    except (WorkerError, RouterError, NamespaceError) as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit(130)
