"""`pccl coordinator` and `pccl status` as processes: what they print, how they end, and who gets an answer."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PCCL = [sys.executable, "-c", "from pccl.cli import main; main()"]
PATIENCE_S = 60
SECRET = "a secret of this test"


def environment(secret: str = SECRET) -> dict[str, str]:
    return {**os.environ, "PCCL_SECRET": secret, "PYTHONUNBUFFERED": "1"}


@contextmanager
def coordinator(cwd: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """(process, address) of one that listens at a free port of loopback."""
    process = subprocess.Popen(
        [*PCCL, "coordinator", "--bind", "tcp://127.0.0.1:0", "--run", "r", *options],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"tcp://127\.0\.0\.1:\d+", line)
        assert found, line
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()


def status(cwd: Path, address: str, *options: str, secret: str = SECRET) -> subprocess.CompletedProcess[str]:
    command = [*PCCL, "status", address, "--run", "r", *options]
    return subprocess.run(command, cwd=cwd, env=environment(secret), capture_output=True, text=True, timeout=PATIENCE_S)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_coordinator_ends_cleanly(tmp_path: Path, signum: signal.Signals) -> None:
    with coordinator(tmp_path) as (process, _):
        process.send_signal(signum)
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
        assert "Traceback" not in err


def test_an_address_in_use_is_one_line(tmp_path: Path) -> None:
    with coordinator(tmp_path) as (_, address):
        second = subprocess.run(
            [*PCCL, "coordinator", "--bind", address],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert second.returncode == 1
        assert second.stderr.startswith("Error: cannot listen at")
        assert "Traceback" not in second.stderr


def test_status_answers_who_knows_the_secret(tmp_path: Path) -> None:
    with coordinator(tmp_path) as (_, address):
        found = json.loads(status(tmp_path, address, "--json").stdout)
        assert found["run"] == "r"
        assert found["groups"] == []
        assert "nobody has joined" in status(tmp_path, address).stdout
        stranger = status(tmp_path, address, "--timeout", "0.5", secret="another")
        assert stranger.returncode == 1
        assert "no answer" in stranger.stderr


def test_status_shows_the_peers(tmp_path: Path) -> None:
    """Two peers join and stay; meanwhile the coordinator knows them."""
    script = (
        "import signal, pccl\n"
        "with pccl.connect(run='r') as comm:\n"
        "    comm.barrier()\n"
        "    print('in', flush=True)\n"
        "    signal.pause()\n"
    )
    with coordinator(tmp_path, "--min-peers", "2") as (_, address):
        env = {**environment(), "PCCL_COORDINATOR": address}
        peers = [
            subprocess.Popen([sys.executable, "-c", script], env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        try:
            for peer in peers:
                assert peer.stdout is not None
                assert peer.stdout.readline() == "in\n"
            found = json.loads(status(tmp_path, address, "--json").stdout)
        finally:
            for peer in peers:
                peer.terminate()
                peer.communicate()
    members = found["groups"][0]["members"]
    assert [member["rank"] for member in members] == [0, 1]
    assert {member["pid"] for member in members} == {peer.pid for peer in peers}
    assert found["groups"][0]["log"], "no decision was recorded"
