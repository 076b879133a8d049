"""``pccl top``: the run on the whole screen, again and again: members, plan, links, what happened last.

What `pccl status` shows, by the same functions, and the links besides, the slowest first.
"""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich.console import Console
from rich.layout import Layout
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pccl import messages
from pccl.cli._units import format_ms
from pccl.cli.status import asking, entrance, head_lines, log_lines, of_a_run, peer_table
from pccl.types import LOSS_UNKNOWN, short_id

LOOKS = {"up": "green", "suspected": "yellow", "broken": "red"}
TABLE_LINES = 6  # of a table besides its rows: title, heading, frame, caption
MEMBERS_PART = 0.6  # of a group's lines that its members may take
LINKS_WIDE = 78
BESIDE_WIDE = 150  # from so many columns on there is room for the log beside the links


def link_table(group: messages.GroupStatus) -> Table:
    """Each way between two members; what is slow comes first, and before it what is not up."""
    table = Table(expand=True, box=None, padding=(0, 1), header_style="dim")
    for heading in ("from", "to", "MB/s", "RTT ms", "loss %", "streams", "state"):
        table.add_column(heading, justify="left" if heading in ("from", "to", "state") else "right", no_wrap=True)
    ids = [short_id(member.peer) for member in group.members]
    for link in sorted(group.links, key=lambda link: (link.state == "up", link.bytes_per_s)):
        table.add_row(ids[link.sender], ids[link.receiver], *link_cells(link))
    return table


def link_cells(link: messages.LinkStatus) -> list[str]:
    """The figures of one; "-" for what is not known."""
    over = f", by rank {link.via}" if link.via >= 0 else ""
    look = LOOKS.get(link.state, "white")
    return [
        f"{link.bytes_per_s / 1e6:,.1f}" if link.bytes_per_s else "-",
        format_ms(link.rtt_us / 1e3 if link.rtt_us else None),
        f"{link.loss_ppm / 1e4:.3g}" if link.loss_ppm != LOSS_UNKNOWN else "-",
        str(link.streams),
        f"[{look}]{link.state}{over}[/{look}]",
    ]


def screen(status: messages.Status, lines: int, columns: int) -> Layout:
    """All of it, on so many lines; what does not fit is cut off."""
    head = head_lines(status)
    each = (lines - len(head)) // max(1, len(status.groups))
    groups = [Layout(group_screen(group, each, columns)) for group in status.groups]
    whole = Layout()
    whole.split_column(Layout(Text("\n").join(head), size=len(head)), *(groups or [Layout(Text(""))]))
    return whole


def group_screen(group: messages.GroupStatus, lines: int, columns: int) -> Layout:
    """Members above; links and log below them, beside each other where there is room."""
    wanted = len(group.members) + len(group.waiting) + TABLE_LINES
    above = min(wanted, max(TABLE_LINES + 1, int(lines * MEMBERS_PART)))
    beside = columns >= BESIDE_WIDE
    below = lines - above
    logged = (below if beside else below - below // 2) - 2
    log = log_lines(group, max(1, logged))
    log.no_wrap, log.overflow = True, "ellipsis"
    parts = [
        Layout(Panel(link_table(group), title="links, each way", title_align="left")),
        Layout(Panel(log, title="what happened", title_align="left")),
    ]
    lower = Layout()
    if beside:
        parts[0].size = LINKS_WIDE
        lower.split_row(*parts)
    else:
        parts[0].size = below // 2
        lower.split_column(*parts)
    whole = Layout()
    whole.split_column(Layout(peer_table(group), size=above), lower)
    return whole


@click.command("top")
@of_a_run
def command(address: str, run: str | None, secret_file: Path | None, interval: float, timeout: float) -> None:
    """Watch a run on the whole screen, until Ctrl-C.

    ADDRESS, secret and token are those of `pccl status`, which also does where there is no terminal.
    """
    console = Console()
    if not console.is_terminal:
        raise click.ClickException("top wants a terminal; pccl status --watch, or --json, does without one")
    with asking(address, *entrance(address, run, secret_file, timeout)) as asker:
        first = screen(asker.ask(timeout), *console.size[::-1])
        with Live(first, console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.refresh()
                time.sleep(interval)
                live.update(screen(asker.ask(timeout), *console.size[::-1]))
