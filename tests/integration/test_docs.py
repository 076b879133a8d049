"""The documents do what they say: code blocks run, commands exist, and the site builds without a warning."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import docs_blocks
import forks
import pytest
from docs_blocks import ROOT, Block

from pccl.cli import main

BIN = Path(sys.executable).parent
BLOCKS = [block for page in docs_blocks.PAGES for block in docs_blocks.blocks_of(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
SHELL = [block for block in BLOCKS if block.language == "sh"]
#: Commands of others that documents may name.
OTHERS = ("apt-get", "export", "kill", "modprobe", "openssl", "pip", "sysctl", "torchrun")


def run(words: list[str], where: Path, programs: Path = BIN) -> str:
    """Runs to its end as a reader would, in a directory of its own; its output. `programs` are found first."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PCCL_")}
    environment |= {"PATH": f"{programs}:{BIN}:{environment['PATH']}", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT / "tests" / "integration")  # what is given may use the tests' doubles
    done = subprocess.run(
        words, cwd=where, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def files_of(page: Path, where: Path) -> None:
    """Writes down the page's titled blocks."""
    for block in BLOCKS:
        if block.page == page and block.title:
            (where / block.title).write_text(block.program())


def named(blocks: list[Block]) -> list[object]:
    return [pytest.param(block, id=block.name) for block in blocks]


def test_there_are_blocks_of_every_kind() -> None:
    assert len(PYTHON) > 10 and len(SHELL) > 5
    assert {block.language for block in BLOCKS} <= {"python", "sh", *docs_blocks.DATA}


@pytest.mark.parametrize("block", named([block for block in PYTHON if not block.title]))
def test_a_block_of_python_runs(block: Block, tmp_path: Path, forked: str) -> None:
    files_of(block.page, tmp_path)
    (tmp_path / "block.py").write_text(block.program())
    trains = re.search(r"^import torch|\bpccl\.optim\b", block.program(), re.MULTILINE)
    peers = block.said.get("launch")
    python = ["pccl", "launch", "-n", peers] if peers else ["python"]
    run([*python, *([forked] if trains else []), "block.py"], tmp_path)


@pytest.mark.parametrize("block", named([block for block in SHELL if "run" in block.said]))
def test_a_block_of_commands_runs(block: Block, tmp_path: Path, forked: str) -> None:
    files_of(block.page, tmp_path)
    (tmp_path / "block.sh").write_text(block.text)
    output = run(["bash", "-euo", "pipefail", "block.sh"], tmp_path, forks.stand_ins())
    assert re.search(block.said["run"] or ".", output), output


def test_every_file_of_a_page_is_run() -> None:
    for block in BLOCKS:
        if block.title:
            texts = [other.text for other in SHELL if other.page == block.page and "run" in other.said]
            assert any(block.title in text for text in texts), f"{block.name}: nothing runs {block.title}"


@pytest.mark.parametrize("block", named(SHELL))
def test_commands_exist_as_they_are_written(block: Block) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in docs_blocks.commands_of(block):
        program = Path(words[0]).name
        if program == "pccl":
            parse(main, words[1:])
        elif program == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, words
        elif program in ("python", "python3"):
            assert words[1] in ("-m", "train.py") or (ROOT / words[1]).exists(), words  # train.py: the reader's own
        else:
            assert program in OTHERS, words


def parse(command: click.Command, words: list[str]) -> None:
    """UsageError if there is no such command or option."""
    context = click.Context(command)
    if isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        assert found is not None, words
        parse(found, words[1:])
    else:
        command.make_parser(context).parse_args(list(words))


def test_the_site_builds(tmp_path: Path) -> None:
    run([str(BIN / "mkdocs"), "build", "--strict", "--quiet", "--config-file", str(ROOT / "mkdocs.yml"), "--site-dir",
         str(tmp_path / "site")], ROOT)  # fmt: skip
    assert "all_reduce" in (tmp_path / "site" / "api" / "communicator" / "index.html").read_text()
