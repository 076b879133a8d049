"""``pccl status``: asks a coordinator who is in its run, how each peer does, and what happened why."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import zmq
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pccl import messages
from pccl.cli._run_options import read_secret, secret_file_option
from pccl.cli._units import format_age, format_bytes
from pccl.config import endpoint_of, settings_from
from pccl.entering import keys_of
from pccl.errors import ArgumentError, PcclError, ProtocolError
from pccl.keys import RunKeys, as_secret, run_keys
from pccl.types import Algorithm, short_id

LOG_LINES = 12
ASK_AGAIN_S = 1.0


class Asker:
    """One connection to a coordinator, used for one question after another."""

    def __init__(self, address: str, run: str, keys: RunKeys) -> None:
        self.address, self.run = address, run
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.IPV6, 1)
        self.socket.setsockopt(zmq.IMMEDIATE, 1)  # of several coordinators ask the one that serves
        self.socket.setsockopt(zmq.ROUTING_ID, b"\x01" + os.urandom(15))
        self.socket.setsockopt(zmq.CURVE_SERVERKEY, keys.coordinator.public)
        self.socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.peer.public)
        self.socket.setsockopt(zmq.CURVE_SECRETKEY, keys.peer.secret)
        for part in address.split(","):
            self.socket.connect(endpoint_of(part.strip()))

    def ask(self, timeout_s: float) -> messages.Status:
        """The newest status. ClickException if nobody answers in time."""
        deadline = time.monotonic() + timeout_s
        request = messages.encode(messages.StatusRequest(messages.VERSION, self.run))
        while (left := deadline - time.monotonic()) > 0:
            if not self.socket.poll(int(left * 1000), zmq.POLLOUT):
                break
            self.socket.send(request)
            if not self.socket.poll(int(min(left, ASK_AGAIN_S) * 1000)):
                continue
            answer = self.receive()
            if isinstance(answer, messages.Status):
                return answer
            if isinstance(answer, messages.Refused):
                raise click.ClickException(f"the coordinator refused: {answer.reason}")
        raise click.ClickException(
            f"no answer from {self.address} within {timeout_s:g} s: nobody serves there, or with another run or secret"
        )

    def receive(self) -> messages.ToPeer:
        try:
            return messages.decode_at_peer(self.socket.recv())
        except ProtocolError as error:
            raise click.ClickException(
                f"what answers at {self.address} is no coordinator of this version: {error}"
            ) from None

    def close(self) -> None:
        self.socket.close()
        self.context.term()


def entrance(address: str, run: str | None, secret_file: Path | None, timeout_s: float) -> tuple[str, RunKeys]:
    """The run and its keys: by the secret, or, where only PCCL_TOKEN is set, from the coordinator, which takes up to
    `timeout_s`. A token names its run.
    """
    if secret_file is not None or not os.environ.get("PCCL_TOKEN"):
        return run or "default", run_keys(as_secret(read_secret(secret_file)), run or "default")
    try:
        settings = settings_from(address, run=run, transport="tcp", timeout=timeout_s)
        return settings.run, keys_of(settings)
    except (ArgumentError, PcclError) as error:
        raise click.ClickException(str(error)) from None


@contextmanager
def asking(address: str, run: str, keys: RunKeys) -> Iterator[Asker]:
    """An Asker that is closed at the end."""
    asker = Asker(address, run, keys)
    try:
        yield asker
    finally:
        asker.close()


def peer_table(group: messages.GroupStatus) -> Table:
    """Members by rank, then who waits."""
    plan = group.plan
    planned = f", {plan.streams} streams, {sizes_of(plan)}" if plan else ""
    paused = " [red]too few peers[/red]" if group.epoch > 0 and len(group.members) < group.min_peers else ""
    wanted = f"at least {group.min_peers}" if group.epoch else f"{group.form_peers} to begin"
    table = Table(
        title=f"group {group.group}: {group.state}, epoch {group.epoch} from boundary {group.from_boundary}, "
        f"{len(group.members)} peers ({wanted}){planned}{paused}",
        title_justify="left",
        caption=escape(planned_for(plan, group.reality)) if plan else None,
        caption_justify="left",
    )
    for heading in ("rank", "peer", "host", "pid", "address", "since", "boundary", "ops/s", "MB/s", "heard"):
        table.add_column(heading, justify="left" if heading in ("peer", "host", "address") else "right")
    for peer in (*group.members, *group.waiting):
        table.add_row(*peer_cells(peer))
    return table


def sizes_of(plan: messages.Plan) -> str:
    """What all-reduces use by their size."""
    one_round = f"one round up to {format_bytes(plan.one_round_bytes_max)}, " if plan.one_round_bytes_max else ""
    limit = f" up to {format_bytes(plan.mesh_bytes_max)}" if plan.mesh_bytes_max <= 1 << 40 else ""
    return f"{one_round}mesh{limit}"


def planned_for(plan: messages.Plan, reality: messages.Reality | None) -> str:
    """What large ops use, why, what is expected of it, and what it achieves."""
    expected_s = reality.expected_s if reality is not None else plan.predicted_s
    times = [f"{expected_s:.3g} s expected"] if expected_s else []
    if reality is not None and reality.achieved_s:
        times.append(f"{reality.achieved_s:.3g} s achieved ({format_bytes(reality.timed_bytes)} timed)")
    name = Algorithm(plan.large_algorithm or Algorithm.RING).name.lower().replace("_", "-")
    shown = f" (64 MiB: {', '.join(times)})" if times else ""
    return f"large ops: {name}{shown}; {plan.reason}"


def peer_cells(peer: messages.PeerStatus) -> list[str]:
    heard = format_age(peer.heard_s) + " ago"
    return [
        str(peer.rank) if peer.rank >= 0 else "waits",
        short_id(peer.peer),
        escape(peer.host),
        str(peer.pid),
        escape(peer.address) if peer.inbound else f"{escape(peer.address)} [yellow]dials only[/yellow]",
        str(peer.since),
        str(peer.boundary),
        f"{peer.ops_per_s:,.1f}",
        f"{peer.bytes_per_s / 1e6:,.1f}",
        heard if peer.connected else f"[red]{heard}, disconnected[/red]",
    ]


def log_lines(group: messages.GroupStatus, count: int = LOG_LINES) -> Text:
    """The newest decisions, the last one below."""
    lines = []
    for entry in sorted(group.log, key=lambda entry: entry.age_s, reverse=True)[-count:]:
        who = f" {short_id(entry.peer)}" if entry.peer else ""
        lines.append(f"{format_age(entry.age_s):>12} ago  epoch {entry.epoch}  {entry.what}{who}: {entry.reason}")
    return Text("\n".join(lines))


def head_lines(status: messages.Status) -> list[Text]:
    """The run as a whole, and what keeps it from deciding."""
    malformed = f", {status.malformed} malformed messages" if status.malformed else ""
    kept = f", incarnation {status.incarnation}, state in {status.state}" if status.state else ""
    lines = [Text(f"run {status.run}, coordinator up for {format_age(status.up_s)}{kept}{malformed}", style="bold")]
    if status.trouble:
        lines.append(Text(f"decides nothing, for its state cannot be written: {status.trouble}", style="red"))
    if not status.groups:
        lines.append(Text("nobody has joined"))
    return lines


def page(status: messages.Status) -> Group:
    """All of it for people."""
    groups = [part for group in status.groups for part in (peer_table(group), log_lines(group))]
    return Group(*head_lines(status), *groups)


def watch(asker: Asker, interval_s: float, timeout_s: float) -> None:
    """Until Ctrl-C."""
    with Live(page(asker.ask(timeout_s)), refresh_per_second=8) as live:
        while True:
            time.sleep(interval_s)
            live.update(page(asker.ask(timeout_s)))


def check_address(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Callback of ADDRESS."""
    try:
        for part in value.split(","):
            endpoint_of(part.strip())
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return value


