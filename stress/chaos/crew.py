"""The processes of a chaos run: coordinators and a peer at each site, started again when they end, and their events.

All times are those of CLOCK_MONOTONIC, which every process of a machine shares. What happens goes into a directory:
`driver.jsonl` (faults, starts, ends, descriptors and memory), and for each process `NAME.jsonl` (its events) and
`NAME.err` (anything else it says).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from stress.chaos.keeping import HUB, KEEPERS, STANDBY
from stress.chaos.wallclock import WallClocks
from stress.wan import Emulator, Topology, parse

HERE = Path(__file__).parent
PORT = 29400
TIMEOUT_S = 60.0
QUIET_S = 45.0
MIN_PEERS = 2
#: What is freed goes back to the system at once, so that memory tells what is held, not what was once.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(256 << 10), "MALLOC_TRIM_THRESHOLD_": str(256 << 10), "MALLOC_ARENA_MAX": "2"}


def topology_of(seed: int, sites: list[str], chance: Any) -> Topology:
    """Sites with links of 50 to 200 Mbit/s and 10 to 60 ms, and places for two coordinators near all of them."""
    links: list[dict[str, Any]] = [
        {"pair": [a, b], "rtt_ms": round(chance.uniform(10, 60), 1), "rate_mbit": chance.choice((50, 100, 200))}
        for number, a in enumerate(sites)
        for b in sites[:number]
    ]
    near = [[HUB, site] for site in sites] + [[STANDBY, site] for site in [*sites, HUB]]
    links += [{"pair": pair, "rtt_ms": round(chance.uniform(10, 40), 1), "rate_mbit": 100} for pair in near]
    names: dict[str, dict[str, str]] = {site: {} for site in sites}
    return parse({"seed": seed, "sites": {**names, HUB: {"role": "coordinator"}, STANDBY: {}}, "links": links})


@dataclass(slots=True)
class Process:
    """One of them; `boundary` is the last that it told of."""

    name: str
    site: str
    popen: subprocess.Popen[Any]
    events: IO[bytes]
    started: float
    joined: bool = False
    leads: bool = False
    stopped: bool = False
    boundary: int = 0
    heard: float = 0.0
    rest: bytes = b""
    commits: int = 0
    again_s: float = 1.0
    told: list[str] = field(default_factory=list)

    def tell(self, **order: Any) -> None:
        """Nobody may be there any more, and its pipe may be closed."""
        assert self.popen.stdin is not None
        if self.popen.stdin.closed:
            return
        with contextlib.suppress(OSError):
            self.popen.stdin.write(json.dumps(order).encode() + b"\n")
            self.popen.stdin.flush()

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.popen.send_signal(number)


class Crew:
    """Starts, watches and ends them."""

    def __init__(self, wan: Emulator, directory: Path, seed: int, lease_s: float, work_s: float, keeping: str) -> None:
        self.wan, self.directory, self.seed, self.lease_s, self.work_s = wan, directory, seed, lease_s, work_s
        self.keeper = KEEPERS[keeping](wan, directory)
        self.clocks = WallClocks(directory)
        self.processes: dict[str, Process] = {}
        self.stop_at: int | None = None
        self.commits = self.starts = 0
        self._secret = secrets.token_hex(32)
        self._numbers: dict[str, int] = {}
        self._log = (directory / "driver.jsonl").open("ab", buffering=0)

    def say(self, event: str, **facts: Any) -> None:
        """A line of the driver's own."""
        line = {"e": event, "t": round(time.monotonic(), 4), **facts}
        self._log.write(json.dumps(line).encode() + b"\n")

    # -- starting ----------------------------------------------------------------------------------------------------

    def start_hub(self, site: str) -> None:
        options = {"min_peers": MIN_PEERS, "lease_s": self.lease_s} | self.keeper.options()
        self._start(site, "hub.py", {"options": options, "address": self._address(site)})

    def start_peer(self, site: str) -> Process:
        job = {"host": self.wan.address(site), "seed": self.seed, "timeout_s": TIMEOUT_S, "stop_at": self.stop_at}
        job["work_s"] = self.work_s
        job["address"] = ",".join(map(self._address, self.hub_sites))
        return self._start(site, "peer.py", job)

    def _address(self, site: str) -> str:
        return f"tcp://{self.wan.address(site)}:{PORT}"

    def _start(self, site: str, script: str, job: dict[str, Any]) -> Process:
        self._numbers[site] = self._numbers.get(site, 0) + 1
        name = f"{site}.{self._numbers[site]}"
        env = {key: text for key, text in os.environ.items() if not key.startswith("PCCL_")}
        env |= {"PCCL_SECRET": self._secret, "OMP_NUM_THREADS": "1", "RES_OPTIONS": "timeout:1 attempts:1"}
        env |= MALLOC | self.clocks.environment(name)
        path = self.directory / f"{name}.jsonl"
        with path.open("ab") as out, (self.directory / f"{name}.err").open("ab") as err:
            command = [sys.executable, str(HERE / script), json.dumps(job)]
            options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": out, "stderr": err, "cwd": "/"}
            popen = self.wan.popen(site, command, env=env, **options)
        now = time.monotonic()
        process = Process(name, site, popen, path.open("rb"), now, heard=now)
        self.processes[site] = process
        self.starts += 1
        self.say("started", name=name, site=site, pid=popen.pid)
        return process

    # -- watching ----------------------------------------------------------------------------------------------------

    @property
    def hub_sites(self) -> tuple[str, ...]:
        return self.keeper.sites

    @property
    def peers(self) -> list[Process]:
        return [process for site, process in self.processes.items() if site not in self.hub_sites]

    @property
    def hubs(self) -> list[Process]:
        return [self.processes[site] for site in self.hub_sites if site in self.processes]

    @property
    def leader(self) -> Process | None:
        """The coordinator that serves, if one does."""
        return next((process for process in self.hubs if process.leads and not process.stopped), None)

    def read(self) -> None:
        """What they have written since."""
        for process in self.processes.values():
            data = process.events.read()
            if not data:
                continue
            process.heard = time.monotonic()
            *lines, process.rest = (process.rest + data).split(b"\n")
            for line in lines:
                self._take(process, json.loads(line))

    def _take(self, process: Process, event: dict[str, Any]) -> None:
        process.boundary = max(process.boundary, event.get("b", 0))
        process.joined = process.joined or event["e"] in ("member", "serving", "standing by")
        process.leads = event["e"] != "serves no more" and (process.leads or event["e"] == "serving")
        if event["e"] == "end" and event["ok"]:
            self.commits += 1
            process.commits += 1

    def reap(self) -> list[Process]:
        """Those that have ended since."""
        ended = [process for process in self.processes.values() if process.popen.poll() is not None]
        self.read()
        for process in ended:
            self.say("ended", name=process.name, site=process.site, code=process.popen.returncode)
            process.events.close()
            assert process.popen.stdin is not None
            with contextlib.suppress(OSError):
                process.popen.stdin.close()
            del self.processes[process.site]
        return ended

    def stuck(self) -> list[Process]:
        """Those that nobody disturbs and that have said nothing for long."""
        late = time.monotonic() - QUIET_S
        return [process for process in self.peers if not process.stopped and process.heard < late]

    def sample(self) -> None:
        """Descriptors and memory of all."""
        usage = {}
        for process in self.processes.values():
            with contextlib.suppress(OSError):
                proc = Path(f"/proc/{process.popen.pid}")
                pages = int((proc / "statm").read_text().split()[1])
                rss_kb = pages * os.sysconf("SC_PAGE_SIZE") // 1024
                usage[process.name] = [len(os.listdir(proc / "fd")), rss_kb]
        self.say("usage", of=usage)

    def dump(self, process: Process) -> None:
        """Where its threads are, into its .err file."""
        process.signal(signal.SIGCONT)
        process.signal(signal.SIGUSR1)
        gdb = ["gdb", "-p", str(process.popen.pid), "-batch", "-ex", "thread apply all bt 12"]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(gdb, capture_output=True, timeout=20, check=False)
            with (self.directory / f"{process.name}.err").open("ab") as err:
                err.write(done.stdout)

    def close(self) -> None:
        for process in self.processes.values():
            process.popen.kill()
            process.popen.wait()
        self.reap()
        self.keeper.close()
        self._log.close()
