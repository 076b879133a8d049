"""crew.py - processes of peer.py, a coordinator for each run, and what the peers tell of it; checks that they agree.

A run is a list of jobs that begin together, and perhaps a joiner: all members wait at a gate before a given step until
the joiner's epoch is decided, so that it enters at the same boundary in every run.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pccl.coordinator.server import Coordinator
from stress.optim.peer import DRIFTING, PATIENCE_S, Job

__all__ = ["Crew", "Told", "disagreements"]

SCRIPT = Path(__file__).with_name("peer.py")
LEASE_S = 30.0  # nobody dies here; a peer that gets no processor for some seconds is none that has died


@dataclass(slots=True)
class Told:
    """What a peer told of a run."""

    job: Job
    rounds: list[dict[str, Any]] = field(default_factory=list)
    gates: list[int] = field(default_factory=list)
    watches: list[tuple[int, int, float]] = field(default_factory=list)
    end: dict[str, Any] | None = None


class _Process:
    """A peer's process and its present job."""

    def __init__(self, python: Sequence[str]) -> None:
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._popen = subprocess.Popen(
            [*python, str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environ
        )
        self._rest = b""
        self.told: Told | None = None

    @property
    def stdout(self) -> int:
        assert self._popen.stdout is not None
        return self._popen.stdout.fileno()

    def write(self, line: str) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write(line.encode() + b"\n")

    def begin(self, job: Job) -> Told:
        self.told = Told(job)
        self.write(json.dumps(asdict(job)))
        return self.told

    def read(self) -> None:
        data = os.read(self.stdout, 1 << 16)
        if not data:
            raise RuntimeError(f"a peer ended with {self._popen.wait()} in {self.told and self.told.job}")
        *lines, self._rest = (self._rest + data).split(b"\n")
        assert self.told is not None
        for line in map(json.loads, lines):
            if "end" in line:
                self.told.end = line["end"]
            elif "gate" in line:
                self.told.gates.append(line["gate"])
            elif "watch" in line:
                step, sent, loss = line["watch"]
                self.told.watches.append((step, sent, loss))
            else:
                self.told.rounds.append(line)

    def finish(self) -> None:
        """No more jobs."""
        assert self._popen.stdin is not None
        self._popen.stdin.close()

    def close(self, timeout_s: float) -> None:
        """Until it has ended; it is killed when that takes longer."""
        assert self._popen.stdout is not None
        try:
            self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._popen.stdout.close()


class Crew:
    """Peers that outlive runs; a context manager. `python`: what runs their script."""

    def __init__(self, python: Sequence[str] = (sys.executable,)) -> None:
        self._python = python
        self._processes: list[_Process] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        for process in self._processes:
            process.finish()
        for process in self._processes:
            process.close(0.0 if kind else PATIENCE_S)

    def alone(self, job: Job) -> Told:
        """A run without others."""
        told = self._process(0).begin(job)
        self._until(lambda: told.end is not None)
        return told

    def run(self, jobs: Sequence[Job], joiner: Job | None = None) -> list[Told]:
        """All jobs together under a coordinator of their own; the joiner enters when all have come to their gate."""
        with Coordinator(min_peers=1, form_peers=len(jobs), lease_s=LEASE_S) as coordinator:
            told = [self._begin(place, job, coordinator) for place, job in enumerate(jobs)]
            if joiner is not None:
                self._until(lambda: all(one.gates or one.end for one in told))
                told.append(self._join(len(jobs), joiner, coordinator))
                for process in self._processes[: len(jobs)]:
                    if process.told is not None and process.told.end is None:
                        process.write("")
            self._until(lambda: all(one.end is not None for one in told))
        return told

    def _begin(self, place: int, job: Job, coordinator: Coordinator) -> Told:
        return self._process(place).begin(_at(job, coordinator.address))

    def _join(self, place: int, job: Job, coordinator: Coordinator) -> Told:
        """Until the epoch with the joiner is decided."""
        before = coordinator.status().groups[0].epoch
        told = self._begin(place, job, coordinator)
        self._until(lambda: coordinator.status().groups[0].epoch > before)
        return told

    def _process(self, place: int) -> _Process:
        while len(self._processes) <= place:
            self._processes.append(_Process(self._python))
        return self._processes[place]

    def _until(self, done: Callable[[], bool]) -> None:
        """Takes what the peers tell until then."""
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            readable, _, _ = select.select([process.stdout for process in self._processes], [], [], 0.05)
            for process in self._processes:
                if process.stdout in readable:
                    process.read()
                    deadline = time.monotonic() + PATIENCE_S
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing was heard for {PATIENCE_S:g} s: {[p.told for p in self._processes]}")


def _at(job: Job, address: str) -> Job:
    return Job(**{**asdict(job), "address": address})


# -- what must be so whatever the loss is ------------------------------------------------------------------------------


def disagreements(told: Sequence[Told], changes: int = 0) -> list[str]:
    """Every way in which the peers of a run disagree. `changes`: how many left or joined; without any, no round may
    have been tried twice, and nobody may have had to be repaired."""
    wrong = []
    ends = [one.end for one in told if one.end is not None and "loss" in one.end]
    losses = {end["loss"] for end in ends}
    if len(losses) != 1:
        wrong.append(f"losses {sorted(losses)}")
    by_key: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for one in told:
        for line in one.rounds:
            by_key.setdefault(tuple(line["round"]), []).append(line)
    drifting = told[0].job.options.get("mode") in DRIFTING
    leavers = sum(one.end is not None and "left" in one.end for one in told)  # their last delta may land without them
    for key, lines in by_key.items():
        digests = {line["digest"] for line in lines}
        if not drifting and len(digests) != 1:
            wrong.append(f"round {key}: digests {sorted(digests)} of Theta and outer state")
        silent = {line["peers"] - len(lines) for line in lines}
        if told[0].job.options.get("mode") != "gossip" and silent not in ({0}, {leavers}):
            wrong.append(f"round {key}: {[line['peers'] for line in lines]} peers, told by {len(lines)}")
        if any(line.get("excluded") for line in lines):
            wrong.append(f"round {key}: a delta was left out")
    if not changes and any(end.get(what) for end in ends for what in ("retries", "dropped", "repaired_bytes")):
        wrong.append(f"without a reason: {ends}")
    return wrong
