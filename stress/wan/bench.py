"""`python -m stress.wan.bench`: all-reduce on emulated WANs, ours and gloo's in turn, with the physical bound beside.

Every scenario gets an emulated network and one process per site, in which ours, ours with one stream per link and gloo
take turns on the same data. A time is the median over iterations of the slowest site's; all begin at the same moment.
Every result is checked. What the columns mean: README.md beside this file.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import queue
import secrets
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from pccl.cli._units import ListOf, format_bytes

from .bound import bound
from .emulator import Emulator
from .namespaces import DEVICE, NamespaceError, why_not
from .router import RouterError
from .run import main_guard
from .topology import Topology, TopologyError, load

MIB = 1 << 20
WORKER = Path(__file__).with_name("bench_worker.py")
NEEDED = {"yaml": "PyYAML", "scipy": "SciPy", "pccl": "pccl"}
#: The site's name becomes the host's: peers of one host are taken to be near each other.
NAMED_HOST = ("unshare", "--uts", "--", "sh", "-c", 'hostname "$1" && shift && exec "$@"', "sh")
PORTS = {"ours": 29400, "one_stream": 29401}
GLOO_PORT = 29500
START_S, OP_S, END_S = 90.0, 120.0, 10.0
LEAD_NS = 50_000_000  # from the word to go until the start
WARM_UP_BYTES = MIB  # of gloo, which has nothing to learn about the network
WARM_UPS_OF_GLOO = 2
BOUNDARIES_S = 3.0  # of small ops after the warm-up, at whose boundaries a plan that waits comes into force
BOUNDARY_BYTES = 1 << 10
TABLE_COLUMNS = 140  # where there is no terminal to ask

Row = dict[str, Any]
Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A topology with its parameters, and the sizes that matter there."""

    topology: str
    parameters: dict[str, float] = field(default_factory=dict)
    sizes: tuple[int, ...] = (64 * MIB,)

    def load(self) -> Topology:
        return load(self.topology, **self.parameters)


