"""How the commands learn which run is meant. A secret never stands on a command line: others can read those."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pccl.coordinator.server import Coordinator

run_option = click.option(
    "--run", envvar="PCCL_RUN", default="default", show_default=True, show_envvar=True, help="Name of the run."
)
secret_file_option = click.option(
    "--secret-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the run's secret.  [default: the variable PCCL_SECRET]",
)
http_option = click.option(
    "--http",
    metavar="[HOST:]PORT",
    help="Show the run to browsers and Prometheus there, to everybody who reaches it; loopback without a host.",
)


def read_secret(path: Path | None) -> str:
    """From the file, else from the environment, else the empty one. A final newline is not part of it."""
    if path is None:
        return os.environ.get("PCCL_SECRET", "")
    secret = path.read_text(encoding="utf-8").rstrip("\r\n")
    if not secret:
        raise click.UsageError(f"{path} is empty")
    if path.stat().st_mode & 0o077:
        click.echo(f"warning: others can read {path}; chmod 600 it", err=True)
    return secret


@contextmanager
def shown(coordinator: Coordinator, http: str | None, say: Callable[[str], object]) -> Iterator[None]:
    """While it lasts the run is shown where --http says, and `say` has told the address; None: nowhere."""
    if http is None:
        yield
        return
    from pccl.coordinator.eyes import Eyes

    with Eyes(coordinator.status, http) as eyes:
        whom = ", to everybody who reaches this host" if eyes.is_open else ""
        say(f"shown at {eyes.address}{whom}; metrics at {eyes.address}metrics")
        yield
