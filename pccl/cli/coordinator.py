"""``pccl coordinator``: serves one run until Ctrl-C and shows every decision with its reason."""

from __future__ import annotations

import logging
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from logging.handlers import QueueHandler, QueueListener
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pccl.cli._run_options import http_option, read_secret, run_option, secret_file_option, shown
from pccl.coordinator.fixed import ALGORITHMS
from pccl.errors import StateError
from pccl.types import STREAMS_LIMIT

if TYPE_CHECKING:
    from pccl.coordinator.server import Coordinator

POLL_S = 0.2


@contextmanager
def shown_log() -> Iterator[None]:
    """The coordinator's log on standard error. A thread of its own writes: peers do not wait for a terminal."""
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    listener = QueueListener(records, _handler())
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[QueueHandler(records)])
    listener.start()
    try:
        yield
    finally:
        listener.stop()


def _handler() -> logging.Handler:
    """For people where there is a terminal; else plain lines, which cost a fiftieth of the time."""
    if not sys.stderr.isatty():
        plain = logging.StreamHandler()
        plain.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
        return plain
    from rich.console import Console
    from rich.logging import RichHandler

    rich = RichHandler(console=Console(stderr=True), show_path=False, markup=False, omit_repeated_times=False)
    rich.setFormatter(logging.Formatter("%(message)s", "%H:%M:%S"))
    return rich


def end_on_signals() -> threading.Event:
    """Set by SIGINT and SIGTERM from now on."""
    end = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda number, frame: end.set())
    return end


@click.command("coordinator")
@click.option("--bind", default="tcp://[::]:29400", show_default=True, help="Where to listen; port 0: any free one.")
@run_option
@click.option("--min-peers", type=click.IntRange(1), default=1, show_default=True, help="Fewest peers that run ops.")
@click.option("--form-peers", type=click.IntRange(1), help="How many begin.  [default: as --min-peers]")
@click.option("--lease", type=click.FloatRange(min=0.1), default=10.0, show_default=True, help="Seconds of silence.")
@click.option("--streams", type=click.IntRange(1, STREAMS_LIMIT), help="Of every link.  [default: as measured]")
@click.option(
    "--algorithm",
    type=click.Choice(list(ALGORITHMS)),
    default="auto",
    show_default=True,
    help="Of all-reduces that name none; auto: the fastest.",
)
@click.option(
    "--state",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File in which the run outlives this process.  [default: none]",
)
@click.option(
    "--ha", metavar="etcd://HOST:PORT[,...]", help="Stand by for others: who leads, and the state, is in etcd."
)
@click.option(
    "--probes/--no-probes", default=True, show_default=True, help="Measure unknown links while nobody uses them."
)
@click.option("--no-dial-back", is_flag=True, help="Take every joiner for one that can be dialled.")
@click.option("--insecure", is_flag=True, help="Without a secret: listen all the same, to everybody.")
@http_option
@secret_file_option
def command(
    bind: str,
    run: str,
    min_peers: int,
    form_peers: int | None,
    lease: float,
    streams: int | None,
    algorithm: str,
    state: Path | None,
    ha: str | None,
    probes: bool,
    no_dial_back: bool,
    insecure: bool,
    http: str | None,
    secret_file: Path | None,
) -> None:
    """Serve a run: membership, order and topology.

    Peers that were silent for longer than the lease are out. The secret is read from PCCL_SECRET or --secret-file.
    With --state a coordinator that is started again on the same address goes on where the former one ended, and ops in
    flight do not notice; without it the peers end when their coordinator does. With --ha several coordinators stand by
    for each other, one of them leads, and peers are given all their addresses.
    A run without a secret is served on loopback only, unless --insecure says that everybody may join it.
    --http wants pip install 'pccl[eyes]'. Who reaches it sees hosts, addresses and what happens, but no data.
    --no-dial-back is for a coordinator that stands in another network than the peers, where its own dials tell nothing.
    --streams and --algorithm are for benchmarks, and for finding out why something is slow: the planner knows better.
    """
    from pccl.coordinator.server import Coordinator

    end = end_on_signals()
    options: dict[str, Any] = {
        "bind": bind,
        "run": run,
        "secret": read_secret(secret_file),
        "min_peers": min_peers,
        "form_peers": form_peers or 0,
        "lease_s": lease,
        "streams": streams,
        "algorithm": algorithm,
        "state": state,
        "ha": ha,
        "measure": probes,
        "dial_back": not no_dial_back,
        "insecure": insecure,
        "end": end,
    }
    begin = f", {form_peers} to begin" if form_peers else ""
    with shown_log():
        while not end.is_set():
            if ha is not None:
                click.echo(f"run {run!r}: stands by, until {ha} says that this one leads; Ctrl-C ends it")
            coordinator = Coordinator(**options)
            if not started(coordinator, end):
                return
            with closing(coordinator):
                kept = f"; incarnation {coordinator.incarnation}, state in {state or ha}" if state or ha else ""
                at_least = f"at least {min_peers} peers{begin}{kept}"
                click.echo(f"run {run!r} at {coordinator.address}, {at_least}; Ctrl-C ends it")
                with shown(coordinator, http, click.echo):
                    while not end.wait(POLL_S) and not coordinator.deposed.is_set():
                        pass


def started(coordinator: Coordinator, end: threading.Event) -> bool:
    """False if it was told to end before it led."""
    try:
        coordinator.start()
    except StateError:
        if end.is_set():
            return False
        raise
    return True
