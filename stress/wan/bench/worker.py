"""What crew.py runs at the sites: the coordinators of ours, or one peer with ours and gloo in one process.

Runs as a script against the installed package. Takes its job as JSON in argv[1], then one JSON command per line from
standard input, and answers each with one JSON line; it ends with its input, so also when the benchmark is killed.

A peer is told what to do in steps, so that all begin at once and nothing else runs meanwhile: `prepare` fills the
arrays and passes a barrier of the side that is measured, `go` waits for a moment on the clock that all processes of a
machine share, reduces and answers with the seconds since that moment, `check` checks the sum.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")
LEASE_S = 10.0  # as `pccl coordinator` has it; heartbeats, which bring what links have measured, go by it

Answer = dict[str, Any]


def say(answer: Answer) -> None:
    print(json.dumps(answer), flush=True)


# -- the coordinators ------------------------------------------------------------------------------------------------


def coordinator_of(run: str, bind: str, peers: int, fixed: Answer) -> Any:
    """Serves a run; `fixed` is what the operator fixes about its plans."""
    from pccl.coordinator.server import Coordinator

    secret = os.environ["PCCL_SECRET"]
    coordinator = Coordinator(bind=bind, run=run, secret=secret, min_peers=peers, lease_s=LEASE_S, **fixed)
    coordinator.start()
    return coordinator


def plan_of(coordinator: Any) -> Answer:
    """How the run moves its bytes now, and in seconds for 64 MiB what is expected of it and what it achieves."""
    from pccl.types import Algorithm

    found = [group for group in coordinator.status().groups if group.plan is not None]
    if not found:
        return {}
    plan, reality = found[0].plan, found[0].reality
    return {
        "algorithm": Algorithm(plan.large_algorithm or Algorithm.RING).name.lower(),
        "mesh_bytes_max": plan.mesh_bytes_max,
        "streams": plan.streams,
        "reason": plan.reason,
        "expected_s": reality.expected_s if reality is not None else plan.predicted_s or None,
        "achieved_s": (reality.achieved_s or None) if reality is not None else None,
        "epoch": found[0].epoch,
        "members": len(found[0].members),
        "log": [[round(entry.age_s, 2), entry.what, entry.reason] for entry in found[0].log],
    }


def serve(job: Answer) -> None:
    """The coordinators' part."""
    runs = {run: coordinator_of(run, bind, job["peers"], job["fixed"][run]) for run, bind in job["runs"].items()}
    say({"ready": True})
    for _ in sys.stdin:
        say({run: plan_of(coordinator) for run, coordinator in runs.items()})
    for coordinator in runs.values():
        coordinator.close()


# -- the sides -------------------------------------------------------------------------------------------------------


class Side(Protocol):
    """One implementation of all-reduce."""

    in_place: bool

    def kill(self, site: str, count: int) -> None:
        """A fault."""

    def barrier(self) -> None:
        """All are here."""

    def reduce(self, source: Any, target: Any, codec: str) -> Answer:
        """Sums source over all peers into target; gives what is known of the op and of the side."""

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
        self.peers, self.timeout_s = job["peers"], job["timeout_s"]

    def barrier(self) -> None:
        self.view = self.comm.advance()
        self.comm.barrier()

    def kill(self, site: str, count: int) -> None:
        """Resets so many streams of the link to the peer at that site."""
        from pccl.testing import kill_stream

        peer = next(member.id for member in self.view.members if member.host == site)
        for index in range(count):
            kill_stream(self.comm, peer, index)

    def reduce(self, source: Any, target: Any, codec: str) -> Answer:
        done = self.comm.all_reduce(source, out=target, codec=codec or None, timeout=self.timeout_s)
        if done.world_size != self.peers:
            raise SystemExit(f"a peer was lost: {done}")
        stats = self.comm.stats()
        return {
            "sent_bytes": done.bytes_sent,
            "retries": done.retries,
            "streams": max((link["streams"] for link in stats["links"]), default=0),
            "resent": stats["frames_resent"],
        }

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

    def reduce(self, source: Any, target: Any, codec: str) -> Answer:
        self.dist.all_reduce(source)
        return {}

    def kill(self, site: str, count: int) -> None:
        raise SystemExit("gloo's connections are out of reach")

    def close(self) -> None:
        """Its threads abort the process when another peer vanishes first."""
        self.dist.barrier()
        self.dist.destroy_process_group()


# -- what comes out of a codec ---------------------------------------------------------------------------------------


