"""``pccl launch``: a coordinator and N local peers of one run, their output on one screen, and no orphan afterwards.

The peers find the run in their environment (PCCL_COORDINATOR, PCCL_RUN, PCCL_SECRET), so that the script is the one
that also runs across the world. ``--kill-at`` and ``--join-at`` let a script show, or a test check, what a loss and a
join do.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from pccl.cli._fleet import Fleet, Process, prefixed_sink
from pccl.cli._run_options import http_option, shown

if TYPE_CHECKING:
    from pccl.coordinator.server import Coordinator
    from pccl.messages import Status

POLL_S = 0.01  # how often the run's boundary is looked at while a --kill-at or --join-at waits for it
TERM_S = 5.0  # from SIGTERM to SIGKILL
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(slots=True)
class Steps:
    """Boundaries at which something is to happen, in order."""

    kill: list[int] = field(default_factory=list)
    join: list[int] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.kill or self.join)

    def due(self, boundary: int) -> list[tuple[str, int]]:
        """Takes out what is due; a join before a kill of the same boundary."""
        found = []
        for kind, steps in (("join", self.join), ("kill", self.kill)):
            while steps and steps[0] <= boundary:
                found.append((kind, steps.pop(0)))
        return found


def say(text: str) -> None:
    """One line of the launcher's own."""
    click.echo(f"[launch] {text}", err=True)


class Launch:
    """One run from its first peer to its last: what to do about ends, signals and steps."""

    def __init__(
        self, coordinator: Coordinator, argv: Sequence[str], env: dict[str, str], steps: Steps, grace_s: float
    ):
        self.coordinator = coordinator
        self.argv = argv
        self.env = env
        self.steps = steps
        self.grace_s = grace_s
        self.fleet = Fleet(prefixed_sink(colour_wanted()))
        self.count = 0  # peers from the start; those with higher indices are joiners
        self.next_index = 0
        self.exit_code = 0
        self.signalled = False
        self.term_at: float | None = None
        self.kill_at: float | None = None

    def run(self, count: int) -> int:
        """The exit code: of the first peer that failed and was not killed by us."""
        self.count = count
        try:
            self.fleet.catch_signals(FORWARDED)
            for _ in range(count):
                self.start_peer()
            while self.fleet.living:
                for process in self.fleet.turn(self.patience()):
                    self.on_end(process)
                self.on_signals()
                self.on_deadlines(time.monotonic())
                if self.steps and not self.ending:
                    self.on_boundary(run_boundary(self.coordinator.status(links=False)))
                if self.only_joiners and not self.ending and run_is_empty(self.coordinator.status(links=False)):
                    self.on_late_joiners()
        finally:
            self.fleet.close()
        if self.steps and self.exit_code == 0 and not self.signalled:
            left = [f"--{kind}-at {step}" for kind in ("kill", "join") for step in getattr(self.steps, kind)]
            say(f"the run ended before {', '.join(left)}")
        return self.exit_code

    @property
    def ending(self) -> bool:
        return self.term_at is not None or self.kill_at is not None

    @property
    def only_joiners(self) -> bool:
        """All peers from the start have ended."""
        return bool(self.fleet.living) and all(process.index >= self.count for process in self.fleet.living)

    def start_peer(self) -> None:
        index = self.next_index
        self.next_index += 1
        self.fleet.spawn(index, self.argv, {**self.env, "PCCL_LAUNCH_INDEX": str(index)})

    def patience(self) -> float | None:
        """How long the fleet may be left alone."""
        deadlines = [at for at in (self.term_at, self.kill_at) if at is not None]
        if deadlines:
            return max(0.0, min(deadlines) - time.monotonic())
        return POLL_S if self.steps or self.only_joiners else None

    def on_end(self, process: Process) -> None:
        if process.exit_code == 0 or process.killed_by_us:
            return
        if self.exit_code == 0:
            self.exit_code = process.exit_code
        say(f"peer {process.index} (pid {process.pid}) ended with {describe_end(process)}")
        if self.fleet.living and not self.ending:
            say(f"the others have {self.grace_s:g} s to end")
            self.term_at = time.monotonic() + self.grace_s

    def on_signals(self) -> None:
        while self.fleet.signals:
            signum = self.fleet.signals.pop(0)
            if self.signalled:
                self.kill_all()
                continue
            self.signalled = True
            say(f"{signal.Signals(signum).name}: passed on to {len(self.fleet.living)} peers; once more kills them")
            for process in self.fleet.living:
                process.signal(signum)
            self.term_at = time.monotonic() + self.grace_s

    def on_deadlines(self, now: float) -> None:
        if self.kill_at is not None and now >= self.kill_at:
            self.kill_all()
        elif self.term_at is not None and now >= self.term_at:
            say(f"terminating {len(self.fleet.living)} peers")
            for process in self.fleet.living:
                process.signal(signal.SIGTERM)
                process.killed_by_us = process.killed_by_us or self.exit_code != 0
            self.term_at, self.kill_at = None, now + TERM_S

    def kill_all(self) -> None:
        for process in self.fleet.living:
            process.signal(signal.SIGKILL)

    def on_late_joiners(self) -> None:
        """Nobody is left in the run: those that still wait to join it would wait in vain."""
        for process in self.fleet.living:
            say(f"peer {process.index} came too late: the run is over")
            process.killed_by_us = True
            process.signal(signal.SIGTERM)
        self.kill_at = time.monotonic() + TERM_S

    def on_boundary(self, boundary: int) -> None:
        for kind, step in self.steps.due(boundary):
            if kind == "join":
                say(f"peer {self.next_index} joins at boundary {boundary} (--join-at {step})")
                self.start_peer()
                continue
            victim = max((p for p in self.fleet.living if not p.killed_by_us), key=lambda p: p.index, default=None)
            if victim is not None:
                say(f"peer {victim.index} (pid {victim.pid}) killed at boundary {boundary} (--kill-at {step})")
                victim.killed_by_us = True
                victim.signal(signal.SIGKILL)


