"""wan_crew.py - a coordinator and peers as real processes at the sites of an emulated WAN, told what to do."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("wan_peer.py")
PORT = 29400
PATIENCE_S = 40.0

Answer = dict[str, Any]


class Process:
    """A process at a site that answers lines with lines. Its last other words are kept for the case that it fails."""

    def __init__(self, wan: Any, site: str, job: Answer) -> None:
        self.site = site
        env = {name: text for name, text in os.environ.items() if not name.startswith("PCCL_")}
        command = [sys.executable, str(SCRIPT), json.dumps(job)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        quiet = {"PCCL_SECRET": "of the wan", "OMP_NUM_THREADS": "1", "RES_OPTIONS": "timeout:1 attempts:1"}
        self.popen = wan.popen(site, command, env=env | quiet, text=True, cwd="/", **pipes)
        self._answers: queue.Queue[Answer | None] = queue.Queue()
        self._words: deque[str] = deque(maxlen=20)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.popen.stdout:
            if line.startswith("{"):
                self._answers.put(json.loads(line))
            else:
                self._words.append(line.rstrip("\n"))
        self._answers.put(None)

    def tell(self, **command: Any) -> None:
        print(json.dumps(command), file=self.popen.stdin, flush=True)

    def answer(self, timeout_s: float = PATIENCE_S) -> Answer:
        """The next one; AssertionError, with the process's last words, if there is none."""
        found = self.answer_within(timeout_s)
        assert found is not None, "\n  ".join([f"the process at {self.site} gives no answer", *self._words])
        return found

    def answer_within(self, timeout_s: float) -> Answer | None:
        """None: not in that time, or it has ended."""
        try:
            return self._answers.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def close(self, kill: bool) -> None:
        self.popen.stdin.close()
        if kill:
            self.popen.kill()
        self.popen.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        self.popen.stdout.close()


class Crew:
    """A peer at every site but the hub, numbered as the sites are; the coordinator there, else at the last."""

    def __init__(self, wan: Any, **options: Any) -> None:
        self.wan = wan
        self.sites = [site for site in wan.sites if site != "hub"]
        hub = wan.sites[-1]
        job = {"peers": len(self.sites), "options": options}
        address = f"tcp://{wan.address(hub)}:{PORT}"
        self.coordinator = Process(wan, hub, {"role": "coordinator", "address": address, **job})
        self.peers = [
            Process(wan, site, {"role": "peer", "index": k, "listen": wan.address(site), "address": address, **job})
            for k, site in enumerate(self.sites)
        ]

    def begin(self) -> None:
        """Until all are members."""
        self.coordinator.answer()
        self.answers()

    def tell(self, **command: Any) -> None:
        """All peers."""
        for peer in self.peers:
            peer.tell(**command)

    def answers(self) -> list[Answer]:
        """One of each."""
        deadline = time.monotonic() + PATIENCE_S
        return [peer.answer(max(0.0, deadline - time.monotonic())) for peer in self.peers]

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
        return all(peer.answer_within(max(0.001, deadline - time.monotonic())) is None for peer in self.peers)

    def status(self) -> Answer:
        """What the coordinator knows and has decided."""
        self.coordinator.tell()
        return self.coordinator.answer()

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
            process.close(kill)


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
