"""`python -m stress.chaos`: faults over real processes on the emulated WAN, and whether every promise held."""

from __future__ import annotations

import random
import shlex
import sys
import tempfile
import time
from pathlib import Path

import click
from rich.console import Console

from stress.chaos import checker, history, report, schedule
from stress.chaos.crew import Crew
from stress.chaos.keeping import ETCD
from stress.chaos.run import Progress, play
from stress.wan.namespaces import why_not

LEASE_S = 4.0
SHOW_EVERY_S = 10.0


@click.group(invoke_without_command=True)
@click.option("--minutes", default=3.0, show_default=True, help="How long faults are committed.")
@click.option("--seed", type=int, help="Of everything that is drawn.  [default: a new one]")
@click.option("--peers", type=click.IntRange(4, 32), default=8, show_default=True)
@click.option("--every-s", type=click.FloatRange(0.05), default=2.0, show_default=True, help="A fault so often.")
@click.option("--work-s", type=click.FloatRange(0), default=0.0, help="What a peer is busy with by itself in a step.")
@click.option(
    "--keeping",
    type=click.Choice(schedule.KEEPING),
    default="file",
    show_default=True,
    help="The state of the run: in a file of one coordinator, or in etcd with a second one that stands by.",
)
@click.option("--only", default="", help="Kinds of faults, separated by commas.")
@click.option("--replay", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A written schedule.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Where everything is written down.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def main(
    context: click.Context,
    minutes: float,
    seed: int | None,
    peers: int,
    every_s: float,
    work_s: float,
    keeping: str,
    only: str,
    replay: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Real processes on the emulated WAN, a seeded schedule of faults, and a checker of every promise of pccl's.

    Exit code 1 when a promise was broken or the run could not be finished.
    """
    if context.invoked_subcommand is not None:
        return
    if reason := why_not():
        raise click.ClickException(f"no WAN can be emulated here: {reason}")
    if keeping == "etcd" and ETCD is None:
        raise click.BadParameter("etcd is not installed (Debian: etcd-server)", param_hint="--keeping")
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    directory = out or Path(tempfile.mkdtemp(prefix=f"pccl-chaos-{seed}-"))
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.glob("*.jsonl")):
        raise click.BadParameter(f"{directory} holds another run", param_hint="--out")
    faults = _schedule(seed, minutes * 60, every_s, peers, keeping, only, replay)
    written = directory / "schedule.jsonl"
    written.write_text(schedule.written(faults))
    click.echo(f"seed {seed}, {len(faults)} faults to come, everything is written to {directory}", err=True)
    early = play(faults, directory, seed, peers, minutes * 60, LEASE_S, work_s, keeping, _live())
    options = f"--seed {seed} --peers {peers} --minutes {minutes:g} --work-s {work_s:g} --keeping {keeping}"
    again = f"python -m stress.chaos {options} --replay {written}"
    _finish(directory, seed, again, early, as_json)


@main.command("check")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True)
def check(directory: Path, as_json: bool) -> None:
    """Judges a run again from what it has written to DIRECTORY."""
    _finish(directory, 0, shlex.join(["python", "-m", "stress.chaos", "check", str(directory)]), "", as_json)


def _schedule(
    seed: int, seconds: float, every_s: float, peers: int, keeping: str, only: str, replay: Path | None
) -> list[schedule.Fault]:
    try:
        if replay is not None:
            return schedule.read(replay.read_text(encoding="utf-8"))
        kinds = [kind.strip() for kind in only.split(",") if kind.strip()]
        return schedule.draw(seed, seconds, every_s, peers, LEASE_S, kinds, keeping)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _live() -> Progress:
    last = [time.monotonic()]

    def progress(seconds: float, crew: Crew, faults: int) -> None:
        if time.monotonic() - last[0] < SHOW_EVERY_S:
            return
        last[0] = time.monotonic()
        boundary = max((process.boundary for process in crew.peers), default=0)
        live = sum(not process.stopped for process in crew.peers)
        said = f"{seconds:6.0f} s  faults {faults}  commits {crew.commits}  boundary {boundary}  live {live}"
        click.echo(f"{said}  started {crew.starts}", err=True)

    return progress


def _finish(directory: Path, seed: int, again: str, early: str, as_json: bool) -> None:
    """Judges, shows, and ends with the exit code."""
    found = history.load(directory)
    broken = checker.judge(found, LEASE_S)
    row = report.figures(found, broken, seed, again, early)
    if as_json:
        Console(soft_wrap=True, highlight=False).print_json(data=row, indent=None)
    else:
        report.show(row, Console())
    sys.exit(1 if broken or early else 0)


if __name__ == "__main__":
    main()
