"""Runs a command at every site, and passes on what it prints with the site's name in front."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from .emulator import Emulator
from .script import playing
from .topology import Topology

GRACE_S = 5.0


@dataclass(slots=True)
class Task:
    """One command at one site, and the thread that passes its output on."""

    label: str
    process: subprocess.Popen[str]
    reader: threading.Thread


def report(line: str, label: str = "wan") -> None:
    print(f"[{label}] {line}", flush=True)


def forward(process: subprocess.Popen[str], label: str) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            report(line.rstrip("\n"), label)


def start(wan: Emulator, site: str, argv: Sequence[str], label: str) -> Task:
    process = wan.popen(site, argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    reader = threading.Thread(target=forward, args=(process, label))
    reader.start()
    return Task(label, process, reader)


def signal_all(tasks: Sequence[Task], number: signal.Signals) -> None:
    for task in tasks:
        if task.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(task.process.pid, number)


def wait_all(tasks: Sequence[Task], timeout_s: float | None) -> bool:
    """False when some still run after that time."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    for task in tasks:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            task.process.wait(left)
        except subprocess.TimeoutExpired:
            return False
    return True


def end(tasks: Sequence[Task]) -> None:
    """SIGTERM, then SIGKILL, to all that still run and their children; then the rest of their output."""
    signal_all(tasks, signal.SIGTERM)
    if not wait_all(tasks, GRACE_S):
        signal_all(tasks, signal.SIGKILL)
        wait_all(tasks, None)
    for task in tasks:
        task.reader.join(GRACE_S)


def exit_code(tasks: Sequence[Task]) -> int:
    """0 when all succeeded, else that of the first that did not."""
    codes = [(task, task.process.returncode) for task in tasks if task.process.returncode]
    for task, code in codes:
        report(f"ended with {code}", task.label)
    return next((code if code > 0 else 128 - code for _, code in codes), 0)


def run(
    topology: Topology, argv: Sequence[str], coordinator: Sequence[str], sites: Sequence[str], timeout_s: float | None
) -> int:
    """Runs argv at the sites (without names: all of the role peer), and `coordinator` at the coordinator's site."""
    chosen = list(sites) or [site.name for site in topology.peers]
    with Emulator(topology) as wan:
        report(f"{topology.name}: {len(wan.sites)} sites, router at {wan.socket_path}")
        helpers: list[Task] = []
        tasks: list[Task] = []
        try:
            if coordinator:
                helpers.append(start(wan, topology.coordinator.name, coordinator, "coordinator"))
            with playing(wan, topology.script, report):
                tasks += [start(wan, site, argv, site) for site in chosen]
                in_time = wait_all(tasks, timeout_s)
        except KeyboardInterrupt:
            signal_all([*tasks, *helpers], signal.SIGINT)
            wait_all(tasks, GRACE_S)
            raise
        finally:
            end(tasks)
            end(helpers)
        if not in_time:
            report(f"not done after {timeout_s:g} s")
            return 124
        return exit_code(tasks)


def main_guard() -> None:
    """SIGTERM ends a run as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
