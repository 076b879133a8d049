"""`python -m stress.kv.loopback`: pushes and pulls of 256 MiB between two processes of this machine, checksums on.

Rounds take turns with plain TCP in the same processes: one blocking socket, and several streams. A row for each
transport and block size: the median rate of pushes ("write") and of pulls ("read") in Gbit/s, and beside what plain TCP
carried. Goals are those of "auto", which is what pools of one host use unless they are told otherwise; "tcp" is what
several hosts would. Blocks lie in another order on either side. Exit code 1: a goal was missed (--no-limits: goals are
only reported), or bytes were wrong.
"""

from __future__ import annotations

import json
import statistics
import sys
from typing import Any

import click

from pccl.cli._units import format_bytes
from stress.kv.crew import Crew, Here
from stress.wan.lines import WorkerError

MIB = 1 << 20
TRANSPORTS = ("auto", "tcp")
GOALS = {("auto", 256 * MIB): 20.0, ("auto", 65536): 15.0}


def gbit(nbytes: int, seconds: list[float]) -> float:
    """The median rate."""
    return round(nbytes * 8 / statistics.median(seconds) / 1e9, 2)


def measured(crew: Crew, transport: str, block: int, nbytes: int, rounds: int, streams: int) -> dict[str, Any]:
    """One row of `crew`, whose links are of that transport."""
    found: dict[str, list[float]] = {"write": [], "read": [], "socket": [], "streams": []}
    crew.push(block, nbytes)
    for _ in range(rounds):
        found["write"].append(crew.push(block, nbytes)["s"])
        found["socket"].append(crew.raw(1, nbytes))
        found["read"].append(crew.pull(block, nbytes))
        found["streams"].append(crew.raw(streams, nbytes))
    rates = {f"{name}_gbit_per_s": gbit(nbytes, seconds) for name, seconds in found.items()}
    rates["best_write_gbit_per_s"] = gbit(nbytes, [min(found["write"])])
    goal = GOALS.get((transport, block), 0.0)
    shape = {"transport": transport, "block_bytes": block, "bytes": nbytes, "plain_streams": streams}
    good = min(rates["write_gbit_per_s"], rates["read_gbit_per_s"]) >= goal
    return {"op": "kv_loopback", **shape, **rates, "goal_gbit_per_s": goal, "ok": good}


@click.command()
@click.option("--mib", type=click.IntRange(1), default=256, show_default=True)
@click.option("--blocks", type=click.IntRange(1024), multiple=True, default=[256 * MIB, 2 * MIB, 65536, 16384])
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True)
@click.option("--streams", type=click.IntRange(1), default=4, show_default=True, help="Of plain TCP.")
@click.option("--transport", "transports", multiple=True, default=TRANSPORTS, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per row.")
@click.option("--no-limits", "lenient", is_flag=True, help="A goal that is missed is no failure.")
def main(
    mib: int,
    blocks: tuple[int, ...],
    rounds: int,
    streams: int,
    transports: tuple[str, ...],
    as_json: bool,
    lenient: bool,
) -> None:
    """Measure pushes and pulls over loopback."""
    nbytes, missed = mib * MIB, False
    for transport in transports:
        crew = Crew(Here(), nbytes, transport)
        for block in blocks:
            row = measured(crew, transport, min(block, nbytes), nbytes, rounds, streams)
            missed |= not row["ok"]
            hidden = ("op", "transport", "block_bytes", "bytes")
            words = "  ".join(f"{key} {value}" for key, value in row.items() if key not in hidden)
            click.echo(json.dumps(row) if as_json else f"{transport:>5} {format_bytes(row['block_bytes']):>9}  {words}")
        crew.close()
    sys.exit(int(missed and not lenient))


if __name__ == "__main__":
    try:
        main(prog_name="python -m stress.kv.loopback")
    except WorkerError as error:
        sys.exit(f"{error}")
