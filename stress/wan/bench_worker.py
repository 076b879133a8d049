"""What bench.py runs at the sites: the coordinator of ours, or one peer with ours and gloo in one process.

Runs as a script against the installed package. Takes its job as JSON in argv[1], then one JSON command per line from
standard input, and answers each with one JSON line; it ends with its input, so also when the benchmark is killed.

A peer is told what to do twice, so that all begin at once: `prepare` fills the arrays and passes a barrier of the side
that is measured, `go` waits for a moment on the clock that all processes of a machine share, reduces, checks the sum
and answers with the seconds since that moment.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")
LEASE_S = 10.0  # as `pccl coordinator` has it; heartbeats, which bring what links have measured, go by it

Answer = dict[str, Any]


def say(answer: Answer) -> None:
    print(json.dumps(answer), flush=True)


# -- the coordinator -------------------------------------------------------------------------------------------------


def one_stream(*arguments: Any) -> Any:
    """The usual plan, but one stream on every link."""
    from pccl.coordinator.plan import plan

    chosen = plan(*arguments)
    streams: dict[str, Any] = {"streams": 1}
    if hasattr(chosen, "pair_streams"):
        streams["pair_streams"] = ()
    return replace(chosen, **streams)


def coordinator_of(run: str, bind: str, peers: int) -> Any:
    """Serves a run; that of the name `one_stream` with that planner."""
    from pccl.coordinator.server import Coordinator

    coordinator = Coordinator(bind=bind, run=run, secret=os.environ["PCCL_SECRET"], min_peers=peers, lease_s=LEASE_S)
    if run == "one_stream":
        # a setting of membership, which no option of the server reaches
        coordinator._run.settings = replace(coordinator._run.settings, planner=one_stream)
    coordinator.start()
    return coordinator


def plan_of(coordinator: Any) -> Answer:
    """How the run moves its bytes now, as far as this version tells."""
    plans = [group.plan for group in coordinator.status().groups if group.plan is not None]
    if not plans:
        return {}
    return {"streams": plans[0].streams, "reason": getattr(plans[0], "reason", "")}


def serve(job: Answer) -> None:
    """The coordinator's part."""
    runs = {run: coordinator_of(run, bind, job["peers"]) for run, bind in job["runs"].items()}
    say({"ready": True})
    for _ in sys.stdin:
        say({run: plan_of(coordinator) for run, coordinator in runs.items()})
    for coordinator in runs.values():
        coordinator.close()


# -- the sides -------------------------------------------------------------------------------------------------------


class Side(Protocol):
    """One implementation of all-reduce."""

    in_place: bool

    def barrier(self) -> None:
        """All are here."""

    def reduce(self, source: Any, target: Any) -> None:
        """Sums source over all peers into target."""

    def facts(self) -> Answer:
        """What is known of it now."""

    def close(self) -> None:
        """Ends it in order."""


class Ours:
    """A communicator; each iteration is a boundary, where a better plan may come into force."""

    in_place = False

    def __init__(self, job: Answer, run: str, address: str) -> None:
        import pccl

        listen = f"{job['address']}:0"
        # tcp: the sites share a machine, but nothing else may be used of that
        self.comm = pccl.connect(address, run=run, listen=listen, timeout=job["timeout_s"], transport="tcp")
        self.peers, self.timeout_s, self.algorithm = job["peers"], job["timeout_s"], job["algorithm"]
        self.retries = 0

    def barrier(self) -> None:
        self.comm.advance()
        self.comm.barrier()

    def reduce(self, source: Any, target: Any) -> None:
        done = self.comm.all_reduce(source, out=target, algorithm=self.algorithm, timeout=self.timeout_s)
        if done.world_size != self.peers:
            raise SystemExit(f"a peer was lost: {done}")
        self.retries += done.retries

    def facts(self) -> Answer:
        streams = [link["streams"] for link in self.comm.stats()["links"]]
        return {"streams": max(streams, default=0), "epoch": self.comm.epoch, "retries": self.retries}

    def close(self) -> None:
        self.comm.barrier()
        self.comm.close()


class Gloo:
    """torch.distributed; the interface it uses is told by GLOO_SOCKET_IFNAME."""

    in_place = True

    def __init__(self, job: Answer) -> None:
        import torch.distributed as dist

        self.dist = dist
        dist.init_process_group(
            "gloo",
            init_method=job["gloo"],
            rank=job["index"],
            world_size=job["peers"],
            timeout=datetime.timedelta(seconds=job["timeout_s"]),
        )

    def barrier(self) -> None:
        self.dist.barrier()

    def reduce(self, source: Any, target: Any) -> None:
        self.dist.all_reduce(source)

    def facts(self) -> Answer:
        return {}

    def close(self) -> None:
        """Its threads abort the process when another peer vanishes first."""
        self.dist.barrier()
        self.dist.destroy_process_group()


# -- one peer --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Prepared:
    """What `go` will do."""

    name: str
    source: Any
    target: Any
    whole: bool


class Peer:
    """The peer's part: all sides on the same data."""

    def __init__(self, job: Answer) -> None:
        from pccl.cli.bench_worker import Arrays, NumpyArrays, Pattern, TorchArrays

        self.arrays: Arrays = TorchArrays("float32") if job["gloo"] else NumpyArrays("float32")
        self.pattern = Pattern(self.arrays, job["peers"], job["index"])
        self.sides: dict[str, Side] = {run: Ours(job, run, address) for run, address in job["runs"].items()}
        if job["gloo"]:
            self.sides["gloo"] = Gloo(job)
        self.memory: dict[int, tuple[Any, Any]] = {}
        self.prepared: Prepared | None = None

    def prepare(self, name: str, nbytes: int, whole: bool) -> Answer:
        """Fresh data, also in the output: an old sum must not pass for a new one."""
        count = max(1, nbytes // self.arrays.bytes_per_element())
        if count not in self.memory:
            self.memory[count] = (self.arrays.empty(count), self.arrays.empty(count))
        source, target = self.memory[count]
        self.pattern.fill(source)
        self.pattern.fill(target)
        self.prepared = Prepared(name, source, source if self.sides[name].in_place else target, whole)
        self.sides[name].barrier()
        return {}

    def go(self, at_ns: int) -> Answer:
        """The measured part."""
        assert self.prepared is not None
        task, self.prepared = self.prepared, None
        side = self.sides[task.name]
        time.sleep(max(0, at_ns - time.monotonic_ns()) / 1e9)
        side.reduce(task.source, task.target)
        seconds = (time.monotonic_ns() - at_ns) / 1e9
        self.pattern.check(task.target, task.whole, task.name)
        return {"seconds": seconds, **side.facts()}

    def end(self) -> Answer:
        for side in self.sides.values():
            side.close()
        return {}


def take_part(job: Answer) -> None:
    """Does as told until told to end."""
    peer = Peer(job)
    commands: dict[str, Callable[..., Answer]] = {"prepare": peer.prepare, "go": peer.go, "end": peer.end}
    say({"ready": True, "congestion": CONGESTION.read_text().strip()})
    for line in sys.stdin:
        command = json.loads(line)
        say(commands[command.pop("do")](**command))


def main(arguments: Sequence[str]) -> None:
    job = json.loads(arguments[1])
    (serve if job["role"] == "coordinator" else take_part)(job)


if __name__ == "__main__":
    main(sys.argv)
