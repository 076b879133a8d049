"""peers.py - what kill_bench.py and join_bench.py share: peers as real processes, and what they report.

A peer is `python peers.py ADDRESS BIT BYTES IN_FLIGHT`: it waits for a line on its standard input, joins, and loops
in-place all-reduces of the value 2**BIT and `advance()` until the next line. Each committed op is one JSON line on its
standard output (see Record); times are CLOCK_MONOTONIC, which all processes of a machine share. A peer judges nothing:
it reports the hash of every result, and the parent knows what the sum over its participants must hash to.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

import pccl
from pccl.coordinator.server import Coordinator

SECRET = "stress"
PATIENCE_S = 60.0
Name = tuple[int, int]


@dataclass(slots=True)
class Record:
    """A committed op as one peer saw it."""

    name: Name
    epoch: int
    peers: tuple[str, ...]
    first: float
    digest: str
    retries: int
    at: float


@dataclass(slots=True)
class Process:
    """A peer's process, as the parent sees it."""

    popen: subprocess.Popen[bytes]
    bit: int
    peer: str = ""
    records: dict[Name, Record] = field(default_factory=dict)
    killed_at: float | None = None
    connect_at: float = 0.0
    connected_at: float = 0.0
    ended: bool = False
    rest: bytes = b""

    @property
    def stdout(self) -> int:
        """The descriptor to read from."""
        assert self.popen.stdout is not None
        return self.popen.stdout.fileno()

    def tell(self) -> None:
        """Start, or stop."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(b"\n")
        self.popen.stdin.flush()


class Fleet:
    """A coordinator in this process, and peers that reduce under it."""

    def __init__(self, op_bytes: int, in_flight: int) -> None:
        self.op_bytes, self.in_flight = op_bytes, in_flight
        self.coordinator = Coordinator(secret=SECRET)
        self.coordinator.start()
        self.all: list[Process] = []
        self.spares: list[Process] = []
        self._digests: dict[float, str] = {}
        self._bits = 0

    def prepare(self) -> None:
        """Starts a process that has imported everything and waits to be told to connect."""
        bit = self._bits % 20
        self._bits += 1
        arguments = [self.coordinator.address, str(bit), str(self.op_bytes), str(self.in_flight)]
        popen = subprocess.Popen(
            [sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.spares.append(Process(popen, bit))
        os.set_blocking(self.spares[-1].stdout, False)

    def join(self) -> Process:
        """Lets a prepared process connect; its time of connecting comes with its first line."""
        process = self.spares.pop(0)
        self.all.append(process)
        process.tell()
        return process

    @property
    def live(self) -> list[Process]:
        """Those that should be there."""
        return [process for process in self.all if process.killed_at is None]

    def poll(self, timeout: float) -> None:
        """Reads what the peers report; waits at most so long for it."""
        processes = {process.stdout: process for process in self.all if not process.ended}
        readable, _, _ = select.select(list(processes), [], [], max(0.0, timeout))
        for descriptor in readable:
            process = processes[descriptor]
            data = os.read(descriptor, 1 << 20)
            process.ended = not data
            *lines, process.rest = (process.rest + data).split(b"\n")
            for line in lines:
                self._take(process, json.loads(line))

    def _take(self, process: Process, line: dict[str, Any]) -> None:
        if "peer" in line:
            process.peer = line["peer"]
            process.connect_at, process.connected_at = line["connect_at"], line["connected_at"]
            return
        record = Record(
            (line["boundary"], line["seq"]), line["epoch"], tuple(line["peers"]), line["first"], line["digest"],
            line["retries"], line["at"],
        )  # fmt: skip
        process.records[record.name] = record

    def last(self, process: Process) -> Record | None:
        """The newest result of a peer."""
        return next(reversed(process.records.values()), None)

    def wait_until_together(self, since: float = 0.0) -> None:
        """Until each live peer has a result, later than `since`, of all live peers."""
        deadline = time.monotonic() + PATIENCE_S
        wanted = len(self.live)
        while not all(
            (last := self.last(process)) is not None and len(last.peers) == wanted and last.at > since
            for process in self.live
        ):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the peers did not come together within {PATIENCE_S:g} s: {self.describe()}")
            if any(process.ended for process in self.live):
                raise RuntimeError(f"a peer ended by itself: {self.describe()}")
            self.poll(0.2)

    def describe(self) -> str:
        """Where everybody is."""
        return "; ".join(
            f"{process.peer[:8]} {'ended' if process.ended else 'runs'}, last {self.last(process)}"
            for process in self.live
        )

    def close(self) -> None:
        """Everybody leaves; no process stays."""
        for process in self.live:
            process.tell()
        for process in self.all + self.spares:
            if process in self.spares:
                process.popen.kill()
            deadline = time.monotonic() + PATIENCE_S
            while process in self.live and not process.ended and time.monotonic() < deadline:
                self.poll(0.2)
            if process.popen.poll() is None and not process.ended:
                process.popen.kill()
            process.popen.wait()
        self.coordinator.close()

    def forget(self) -> None:
        """Drops the ops that everybody has left behind, so that a long run does not grow."""
        lasts = [self.last(process) for process in self.live]
        oldest = min((last.name for last in lasts if last is not None), default=(0, 0))
        for process in self.all:
            process.records = {name: record for name, record in process.records.items() if name >= oldest}

    # -- judging -------------------------------------------------------------------------------------------------

    def _digest(self, value: float) -> str:
        if value not in self._digests:
            array = np.full(self.op_bytes // 4, value, np.float32)
            self._digests[value] = xxhash.xxh3_64_hexdigest(array.tobytes())
        return self._digests[value]

    def wrong(self) -> list[str]:
        """Every breach of "one result": each op's participants, sum and bytes, and who lacks it."""
        by_peer = {process.peer: process for process in self.all}
        by_name: dict[Name, list[tuple[Process, Record]]] = {}
        for process in self.all:
            for record in process.records.values():
                by_name.setdefault(record.name, []).append((process, record))
        out = []
        for name, seen in sorted(by_name.items()):
            peers = seen[0][1].peers
            value = float(sum(2.0 ** by_peer[peer].bit for peer in peers))
            for process, record in seen:
                who = f"op {name} at {process.peer[:8]}"
                if set(record.peers) != set(peers):
                    out.append(f"{who}: participants {record.peers}, elsewhere {peers}")
                elif record.first != value or record.digest != self._digest(value):
                    out.append(f"{who}: {record.first} ({record.digest}) where {value} is right")
            holders = {process.peer for process, _ in seen}
            last = {peer: self.last(by_peer[peer]) for peer in peers}
            for peer in set(peers) - holders:
                record_ = last[peer]
                if by_peer[peer].killed_at is None and record_ is not None and record_.name > name:
                    out.append(f"op {name}: {peer[:8]} took part, went on, and has no result")
        return out


