"""``pccl simulate``: many seeds of the simulator, each checked against every promise."""

from __future__ import annotations

import json
import sys

import click


@click.command("simulate")
@click.option("--seeds", type=click.IntRange(1), default=200, show_default=True, help="How many.")
@click.option("--start", type=click.IntRange(0), default=0, show_default=True, help="The first.")
@click.option("--scenario", help="Only this one.  [default: a mix]")
def command(seeds: int, start: int, scenario: str | None) -> None:
    """Run many seeds of the simulator and check every promise.

    The last line is a JSON object: seeds, ops, commits, faults, broken. Exit code 1 if a promise was broken.
    """
    from pccl.testing.simulate import simulate

    try:
        summary = simulate(seeds, start, scenario)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    click.echo(json.dumps(summary))
    sys.exit(1 if summary["broken"] else 0)
