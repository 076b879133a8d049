"""The processes of one scenario: a coordinator's and one per site, told what to do in lines of JSON."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..emulator import Emulator
from ..lines import Answer, Worker, WorkerError
from ..namespaces import DEVICE
from .sides import RUNS, SIDES, Run, runs_of

SCRIPT = Path(__file__).with_name("worker.py")
#: The site's name becomes the host's, as far as it may: peers of one host are taken to be near each other.
NAMED_HOST = ("unshare", "--uts", "--", "sh", "-c", 'hostname "$1" && shift && exec "$@"', "sh")
PORT, GLOO_PORT = 29400, 29500
START_S, OP_S, END_S = 90.0, 120.0, 10.0
LEAD_NS = 50_000_000  # from the word to go until the start


@dataclass(frozen=True, slots=True)
class Kill:
    """So many streams of the link from a site to another."""

    at: str
    to: str
    count: int


def command(site: str, job: dict[str, Any]) -> list[str]:
    """Of a process that does its job at a host of the site's name, in which hosts have no underscores."""
    return [*NAMED_HOST, site.replace("_", "-"), sys.executable, str(SCRIPT), json.dumps(job)]


class Crew:
    """Everybody; ready when it is made. `ours`: what is fixed about the plans of the run of that name."""

    def __init__(self, wan: Emulator, sides: tuple[str, ...], ours: Run) -> None:
        self.wan = wan
        topology = wan.topology
        runs = {**RUNS, "ours": ours}
        hub = topology.coordinator.address
        common = {
            "peers": len(topology.peers),
            "runs": {run: f"tcp://{hub}:{PORT + number}" for number, run in enumerate(runs_of(sides))},
            "gloo": f"tcp://{topology.peers[0].address}:{GLOO_PORT}" if "gloo" in sides else "",
            "timeout_s": OP_S,
        }
        fixed = {run: asdict(runs[run]) for run in common["runs"]}
        env = environment()
        coordinator, job = {"role": "coordinator", "fixed": fixed, **common}, {"role": "peer", **common}
        self.coordinator = Worker(wan, topology.coordinator.name, command(topology.coordinator.name, coordinator), env)
        self.coordinator.answer(time.monotonic() + START_S)
        self.peers = [
            Worker(wan, site.name, command(site.name, {**job, "index": index, "address": site.address}), env)
            for index, site in enumerate(topology.peers)
        ]
        self.congestion = self._answers(START_S)[0]["congestion"]

    def prepare(self, side: str, nbytes: int) -> None:
        """Everything but the all-reduce; at the end nothing is under way."""
        known = SIDES[side]
        self._all(OP_S, do="prepare", side=known.run or "gloo", codec=known.codec, nbytes=nbytes)

    def go(
        self, amid: Callable[[], None] | None = None, kill: Kill | None = None, after_s: float = 0.0
    ) -> list[Answer]:
        """The all-reduce that was prepared; an answer of each site. So long after its begin `amid` is called, and
        streams are killed.
        """
        at_ns = time.monotonic_ns() + LEAD_NS
        for site, peer in zip(self.wan.topology.peers, self.peers, strict=True):
            mine = kill is not None and kill.at == site.name
            peer.tell(do="go", at_ns=at_ns, kill=[kill.to, kill.count, after_s] if kill is not None and mine else None)
        if amid is not None:
            time.sleep(max(0.0, after_s + (at_ns - time.monotonic_ns()) / 1e9))
            amid()
        return self._answers(OP_S)

    def check(self, whole: bool = False) -> None:
        """The result. `whole`: every element, not a sample."""
        if len({answer["digest"] for answer in self._all(OP_S, do="check", whole=whole)}) > 1:
            raise WorkerError("the sites hold different bytes")

    def reduce(self, side: str, nbytes: int, whole: bool = False) -> None:
        """All three."""
        self.prepare(side, nbytes)
        self.go()
        self.check(whole)

    def plans(self) -> dict[str, Answer]:
        """How each run moves its bytes, what its coordinator expects and what it has heard."""
        self.coordinator.tell()
        return self.coordinator.answer(time.monotonic() + END_S)

    def end(self) -> None:
        """In order; what does not end is killed with the network."""
        self._all(END_S, do="end")
        for worker in [*self.peers, self.coordinator]:
            worker.close(END_S)

    def _answers(self, timeout_s: float) -> list[Answer]:
        deadline = time.monotonic() + timeout_s
        try:
            return [peer.answer(deadline) for peer in self.peers]
        except WorkerError:
            for peer in self.peers:  # one that has ended is why others do not answer
                if peer.process.poll() is not None:
                    peer.answer(deadline)
            raise

    def _all(self, timeout_s: float, **command: Any) -> list[Answer]:
        for peer in self.peers:
            peer.tell(**command)
        return self._answers(timeout_s)


def environment() -> dict[str, str]:
    """Of the processes: no settings of another run, and no waiting for name servers that no site can reach."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PCCL_", "GLOO_"))}
    quiet = {"RES_OPTIONS": "timeout:1 attempts:1", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    return {**env, **quiet, "PCCL_SECRET": secrets.token_hex(32), "GLOO_SOCKET_IFNAME": DEVICE}
