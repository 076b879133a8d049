"""How the commands learn which run is meant. A secret never stands on a command line: others can read those."""

from __future__ import annotations

import os
from pathlib import Path

import click

run_option = click.option(
    "--run", envvar="PCCL_RUN", default="default", show_default=True, show_envvar=True, help="Name of the run."
)
secret_file_option = click.option(
    "--secret-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the run's secret.  [default: the variable PCCL_SECRET]",
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
