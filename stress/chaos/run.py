"""Commits the faults of a schedule to the processes of a crew, at their times, and mends what is to be mended."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from stress.chaos.crew import Crew, Process, topology_of
from stress.chaos.keeping import OnDisk
from stress.chaos.schedule import Fault, sites_of
from stress.wan import Emulator

FORM_S = 60.0
MEND_S = 30.0
STEP_S = 0.05
SAMPLE_S = 5.0
LAST_BOUNDARIES = 3

Action = Callable[[], None]
Progress = Callable[[float, Crew, int], None]


class Stuck(Exception):
    """Somebody does nothing any more: the run ends early, and the checker says who."""


class Run:
    """One run. `play` gives nothing: everything is in the directory."""

    def __init__(self, crew: Crew, schedule: list[Fault], peers: int, seconds: float, progress: Progress) -> None:
        self.crew, self.schedule, self.seconds, self.progress = crew, schedule, seconds, progress
        self.wan = crew.wan
        self.sites, self.spares = sites_of(peers)
        self.faults = 0
        self.begun = time.monotonic()
        self._due: list[tuple[float, int, Action]] = []
        self._numbers = itertools.count()
        self._ending = False

    # -- time --------------------------------------------------------------------------------------------------------

    def later(self, seconds: float, action: Action) -> None:
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._numbers), action))

    def play(self) -> None:
        """From the first start to the last end."""
        for site in self.crew.hub_sites:
            self.crew.start_hub(site)
        for site in self.sites:
            self.crew.start_peer(site)
        self._until(FORM_S, lambda: all(process.joined for process in self.crew.processes.values()))
        self.begun = time.monotonic()
        self.crew.say("begun", seconds=self.seconds)
        for fault in self.schedule:
            self.later(fault.at_s, partial(self.commit, fault))
        self.later(SAMPLE_S, self._sample)
        self._until(self.seconds + 1.0, lambda: time.monotonic() >= self.begun + self.seconds)
        self._end()

    def _until(self, seconds: float, holds: Callable[[], bool]) -> None:
        """Goes on until it holds; Stuck if it does not in time."""
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                self._give_up("not all of them came so far", self.crew.peers)
            while self._due and self._due[0][0] <= time.monotonic():
                heapq.heappop(self._due)[2]()
            for process in self.crew.reap():
                self._ended(process)
            if stuck := self.crew.stuck():
                self._give_up("it says nothing any more", stuck)
            self.progress(time.monotonic() - self.begun, self.crew, self.faults)
            time.sleep(STEP_S)

    def _give_up(self, why: str, processes: list[Process]) -> None:
        for process in processes:
            self.crew.say("stuck", name=process.name, why=why, boundary=process.boundary)
            self.crew.dump(process)
        raise Stuck(why)

    def _sample(self) -> None:
        self.crew.sample()
        self.later(SAMPLE_S, self._sample)

    def _ended(self, process: Process) -> None:
        if self._ending:
            return
        if process.site in self.crew.hub_sites:
            self.later(process.again_s, partial(self.crew.start_hub, process.site))
        elif process.site in self.sites:
            self.later(process.again_s, partial(self._start_again, process.site))

    def _start_again(self, site: str) -> None:
        if not self._ending and site not in self.crew.processes:
            self.crew.start_peer(site)

    def _end(self) -> None:
        """Everything is mended, everybody takes part, and all leave at the same boundary."""
        for _, _, action in sorted(self._due, key=lambda entry: entry[0]):
            if getattr(action, "func", None) == self._mend:
                action()
        self._due.clear()
        self.crew.say("calm")
        self.crew.sample()
        self._until(MEND_S + FORM_S, lambda: all(process.joined for process in self.crew.processes.values()))
        self._ending = True
        self.crew.stop_at = max(process.boundary for process in self.crew.peers) + LAST_BOUNDARIES
        self.crew.say("stop", boundary=self.crew.stop_at)
        for process in self.crew.peers:
            process.tell(do="stop_at", boundary=self.crew.stop_at)
        self._until(FORM_S + MEND_S, lambda: not self.crew.peers)
        for hub in self.crew.hubs:
            assert hub.popen.stdin is not None
            hub.popen.stdin.close()
        self._until(MEND_S, lambda: not self.crew.processes)

    # -- faults ------------------------------------------------------------------------------------------------------

    def commit(self, fault: Fault) -> None:
        """It happens, if there is anybody to whom it can."""
        number = self.faults
        process = self._victim(fault)
        if process is None or process.stopped:
            return
        self.faults += 1
        facts = {"kind": fault.kind, "name": process.name, "site": process.site, "other": fault.other}
        self.crew.say("fault", id=number, seconds=fault.seconds, amount=fault.amount, **facts)
        mend = getattr(self, f"_{fault.kind}")(fault, process)
        if mend is not None:
            self.later(fault.seconds, partial(self._mend, number, mend))

    def _victim(self, fault: Fault) -> Process | None:
        """Of coordinators the one that leads."""
        if fault.kind in ("join", "join_die"):
            return None if fault.site in self.crew.processes else self.crew.start_peer(fault.site)
        return self.crew.leader if fault.site in self.crew.hub_sites else self.crew.processes.get(fault.site)

    def _mend(self, number: int, mend: Action) -> None:
        mend()
        self.crew.say("mended", id=number)

    def _kill(self, fault: Fault, process: Process) -> None:
        process.again_s = fault.again_s
        process.signal(signal.SIGKILL)

    def _leave(self, fault: Fault, process: Process) -> None:
        process.again_s = fault.again_s
        process.tell(do="leave")

    def _stop(self, fault: Fault, process: Process) -> Action:
        process.again_s, process.stopped = fault.again_s, True
        process.signal(signal.SIGSTOP)

        def go_on() -> None:
            process.signal(signal.SIGCONT)
            process.stopped, process.heard = False, time.monotonic()

        return go_on

    _stop_long = _stop
    _hub_stop = _stop

    def _hub_kill(self, fault: Fault, process: Process) -> None:
        process.again_s = fault.seconds
        process.signal(signal.SIGKILL)

    _failover = _hub_kill

    def _hub_full(self, fault: Fault, process: Process) -> Action:
        assert isinstance(self.crew.keeper, OnDisk)
        self.crew.keeper.fill()
        return self.crew.keeper.clean

    def _clock(self, fault: Fault, process: Process) -> Action:
        self.crew.clocks.move(process.name, fault.amount)
        return partial(self.crew.clocks.move, process.name, 0.0)

    _hub_clock = _clock

    def _join(self, fault: Fault, process: Process) -> None:
        self.later(fault.seconds, partial(process.tell, do="leave"))

    def _join_die(self, fault: Fault, process: Process) -> None:
        def die() -> None:
            self.crew.say("dies", name=process.name)
            process.signal(signal.SIGKILL)

        self.later(fault.seconds, die)

    def _descriptors(self, fault: Fault, process: Process) -> Action | None:
        """It can open nothing until then."""
        pid = process.popen.pid
        try:
            before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            highest = max(int(entry) for entry in os.listdir(f"/proc/{pid}/fd"))
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1, before[1]))
        except OSError:  # it has just ended
            return None

        def give_back() -> None:
            with contextlib.suppress(OSError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, before)

        return give_back

    _hub_descriptors = _descriptors

    def _ends(self, fault: Fault) -> list[str]:
        """The other end of a link, or those of the ways to the coordinators."""
        return [fault.other] if fault.other else list(self.crew.hub_sites)

    def _cut(self, fault: Fault, process: Process, both: bool = True) -> Action:
        for there in self._ends(fault):
            self.wan.cut(fault.site, there, both)

        def heal() -> None:
            for there in self._ends(fault):
                self.wan.heal(fault.site, there, both)

        return heal

    def _one_way(self, fault: Fault, process: Process) -> Action:
        return self._cut(fault, process, both=False)

    _isolate = _isolate_long = _cut

    def _setting(self, fault: Fault, name: str, both: bool) -> Action:
        before = {there: getattr(self.wan.link(fault.site, there), name) for there in self._ends(fault)}
        for there in before:
            self.wan.set_pair(fault.site, there, both=both, **{name: fault.amount})

        def restore() -> None:
            for there, value in before.items():
                self.wan.set_pair(fault.site, there, both=both, **{name: value})

        return restore

    def _loss(self, fault: Fault, process: Process) -> Action:
        return self._setting(fault, "loss", both=False)

    def _corrupt(self, fault: Fault, process: Process) -> Action:
        return self._setting(fault, "corrupt", both=True)

    _control_corrupt = _corrupt

    def _collapse(self, fault: Fault, process: Process) -> Action:
        return self._setting(fault, "rate_mbit", both=True)

    def _reset(self, fault: Fault, process: Process) -> None:
        """The kernel aborts every connection between the two."""
        for there in self._ends(fault):
            found = ["ss", "-KtnH", "state", "established", "dst", self.wan.address(there)]
            self.wan.popen(fault.site, found, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    _control_reset = _reset


def play(
    schedule: list[Fault],
    directory: Path,
    seed: int,
    peers: int,
    seconds: float,
    lease_s: float,
    work_s: float,
    keeping: str,
    progress: Progress,
) -> str:
    """Builds everything, plays, takes it down. Gives why it ended early; empty when it did not."""
    sites = [site for some in sites_of(peers) for site in some]
    with Emulator(topology_of(seed, sites, random.Random(f"links {seed}")), large_packets=True) as wan:
        crew = Crew(wan, directory, seed, lease_s, work_s, keeping)
        try:
            Run(crew, schedule, peers, seconds, progress).play()
        except Stuck as stuck:
            return str(stuck)
        finally:
            corrupted = sum(pair["corruptions"] for pair in wan.stats()["pairs"].values())
            crew.say("corrupted", packets=corrupted, late_ms=wan.stats()["late_us_max"] / 1000)
            crew.close()
    return ""
