"""The picture of loss against bytes: which rows it takes, what it refuses, and that the same rows make the same one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # at the end: pccl itself is the installed one

from stress.optim.convergence import ROWS, chosen  # noqa: E402
from stress.optim.plot import drawn  # noqa: E402


def row(mode: str, sent: int, peers: int = 4, **more: Any) -> dict[str, Any]:
    looks = [[200, sent // 2, 2.5], [400, sent, 2.2]]
    figures = {"loss": 2.2, "gap_percent": 1.0, "gap_sd": 0.0, "retries": 0, "missed": []}
    return {"mode": mode, "peers": peers, "bytes_sent": sent, "watched": looks, **figures, **more}


BASE = [row("data parallel", 1_000_000), row("lone worker", 0, peers=1)]


def test_other_numbers_of_peers_and_changing_ones_are_left_out() -> None:
    rows = [*BASE, row("diloco", 1000), row("diloco-M8", 1000, peers=8), row("diloco-churn", 1000)]
    shown = drawn(rows)
    assert [one["mode"] for one in shown] == ["data parallel", "lone worker", "diloco"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*BASE, row("diloco", 1000, watched=[])], "diloco: no losses"),
        ([row("diloco", 1000)], "first rows"),
        ([], "first rows"),
    ],
)
def test_rows_that_do_not_make_a_picture_are_refused(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drawn(rows)


def test_the_same_rows_make_the_same_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    (tmp_path / "rows").write_text("\n".join(map(json.dumps, [*BASE, row("diloco", 1000), row("gossip", 2000)])))
    script = "import sys; sys.path.append(sys.argv.pop(1)); from stress.optim.plot import main; sys.exit(main())"
    pictures = []
    for name in ("one", "two"):
        out = tmp_path / name / "picture.svg"
        subprocess.run([sys.executable, "-c", script, ROOT, tmp_path / "rows", "--out", out], cwd=tmp_path, check=True)
        pictures.append(out.read_bytes())
    assert pictures[0] == pictures[1]
    assert b"<svg" in pictures[0]


def test_rows_are_chosen_by_name_before_they_are_by_beginning() -> None:
    assert [one.name for one in chosen(["diloco", "sparse"])] == ["diloco", "sparse-1.56%", "sparse-12.5%"]
    assert chosen([""]) == ROWS
