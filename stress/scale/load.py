"""load.py - the real coordinator under a crowd: what happens per join, leave, death, verdict, advance, and new plan.

`pccl coordinator` runs as a user's would, in a process of its own; the crowd is another, on loopback. A time is from
the cause until the last session has the new epoch. Both processes share this machine, and what the crowd does for a
thousand peers takes longer than what the coordinator does, so the coordinator's own processor time is taken as well.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pccl import messages as m
from pccl import session
from pccl.coordinator.settings import REPLAN_GAP_S
from pccl.types import Cause, OpName

from .crowd import Crowd, CrowdError, Traffic, without_engines
from .geography import geography

RUN, SECRET = "scale", "scale"
COMMAND = "from pccl.cli import main; main()"
PATIENCE_S = 60.0
QUIET_S = 0.1
REPLAN_S = REPLAN_GAP_S + 5.0
ADVANCES, ADVANCES_S = 20, 1.0
OP = OpName(0, 0, 0)

Row = dict[str, Any]


class Host:
    """The coordinator's process."""

    def __init__(self, min_peers: int, lease_s: float) -> None:
        options = ["--bind", "tcp://127.0.0.1:0", "--run", RUN, "--min-peers", str(min_peers), "--lease", str(lease_s)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "coordinator", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PCCL_SECRET": SECRET},
        )
        assert self.process.stdout is not None
        found = re.search(r"tcp://[^ ,]+", self.process.stdout.readline())
        if found is None:
            self.close()
            raise CrowdError("the coordinator did not start")
        self.address = found[0]

    def cpu_s(self) -> float:
        """What all its threads have run so far."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def memory_bytes(self) -> int:
        """What it holds."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()


@dataclass(slots=True)
class Samples:
    """Of one kind of event, one entry per trial."""

    seconds: list[float] = field(default_factory=list)
    messages: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def row(self, sessions: int, event: str) -> Row:
        return {
            "sessions": sessions,
            "event": event,
            "trials": len(self.seconds),
            "messages": statistics.median_low(self.messages),
            "bytes": statistics.median_low(self.bytes),
            "median_ms": statistics.median(self.seconds) * 1e3,
            "worst_ms": max(self.seconds) * 1e3,
            "coordinator_cpu_ms": statistics.median(self.cpu_s) * 1e3,
        }


def rows(sizes: list[int], trials: int, lease_s: float, replan: bool) -> Iterator[Row]:
    """One per number of sessions and event."""
    with without_engines():
        for sessions in sizes:
            host = Host(sessions, lease_s)
            crowd = Crowd(host.address, RUN, SECRET.encode())
            try:
                yield from Load(host, crowd, trials).rows(sessions, replan)
            finally:
                crowd.close()
                host.close()


