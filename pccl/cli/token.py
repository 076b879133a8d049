"""``pccl token``: prints a token that lets a peer enter a run for a while, without the run's secret."""

from __future__ import annotations

import time
from pathlib import Path

import click

from pccl.cli._run_options import read_secret, run_option, secret_file_option
from pccl.cli._units import parse_duration


@click.command("token")
@run_option
@click.option("--ttl", default="1h", show_default=True, help="How long it is good for: 30s, 15m, 8h, 30d at most.")
@secret_file_option
def command(run: str, ttl: str, secret_file: Path | None) -> None:
    """Make a token of a run's secret: who has it may enter until it expires, and never learns the secret.

    It is printed alone on standard output, and good as PCCL_TOKEN or pccl.connect(token=...). Keep it like a password.
    Who has entered by it stays when it expires. The secret is read from PCCL_SECRET or --secret-file; nobody is asked.
    """
    from pccl.keys import as_secret
    from pccl.tokens import mint

    try:
        seconds = parse_duration(ttl)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--ttl") from None
    secret = read_secret(secret_file)
    if not secret:
        raise click.UsageError("a token is made from the run's secret: set PCCL_SECRET, or pass --secret-file")
    now_s = time.time()
    click.echo(mint(as_secret(secret), run, seconds, now_s))
    expires = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now_s + seconds))
    click.echo(f"for run {run!r}, until {expires} UTC", err=True)
