"""`python -m stress.weights.end_to_end`: from `publish` to committed, over an emulated WAN.

One trainer, regions with a relay each, all but the first behind that one, and workers behind each relay; with
`--regions 0` one worker that fetches from the trainer. Versions alternate between two states of `synthetic.py`. A row
for each loss and fan-out: the median time until the last receiver has committed, and `written_s` until its shadow holds
that in memory too; its bound, 1.2 (bytes / link + RTT/2) and the encoding that the link did not hide; and how many
payloads the trainer has sent. Below the first row what others would send of these weights (`others.py`). Exit code 1: a
receiver had other bytes, or a bound was missed.

Encoding that the link did not hide: while blocks are encoded the link is busy with what they have become. Had all of
the payload gone by the time that the last one was encoded, the link would have been idle for `encode_s` - `link_s` of
that; what goes later makes it longer. The bound takes the least that it can be. `encode_s` is as it was measured, from
the call's turn until the last block.

Trainer and receiver share the processors of this machine, which are not theirs alone as those of two machines are: each
codes with `--threads`, by default as many as a half of the processors.

All of it runs on this machine, with a copy of the weights for each receiver and two for the trainer: ten of 2 GiB for
`--regions 4` are too many for 24 GiB, and eight receivers on two cores take as long as their work does.
"""

from __future__ import annotations

import json
import os
import secrets
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from pccl.weights.codec import BLOCK_ELEMENTS
from stress.wan.emulator import Emulator
from stress.wan.lines import Worker, WorkerError
from stress.wan.namespaces import NamespaceError, why_not
from stress.wan.router import RouterError
from stress.wan.run import main_guard
from stress.wan.topology import parse
from stress.weights import others, synthetic

SCRIPT = Path(__file__).with_name("worker.py")
HUB = Path(__file__).parents[1] / "wan" / "hub.py"
PORT = 29400
START_S, ROUND_S, END_S = 180.0, 180.0, 20.0
WARM_ROUNDS = 6
BOUND, FAN_OUT_BOUND, PAYLOADS_MAX = 1.2, 1.2, 1.01

Row = dict[str, Any]


def network(options: Row, regions: int) -> Row:
    """A line between any two of trainer and regions; a hub that only coordinates."""
    sites: Row = {"trainer": {}, **{f"r{number}": {} for number in range(max(1, regions))}}
    pair = {"rtt_ms": options["rtt_ms"], "rate_mbit": options["rate_mbit"], "loss": options["loss"]}
    return {"name": "weights", "sites": {**sites, "hub": {"role": "coordinator"}}, "defaults": pair}


class Crew:
    """The processes of one fan-out."""

    def __init__(self, wan: Emulator, options: Row, regions: int, workers: int) -> None:
        env = {name: text for name, text in os.environ.items() if not name.startswith("PCCL_")}
        env |= {"RES_OPTIONS": "timeout:1 attempts:1", "OMP_NUM_THREADS": "1"}
        job = {
            "coordinator": f"tcp://{wan.address('hub')}:{PORT}", "run": "weights", "secret": secrets.token_hex(32),
            "peers": 1 + regions, **{name: options[name] for name in ("mib", "density", "codecs", "threads")},
        }  # fmt: skip

        def start(site: str, role: str, script: Path = SCRIPT) -> Worker:
            mine = {**job, "role": role, "address": wan.address(site)}
            return Worker(wan, site, [sys.executable, str(script), json.dumps(mine)], env)

        self.hub = start("hub", "coordinator", HUB)
        self.hub.answer(time.monotonic() + START_S)
        self.trainer = start("trainer", "trainer")
        self.relays = [start(f"r{number}", "relay") for number in range(regions)]
        ids = [worker.answer(time.monotonic() + START_S)["id"] for worker in (self.trainer, *self.relays)]
        for number, relay in enumerate(self.relays):
            relay.tell(upstream=ids[min(number, 1)])
            relay.answer(time.monotonic() + START_S)
        self.receivers: list[Worker] = []
        for region in range(max(1, regions)):
            for _ in range(workers if regions else 1):
                worker = start(f"r{region}", "receiver")
                worker.answer(time.monotonic() + START_S)
                worker.tell(upstream=ids[1 + region] if regions else ids[0])
                worker.answer(time.monotonic() + START_S)
                self.receivers.append(worker)
        self.trainer.tell(wait_for=len(self.receivers))
        self.trainer.answer(time.monotonic() + START_S)

    def round(self) -> Row:
        """One version: seconds until each had it, and what the trainer says."""
        self.trainer.tell(publish=True)
        told = self.trainer.answer(time.monotonic() + ROUND_S)
        found = [worker.answer(time.monotonic() + ROUND_S) for worker in self.receivers]
        wrong = [answer for answer in found if answer["digest"] != told["digest"]]
        if wrong:
            raise WorkerError(f"version {told['version']}: a receiver has other bytes")
        return {
            **told,
            "seconds": [answer["at"] - told["at"] for answer in found],
            "written_s": max(answer["written_at"] for answer in found) - told["at"],
            "stage_s": found[0]["stage_s"],
            "commit_s": found[0]["commit_s"],
        }

    def close(self) -> None:
        """All of them end."""
        for worker in [*self.receivers, *reversed(self.relays), self.trainer, self.hub]:
            worker.close(END_S)