class Load:
    """One crowd of one size."""

    def __init__(self, host: Host, crowd: Crowd, trials: int) -> None:
        self.host, self.crowd, self.trials = host, crowd, trials
        self.epoch = 0
        self.samples: dict[str, Samples] = {}

    def rows(self, sessions: int, replan: bool) -> Iterator[Row]:
        self.event("form", lambda: self.crowd.add(sessions))
        for _ in range(self.trials):
            self.event("join", lambda: self.crowd.add(1))
            self.event("leave", lambda: self.crowd.part(self.crowd.members[-1]))
            self.event("join", lambda: self.crowd.add(1))
            self.event("death", self.death)
            self.event("verdict", self.verdict)
        for event, samples in self.samples.items():
            yield samples.row(sessions, event)
        yield self.advance()
        yield self.heartbeats()
        if replan:
            self.event("verdict", self.verdict)  # from now on no new plan for a while
            yield from self.replan()

    # -- events ----------------------------------------------------------------------------------------------------

    def event(self, name: str, act: Callable[[], Any]) -> None:
        """One trial: from the act until all have the next epoch."""
        self.begin()
        began = time.monotonic()
        act()
        self.epoch += 1
        self.crowd.wait(lambda: self.crowd.all_at(self.epoch), PATIENCE_S, name)
        self.end(name, time.monotonic() - began)

    def begin(self) -> None:
        self.crowd.traffic, self.cpu_s = Traffic(), self.host.cpu_s()

    def end(self, name: str, seconds: float) -> None:
        """What the event brought about after all: every heartbeat has its answer, and nothing more comes."""
        self.settle()
        messages, count = self.crowd.traffic.total()
        samples = self.samples.setdefault(name, Samples())
        samples.seconds.append(seconds)
        samples.messages.append(messages)
        samples.bytes.append(count)
        samples.cpu_s.append(self.host.cpu_s() - self.cpu_s)

    def settle(self) -> None:
        seen, deadline = -1, time.monotonic() + PATIENCE_S
        while (now := self.crowd.traffic.messages.total()) != seen or self.crowd.unanswered:
            if time.monotonic() > deadline:
                raise CrowdError("the sessions do not come to rest")
            seen = now
            self.crowd.pass_time(QUIET_S)

    def death(self) -> None:
        """The last one is gone; all others lose their links to it at once, dial again, and are refused."""
        member = self.crowd.members[-1]
        self.crowd.remove(member)
        for cause in (Cause.EOF, Cause.REFUSED):
            for other in self.crowd.members:
                other.tell(session.LinkDown(member.peer, cause, 0))

    def verdict(self) -> None:
        """All have called an op and none has finished it; one cancels it."""
        pending = m.Pending(m.OpRef(*OP), False, False, (), "all_reduce(sum) of float32[1024]")
        for member in self.crowd.members:
            member.pending = (pending,)
        self.crowd.members[0].tell(session.Faulted("cancelled", OP, b"", pending.what, ""))

    def advance(self) -> Row:
        """Everybody passes boundaries, and nobody waits: not a message but heartbeats."""
        self.settle()
        self.begin()
        calls, slowest = 0, 0.0
        for _ in range(ADVANCES):
            for member in self.crowd.members:
                began, boundary = time.perf_counter(), member.session.boundary
                member.tell(session.Advance())
                slowest = max(slowest, time.perf_counter() - began)
                calls += 1
                if member.session.boundary != boundary + 1:
                    raise CrowdError(f"advance() waits for {member.session.waits_for}")
            self.crowd.pass_time(ADVANCES_S / ADVANCES)
        self.settle()
        counts = self.crowd.traffic.messages
        return {
            "sessions": len(self.crowd.members),
            "event": "advance",
            "trials": calls,
            "messages": counts.total() - counts["Heartbeat"] - counts["Ack"],
            "heartbeats": counts["Heartbeat"],
            "worst_ms": slowest * 1e3,
            "coordinator_cpu_ms": (self.host.cpu_s() - self.cpu_s) * 1e3,
        }

    def heartbeats(self) -> Row:
        """Nothing happens but time; the Acks tell how soon the coordinator comes to a message."""
        self.begin()
        self.crowd.ack_s.clear()
        seconds = 2.2 * self.crowd.members[0].session.lease_s / 5
        self.crowd.pass_time(seconds)
        acks = self.crowd.ack_s
        return {
            "sessions": len(self.crowd.members),
            "event": "heartbeat",
            "trials": len(acks),
            "messages": 2,
            "bytes": self.crowd.traffic.bytes.total() // max(1, len(acks)),
            "median_ms": statistics.median(acks) * 1e3,
            "worst_ms": max(acks) * 1e3,
            "coordinator_cpu_ms": (self.host.cpu_s() - self.cpu_s) * 1e3 / max(1, len(acks)),
            "coordinator_load": (self.host.cpu_s() - self.cpu_s) / seconds,
            "coordinator_memory_bytes": self.host.memory_bytes(),
        }

    # -- a new plan ------------------------------------------------------------------------------------------------

    def replan(self) -> Iterator[Row]:
        """Everybody has measured its links to all others; then, if there is a better plan, it waits for a boundary.

        The second row's time is from the first Hold; the planning before that delays Acks.
        """
        self.begin()
        self.crowd.ack_s.clear()
        began = time.monotonic()
        for member, reports in zip(self.crowd.members, self.figures(), strict=True):
            member.session.links = reports
            member.tell(session.Connected())
        self.settle()
        self.end("figures", max(self.crowd.ack_s))
        yield self.samples["figures"].row(len(self.crowd.members), "figures")
        self.begin()
        self.crowd.ack_s.clear()
        while "Hold" not in self.crowd.traffic.first:
            if time.monotonic() > began + REPLAN_S:
                return  # the plan in use is good enough
            self.crowd.pass_time(QUIET_S)
        self.epoch += 1
        self.crowd.wait(lambda: self.crowd.all_at(self.epoch), PATIENCE_S, "a new plan")
        self.end("new plan", self.crowd.traffic.last["Epoch"] - self.crowd.traffic.first["Hold"])
        row = self.samples["new plan"].row(len(self.crowd.members), "new plan")
        yield {**row, "worst_ack_ms": max(self.crowd.ack_s) * 1e3}

    def figures(self) -> Iterator[dict[bytes, m.LinkReport]]:
        """Of each member, about all others: those of a random geography."""
        world = geography(len(self.crowd.members), 1)
        peers = [member.peer for member in self.crowd.members]
        for a in range(len(peers)):
            rtt_us, rate = (world.rtt_s[a] * 1e6).astype(int).tolist(), world.bytes_per_s[a].astype(int).tolist()
            yield {peers[b]: m.LinkReport(peers[b], rtt_us[b], rate[b], 0) for b in range(len(peers)) if b != a}