def of_a_run(command: Callable[..., Any]) -> Callable[..., Any]:
    """Arguments of commands that ask a coordinator."""
    shared = (
        click.argument("address", envvar="PCCL_COORDINATOR", callback=check_address),
        click.option(
            "--run", envvar="PCCL_RUN", show_envvar=True, help="Name of the run.  [default: the token's, or default]"
        ),
        secret_file_option,
        click.option(
            "--interval",
            type=click.FloatRange(min=0.1),
            default=1.0,
            show_default=True,
            help="Seconds between two looks.",
        ),
        click.option(
            "--timeout", type=click.FloatRange(min=0.1), default=5.0, show_default=True, help="Seconds to wait."
        ),
    )
    for decorate in reversed(shared):
        command = decorate(command)
    return command


@click.command("status")
@of_a_run
@click.option("--watch", "keep", is_flag=True, help="Go on until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def command(
    address: str, run: str | None, secret_file: Path | None, keep: bool, interval: float, timeout: float, as_json: bool
) -> None:
    """Show who is in a run and what happened to it.

    ADDRESS is the coordinator's, as tcp://host:29400 (of several all, with commas between); without it
    PCCL_COORDINATOR counts. The secret, or else a token in PCCL_TOKEN, opens the run.
    """
    with asking(address, *entrance(address, run, secret_file, timeout)) as asker:
        if keep and not as_json:
            watch(asker, interval, timeout)
            return
        status = asker.ask(timeout)
    if as_json:
        click.echo(json.dumps(messages.plain(status), indent=2))
    else:
        Console().print(page(status))
