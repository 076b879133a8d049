"""``pccl trace``: the traces of several peers as one picture for Perfetto."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pccl.trace.clocks import Clock


@click.command("trace")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    default="trace.json",
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the picture goes.",
)
def command(paths: tuple[Path, ...], output: Path) -> None:
    """Merge what peers have written under PCCL_TRACE (PATHS: directories or files) into one Chrome trace.

    Open it in ui.perfetto.dev, which sends it nowhere. The peers' clocks are aligned by the ops that they have
    committed together; how well is printed, for each.
    """
    import msgspec

    from pccl.trace import chrome, clocks, files

    peers = files.read(files.find(paths))
    aligned = clocks.align(peers)
    picture = chrome.chrome_trace(peers, aligned)
    try:
        output.write_bytes(msgspec.json.encode(picture))
    except OSError as error:
        raise click.ClickException(f"cannot write {str(output)!r}: {error.strerror}") from None
    for peer, clock in zip(peers, aligned, strict=True):
        click.echo(f"peer {peer.short} on {peer.begin.host}: {len(peer.records)} records, {_clock_text(clock)}")
    click.echo(f"{output}: open it in ui.perfetto.dev")


def _clock_text(clock: Clock) -> str:
    if clock.moments is None:
        return "the common clock"
    if not clock.moments:
        return "its own wall clock: no op or epoch in common with the others"
    shift, within = clock.offsets[-1] / 1e6, clock.within_ns / 1e6
    return f"clock shifted by {shift:+.3f} ms, within {within:.3f} ms, by {clock.moments} moments in common"
