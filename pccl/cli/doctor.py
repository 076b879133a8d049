"""``pccl doctor``: examines the path between two machines before a run, and says what to change.

One side listens, the other comes; both print the findings. The work is in pccl/doctor.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pccl.cli._run_options import read_secret, run_option, secret_file_option
from pccl.config import DEFAULT_LISTEN

if TYPE_CHECKING:
    from rich.console import Console

    from pccl.doctor.facts import Measurements
    from pccl.doctor.finding import Finding

ANY_ADDRESS = ("[::]", "0.0.0.0")
COLOURS = {"ok": "green", "advice": "yellow", "problem": "red"}


def note(text: str) -> None:
    """What happens, for who waits."""
    click.echo(f"[doctor] {text}", err=True)


def places_to_listen(text: str) -> tuple[str, ...]:
    """ "29500" or "host:29500" as addresses to try in turn; UsageError if it is neither."""
    from pccl.addresses import split
    from pccl.errors import ArgumentError

    addresses = tuple(f"{host}:{text}" for host in ANY_ADDRESS) if text.isdigit() else (text,)
    if text == DEFAULT_LISTEN:
        addresses = tuple(f"{host}:0" for host in ANY_ADDRESS)
    try:
        for address in addresses:
            split(address)
    except ArgumentError as error:
        raise click.UsageError(str(error)) from None
    return addresses


def key_of(secret_file: Path | None, run: str) -> bytes:
    """Of this run's doctor; a warning if everybody has it."""
    from pccl.keys import as_secret, derive

    secret = read_secret(secret_file)
    if not secret:
        click.echo("warning: no secret: anybody who reaches the port can measure with you; set PCCL_SECRET", err=True)
    return derive(as_secret(secret), run, "doctor")


def addresses_of(advertise: str | None, port: int) -> tuple[str, ...]:
    """The numeric addresses of --advertise."""
    from pccl.addresses import advertised
    from pccl.doctor.facts import ADDRESSES_MAX

    parts = [part.strip() for part in (advertise or "").split(",") if part.strip()]
    if len(parts) > ADDRESSES_MAX:
        raise click.UsageError(f"at most {ADDRESSES_MAX} addresses to advertise")
    return tuple(advertised(part, port) for part in parts)


def show_page(console: Console, found: Sequence[Finding]) -> None:
    """The findings for people: a table, and below it what to change, in lines that can be copied whole."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_lines=True)
    for heading in ("", "what", "found"):
        table.add_column(heading, overflow="fold")
    for one in found:
        what = f"{one.check}\n[dim]{escape(one.where)}[/]"
        table.add_row(f"[{COLOURS[one.level]}]{one.level}[/]", what, escape(one.text))
    console.print(table)
    to_change = sorted((one for one in found if one.change), key=lambda one: one.level, reverse=True)
    for one in to_change:
        head = f"[{COLOURS[one.level]}]{one.level}[/] {one.check}, {escape(one.where)}:"
        console.print(f"{head}\n    {escape(one.change)}", soft_wrap=True, highlight=False)
    problems = sum(one.level == "problem" for one in found)
    console.print(f"problems: {problems}, advice: {len(to_change) - problems}", highlight=False)


def show(found: Sequence[Finding], as_json: bool) -> bool:
    """Prints them; whether a run would work."""
    from rich.console import Console

    from pccl.doctor.finding import worst

    if as_json:
        for one in found:
            click.echo(json.dumps(one.as_json()))
    else:
        show_page(Console(), found)
    return worst(found) != "problem"


def judge(measured: Measurements, as_json: bool) -> bool:
    from pccl.doctor.findings import findings

    return show(findings(measured), as_json)


async def come(address: str, key: bytes, seconds: float, streams: int, call_back: str, advertise: str | None) -> Any:
    """The client's side."""
    from pccl.addresses import joined, split
    from pccl.doctor.client import Wishes, examine
    from pccl.doctor.door import open_port

    places = places_to_listen(call_back)
    with open_port(places) as door:
        host, port = door.getsockname()[:2]
        listens = joined(host, split(places[0])[1])
        wishes = Wishes(seconds, streams, door, listens, addresses_of(advertise, port))
        return await examine(address, key, wishes, note)


