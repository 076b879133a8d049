"""The command line: ``pccl coordinator | launch | status | top | token | trace | doctor | bench | simulate | weights |
kv | version``.

Each command lives in a file of its own and is imported only when it is called, so that ``pccl --help`` is quick and a
command does not need the dependencies of another.
"""

from __future__ import annotations

import importlib
from typing import Any

import click

from pccl.errors import PcclError

COMMANDS = {
    "bench": "Measure collectives on this machine, against gloo if asked.",
    "coordinator": "Serve a run: membership, order and topology.",
    "doctor": "Examine the path between two machines and say what to change.",
    "kv": "Simulate where prompts are prefilled, over datacenters.",
    "launch": "Run a script as several local peers of a new run.",
    "simulate": "Run many seeds of the simulator and check every promise.",
    "status": "Show who is in a run and what happened to it.",
    "top": "Watch a run on the whole screen.",
    "token": "Let a peer into a run for a while, without the run's secret.",
    "trace": "Merge what peers have written under PCCL_TRACE into one picture.",
    "weights": "Look into payloads of pccl.weights.",
    "version": "Show the versions of the package, the wire and the kernels.",
}


class LazyGroup(click.Group):
    """A group whose commands are modules of this package, imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"pccl.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of --help, written without importing any command."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """What the world did wrong is one line, not a traceback."""
        try:
            return super().invoke(ctx)
        except PcclError as error:
            raise click.ClickException(str(error)) from error


def print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Callback of --version."""
    if value and not ctx.resilient_parsing:
        from pccl.cli.version import version_text

        click.echo(version_text())
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=print_version, help="Show versions."
)
def main() -> None:
    """Collectives for machines that are far apart and come and go."""
