"""wan_peer.py - what the crew of wan_crew.py runs at the sites of an emulated WAN: the coordinator, or one peer.

Runs as a script against the installed package. Takes its job as JSON in argv[1], then one JSON command per line from
standard input, and answers each with one JSON line; it ends with its input. A peer checks every element of every
result itself: contributions are whole numbers that tell whose they are, so sums are exact in any order.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import pccl

Answer = dict[str, Any]
Array = np.ndarray[Any, Any]
PERIOD = 97


def say(answer: Answer) -> None:
    print(json.dumps(answer), flush=True)


# -- the coordinator -------------------------------------------------------------------------------------------------


def serve(job: Answer) -> None:
    """Answers every line with what it has decided so far."""
    from pccl.coordinator.server import Coordinator

    options = {"min_peers": job["peers"], **job["options"]}
    coordinator = Coordinator(bind=job["address"], secret=os.environ["PCCL_SECRET"], **options)
    coordinator.start()
    say({})
    for _ in sys.stdin:
        group = coordinator.status().groups[0]
        reason = group.plan.reason if group.plan is not None else ""
        log = [[entry.what, entry.reason] for entry in group.log]
        told = {"epoch": group.epoch, "members": len(group.members), "plan": reason, "log": log}
        say({**told, "rates": rates(coordinator)})
    coordinator.close()


def rates(coordinator: Any) -> list[tuple[str, str, float]]:
    """(from, to, bytes/s) by the hosts' addresses, of every path whose rate the coordinator knows."""
    with coordinator._lock:
        group = coordinator._run.groups[0]
        known = group._links.measured(time.monotonic()).bytes_per_s
        host = {peer.id: peer.address.rpartition(":")[0] for peer in group.members.values()}
    return [(host[a], host[b], rate) for (a, b), rate in known.items() if a in host and b in host]


# -- a peer ----------------------------------------------------------------------------------------------------------


def value(index: int, count: int) -> Array:
    """What the peer of this number brings."""
    return (np.arange(count) % PERIOD + 1000 * (index + 1)).astype(np.float32)


class Peer:
    """One communicator, and an op of every kind."""

    def __init__(self, job: Answer) -> None:
        self.index = job["index"]
        options = {"listen": f"{job['listen']}:0", "timeout": 30.0, "op_timeout": 30.0, "transport": "tcp"}
        self.comm = pccl.connect(job["address"], secret=os.environ["PCCL_SECRET"], **options)
        while self.comm.world_size < job["peers"]:
            self.step()
        numbers = self.comm.all_gather(np.array([self.index]))
        order = [int(number) for number in numbers.tensor.reshape(-1)]
        self.number = dict(zip(numbers.peers, order, strict=True))
        self.id = {number: peer for peer, number in self.number.items()}

    def step(self) -> Answer:
        """A boundary, where a new plan may come into force."""
        self.comm.barrier()
        self.comm.advance()
        return self.facts()

    def facts(self) -> Answer:
        """What is known now."""
        stats = self.comm.stats()
        streams = {self.number[link["peer"]]: link["streams"] for link in stats["links"] if self.comm.rank >= 0}
        kept = ("relayed_bytes", "frames_resent", "frames_corrupt")
        return {"epoch": self.comm.epoch, "streams": streams, **{name: stats[name] for name in kept}}

    def op(self, kind: str, nbytes: int, ends: tuple[int, int] = (0, 0)) -> Answer:
        """One op whose contribution, or row, has so many bytes. `ends`: numbers of sender and receiver."""
        count = nbytes // 4
        takes_part = kind != "pair" or self.index in ends
        result = getattr(self, f"_{kind}")(count, *([ends] if kind == "pair" else [])) if takes_part else None
        told = {"retries": result.retries, "world": result.world_size} if result is not None else {}
        return {**self.facts(), **told}

    def _sum(self, result: pccl.Result, count: int) -> Array:
        return sum((value(self.number[peer], count) for peer in result.peers), np.zeros(count, np.float32))

    def _all_reduce(self, count: int) -> pccl.Result:
        array = value(self.index, count)
        result = self.comm.all_reduce(array)
        assert (array == self._sum(result, count)).all(), "all_reduce"
        return result

    def _reduce_scatter(self, count: int) -> pccl.Result:
        result = self.comm.reduce_scatter(value(self.index, count))
        span = slice(result.offset, result.offset + result.tensor.size)
        assert (result.tensor == self._sum(result, count)[span]).all(), "reduce_scatter"
        return result

    def _all_gather(self, count: int) -> pccl.Result:
        result = self.comm.all_gather(value(self.index, count))
        for row, peer in zip(result.tensor, result.peers, strict=True):
            assert (row == value(self.number[peer], count)).all(), "all_gather"
        return result

    def _all_to_all(self, count: int) -> pccl.Result:
        rows = np.stack([value(self.index, count) * (1 + self.number[peer]) for peer in self.comm.peers])
        result = self.comm.all_to_all(rows)
        for row, peer in zip(result.tensor, result.peers, strict=True):
            assert (row == value(self.number[peer], count) * (1 + self.index)).all(), "all_to_all"
        return result

    def _broadcast(self, count: int) -> pccl.Result:
        array = value(self.index, count)
        result = self.comm.broadcast(array, root=self.id[1])
        assert (array == value(1, count)).all(), "broadcast"
        return result

    def _pair(self, count: int, ends: tuple[int, int]) -> pccl.Result:
        if self.index == ends[0]:
            return self.comm.send(value(self.index, count), self.id[ends[1]])
        array = np.zeros(count, np.float32)
        result = self.comm.recv(array, self.id[ends[0]])
        assert (array == value(ends[0], count)).all(), "recv"
        return result

    def _barrier(self, count: int) -> pccl.Result:
        del count
        return self.comm.barrier()

    def end(self) -> Answer:
        """All leave together."""
        self.comm.barrier()
        self.comm.close()
        return {}


def take_part(job: Answer) -> None:
    """Does as told until told to end."""
    peer = Peer(job)
    commands: dict[str, Callable[..., Answer]] = {name: getattr(peer, name) for name in ("step", "facts", "op", "end")}
    say({})
    for line in sys.stdin:
        command = json.loads(line)
        say(commands[command.pop("do")](**command))


if __name__ == "__main__":
    the_job = json.loads(sys.argv[1])
    (serve if the_job["role"] == "coordinator" else take_part)(the_job)