# -- the peer's side ---------------------------------------------------------------------------------------------------


def _say(line: dict[str, Any]) -> None:
    os.write(1, json.dumps(line).encode() + b"\n")


def _report(result: pccl.Result, boundary: int, seq: int, at: float) -> None:
    array = result.tensor
    _say({
        "boundary": boundary, "seq": seq, "epoch": result.epoch, "peers": [peer.hex() for peer in result.peers],
        "first": float(array[0]), "digest": xxhash.xxh3_64_hexdigest(array), "retries": result.retries, "at": at,
    })  # fmt: skip


def _told() -> bool:
    return bool(select.select([0], [], [], 0)[0])


def peer_main(address: str, bit: int, op_bytes: int, in_flight: int) -> None:
    """The loop of one peer."""
    buffers = [np.zeros(op_bytes // 4, np.float32) for _ in range(in_flight)]
    _ = pccl.Communicator  # loads what connect() would load first
    os.read(0, 1)
    connect_at = time.monotonic()
    with pccl.connect(address, secret=SECRET, listen="127.0.0.1:0") as comm:
        _say({"peer": comm.peer_id.hex(), "connect_at": connect_at, "connected_at": time.monotonic()})
        while not _told():
            boundary, works = comm.boundary, []
            for buffer in buffers:
                buffer.fill(2.0**bit)
                works.append(comm.all_reduce(buffer, async_op=True))
            for seq, work in enumerate(works):
                result = work.wait()
                _report(result, boundary, seq, time.monotonic())
            comm.advance()  # last: a joiner's first ops are of the boundary at which it entered


if __name__ == "__main__":
    peer_main(sys.argv[1], *map(int, sys.argv[2:5]))
