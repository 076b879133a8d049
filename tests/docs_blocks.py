"""Code blocks of the documents: which there are, and how each is put to the test.

A fence names its language. A Python block is a program: it runs as it stands, after what a comment above it says is
given, `<!-- given: NAME -->` (tests/givens/NAME.py), or as several peers, `<!-- launch: 2 -->`. With a title it is a
file, which shell blocks of the same page name. A shell block is held against the command line; under `<!-- run -->` it
is executed. Other languages (text, json, yaml, mermaid) are data.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GIVENS = ROOT / "tests" / "givens"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DATA = ("text", "json", "yaml", "ini", "mermaid", "toml", "cmake")
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)(?P<rest>.*)$")
_SAID = re.compile(r"^ *<!-- (.*) -->$")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block. `said`: by the comment above it, as words and what they are about."""

    page: Path
    line: int
    language: str
    title: str
    said: dict[str, str]
    text: str

    @property
    def name(self) -> str:
        """Where it is."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def program(self) -> str:
        """Its text, after what is given."""
        given = self.said.get("given")
        return self.text if given is None else (GIVENS / f"{given}.py").read_text() + "\n" + self.text


def blocks_of(page: Path) -> list[Block]:
    """In order."""
    lines = page.read_text().splitlines()
    found: list[Block] = []
    at = 0
    while at < len(lines):
        fence = _FENCE.match(lines[at])
        if fence is None:
            at += 1
            continue
        end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == "```")
        cut = len(fence["indent"])
        text = "\n".join(line[cut:] for line in lines[at + 1 : end]) + "\n"
        title = re.search(r'title="([^"]+)"', fence["rest"])
        found.append(Block(page, at + 1, fence["language"], title[1] if title else "", _said(lines, at), text))
        at = end + 1
    return found


def _said(lines: list[str], fence: int) -> dict[str, str]:
    comment = _SAID.match(lines[fence - 1]) if fence else None
    parts = comment[1].split(", ") if comment else []
    return {word: about for word, _, about in (part.partition(": ") for part in parts)}


def commands_of(block: Block) -> list[list[str]]:
    """The commands of a shell block as words, without prompts, variables that are set before them, and comments."""
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(re.sub(r"^\w*\$ ", "", line.strip()), comments=True)
        while words and (re.match(r"^\w+=", words[0]) or words[0] in ("sudo", "env")):
            words = words[1:]
        if words:
            found.append(words)
    return found
