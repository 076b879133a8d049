"""`python -m stress.optim.waits`: what the network costs the training, over an emulated WAN, per mode.

Four replicas, each with a line of its own to the others; their inner steps only take time. For modes that overlap: the
wait as a part of the time of the inner steps, which is to be below 5 % where a fragment's journey fits into its overlap
(bytes / line + latency < overlap x step). For blocking DiLoCo: the wait of a round beside bytes / line, at most 1.15.
Exit code 1: one of these was missed, or replicas ended unequal.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Any

import click

from stress.wan.emulator import Emulator
from stress.wan.lines import Worker, WorkerError
from stress.wan.namespaces import NamespaceError, why_not
from stress.wan.router import RouterError
from stress.wan.run import main_guard
from stress.wan.topology import parse

SCRIPT = Path(__file__).with_name("waits_worker.py")
HUB = Path(__file__).parents[1] / "wan" / "hub.py"
PORT = 29400
PEERS, BLOCKS = 4, 8
#: The first periods do not count: links are cold, nothing has landed yet, and by what they show the plan is made.
COUNTED_FROM = 4
START_S, END_S = 120.0, 10.0
EXPOSED_MAX, ROUND_MAX = 0.05, 1.15

MODES: dict[str, dict[str, Any]] = {
    "diloco": {"mode": "diloco"},
    "streaming": {"mode": "streaming", "fragments": 4, "overlap": 5},
    "streaming e3m0": {"mode": "streaming", "fragments": 4, "overlap": 5, "codec": "e3m0"},
    "delayed": {"mode": "delayed"},
}
HEADING = f"{'mode':<16} {'wait s':>8} {'of steps':>9} {'bytes/line s':>13} {'wait/that':>10} {'wanted':>8}"

Row = dict[str, Any]


def network(rtt_ms: float, rate_mbit: float) -> Row:
    """A site for each replica, with one line to all others, and a hub that only coordinates."""
    line = {"up_mbit": rate_mbit, "down_mbit": rate_mbit}
    sites: Row = {**{f"r{number}": line for number in range(PEERS)}, "hub": {"role": "coordinator"}}
    return {"name": "waits", "sites": sites, "defaults": {"rtt_ms": rtt_ms}}


def row_of(mode: str, told: Row, rate_mbit: float, answers: list[Row]) -> Row:
    """What was measured of one mode. The mean over replicas: who comes last to a round waits least."""
    rounds = told["periods"] - COUNTED_FROM
    wait = sum(answer["wait_s"] for answer in answers) / len(answers)
    steps_s = told["every"] * rounds * told["step_s"]
    line_s = max(answer["sent_bytes"] for answer in answers) * 8 / (rate_mbit * 1e6)
    blocking = mode == "diloco"
    value = wait / line_s if blocking else wait / steps_s
    equal = len({answer["digest"] for answer in answers}) == 1
    return {
        "op": "optim_waits", "mode": mode, "rounds": rounds, "step_s": told["step_s"], "numel": told["numel"],
        "wait_s": round(wait, 3), "exposed": round(wait / steps_s, 4), "line_s": round(line_s, 3),
        "wait_of_line": round(wait / line_s, 3), "wanted": ROUND_MAX if blocking else EXPOSED_MAX,
        "ok": equal and value <= (ROUND_MAX if blocking else EXPOSED_MAX),
    }  # fmt: skip


def rows(modes: list[str], told: Row, rtt_ms: float, rate_mbit: float) -> Any:
    """One network for all modes."""
    env = {name: text for name, text in os.environ.items() if not name.startswith("PCCL_")}
    env |= {"RES_OPTIONS": "timeout:1 attempts:1", "OMP_NUM_THREADS": "1"}
    with Emulator(parse(network(rtt_ms, rate_mbit)), large_packets=True) as wan:
        job = {
            "coordinator": f"tcp://{wan.address('hub')}:{PORT}",
            "run": "waits",
            "secret": secrets.token_hex(32),
            "peers": PEERS,
        }

        def start(site: str, role: str, script: Path = SCRIPT) -> Worker:
            mine = {**job, "role": role, "address": wan.address(site)}
            return Worker(wan, site, [sys.executable, str(script), json.dumps(mine)], env)

        hub = start("hub", "coordinator", HUB)
        hub.answer(time.monotonic() + START_S)
        replicas = [start(f"r{number}", "replica") for number in range(PEERS)]
        for worker in replicas:
            worker.answer(time.monotonic() + START_S)
        for mode in modes:
            for worker in replicas:
                worker.tell(**told, options=MODES[mode])
            deadline = time.monotonic() + START_S + 4 * told["periods"] * told["every"] * told["step_s"]
            yield row_of(mode, told, rate_mbit, [worker.answer(deadline) for worker in replicas])
        for worker in [*replicas, hub]:
            worker.close(END_S)


@click.command()
@click.option("--rtt", "rtt_ms", type=click.FloatRange(0), default=80.0, show_default=True, help="Milliseconds.")
@click.option(
    "--rate", "rate_mbit", type=click.FloatRange(1), default=100.0, show_default=True, help="Mbit/s per line."
)
@click.option("--numel", type=click.IntRange(8), default=10_000_000, show_default=True, help="Parameters.")
@click.option("--every", type=click.IntRange(1), default=20, show_default=True, help="Inner steps of a period.")
@click.option("--step", "step_s", type=click.FloatRange(0), default=0.4, show_default=True, help="Seconds.")
@click.option(
    "--periods",
    type=click.IntRange(COUNTED_FROM + 1),
    default=7,
    show_default=True,
    help="The first four do not count.",
)
@click.option("--mode", "modes", type=click.Choice(list(MODES)), multiple=True, help="All unless given.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per row.")
def main(modes: tuple[str, ...], as_json: bool, rtt_ms: float, rate_mbit: float, **told: Any) -> None:
    """Measure how long training waits for the network."""
    main_guard()
    if reason := why_not():
        raise click.ClickException(f"no WAN can be emulated: {reason}")
    if not as_json:
        click.echo(HEADING)
    missed = False
    for row in rows(list(modes or MODES), {**told, "blocks": BLOCKS, "counted_from": COUNTED_FROM}, rtt_ms, rate_mbit):
        missed |= not row["ok"]
        text = (
            f"{row['mode']:<16} {row['wait_s']:8.2f} {row['exposed']:9.3f} {row['line_s']:13.2f} "
            f"{row['wait_of_line']:10.2f} {row['wanted']:8} {'' if row['ok'] else 'MISSED'}"
        )
        click.echo(json.dumps(row) if as_json else text)
    sys.exit(int(missed))


if __name__ == "__main__":
    try:
        main(prog_name="python -m stress.optim.waits")
    except (NamespaceError, RouterError, WorkerError, OSError) as error:
        sys.exit(f"stress.optim.waits: {error}")
