"""`python -m stress.kv.wan`: pushes over an emulated WAN, in blocks of several sizes, beside plain TCP in the same run.

For every round trip and loss a network of its own. Rows: the median rate of pushes in blocks of each size, as a part of
what the best number of plain streams carried between the same processes ("share"); layers that become ready one after
another ("layers": what is exposed behind the last one, beside what it must take); how soon after an abort the other
side's blocks are free ("abort"); a small urgent push behind a large one ("urgent": its time beside its time alone); and
bf16 values of a normal distribution by each codec, in turns ("codecs": seconds beside raw ones, bytes on the wire).
Exit code 1: a goal was missed, or bytes were wrong.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from typing import Any

import click

from pccl.cli._units import format_bytes
from stress.kv.crew import Crew
from stress.wan.emulator import Emulator
from stress.wan.lines import WorkerError
from stress.wan.namespaces import NamespaceError, why_not
from stress.wan.router import RouterError
from stress.wan.run import main_guard
from stress.wan.topology import parse

MIB = 1 << 20
SHARE, SHARE_LOSSY, TAIL_S, URGENT, ABORT_S = 0.95, 0.9, 0.02, 1.3, 0.01
LAYERS = 16
CODECS = ("raw", "bf16", "auto", "int8")
#: "auto" may be so much slower than the better of raw and bf16.
AUTO = 1.1

KINDS = ("shares", "layers", "urgent", "abort", "codecs")

Row = dict[str, Any]


def network(rtt_ms: float, rate_mbit: float, loss: float) -> Row:
    """P and D, and a hub that only coordinates."""
    pair = {"rtt_ms": rtt_ms, "rate_mbit": rate_mbit, "loss": loss}
    return {"name": "kv", "sites": {"p": {}, "d": {}, "hub": {"role": "coordinator"}}, "defaults": pair}


class Runs:
    """The measurements of one network."""

    def __init__(self, crew: Crew, options: Row, rounds: int, nbytes: int) -> None:
        self.crew, self.options, self.rounds, self.nbytes = crew, options, rounds, nbytes
        self.rtt_s = options["rtt_ms"] / 1e3

    def warm(self) -> None:
        """Until the link is known."""
        for _ in range(3):
            self.crew.push(2 * MIB, self.nbytes)

    def shares(self, blocks: tuple[int, ...], streams: tuple[int, ...]) -> Iterator[Row]:
        """One for each block size; rounds take turns with plain TCP."""
        found: dict[int, list[float]] = {min(block, self.nbytes): [] for block in blocks}
        raw: dict[int, list[float]] = {count: [] for count in streams}
        for block in found:
            self.crew.push(block, self.nbytes)  # each shape is a pool, and two pools have met before it is measured
        for _ in range(self.rounds):
            for block, seconds in found.items():
                seconds.append(self.crew.push(block, self.nbytes)["s"])
            for count, seconds in raw.items():
                seconds.append(self.crew.raw(count, self.nbytes))
        rates = {count: self._mbit(seconds) for count, seconds in raw.items()}
        best = max(rates.values())
        for block, seconds in found.items():
            rate = self._mbit(seconds)
            goal = SHARE_LOSSY if self.options["loss"] else SHARE
            yield {
                "op": "kv_wan", "block_bytes": block, "bytes": self.nbytes, **self.options, "mbit_per_s": rate,
                "plain_mbit_per_s": {str(count): value for count, value in rates.items()},
                "share": round(rate / best, 3), "goal": goal, "ok": rate >= goal * best,
            }  # fmt: skip

    def layers(self, every_s: float) -> Row:
        """The tail behind the last layer. Each takes less than `every_s` on the line."""
        layer = self.nbytes // LAYERS
        tails = [self.crew.push(65536, self.nbytes, LAYERS, every_s)["tail_s"] for _ in range(self.rounds)]
        must = layer * 8 / (self.options["rate_mbit"] * 1e6 * 1448 / 1500)
        goal = must + self.rtt_s + TAIL_S
        tail = statistics.median(tails)
        return {
            "op": "kv_layers", "layers": LAYERS, "bytes": self.nbytes, **self.options, "every_s": every_s,
            "tail_s": round(tail, 4), "line_s": round(must, 4), "goal_s": round(goal, 4), "ok": tail <= goal,
        }  # fmt: skip

    def urgent(self, small: int, large: int) -> Row:
        """20 MB behind 2 GB."""
        mine = {"block": MIB, "nbytes": small, "layers": 1, "begin": 0, "priority": "critical", "name": "small"}
        alone = [self.crew.push(**mine)["s"] for _ in range(self.rounds)]
        behind = []
        bulk = {"block": MIB, "bytes": large, "layers": 1, "begin": small, "name": "bulk"}
        for _ in range(self.rounds):
            behind.append(self.crew.overtake(bulk, mine))
        ratio = statistics.median(behind) / statistics.median(alone)
        return {
            "op": "kv_urgent", "bytes": small, "behind": large, **self.options,
            "alone_s": round(statistics.median(alone), 4), "behind_s": round(statistics.median(behind), 4),
            "ratio": round(ratio, 3), "goal": URGENT, "ok": ratio <= URGENT,
        }  # fmt: skip

    def abort(self) -> Row:
        """Amid the bytes of a layer that just became ready."""
        shape = {"block": MIB, "bytes": self.nbytes, "layers": 2}
        seconds = statistics.median(self.crew.aborted(shape) for _ in range(self.rounds))
        goal = self.rtt_s + ABORT_S
        return {
            "op": "kv_abort", "bytes": self.nbytes, **self.options, "free_s": round(seconds, 4), "goal_s": goal,
            "ok": seconds <= goal,
        }  # fmt: skip

    def codecs(self, block: int = 65536, layers: int = 4) -> Iterator[Row]:
        """One for each; rounds take turns."""
        runs: dict[str, list[Row]] = {codec: [] for codec in CODECS}
        for _ in range(self.rounds + 1):
            for codec, found in runs.items():
                found.append(self.crew.push(block, self.nbytes, layers, codec=codec))
        seconds = {codec: statistics.median(one["s"] for one in found[1:]) for codec, found in runs.items()}
        best = min(seconds["raw"], seconds["bf16"])
        for codec, found in runs.items():
            yield {
                "op": "kv_codec", "codec": codec, "bytes": self.nbytes, **self.options, "s": round(seconds[codec], 3),
                "of_raw": round(seconds[codec] / seconds["raw"], 3), "mbit_per_s": self._mbit([seconds[codec]]),
                "wire": round(found[-1]["wire_bytes"] / self.nbytes, 3),
                "ok": codec != "auto" or seconds["auto"] <= AUTO * best,
            }  # fmt: skip

    def _mbit(self, seconds: list[float]) -> float:
        return round(self.nbytes * 8 / statistics.median(seconds) / 1e6, 1)


@click.command()
@click.option("--rtt", "rtts_ms", type=float, multiple=True, default=[30.0, 80.0], show_default=True)
@click.option("--loss", "losses", type=float, multiple=True, default=[0.0, 1e-4], show_default=True)
@click.option("--rate", "rate_mbit", type=float, default=1000.0, show_default=True, help="Mbit/s.")
@click.option("--blocks", type=int, multiple=True, default=[16384, 65536, 2 * MIB, 256 * MIB], show_default=True)
@click.option("--streams", type=int, multiple=True, default=[1, 4, 8], show_default=True, help="Of plain TCP.")
@click.option("--congestion", default="bbr", show_default=True)
@click.option("--mib", type=click.IntRange(16), default=256, show_default=True, help="Of a push.")
@click.option("--large-mib", type=click.IntRange(16), default=2048, show_default=True, help="What is overtaken.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--only", type=click.Choice(KINDS), multiple=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per row.")
@click.option("--no-limits", "lenient", is_flag=True, help="A goal that is missed is no failure.")
def main(rtts_ms: tuple[float, ...], losses: tuple[float, ...], as_json: bool, lenient: bool, **options: Any) -> None:
    """Measure pushes over a WAN."""
    main_guard()
    if reason := why_not():
        raise click.ClickException(f"no WAN can be emulated: {reason}")
    missed = False
    for rtt_ms in rtts_ms:
        for loss in losses:
            for row in measured(rtt_ms, loss, options):
                missed |= not row["ok"]
                click.echo(json.dumps(row) if as_json else in_words(row))
    sys.exit(int(missed and not lenient))


def in_words(row: Row) -> str:
    """For people."""
    named = {key: format_bytes(value) if key in ("block_bytes", "bytes") else value for key, value in row.items()}
    return "  ".join(f"{key} {value}" for key, value in named.items())


def measured(rtt_ms: float, loss: float, options: dict[str, Any]) -> Iterator[Row]:
    """The rows of one network."""
    only = options["only"] or KINDS
    nbytes, small = options["mib"] * MIB, 20 * MIB
    large = options["large_mib"] * MIB if "urgent" in only else 0
    facts = {"rtt_ms": rtt_ms, "loss": loss, "rate_mbit": options["rate_mbit"], "congestion": options["congestion"]}
    document = network(rtt_ms, options["rate_mbit"], loss)
    with Emulator(parse(document), large_packets=True) as wan:
        crew = Crew(wan, max(nbytes, small + large), congestion=options["congestion"])
        runs = Runs(crew, facts, options["rounds"], nbytes)
        runs.warm()
        if "shares" in only:
            yield from runs.shares(options["blocks"], options["streams"])
        if "layers" in only:
            yield runs.layers(1.3 * nbytes / LAYERS * 8 / (options["rate_mbit"] * 1e6))
        if "abort" in only:
            yield runs.abort()
        if "urgent" in only:
            yield runs.urgent(small, large)
        crew.close()
        if "codecs" in only:
            crew = Crew(wan, nbytes, congestion=options["congestion"], content="normal")
            runs = Runs(crew, facts, options["rounds"], nbytes)
            runs.warm()
            yield from runs.codecs()
            crew.close()


if __name__ == "__main__":
    try:
        main(prog_name="python -m stress.kv.wan")
    except (WorkerError, RouterError, NamespaceError) as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit(130)