def codec_error(codec: str, values: Any) -> Any:
    """What csrc/codec.h allows each value to be off when it is encoded in a block with all of them."""
    size, peak = np.abs(values), np.abs(values).max()
    return np.full_like(size, peak / 253) if codec == "int8" else np.maximum(size / 2.99, peak / 127)


class Rough:
    """Checks sums that went through a codec: once at each peer, and once at the owner of the sum."""

    def __init__(self, codec: str, peers: int) -> None:
        from pccl.cli.bench_worker import PERIOD, TILE

        inputs = [np.arange(PERIOD, dtype=np.float64) + peer for peer in range(peers)]
        total = np.sum(inputs, axis=0)
        off = np.sum([codec_error(codec, values) for values in inputs], axis=0)
        off += codec_error(codec, total + off)
        self.tile, self.low, self.high = TILE, *(np.tile(total + sign * off, TILE // PERIOD) for sign in (-1, 1))

    def check(self, array: Any, what: str) -> None:
        values = np.asarray(array)
        for start in range(0, len(values), self.tile):
            part = values[start : start + self.tile]
            if not ((self.low[: len(part)] <= part) & (part <= self.high[: len(part)])).all():
                raise SystemExit(f"a sum from {what} is farther off than its codec allows, near element {start}")


# -- one peer --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Task:
    """What was prepared: `go` reduces source into target, `check` looks at it."""

    side: str
    codec: str
    source: Any
    target: Any


class Peer:
    """The peer's part: all sides on the same data."""

    def __init__(self, job: Answer) -> None:
        from pccl.cli.bench_worker import Arrays, NumpyArrays, Pattern, TorchArrays

        self.peers = job["peers"]
        self.arrays: Arrays = TorchArrays("float32") if job["gloo"] else NumpyArrays("float32")
        self.pattern = Pattern(self.arrays, job["peers"], job["index"])
        self.sides: dict[str, Side] = {run: Ours(job, run, address) for run, address in job["runs"].items()}
        if job["gloo"]:
            self.sides["gloo"] = Gloo(job)
        self.memory: dict[int, tuple[Any, Any]] = {}
        self.task: Task | None = None

    def prepare(self, side: str, codec: str, nbytes: int) -> Answer:
        """Fresh data, also in the output: an old sum must not pass for a new one."""
        count = max(1, nbytes // self.arrays.bytes_per_element())
        if count not in self.memory:
            self.memory[count] = (self.arrays.empty(count), self.arrays.empty(count))
        source, target = self.memory[count]
        self.pattern.fill(source)
        self.pattern.fill(target)
        self.task = Task(side, codec, source, source if self.sides[side].in_place else target)
        self.sides[side].barrier()
        return {}

    def go(self, at_ns: int, kill: tuple[str, int, float] | None) -> Answer:
        """The measured part. `kill`: streams to that site, so many, so long after the beginning."""
        task = self.task
        assert task is not None
        if kill is not None:
            site, count, after_s = kill
            delay_s = after_s + (at_ns - time.monotonic_ns()) / 1e9
            threading.Timer(delay_s, self.sides[task.side].kill, (site, count)).start()
        time.sleep(max(0, at_ns - time.monotonic_ns()) / 1e9)
        facts = self.sides[task.side].reduce(task.source, task.target, task.codec)
        return {"seconds": (time.monotonic_ns() - at_ns) / 1e9, **facts}

    def check(self, whole: bool) -> Answer:
        """With a digest to be compared with the other peers', where a codec leaves the sum some room."""
        task = self.task
        assert task is not None
        if not task.codec:
            self.pattern.check(task.target, whole, task.side)
            return {"digest": 0}
        Rough(task.codec, self.peers).check(task.target, task.codec)
        return {"digest": zlib.crc32(np.asarray(task.target))}

    def end(self) -> Answer:
        for side in self.sides.values():
            side.close()
        return {}


def take_part(job: Answer) -> None:
    """Does as told until told to end."""
    peer = Peer(job)
    commands: dict[str, Callable[..., Answer]] = {
        "prepare": peer.prepare,
        "go": peer.go,
        "check": peer.check,
        "end": peer.end,
    }
    say({"ready": True, "congestion": CONGESTION.read_text().strip()})
    for line in sys.stdin:
        command = json.loads(line)
        say(commands[command.pop("do")](**command))


def main(arguments: Sequence[str]) -> None:
    job = json.loads(arguments[1])
    (serve if job["role"] == "coordinator" else take_part)(job)


if __name__ == "__main__":
    main(sys.argv)
