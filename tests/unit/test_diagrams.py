"""docs/states.md is what the tables say."""

from __future__ import annotations

from pathlib import Path

from pccl.coordinator import membership
from pccl.testing import diagrams


def test_the_file_is_current() -> None:
    path = Path(__file__).resolve().parents[2] / "docs" / "states.md"
    assert path.read_text(encoding="utf-8") == diagrams.document(), "its first lines say how to make it"


def test_every_handler_says_what_it_does() -> None:
    assert all((row.act.__doc__ or "").strip() for row in membership.TABLE.values())