def run_boundary(status: Status) -> int:
    """The furthest boundary that a member of the run has reported; -1 before it has begun."""
    return max((member.boundary for group in status.groups for member in group.members), default=-1)


def member_count(status: Status) -> int:
    return sum(len(group.members) for group in status.groups)


def run_is_empty(status: Status) -> bool:
    """It has begun, and all its members have left or are lost."""
    return any(group.epoch for group in status.groups) and not member_count(status)


def describe_end(process: Process) -> str:
    code = process.popen.returncode
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def colour_wanted() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def peer_environment(address: str, run: str, secret: str) -> dict[str, str]:
    """Ours, and how to find the run; one thread per peer unless told otherwise: N peers share this machine."""
    env = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **os.environ}
    env.pop("PCCL_TOKEN", None)  # of another run: this one has a secret
    return {**env, "PCCL_COORDINATOR": address, "PCCL_RUN": run, "PCCL_SECRET": secret}


def default_min_peers(count: int, kills: int) -> int:
    """All of them, less those whose loss the run is to survive."""
    return max(1, count - kills)


@click.command(
    "launch",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option("-n", "--peers", "count", type=click.IntRange(1), required=True, help="How many peers.")
@click.option("-m", "--module", is_flag=True, help="SCRIPT is a module, as with python -m.")
@click.option("--kill-at", type=int, multiple=True, metavar="STEP", help="SIGKILL the last peer at this boundary.")
@click.option("--join-at", type=int, multiple=True, metavar="STEP", help="Start one more peer at this boundary.")
@click.option("--min-peers", type=click.IntRange(1), help="Fewest peers that go on.  [default: peers - kills]")
@click.option("--lease", type=click.FloatRange(min=0.1), default=10.0, show_default=True, help="Seconds of silence.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of the coordinator.  [default: any free one]")
@click.option("--run", default="launch", show_default=True, help="Name of the run.")
@click.option("--grace", type=click.FloatRange(min=0), default=30.0, show_default=True, help="Seconds to end in.")
@http_option
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def command(
    count: int,
    module: bool,
    kill_at: tuple[int, ...],
    join_at: tuple[int, ...],
    min_peers: int | None,
    lease: float,
    port: int,
    run: str,
    grace: float,
    http: str | None,
    script: str,
    args: tuple[str, ...],
) -> None:
    """Run SCRIPT as several local peers of a new run, which begins when all of them are there.

    Their lines appear behind "[index] ". The exit code is that of the first peer that failed; peers killed by --kill-at
    do not count. After a failure, or Ctrl-C, which is passed on, the peers that still live have --grace seconds to end.
    PCCL_SECRET is taken from the environment or made up, and never shown.
    """
    from pccl.coordinator.server import Coordinator

    secret = os.environ.get("PCCL_SECRET") or secrets.token_hex(32)
    argv = [sys.executable, *(["-m"] if module else []), script, *args]
    coordinator = Coordinator(
        bind=f"tcp://127.0.0.1:{port}",
        run=run,
        secret=secret,
        min_peers=min_peers or default_min_peers(count, len(kill_at)),
        form_peers=count,
        lease_s=lease,
    )
    coordinator.start()
    try:
        say(f"run {run!r} at {coordinator.address}")
        env = peer_environment(coordinator.address, run, secret)
        steps = Steps(sorted(kill_at), sorted(join_at))
        with shown(coordinator, http, say):
            code = Launch(coordinator, argv, env, steps, grace).run(count)
    finally:
        coordinator.close()
    sys.exit(code)
