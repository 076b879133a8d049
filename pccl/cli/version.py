"""``pccl version``: package, wire format, control protocol and the kernels that this machine uses."""

from __future__ import annotations

import platform
from importlib import metadata

import click


def version_text() -> str:
    """One line per fact; what could not be loaded says why instead of hiding it."""
    lines = [f"pccl {metadata.version('pccl')}"]
    try:
        from pccl import _native

        lines.append(f"wire version {_native.wire_version()}")
        lines.append(f"kernels {_native.kernels()}")
        lines.append(f"TLS by {_native.tls_library()}" if _native.tls_library() else _native.tls_missing())
    except ImportError as error:
        lines.append(f"engine not available: {error}")
    lines.append(f"Python {platform.python_version()} on {platform.machine()}")
    return "\n".join(lines)


@click.command("version")
def command() -> None:
    """Show the versions of the package, the wire and the kernels."""
    click.echo(version_text())
