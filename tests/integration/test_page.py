"""A run that is watched: its metrics move; the page, in a browser, and `pccl top` show who was lost and who came."""

from __future__ import annotations

import codecs
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from prometheus_client.parser import text_string_to_metric_families
from unit.eyes_status import example

from pccl.coordinator.eyes import Eyes

ROOT = Path(__file__).resolve().parents[2]
PCCL = [sys.executable, "-c", "from pccl.cli import main; main()"]
PATIENCE_S = 60
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium to open the page with (on Debian: apt-get install chromium)"
)
EVENT = r'<span class="what">([\w ]+)</span> <span class="peer">(\w{4})\w{4}</span> .*?>(.*?)</span>'


def fetched(address: str, path: str) -> str:
    with urllib.request.urlopen(f"{address}{path}", timeout=PATIENCE_S) as answer:
        return str(answer.read().decode())


def metric(address: str, name: str) -> list[float]:
    """All its samples."""
    families = text_string_to_metric_families(fetched(address, "metrics"))
    return [sample.value for family in families for sample in family.samples if sample.name == name]


def test_metrics_move_with_the_run(cluster: Any) -> None:
    coordinator = cluster.coordinator(1)
    with Eyes(coordinator.status, "0") as eyes:
        assert metric(eyes.address, "pccl_joins_total") == []
        with cluster.connect(coordinator) as comm:
            wait_for(lambda: metric(eyes.address, "pccl_members") == [1])
            comm.all_reduce(np.ones(1000, np.float32))
            comm.advance()
            wait_for(lambda: metric(eyes.address, "pccl_member_ops_total") == [1])
            assert metric(eyes.address, "pccl_boundary") == [1]
        wait_for(lambda: metric(eyes.address, "pccl_members") == [0])
        assert metric(eyes.address, "pccl_joins_total") == [1]
        leave, *others = metric(eyes.address, "pccl_losses_total")
        assert (leave, others) == (1, [0, 0])


def wait_for(what: Callable[[], bool]) -> None:
    """Looks again and again; each look is a round trip."""
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline


def test_a_coordinator_that_is_asked_to_shows_the_run(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*PCCL, "coordinator", "--bind", "tcp://127.0.0.1:0", "--http", "0"],
        cwd=tmp_path,
        env={**os.environ, "PCCL_SECRET": "a secret", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline() + process.stdout.readline()
        found = re.search(r"shown at (http://127\.0\.0\.1:\d+/)", said)
        assert found, said
        assert json.loads(fetched(found[1], "status.json"))["groups"] == []
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, "Traceback" in err) == (0, False)
    finally:
        process.kill()
        process.communicate()


# -- a run with a loss and a join ---------------------------------------------------------------------------------


class Run:
    """`pccl launch` of the elastic example; `lost`, `came`: the first digits of the peers that did."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stderr is not None and process.stdout is not None
        self.coordinator = self._said(process.stderr, r"at (tcp://127\.0\.0\.1:\d+)")
        self.address = self._said(process.stderr, r"shown at (http://127\.0\.0\.1:\d+/)")
        self.lost = self._said(process.stdout, r"2 peers: -(\w{4}) ")
        self.came = self._said(process.stdout, r"3 peers: \+(\w{4}) ")

    def _said(self, stream: Any, pattern: str) -> str:
        for line in stream:
            if found := re.search(pattern, line):
                return str(found[1])
        raise AssertionError(f"nobody said {pattern}")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Three peers, one is killed, another one comes."""
    options = ["-n", "3", "--kill-at", "10", "--join-at", "20", "--lease", "5", "--http", "0"]
    example = [str(ROOT / "examples" / "02_elastic.py"), "--steps", "1000000", "--pause", "0.02"]
    process = subprocess.Popen(
        [*PCCL, "launch", *options, *example],
        cwd=tmp_path_factory.mktemp("run"),
        env={**os.environ, "PCCL_SECRET": "a secret"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Run(process)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)


def browse(address: str, profile: Path, *options: str) -> str:
    """What the browser prints about the page when it has been open for some seconds of its own, virtual clock."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *QUIET.split(), f"--user-data-dir={profile}", "--virtual-time-budget=3000", *options, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    return done.stdout


@needs_browser
def test_a_browser_shows_who_was_lost_and_who_came(run: Run, tmp_path: Path) -> None:
    picture = ROOT / "build" / "test" / "page.png"  # for people
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.unlink(missing_ok=True)
    dom = browse(run.address, tmp_path, "--dump-dom", "--window-size=1400,1100", f"--screenshot={picture}")
    assert picture.stat().st_size > 40_000, "an empty page"
    live = re.search(r'id="live" class="pill (\w+)">(\w+)<', dom)
    assert live and live.groups() == ("good", "live")
    events = re.findall(
        r'<span class="what">([\w ]+)</span> <span class="peer">(\w{4})\w{4}</span> .*?>(.*?)</span>', dom
    )
    lost = [why for what, peer, why in events if (what, peer) == ("lost", run.lost)]
    assert len(lost) == 1 and "its control connection closed" in lost[0]
    came = [why for what, peer, why in events if (what, peer) == ("join", run.came)]
    assert len(came) == 1 and ", pid " in came[0]
    table = re.search(r'<table id="members">(.*?)</table>', dom, re.DOTALL)
    assert table and len(re.findall("<tr", table[1])) == 4
    assert f">{run.came}" in table[1] and f">{run.lost}" not in table[1]
    assert re.search(rf'class="node gone".*?>{run.lost}', dom), "the graph shows it for a while"
    assert dom.count('class="reach"') == 6, "three members, each way"


@needs_browser
def test_what_peers_call_themselves_is_text(tmp_path: Path) -> None:
    """A member by the name of a tag, and a reason that is a script: both are read, neither is obeyed."""
    status = example()
    group = status.groups[0]
    named = structs.replace(group.members[0], host="<img src=x onerror=document.title='obeyed'>")
    hostile = structs.replace(status, groups=(structs.replace(group, members=(named, *group.members[1:])),))
    with Eyes(lambda: hostile, "0") as eyes:
        dom = browse(eyes.address, tmp_path, "--dump-dom")
    assert "<title>pccl demo</title>" in dom
    assert "&lt;img src=x onerror=" in dom and "<img" not in dom
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in dom and "<script>alert" not in dom
    assert 'class="link broken"' in dom and "the mesh is faster" in dom


def test_top_in_a_terminal(run: Run, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PCCL_SECRET": "a secret", "TERM": "xterm", "LINES": "40", "COLUMNS": "180"}
    command = [*PCCL, "top", run.coordinator, "--run", "launch"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen, text = "", codecs.getincrementaldecoder("utf-8")()  # what is read may end amid a character
    try:
        wanted = ("what happened", "links, each way", "boundary", f"lost {run.lost}", f"join {run.came}")
        while not all(words in seen for words in wanted):
            assert select.select([ours], [], [], PATIENCE_S)[0], seen
            seen += text.decode(os.read(ours, 65536))
        process.send_signal(signal.SIGINT)
        while select.select([ours], [], [], PATIENCE_S)[0]:
            try:
                seen += text.decode(os.read(ours, 65536))
            except OSError:  # the other side is closed
                break
        assert process.wait(PATIENCE_S) == 1
        assert "Traceback" not in seen
    finally:
        process.kill()
        process.wait()
        os.close(ours)