SCENARIOS = {
    "pair": Scenario("mesh4_pair", {"loss": 0.0}),
    "pair_loss": Scenario("mesh4_pair", {"loss": 0.0001}),
    "site": Scenario("mesh4_site", {"loss": 0.0}),
    "site_loss": Scenario("mesh4_site", {"loss": 0.0001}),
    "far_lossy": Scenario("mesh4_pair", {"loss": 0.001, "rtt_ms": 150}),
    "small": Scenario("mesh4_pair", {"loss": 0.0}, (MIB,)),
    "uneven": Scenario("uneven"),
    "two_regions_lan": Scenario("two_regions_lan"),
    "one_bad_link": Scenario("one_bad_link"),
}


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for."""

    iterations: int
    gloo_iterations: int
    versus: str | None
    one_stream: bool
    algorithm: str
    settle_s: float
    budget_s: float

    def iterations_of(self) -> dict[str, int]:
        """How often each side is measured; the slower ones less often."""
        wanted = {"ours": self.iterations}
        if self.one_stream:
            wanted["one_stream"] = math.ceil(self.iterations / 2)
        if self.versus == "gloo":
            wanted["gloo"] = min(self.iterations, self.gloo_iterations)
        return wanted


# -- processes at the sites ------------------------------------------------------------------------------------------


class WorkerError(RuntimeError):
    """A process at a site failed, or did not answer in time; the message has its last words."""


class Worker:
    """A process that answers lines with lines. What it prints besides is kept for the case that it fails."""

    def __init__(self, wan: Emulator, site: str, job: dict[str, Any], env: dict[str, str]) -> None:
        self.site = site
        command = [*NAMED_HOST, site, sys.executable, str(WORKER), json.dumps(job)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = wan.popen(site, command, env=env, text=True, cwd="/", errors="replace", **pipes)
        self._answers: queue.Queue[Answer | None] = queue.Queue()
        self._words: deque[str] = deque(maxlen=20)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                self._answers.put(json.loads(line))
            else:
                self._words.append(line.rstrip("\n"))
        self._answers.put(None)

    def tell(self, **command: Any) -> None:
        assert self.process.stdin is not None
        try:
            print(json.dumps(command), file=self.process.stdin, flush=True)
        except OSError:
            raise self._failed("is gone") from None

    def answer(self, deadline: float) -> Answer:
        try:
            found = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise self._failed("does not answer") from None
        if found is None:
            raise self._failed("ended")
        return found

    def _failed(self, what: str) -> WorkerError:
        return WorkerError("\n  ".join([f"the process at {self.site} {what}", *self._words]))


class Crew:
    """The processes of one scenario: a coordinator and one peer per site."""

    def __init__(self, wan: Emulator, options: Options) -> None:
        self.wan = wan
        topology = wan.topology
        runs = {
            run: f"tcp://{topology.coordinator.address}:{PORTS[run]}" for run in options.iterations_of() if run in PORTS
        }
        first = topology.peers[0].address
        common = {
            "peers": len(topology.peers),
            "runs": runs,
            "gloo": f"tcp://{first}:{GLOO_PORT}" if options.versus == "gloo" else "",
            "algorithm": options.algorithm,
            "timeout_s": OP_S,
        }
        env = environment()
        self.coordinator = Worker(wan, topology.coordinator.name, {"role": "coordinator", **common}, env)
        self.coordinator.answer(time.monotonic() + START_S)
        self.peers = [
            Worker(wan, site.name, {"role": "peer", "index": index, "address": site.address, **common}, env)
            for index, site in enumerate(topology.peers)
        ]
        self.congestion = self._answers(START_S)[0]["congestion"]

    def _answers(self, timeout_s: float) -> list[Answer]:
        deadline = time.monotonic() + timeout_s
        return [peer.answer(deadline) for peer in self.peers]

    def _all(self, timeout_s: float, **command: Any) -> list[Answer]:
        for peer in self.peers:
            peer.tell(**command)
        return self._answers(timeout_s)

    def reduce(self, side: str, nbytes: int, whole: bool = False) -> list[Answer]:
        """One all-reduce; an answer of each site."""
        self._all(OP_S, do="prepare", name=side, nbytes=nbytes, whole=whole)
        return self._all(OP_S, do="go", at_ns=time.monotonic_ns() + LEAD_NS)

    def plans(self) -> Answer:
        self.coordinator.tell()
        return self.coordinator.answer(time.monotonic() + END_S)

    def end(self) -> None:
        """In order; what does not end is killed with the network."""
        self._all(END_S, do="end")
        for worker in [*self.peers, self.coordinator]:
            assert worker.process.stdin is not None
            worker.process.stdin.close()
        for worker in [*self.peers, self.coordinator]:
            worker.process.wait(END_S)


def environment() -> dict[str, str]:
    """Of the processes: no settings of another run, and no waiting for name servers that no site can reach."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PCCL_", "GLOO_"))}
    quiet = {"RES_OPTIONS": "timeout:1 attempts:1", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    return {**env, **quiet, "PCCL_SECRET": secrets.token_hex(32), "GLOO_SOCKET_IFNAME": DEVICE}


# -- one row ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Samples:
    """Of one side: seconds of the slowest site, and what the network saw, per iteration."""

    seconds: list[float] = field(default_factory=list)
    wire_bytes: list[int] = field(default_factory=list)
    lost_packets: list[int] = field(default_factory=list)

    def median_s(self) -> float | None:
        return round(statistics.median(self.seconds), 4) if self.seconds else None


class Measurement:
    """Of one size in one scenario."""

    def __init__(self, crew: Crew, nbytes: int, options: Options) -> None:
        self.crew, self.nbytes, self.options = crew, nbytes, options
        self.wanted = options.iterations_of()
        self.samples = {side: Samples() for side in self.wanted}
        self.facts: Answer = {}
        self.late_us_max = 0.0
        self.warm_ups = 0
        self.failure = ""

    def run(self) -> None:
        """Samples that came before a failure are kept."""
        started = time.monotonic()
        try:
            self._warm_up()
            for iteration in range(self.options.iterations):
                for side in self._turn(iteration):
                    if self._affordable(side, time.monotonic() - started):
                        self._sample(side)
        except WorkerError as error:
            self.failure = str(error)

    def _warm_up(self) -> None:
        """Ours until its planner has had the time to see the paths; the first result of each is checked whole."""
        ours = [side for side in self.wanted if side != "gloo"]
        end = time.monotonic() + self.options.settle_s
        while self.warm_ups == 0 or time.monotonic() < end:
            for side in ours:
                self.crew.reduce(side, self.nbytes, whole=self.warm_ups == 0)
            self.warm_ups += 1
        end = time.monotonic() + min(BOUNDARIES_S, self.options.settle_s)
        while time.monotonic() < end:
            for side in ours:
                self.crew.reduce(side, BOUNDARY_BYTES)
        for number in range(WARM_UPS_OF_GLOO if "gloo" in self.wanted else 0):
            self.crew.reduce("gloo", min(self.nbytes, WARM_UP_BYTES), whole=number == 0)

    def _turn(self, iteration: int) -> list[str]:
        """Whose turn it is: those with fewer iterations evenly among the others, and everybody first now and then."""

        def due(side: str) -> bool:
            share = self.wanted[side] / self.options.iterations
            return math.floor((iteration + 1) * share + 1e-9) > math.floor(iteration * share + 1e-9)

        sides = [side for side in self.wanted if due(side)]
        return sides if bin(iteration).count("1") % 2 == 0 else sides[::-1]

    def _affordable(self, side: str, elapsed_s: float) -> bool:
        """Each side has one iteration, whatever it takes."""
        known = self.samples[side].seconds
        return not known or elapsed_s + known[-1] <= self.options.budget_s

    def _sample(self, side: str) -> None:
        before = traffic(self.crew.wan.stats())
        answers = self.crew.reduce(side, self.nbytes)
        stats = self.crew.wan.stats()
        wire_bytes, lost = (now - then for now, then in zip(traffic(stats), before, strict=True))
        samples = self.samples[side]
        samples.seconds.append(max(answer["seconds"] for answer in answers))
        samples.wire_bytes.append(wire_bytes)
        samples.lost_packets.append(lost)
        self.late_us_max = max(self.late_us_max, stats["late_us_max"])
        if side == "ours":
            self.facts = max(answers, key=lambda answer: answer["streams"])


def traffic(stats: Answer) -> tuple[int, int]:
    """(bytes that entered the lines of all pairs, packets lost to them, to full queues and to caps) so far."""
    pairs, sites = stats["pairs"].values(), stats["sites"].values()
    lost = sum(pair["losses"] + pair["queue_drops"] for pair in pairs)
    return sum(pair["wire_bytes"] for pair in pairs), lost + sum(s["up_drops"] + s["down_drops"] for s in sites)


def ratio(dividend: float | None, divisor: float | None) -> float | None:
    return None if dividend is None or not divisor else round(dividend / divisor, 3)


def median(values: Sequence[int]) -> int | None:
    return int(statistics.median(values)) if values else None


def network_of(name: str, topology: Topology, nbytes: int) -> Row:
    """The row's part that is known beforehand: the worst pair's figures, and the bounds."""
    names = [site.name for site in topology.peers]
    pairs = [(a, b) for a in names for b in names if a != b]
    links, back = topology.links, {pair: (pair[1], pair[0]) for pair in pairs}
    rates = [topology.expected_mbit(*pair) for pair in pairs]
    return {
        "scenario": name,
        "sites": len(names),
        "bytes": nbytes,
        "rtt_ms": max(links[pair].delay_ms + links[back[pair]].delay_ms for pair in pairs),
        "loss": max(links[pair].loss for pair in pairs),
        "rate_mbit": min((rate for rate in rates if rate), default=0.0),
        "bound_s": round(bound(topology, nbytes).total_s, 4),
        "mesh_bound_s": round(bound(topology, nbytes, direct=True).total_s, 4),
    }


def row_of(known: Row, found: Measurement | None, failure: str, algorithm: str, plan: str) -> Row:
    """All of the row; null for what was not measured."""
    samples = found.samples if found else {}
    sides = {side: samples.get(side, Samples()) for side in ("ours", "one_stream", "gloo")}
    times = {side: side_samples.median_s() for side, side_samples in sides.items()}
    row = {
        **known,
        "ours_s": times["ours"],
        "ours_one_stream_s": times["one_stream"],
        "gloo_s": times["gloo"],
        "fraction": ratio(known["bound_s"], times["ours"]),
        "speedup": ratio(times["gloo"], times["ours"]),
        "algorithm": algorithm,
        "plan": plan,
        "streams": found.facts.get("streams") if found else None,
        "retries": found.facts.get("retries") if found else None,
        "congestion": found.crew.congestion if found else None,
        "router_late_max_ms": round(found.late_us_max / 1e3, 2) if found else None,
        "warm_ups": found.warm_ups if found else 0,
        "failure": failure,
    }
    for side, side_samples in sides.items():
        row[f"{side}_samples_s"] = [round(seconds, 4) for seconds in side_samples.seconds]
        row[f"{side}_wire_bytes"] = median(side_samples.wire_bytes)
        row[f"{side}_lost_packets"] = median(side_samples.lost_packets)
    return row


# -- scenarios -------------------------------------------------------------------------------------------------------


def rows_of(name: str, scenario: Scenario, sizes: Sequence[int], options: Options) -> Iterator[Row]:
    """One network for all sizes; after a failure the rest has empty rows."""
    topology = scenario.load()
    known = [network_of(name, topology, nbytes) for nbytes in sizes or scenario.sizes]
    failure = ""
    with Emulator(topology) as wan:
        crew: Crew | None = None
        try:
            crew = Crew(wan, options)
        except WorkerError as error:
            failure = str(error)
        for part in known:
            if crew is None or failure:
                yield row_of(part, None, failure, options.algorithm, "")
                continue
            measurement = Measurement(crew, part["bytes"], options)
            measurement.run()
            failure = measurement.failure
            yield row_of(part, measurement, failure, options.algorithm, plan_in_words(crew))
        if crew is not None and not failure:
            end_quietly(crew)


def end_quietly(crew: Crew) -> None:
    """The rows are complete: what does not end in order is killed, and that is all."""
    try:
        crew.end()
    except (WorkerError, subprocess.TimeoutExpired) as error:
        click.echo(f"not ended in order: {error}", err=True)


def plan_in_words(crew: Crew) -> str:
    try:
        return str(crew.plans().get("ours", {}).get("reason", ""))
    except WorkerError:
        return ""


def chosen(names: str | None) -> dict[str, Scenario]:
    """Those named; a name that is none of ours is a topology, ready-made or a file."""
    if names is None:
        return SCENARIOS
    return {name: SCENARIOS.get(name, Scenario(name)) for name in names.split(",")}


def missing(versus: str | None) -> str | None:
    """Why nothing can be measured here."""
    needed = {**NEEDED, **({"torch": "PyTorch"} if versus == "gloo" else {})}
    absent = [label for module, label in needed.items() if importlib.util.find_spec(module) is None]
    return f"{', '.join(absent)} not installed" if absent else why_not()


# -- for people ------------------------------------------------------------------------------------------------------

COLUMNS: dict[str, Callable[[Row], str]] = {
    "scenario": lambda row: row["scenario"],
    "size": lambda row: format_bytes(row["bytes"]),
    "RTT ms": lambda row: f"{row['rtt_ms']:g}",
    "loss %": lambda row: f"{100 * row['loss']:g}",
    "Mbit/s": lambda row: f"{row['rate_mbit']:g}",
    "bound s": lambda row: figure(row["bound_s"]),
    "mesh bound s": lambda row: figure(row["mesh_bound_s"]),
    "pccl s": lambda row: figure(row["ours_s"]),
    "1 stream s": lambda row: figure(row["ours_one_stream_s"]),
    "gloo s": lambda row: figure(row["gloo_s"]),
    "bound/pccl": lambda row: figure(row["fraction"]),
    "gloo/pccl": lambda row: figure(row["speedup"], 1),
    "streams": lambda row: "-" if row["streams"] is None else str(row["streams"]),
}


def figure(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}" if value >= 0.1 else f"{value:.3f}"


def show_table(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="all-reduce, float32, on emulated WANs: median of the slowest site")
    for heading in COLUMNS:
        table.add_column(heading, justify="left" if heading == "scenario" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(cell(row) for cell in COLUMNS.values()))
    Console(width=None if sys.stdout.isatty() else TABLE_COLUMNS).print(table)


def draw(rows: Sequence[Row], path: str) -> None:
    """Bars: the fraction of the bound that each side reaches in each scenario."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sides = {"pccl": ("ours_s", "#1f6fb4"), "pccl, one stream": ("ours_one_stream_s", "#9cc3e6")}
    sides["gloo"] = ("gloo_s", "#b0b0b0")
    figure_, axes = pyplot.subplots(figsize=(max(6.0, 1.5 * len(rows) + 2), 4.5), layout="constrained")
    for number, (label, (key, colour)) in enumerate(sides.items()):
        heights = [ratio(row["bound_s"], row[key]) or 0.0 for row in rows]
        bars = axes.bar([place + (number - 1) * 0.27 for place in range(len(rows))], heights, 0.27, color=colour)
        bars.set_label(label)
        axes.bar_label(bars, [f"{height:.2f}" if height else "" for height in heights], fontsize=7)
    axes.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(rows)), [f"{row['scenario']}\n{format_bytes(row['bytes'])}" for row in rows], fontsize=8)
    axes.set_ylim(0, 1.1)
    axes.set_ylabel("fraction of the physical bound (1: as fast as can be)")
    axes.set_title("All-reduce on emulated WANs")
    axes.legend(loc="upper right", fontsize=8)
    figure_.savefig(path, dpi=130)
    pyplot.close(figure_)


def report(row: Row, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(row))
        return
    times = f"bound {figure(row['bound_s'])}, pccl {figure(row['ours_s'])}, gloo {figure(row['gloo_s'])} s"
    click.echo(f"{row['scenario']}, {format_bytes(row['bytes'])}: {times}", err=True)
    if row["failure"]:
        click.echo(f"{row['scenario']}: {row['failure']}", err=True)


@click.command()
@click.option("--scenarios", help=f"Comma-separated, of {', '.join(SCENARIOS)}, or topologies.  [default: all]")
@click.option("--sizes", type=ListOf("sizes"), help="Of each scenario.  [default: 64MiB, in small 1MiB]")
@click.option("--iterations", type=click.IntRange(1), default=5, show_default=True, help="Of ours.")
@click.option("--gloo-iterations", type=click.IntRange(1), default=2, show_default=True, help="At most: it is slow.")
@click.option("--vs", "versus", type=click.Choice(["gloo"]), help="Measure this in turn with ours; needs torch.")
@click.option("--one-stream/--no-one-stream", default=True, show_default=True, help="Also ours with one stream a link.")
@click.option(
    "--algorithm", type=click.Choice(["auto", "mesh", "ring", "two_level"]), default="auto", show_default=True
)
@click.option("--settle", "settle_s", default=15.0, show_default=True, help="Seconds of warm-up of ours: it measures.")
@click.option(
    "--budget", "budget_s", default=60.0, show_default=True, help="Seconds a size may take, warm-up included."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per row.")
@click.option("--png", help="Draw the fractions of the bound here.")
@click.option("--if-possible", is_flag=True, help="Where no WAN can be emulated: say why, and succeed.")
def main(
    scenarios: str | None, sizes: list[int] | None, as_json: bool, png: str | None, if_possible: bool, **others: Any
) -> None:
    """Time all-reduce between the sites of emulated WANs, checking every result."""
    main_guard()
    if reason := missing(others["versus"]):
        click.echo(f"WAN benchmark not run: {reason}", err=True)
        sys.exit(0 if if_possible else 1)
    options = Options(**others)
    rows: list[Row] = []
    for name, scenario in chosen(scenarios).items():
        for row in rows_of(name, scenario, sizes or (), options):
            rows.append(row)
            report(row, as_json)
    if not as_json:
        show_table(rows)
    if png:
        draw(rows, png)
    sys.exit(any(row["failure"] for row in rows))


if __name__ == "__main__":
    try:
        main(prog_name="python -m stress.wan.bench")
    except (TopologyError, RouterError, NamespaceError) as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit(130)
