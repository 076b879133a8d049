"""What `pccl top` puts on the screen."""

from __future__ import annotations

import io

import pytest
from click.testing import CliRunner
from msgspec import structs
from rich.console import Console
from unit.eyes_status import example, peer

from pccl import messages as m
from pccl.cli import main, top


def shown(status: m.Status, lines: int = 40, width: int = 180) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, height=lines).print(top.screen(status, lines, width), height=lines)
    return out.getvalue().rstrip("\n").split("\n")


def test_members_plan_links_and_log_are_on_one_screen() -> None:
    found = shown(example())
    text = "\n".join(found)
    assert len(found) == 40
    for expected in ("run demo", "7 malformed", "02020202", "waits", "1.75 s expected, 2.25 s achieved", "the mesh is"):
        assert expected in text
    for expected in ("50.0", "80.00", "0.012", "broken, by rank 0", "lost 09090909: its control connection closed"):
        assert expected in text


def test_what_is_not_up_comes_first_and_then_what_is_slow() -> None:
    group = example().groups[0]
    slow = m.LinkStatus(0, 1, 0, 1_000_000, 0, 1)
    table = top.link_table(structs.replace(group, links=(*group.links, slow)))
    assert list(table.columns[2].cells) == ["-", "1.0", "50.0"]


@pytest.mark.parametrize("width", [100, 180])
@pytest.mark.parametrize("lines", [16, 24, 60])
def test_a_screen_is_never_longer_than_the_terminal(lines: int, width: int) -> None:
    group = example().groups[0]
    many = tuple(peer(number, number - 1) for number in range(1, 60))
    entries = tuple(m.LogEntry(100.0 - n, n, b"", "epoch", f"entry {n}.") for n in range(100))
    status = structs.replace(example(), groups=(structs.replace(group, members=many, links=(), log=entries),))
    found = shown(status, lines, width)
    assert len(found) == lines
    assert "entry 99." in "\n".join(found), "the newest is there"


def test_nobody_there_yet() -> None:
    assert "nobody has joined" in "\n".join(shown(m.Status(m.VERSION, "demo", 1.0, 0, ())))


def test_without_a_terminal_another_command_is_named() -> None:
    result = CliRunner().invoke(main, ["top", "tcp://127.0.0.1:1"])
    assert result.exit_code == 1
    assert "top wants a terminal; pccl status --watch" in result.output