def row_of(options: Row, regions: int, rounds: list[Row]) -> Row:
    """What was measured of one fan-out."""
    bits_per_s = options["rate_mbit"] * 1e6

    def middle(name: str) -> float:
        return statistics.median(one[name] for one in rounds)

    size = middle("bytes")
    link_s = size * 8 / bits_per_s
    encode_s = middle("encode_s")
    last_s = statistics.median(max(one["seconds"]) for one in rounds)
    bound_s = BOUND * (link_s + options["rtt_ms"] / 2e3) + max(0.0, encode_s - link_s)
    return {
        "op": "weights_end_to_end", **options, "regions": regions, "receivers": len(rounds[0]["seconds"]),
        "rounds": len(rounds), "bytes": int(size), "changed": middle("changed"),
        "bits_per_changed": round(8 * size / middle("changed"), 2),
        "below_dense": round(middle("dense_bytes") / size, 1),
        "last_s": round(last_s, 3), "written_s": round(middle("written_s"), 3),
        "link_s": round(link_s, 3), "encode_s": round(encode_s, 3),
        "durable_s": round(middle("durable_s"), 3), "stage_s": round(middle("stage_s"), 3),
        "commit_s": round(middle("commit_s"), 3),
        "bound_s": round(bound_s, 3), "payloads_sent": round(middle("sent_bytes") / size, 3),
    }  # fmt: skip


def measured(options: Row, regions: int, workers: int, rounds: int) -> Row:
    """One row, on a network of its own."""
    with Emulator(parse(network(options, regions)), large_packets=True) as wan:
        crew = Crew(wan, options, regions, workers)
        found = [crew.round() for _ in range(WARM_ROUNDS + rounds)][WARM_ROUNDS:]
        crew.close()
    return row_of(options, regions, found)


@click.command()
@click.option("--rtt", "rtt_ms", type=click.FloatRange(0), default=80.0, show_default=True, help="Milliseconds.")
@click.option(
    "--rate", "rate_mbit", type=click.FloatRange(1), default=1000.0, show_default=True, help="Mbit/s per pair."
)
@click.option(
    "--loss", type=click.FloatRange(0, 0.5), multiple=True, default=[0.0, 1e-4], show_default=True, help="Of packets."
)
@click.option("--mib", type=click.IntRange(8), default=2048, show_default=True, help="MiB of bf16 weights.")
@click.option("--codecs", type=click.Choice(["fast", "auto"]), default="fast", show_default=True, help="Of encode.")
@click.option("--density", type=click.FloatRange(0, 1), default=0.008, show_default=True)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=max(1, (os.cpu_count() or 1) // 2),
    show_default=True,
    help="Of each process.",
)
@click.option("--regions", type=click.IntRange(0, 8), multiple=True, default=[0], show_default=True)
@click.option("--workers", type=click.IntRange(1, 8), default=2, show_default=True, help="Of each region.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per row.")
@click.option("--no-limits", "lenient", is_flag=True, help="A bound that is not kept is no failure.")
def main(
    regions: tuple[int, ...],
    loss: tuple[float, ...],
    workers: int,
    rounds: int,
    as_json: bool,
    lenient: bool,
    **options: Any,
) -> None:
    """Time versions from publish to committed."""
    main_guard()
    if reason := why_not():
        raise click.ClickException(f"no WAN can be emulated: {reason}")
    missed = False
    for number, part in enumerate(loss):
        alone_s = None
        for count in regions:
            row = measured({**options, "loss": part}, count, workers, rounds)
            row["ok"] = is_ok(row, alone_s)
            alone_s = row["last_s"] if count == 0 else alone_s
            missed |= not row["ok"]
            show(row, as_json)
        if number == 0:
            for row in others_of(options):
                show(row, as_json)
    sys.exit(int(missed and not lenient))


def is_ok(row: Row, alone_s: float | None) -> bool:
    """Whether a row keeps its bounds; `alone_s`: what one receiver took, if that is known."""
    if row["regions"] == 0:
        return bool(row["last_s"] <= row["bound_s"])
    return bool(row["payloads_sent"] <= PAYLOADS_MAX and (alone_s is None or row["last_s"] <= FAN_OUT_BOUND * alone_s))


def others_of(options: Row) -> Iterator[Row]:
    """A row for each of others.py."""
    pair = synthetic.pair(BLOCK_ELEMENTS, options["density"])
    blocks = options["mib"] * (1 << 20) // pair[0].nbytes
    for name, found in others.rows(pair, blocks, options["rate_mbit"], options["rtt_ms"], options["threads"]).items():
        yield {"op": "weights_others", "method": name, "mib": options["mib"], **found}


def show(row: Row, as_json: bool) -> None:
    """For people, or not."""
    click.echo(json.dumps(row) if as_json else "  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    try:
        main(prog_name="python -m stress.weights.end_to_end")
    except (WorkerError, RouterError, NamespaceError) as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit(130)
