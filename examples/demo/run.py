"""The demo: four peers train a small GPT together, one is killed amid an all-reduce, a new one joins, all end equal.

Starts a coordinator in this process and the peers (train.py) as processes of their own, shows what happens, also on a
page whose address it prints, draws build/demo/loss.png, and ends with one line of JSON. The exit code is 0 only if all
surviving peers hold the same state, the loss fell, the kill and the join took place, and nobody hung.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import queue
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dashboard import Dashboard
from peers import Fleet, Record
from plot import plot
from story import Story

from pccl.coordinator.eyes import Eyes
from pccl.coordinator.server import Coordinator

NAMES = "ABCDEFGHIJKLMNOP"
TICK = 0.25  # seconds between two looks of the dashboard
SILENCE = 90.0  # seconds without any record after which the run counts as hung
RUN = "demo"


class Director:
    """Runs the peers and stages the accident and the join."""

    def __init__(self, options: argparse.Namespace, fleet: Fleet, story: Story) -> None:
        self.options = options
        self.fleet = fleet
        self.story = story
        self.names = NAMES[: options.peers]
        self.victim = self.names[-2]
        self.joiner = NAMES[options.peers]
        self.loading: set[str] = set()
        self.standing_by: set[str] = set()
        self.running: set[str] = set()

    def start(self) -> None:
        """Starts all processes; they load the text and stand by, and connect when they are told to."""
        common = [f"--{name.replace('_', '-')}={getattr(self.options, name)}" for name in ("steps", "batch", "seed")]
        common.append("--standby")
        for name in self.names:
            self.fleet.start(name, [*common, f"--die-at={self.options.kill_at}"] if name == self.victim else common)
        self.fleet.start(self.joiner, common)
        self.running = set(self.fleet.peers)
        self.loading = set(self.fleet.peers)
        self.standing_by = set(self.fleet.peers)
        self.story.tell("start", f"{len(self.running)} processes start and load the text")

    def direct(self, dashboard: Dashboard) -> None:
        """Until every process has ended. Raises TimeoutError when the run hangs."""
        heard = self.story.now
        while self.running:
            self._check_time(self.story.now - heard)
            with contextlib.suppress(queue.Empty):
                name, record = self.fleet.records.get(timeout=TICK)
                heard = self.story.now
                self.take(name, record)
            if self.fleet.records.empty():
                dashboard.show()

    def take(self, name: str, record: Record) -> None:
        """Reacts to one record."""
        self.story.add(name, record)
        if record["kind"] == "ready":
            self.loading.discard(name)
            if not self.loading:
                self._connect(*self.names)
        elif record["kind"] == "exit":
            self._on_exit(name, record["code"])
        if self.joiner in self.standing_by and self.story.newest >= self.options.join_at:
            self._connect(self.joiner)

    def _connect(self, *names: str) -> None:
        self.story.tell("start", f"{', '.join(names)} told to connect")
        self.standing_by.difference_update(names)
        for name in names:
            self.fleet.peers[name].go()

    def _on_exit(self, name: str, code: int) -> None:
        self.running.discard(name)
        if code != 0 and not self.fleet.peers[name].killed:
            self.story.fail(f"{name} ended with exit code {code}; see {self.fleet.peers[name].log}")
        if self.running and self.running <= self.standing_by:
            self.story.fail(f"the run ended without {', '.join(sorted(self.running))}")
            self.standing_by.clear()
            for waiting in self.running:
                self.fleet.peers[waiting].kill()

    def _check_time(self, silent: float) -> None:
        if silent > SILENCE or self.story.now > self.options.timeout:
            raise TimeoutError(f"hung: {', '.join(sorted(self.running))} after {self.story.now:.0f} s")


def verdict(story: Story) -> list[str]:
    """What went wrong; empty if nothing."""
    wrong = list(story.failures)
    if not story.steps:
        return [*wrong, "no step was made"]
    if not story.equal:
        wrong.append("the surviving peers did not all report the same state")
    if not story.killed or not story.retries:
        wrong.append("no peer was killed amid an all-reduce")
    if not story.joined:
        wrong.append("no peer joined")
    if story.loss_last > 0.8 * story.loss_first:
        wrong.append(f"the loss did not fall clearly: from {story.loss_first:.3f} to {story.loss_last:.3f}")
    return wrong


def summary(story: Story, png: Path, wrong: Sequence[str]) -> dict[str, Any]:
    """The last line of the output."""
    return {
        "loss_first": round(story.loss_first, 4),
        "loss_last": round(story.loss_last, 4),
        "val_loss": round(next(reversed(story.validations().values()), math.nan), 4),
        "steps": len(story.steps),
        "peers_over_time": story.peers_over_time(),
        "retries": story.retries,
        "mb_per_s": round(story.mb_per_s),
        "kills": len(story.killed),
        "joins": len(story.joined),
        "state_digests": story.digests,
        "equal": story.equal,
        "seconds": round(story.now, 1),
        "png": str(png),
        "failures": wrong,
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; by default the kill comes after 40 % of the steps, the join after 65 %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8, help="windows per peer and step")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kill-at", type=int, help="step in which one peer is killed")
    parser.add_argument("--join-at", type=int, help="step after which a new peer connects")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds that the whole run may take")
    parser.add_argument("--http", default="0", help="[HOST:]PORT of the page; by default any free port of loopback")
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="where the picture and the logs go")
    options = parser.parse_args(arguments)
    options.kill_at = options.steps * 2 // 5 if options.kill_at is None else options.kill_at
    options.join_at = options.steps * 13 // 20 if options.join_at is None else options.join_at
    if not 2 <= options.peers < len(NAMES):
        parser.error(f"--peers must be between 2 and {len(NAMES) - 1}")
    return options


def rehearse(options: argparse.Namespace, story: Story) -> None:
    """The run itself, from the coordinator's start to the end of the last process."""
    secret = secrets.token_hex(16)
    with contextlib.ExitStack() as stack:
        coordinator = stack.enter_context(
            Coordinator(run=RUN, secret=secret, min_peers=options.peers - 1, form_peers=options.peers)
        )
        eyes = stack.enter_context(Eyes(coordinator.status, options.http))
        contact = {"PCCL_COORDINATOR": coordinator.address, "PCCL_RUN": RUN, "PCCL_SECRET": secret}
        fleet = stack.enter_context(Fleet(contact, options.out))
        dashboard = stack.enter_context(Dashboard(story, options.steps))
        story.tell("start", f"watch the run at {eyes.address}")
        director = Director(options, fleet, story)
        director.start()
        try:
            director.direct(dashboard)
        except (TimeoutError, KeyboardInterrupt) as error:
            story.fail(str(error) or "interrupted")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit code."""
    options = parse(arguments)
    story = Story()
    rehearse(options, story)
    png = options.out / "loss.png"
    plot(story, png)
    wrong = verdict(story)
    for line in wrong:
        print(f"failed: {line}")
    print(json.dumps(summary(story, png, wrong)))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
