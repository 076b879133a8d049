"""What happened in a run, gathered from the peers' records; the dashboard, the plot and the verdict read it."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

Record = dict[str, Any]
AVERAGED = 10  # steps in the mean that stands for the last loss


@dataclass
class Step:
    """One training step, as the first peer that reported it saw it.

    Two are gathered from all peers: retries are the most that any saw; mb_per_s is the rate of the last bucket's
    all-reduce for the peer that called it last, which is the one that had to wait for nobody.
    """

    loss: float
    peers: int
    epoch: int
    seconds: float
    mb_per_s: float
    retries: int
    validation: float | None


@dataclass(frozen=True)
class Event:
    """Something worth a line: kind is "start", "kill", "join", "retry", "sync", "done" or "failure"."""

    seconds: float
    step: int
    kind: str
    text: str


@dataclass
class Story:
    """Everything that is known about the run so far."""

    begun: float = field(default_factory=time.monotonic)
    steps: dict[int, Step] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    reached: dict[str, int] = field(default_factory=dict)  # the newest step that each peer reported
    digests: dict[str, str] = field(default_factory=dict)
    killed: list[str] = field(default_factory=list)
    joined: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.begun

    @property
    def newest(self) -> int:
        """The newest step that any peer reported; -1 before the first."""
        return max(self.steps, default=-1)

    @property
    def retries(self) -> int:
        """All-reduces that had to start again, counted once for the whole group."""
        return sum(step.retries for step in self.steps.values())

    @property
    def mb_per_s(self) -> float:
        """The median over the steps."""
        return statistics.median(step.mb_per_s for step in self.steps.values()) if self.steps else math.nan

    @property
    def equal(self) -> bool:
        """Whether every peer that was not killed has reported the same digest."""
        survivors = (set(self.reached) | set(self.joined)) - set(self.killed)
        return set(self.digests) == survivors and len(set(self.digests.values())) == 1

    @property
    def loss_first(self) -> float:
        """The group's loss in the first step."""
        return self.steps[min(self.steps)].loss if self.steps else math.nan

    @property
    def loss_last(self) -> float:
        """The group's mean loss over the last steps."""
        last = [step.loss for _, step in sorted(self.steps.items())[-AVERAGED:]]
        return sum(last) / len(last) if last else math.nan

    def fail(self, text: str) -> None:
        """Adds an event that makes the run a failure."""
        self.failures.append(text)
        self.tell("failure", text)

    def tell(self, kind: str, text: str, step: int | None = None) -> None:
        """Adds an event."""
        self.events.append(Event(self.now, self.newest if step is None else step, kind, text))

    def add(self, name: str, record: Record) -> None:
        """Takes in one record of the peer called `name`."""
        handler = getattr(self, f"_on_{record['kind'].replace('-', '_')}", None)
        if handler is not None:
            handler(name, record)

    def validations(self) -> dict[int, float]:
        """Validation losses by step."""
        return {number: step.validation for number, step in sorted(self.steps.items()) if step.validation is not None}

    def peers_over_time(self) -> list[tuple[int, int]]:
        """(step, peers) for the first step and for each in which the number of peers was another one."""
        changes: list[tuple[int, int]] = []
        for number, step in sorted(self.steps.items()):
            if not changes or changes[-1][1] != step.peers:
                changes.append((number, step.peers))
        return changes

    def _on_step(self, name: str, record: Record) -> None:
        number = record["step"]
        self.reached[name] = number
        known = self.steps.get(number)
        if known is None:
            keys = ("loss", "peers", "epoch", "seconds", "mb_per_s", "retries", "validation")
            self.steps[number] = known = Step(**{key: record[key] for key in keys})
            if known.retries:
                text = f"{known.retries} of the step's all-reduces started again, among the {known.peers} survivors"
                self.tell("retry", text, number)
        known.retries = max(known.retries, record["retries"])
        known.mb_per_s = max(known.mb_per_s, record["mb_per_s"])

    def _on_sync(self, name: str, record: Record) -> None:
        if record["new"] and record["step"] > 0:
            self.joined.append(name)
            text = f"{name} joined: received {record['bytes'] / 1e6:.1f} MB of state in {record['seconds']:.2f} s"
            self.tell("join", text, record["step"])
        elif record["bytes"]:
            self.fail(f"{name} had drifted by step {record['step']}: {record['bytes']} bytes repaired")

    def _on_kill_me(self, name: str, record: Record) -> None:
        self.killed.append(name)
        submitted = f"{record['submitted']} of {record['buckets']} gradient buckets submitted"
        self.tell("kill", f"SIGKILL to {name} amid its all-reduces: {submitted}", record["step"])

    def _on_done(self, name: str, record: Record) -> None:
        self.digests[name] = record["digest"]
        self.tell("done", f"{name} done, state {record['digest'][:12]}")
