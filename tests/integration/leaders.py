"""Coordinators as processes that can be killed and started again, and peers of them in threads of this process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pccl
from pccl import messages as m
from pccl.cli.status import asking
from pccl.keys import run_keys

SECRET = "a secret of this test"
PCCL = [sys.executable, "-c", "from pccl.cli import main; main()"]
LEASE_S = 3.0


class Leader:
    """`pccl coordinator` at one address and with one file, life after life."""

    def __init__(self, folder: Path, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        self.folder = folder
        self.options = options
        self.process: subprocess.Popen[str] | None = None
        self.said: list[str] = []

    def start(self) -> None:
        command = [*PCCL, "coordinator", "--bind", self.address, "--lease", str(LEASE_S), *self.options]
        env = {**os.environ, "PCCL_SECRET": SECRET, "PYTHONUNBUFFERED": "1"}
        log = (self.folder / "coordinator.log").open("a")
        with log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=env, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        self.next_line("run 'default'")

    def next_line(self, said: str) -> None:
        """What it prints next, which has this in it."""
        assert self.process is not None and self.process.stdout is not None
        self.said.append(self.process.stdout.readline())
        assert said in self.said[-1], (self.said, (self.folder / "coordinator.log").read_text())

    def signal(self, signum: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(signum)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.communicate()
            self.process = None

    def group(self) -> m.GroupStatus:
        with asking(self.address, "default", run_keys(SECRET.encode(), "default")) as asker:
            return asker.ask(30.0).groups[0]


class Served(Protocol):
    """Whoever serves a run, at one address or several."""

    address: str


def connect(leader: Served) -> pccl.Communicator:
    return pccl.connect(leader.address, secret=SECRET, listen="127.0.0.1:0", timeout=60, op_timeout=60)


def together(leader: Served, count: int, body: Callable[[pccl.Communicator], Any]) -> list[Any]:
    """Runs `body(comm)` on peers of this process; gives what it gave."""
    found: list[Any] = []
    errors: list[BaseException] = []

    def peer() -> None:
        try:
            with connect(leader) as comm:
                found.append(body(comm))
                comm.barrier(tag="the end")
        except BaseException as error:  # noqa: BLE001 - the test's thread tells of it
            errors.append(error)

    threads = [threading.Thread(target=peer, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(150)
    assert not errors, errors
    assert len(found) == count, "a peer hangs"
    return found


def who(leader: Leader) -> set[tuple[bytes, int]]:
    return {(member.peer, member.since) for member in leader.group().members}
