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

import pccl

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


# -- who may come in ----------------------------------------------------------------------------------------------


def refused(cwd: Path, *options: str) -> str:
    """What `pccl coordinator` without a secret says when it does not start."""
    command = [*PCCL, "coordinator", "--run", "r", *options]
    ended = subprocess.run(
        command, cwd=cwd, env=environment(""), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    return ended.stderr


@pytest.mark.parametrize("bind", [(), ("--bind", "tcp://0.0.0.0:0"), ("--bind", "tcp://*:0"), ("--bind", "[::]:0")])
def test_without_a_secret_nobody_is_let_in_from_outside(tmp_path: Path, bind: tuple[str, ...]) -> None:
    said = refused(tmp_path, *bind)
    assert said.startswith("Error: a run without a secret would be open to everybody who reaches")
    for way_out in ("PCCL_SECRET", "--secret-file", "tcp://127.0.0.1:29400", "--insecure"):
        assert way_out in said


@pytest.mark.parametrize(
    "options", [("--bind", "tcp://127.0.0.1:0"), ("--bind", "localhost:0"), ("--bind", "tcp://0.0.0.0:0", "--insecure")]
)
def test_without_a_secret_on_loopback_or_if_it_is_wanted(tmp_path: Path, options: tuple[str, ...]) -> None:
    process = subprocess.Popen(
        [*PCCL, "coordinator", "--run", "r", *options],
        cwd=tmp_path,
        env=environment(""),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("run 'r' at tcp://")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("options", "reason"), [((), "dials only"), (("--no-dial-back",), "")])
def test_dial_back_can_be_switched_off(tmp_path: Path, options: tuple[str, ...], reason: str) -> None:
    """A peer advertises an address where nobody answers."""
    with coordinator(tmp_path, *options) as (_, address):
        given = {"run": "r", "secret": SECRET, "listen": "127.0.0.1:0", "advertise": "127.0.0.1:9"}
        with pccl.connect(address, **given):
            (group,) = json.loads(status(tmp_path, address, "--json").stdout)["groups"]
        said = [entry["what"] for entry in group["log"] if entry["what"] == "dials only"]
        assert said == ([reason] if reason else [])
        assert [member["inbound"] for member in group["members"]] == [not reason]


def test_a_token_lets_a_peer_in(tmp_path: Path) -> None:
    secret_file = tmp_path / "secret"
    secret_file.write_text(SECRET + "\n")
    secret_file.chmod(0o600)
    command = [*PCCL, "token", "--run", "r", "--ttl", "10m", "--secret-file", str(secret_file)]
    made = subprocess.run(command, cwd=tmp_path, env=environment(""), capture_output=True, text=True, check=True)
    token = made.stdout.strip()
    assert token.startswith("pccl-token-1.") and SECRET not in made.stdout + made.stderr and token not in made.stderr
    with coordinator(tmp_path) as (_, address):
        environ = {"PCCL_COORDINATOR": address, "PCCL_TOKEN": token, "PCCL_LISTEN": "127.0.0.1:0"}
        with pccl.connect(environ=environ, timeout=PATIENCE_S) as comm:
            comm.barrier()


@pytest.mark.parametrize(
    ("options", "secret", "said"),
    [
        ((), "", "set PCCL_SECRET, or pass --secret-file"),
        (("--ttl", "soon"), SECRET, "write 30s, 15m, 8h, 7d"),
        (("--ttl", "31d"), SECRET, "1 s to 30 days"),
    ],
)
def test_a_token_that_cannot_be(tmp_path: Path, options: tuple[str, ...], secret: str, said: str) -> None:
    command = [*PCCL, "token", *options]
    ended = subprocess.run(command, cwd=tmp_path, env=environment(secret), capture_output=True, text=True, check=False)
    assert ended.returncode != 0 and said in ended.stderr and "Traceback" not in ended.stderr and not ended.stdout
