"""`python -m stress.wan`: run commands on an emulated WAN, check it, change it while it runs."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Any

import click

from . import namespaces
from .check import check as check_topology
from .router import Client, RouterError
from .run import main_guard, run
from .topology import CAP_FIELDS, TopologyError, load, ready_made


def parameters(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """`name=value` options; numbers as numbers."""
    result: dict[str, Any] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals:
            raise click.BadParameter(f"{value!r} is not name=value")
        try:
            result[name] = json.loads(text)
        except json.JSONDecodeError:
            result[name] = text
    return result


parameter_option = click.option(
    "-p", "--parameter", "values", multiple=True, callback=parameters, help="name=value, for ${name} in the file."
)


@click.group()
def main() -> None:
    """A WAN on one machine. TOPOLOGY is a YAML file or the name of a ready-made one (see `list`)."""
    main_guard()


@main.command("list")
def list_command() -> None:
    """Names of the ready-made topologies."""
    for name in ready_made():
        click.echo(name)


@main.command("run")
@click.argument("topology")
@click.argument("command", nargs=-1, required=True)
@parameter_option
@click.option("--coordinator", default="", help="A command for the coordinator's site, ended when the others are done.")
@click.option("--site", "sites", multiple=True, help="Only there; may be given several times.")
@click.option("--timeout", "timeout_s", type=float, help="Seconds after which everything is ended (exit code 124).")
def run_command(
    topology: str,
    command: tuple[str, ...],
    values: dict[str, Any],
    coordinator: str,
    sites: tuple[str, ...],
    timeout_s: float | None,
) -> None:
    """Run COMMAND at every site; WAN_SITE, WAN_RANK, WAN_ADDRESS ... tell it where it is."""
    loaded = load(topology, **values)
    if unknown := set(sites) - set(loaded.sites):
        raise click.BadParameter(f"no site {min(unknown)!r}", param_hint="--site")
    sys.exit(run(loaded, command, shlex.split(coordinator), sites, timeout_s))


@main.command("check")
@click.argument("topology")
@parameter_option
@click.option("--all-pairs", is_flag=True, help="Measure rate and loss of every directed pair, also of equal ones.")
@click.option("--seconds", default=1.5, show_default=True, help="Length of each measurement.")
def check_command(topology: str, values: dict[str, Any], all_pairs: bool, seconds: float) -> None:
    """Measure round trips, rates and losses and compare them with the file; exit code 1 when one is off."""
    off = 0
    for finding in check_topology(load(topology, **values), all_pairs, seconds):
        click.echo(str(finding))
        off += finding.ok is False
    click.echo(f"{off} values are off" if off else "as the file says")
    sys.exit(1 if off else 0)


def ask(socket: str, op: str, **fields: Any) -> dict[str, Any]:
    client = Client(socket)
    try:
        return client(op, **{name: value for name, value in fields.items() if value is not None})
    finally:
        client.close()


def both_ways(socket: str, op: str, a: str, b: str, one_way: bool, **fields: Any) -> None:
    for here, there in [(a, b)] if one_way else [(a, b), (b, a)]:
        ask(socket, op, **{"from": here, "to": there}, **fields)


one_way_option = click.option("--one-way", is_flag=True, help="Only from A to B.")


@main.command("set")
@click.argument("socket")
@click.argument("a")
@click.argument("b")
@click.option("--delay-ms", type=float, help="One way.")
@click.option("--jitter-ms", type=float)
@click.option("--rate-mbit", type=float, help="0: no limit.")
@click.option("--queue-kb", type=float, help="Stays as it is when not given, also when the rate changes.")
@click.option("--loss", type=float, help="Of each wire packet, 0 to 1.")
@one_way_option
def set_command(socket: str, a: str, b: str, one_way: bool, queue_kb: float | None, **settings: float | None) -> None:
    """Change the link between A and B of the run whose router listens at SOCKET."""
    queue = None if queue_kb is None else queue_kb * 1000
    both_ways(socket, "pair", a, b, one_way, queue_bytes=queue, **settings)


@main.command("caps")
@click.argument("socket")
@click.argument("site")
@click.option("--up-mbit", type=float)
@click.option("--down-mbit", type=float)
def caps_command(socket: str, site: str, **caps: float | None) -> None:
    """Change what all links of SITE share."""
    assert caps.keys() <= CAP_FIELDS
    ask(socket, "caps", site=site, **caps)


@main.command("cut")
@click.argument("socket")
@click.argument("a")
@click.argument("b")
@one_way_option
def cut_command(socket: str, a: str, b: str, one_way: bool) -> None:
    """Lose everything between A and B."""
    both_ways(socket, "cut", a, b, one_way)


@main.command("heal")
@click.argument("socket")
@click.argument("a")
@click.argument("b")
@one_way_option
def heal_command(socket: str, a: str, b: str, one_way: bool) -> None:
    """Undo a cut."""
    both_ways(socket, "heal", a, b, one_way)


@main.command("stats")
@click.argument("socket")
def stats_command(socket: str) -> None:
    """Print the router's counters."""
    click.echo(json.dumps(ask(socket, "stats"), indent=1))


@main.command("clean")
def clean_command() -> None:
    """Remove what killed runs left behind; others are left alone."""
    for name in namespaces.sweep():
        click.echo(f"removed {name}")


if __name__ == "__main__":
    try:
        main(prog_name="python -m stress.wan")
    except (TopologyError, RouterError, namespaces.NamespaceError) as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit(130)