async def wait_for_others(
    sock: socket.socket, key: bytes, advertise: str | None, wait_s: float | None, keep: bool, as_json: bool
) -> bool:
    """The listener's side; whether a run would work, as far as the last client is concerned."""
    from pccl.doctor.listener import Listener
    from pccl.errors import PcclError

    listener = Listener(sock, key, addresses_of(advertise, sock.getsockname()[1]), note)
    note(f"listening at {listener.address}; on the other machine: pccl doctor THIS_HOST:{listener.port}")
    try:
        while True:
            try:
                good = judge(await listener.examine_one(None if keep else wait_s), as_json)
            except PcclError as error:
                if not keep:
                    raise
                note(str(error))
            else:
                if not keep:
                    return good
    finally:
        await listener.close()


def run_until_signal(main: Coroutine[Any, Any, Any]) -> Any:
    """The result on uvloop; None if SIGINT or SIGTERM ended it."""
    import uvloop

    async def guarded() -> Any:
        task = asyncio.ensure_future(main)
        for signum in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(signum, task.cancel)
        await asyncio.wait([task])
        return None if task.cancelled() else task.result()

    return uvloop.run(guarded())


@click.command("doctor")
@click.argument("address", required=False)
@click.option("--listen", metavar="[HOST:]PORT", help="Wait here for the other machine's pccl doctor.")
@run_option
@secret_file_option
@click.option(
    "--call-back",
    metavar="[HOST:]PORT",
    envvar="PCCL_LISTEN",
    default=DEFAULT_LISTEN,
    show_default=True,
    show_envvar=True,
    help="Where the listener's calls are taken; as peers of the run will listen.",
)
@click.option(
    "--advertise",
    metavar="HOST[:PORT],...",
    envvar="PCCL_ADVERTISE",
    show_envvar=True,
    help="Where peers of the run will dial this machine.",
)
@click.option(
    "--seconds", type=click.FloatRange(0.2, 30), default=3.0, show_default=True, help="Of each bandwidth test."
)
@click.option("--streams", type=click.IntRange(2, 32), default=8, show_default=True, help="Of the tests with several.")
@click.option("--wait", type=click.FloatRange(min=0.1), default=600.0, show_default=True, help="Seconds, of --listen.")
@click.option("--keep", is_flag=True, help="With --listen: serve one after another until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per finding.")
@click.pass_context
def command(
    ctx: click.Context,
    address: str | None,
    listen: str | None,
    run: str,
    secret_file: Path | None,
    call_back: str,
    advertise: str | None,
    seconds: float,
    streams: int,
    wait: float,
    keep: bool,
    as_json: bool,
) -> None:
    """Examine the path between two machines and say what to change.

    "pccl doctor --listen 29500" on one, "pccl doctor HOST:29500" on the other; both need the run's secret, from
    PCCL_SECRET or --secret-file. Takes some half a minute. Exit code 1 if a run would not work.
    """
    if (address is None) == (listen is None):
        raise click.UsageError("either --listen PORT or the HOST:PORT of the listener")
    key = key_of(secret_file, run)
    if listen is None:
        assert address is not None
        measured = run_until_signal(come(address, key, seconds, streams, call_back, advertise))
        good = None if measured is None else judge(measured, as_json)
    else:
        from pccl.doctor.door import open_port

        sock = open_port(places_to_listen(listen))
        good = run_until_signal(wait_for_others(sock, key, advertise, wait, keep, as_json))
        good = True if keep and good is None else good
    if good is None:
        raise click.Abort
    ctx.exit(0 if good else 1)
