"""wan_crew.py - a coordinator and peers as real processes at the sites of an emulated WAN, told what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stress.wan.lines import Answer, Worker

SCRIPT = Path(__file__).with_name("wan_peer.py")
PORT = 29400
PATIENCE_S = 40.0


def worker(wan: Any, site: str, job: Answer) -> Worker:
    """A process that does its job at a site."""
    env = {name: text for name, text in os.environ.items() if not name.startswith("PCCL_")}
    quiet = {"PCCL_SECRET": "of the wan", "OMP_NUM_THREADS": "1", "RES_OPTIONS": "timeout:1 attempts:1"}
    return Worker(wan, site, [sys.executable, str(SCRIPT), json.dumps(job)], env | quiet)


class Crew:
    """A peer at every site but the hub, numbered as the sites are; the coordinator there, else at the last."""

    def __init__(self, wan: Any, **options: Any) -> None:
        self.wan = wan
        self.sites = [site for site in wan.sites if site != "hub"]
        hub = wan.sites[-1]
        job = {"peers": len(self.sites), "options": options}
        address = f"tcp://{wan.address(hub)}:{PORT}"
        self.coordinator = worker(wan, hub, {"role": "coordinator", "address": address, **job})
        self.peers = [
            worker(wan, site, {"role": "peer", "index": k, "listen": wan.address(site), "address": address, **job})
            for k, site in enumerate(self.sites)
        ]

    def begin(self) -> None:
        """Until all are members."""
        self.coordinator.answer(time.monotonic() + PATIENCE_S)
        self.answers()

    def tell(self, **command: Any) -> None:
        """All peers."""
        for peer in self.peers:
            peer.tell(**command)

    def answers(self) -> list[Answer]:
        """One of each."""
        deadline = time.monotonic() + PATIENCE_S
        return [peer.answer(deadline) for peer in self.peers]

    def all(self, **command: Any) -> list[Answer]:
        """All do it; their answers."""
        self.tell(**command)
        return self.answers()

    def peers_facts(self, name: str) -> list[Any]:
        """One fact of each."""
        return [answer[name] for answer in self.all(do="facts")]

    def is_busy_for(self, seconds: float) -> bool:
        """Whether no peer answers for so long."""
        deadline = time.monotonic() + seconds
        return all(peer.is_silent_until(deadline) for peer in self.peers)

    def status(self) -> Answer:
        """What the coordinator knows and has decided."""
        self.coordinator.tell()
        return self.coordinator.answer(time.monotonic() + PATIENCE_S)

    def log(self) -> list[str]:
        """Kinds of its decisions."""
        return [what for what, _ in self.status()["log"]]

    def until(self, command: str, holds: Callable[[list[Answer]], bool]) -> list[Answer]:
        """Has all peers do it until their answers are as wanted."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds(answers := self.all(do=command)):
            assert time.monotonic() < deadline, f"this does not come: {answers}"
        return answers

    def stepping_until(self, holds: Callable[[Answer], bool]) -> Answer:
        """Passes boundaries until the coordinator's status is as wanted."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds(status := self.status()):
            assert time.monotonic() < deadline, f"this does not come: {status}"
            self.all(do="step")
        return status

    def wire_bytes(self, a: str, b: str) -> int:
        """What has entered the lines between two sites."""
        pairs = self.wan.stats()["pairs"]
        return int(pairs[a, b]["wire_bytes"] + pairs[b, a]["wire_bytes"])

    def wait_for_bytes(self, a: str, b: str, nbytes: int) -> None:
        """Until so many more have entered the lines between them: an op is under way."""
        begun = self.wire_bytes(a, b)
        deadline = time.monotonic() + PATIENCE_S
        while self.wire_bytes(a, b) < begun + nbytes:
            assert time.monotonic() < deadline, f"nothing goes from {a} to {b}"

    def kill_stream(self, a: str, b: str) -> None:
        """The kernel at a aborts one connection with b: a reset goes out, and the process there gets an error."""
        here, there = self._ss(a, "-tnH", *self._with(b)).splitlines()[0].split()[2:4]
        assert self._ss(a, "-KtnH", "src", here, "dst", there).strip(), "no socket was killed"

    def kill_streams(self, a: str, b: str) -> None:
        """All of them."""
        assert self._ss(a, "-KtnH", *self._with(b)).strip(), "no socket was killed"
        assert not self._ss(a, "-tnH", *self._with(b)).strip()

    def _with(self, site: str) -> tuple[str, ...]:
        return ("state", "established", "dst", self.wan.address(site))

    def _ss(self, site: str, *arguments: str) -> str:
        process = self.wan.popen(site, ["ss", *arguments], stdout=subprocess.PIPE, text=True)
        return str(process.communicate(timeout=PATIENCE_S)[0])

    def close(self, kill: bool) -> None:
        """Ends the processes."""
        for process in [*self.peers, self.coordinator]:
            if kill:
                process.process.kill()
            process.close(PATIENCE_S)


@contextmanager
def crew(wan: Any, **options: Any) -> Iterator[Crew]:
    """All leave in order at the end, unless something went wrong before."""
    made, failed = Crew(wan, **options), True
    try:
        made.begin()
        yield made
        made.all(do="end")
        failed = False
    finally:
        made.close(kill=failed)
