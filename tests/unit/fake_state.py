"""Communicators and depots made of threads and a table, for tests of shared state: real fetches over no network."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pccl import _native
from pccl.errors import PcclError
from pccl.transfer.fetch import Progress
from pccl.transfer.job import Job, TransferReport
from pccl.transfer.manifest import HEAD_GENERATION, Head, Manifest, data_key, head_key, manifest_key
from pccl.transfer.schedule import Path
from pccl.transfer.target import Bytes, Target
from pccl.transfer.transfers import Wish
from pccl.types import Status
from pccl.work import Result

PATIENCE_S = 10.0


class Hub:
    """The other side of all fake communicators: meets calls by name, among those who live."""

    def __init__(self, world: int) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.alive = {bytes([rank]) * 16 for rank in range(world)}
        self.calls: dict[tuple[str, int], dict[bytes, np.ndarray[Any, Any]]] = {}
        self.results: dict[tuple[str, int], tuple[tuple[bytes, ...], np.ndarray[Any, Any]]] = {}
        self.fakes: dict[bytes, Fake] = {}
        self.regions: dict[bytes, dict[tuple[bytes, int], Bytes]] = {}

    def wait(self, ready: Callable[[], bool]) -> None:
        assert self.changed.wait_for(ready, PATIENCE_S), "the fake communicator hangs"

    def kill(self, peer: bytes) -> None:
        with self.changed:
            self.alive.discard(peer)
            self.changed.notify_all()


class Dead(BaseException):
    """This peer's process is gone."""


class Fake:
    """One peer: communicator and depot. `dies_at`: at which of its calls it vanishes; what it serves counts too.
    `joins`: a member that has called as much as this one has missed.
    """

    op_timeout = PATIENCE_S
    boundary = 1

    def __init__(self, hub: Hub, rank: int, entered: int = 0, dies_at: int = -1, joins: Fake | None = None) -> None:
        self.hub = hub
        self.peer_id = bytes([rank]) * 16
        self.entered = entered
        self.dies_at = dies_at
        self.calls = 0
        self.counts: dict[str, int] = {} if joins is None else joins.counts.copy()
        self.generation = 0
        self.mixed: set[str] = set()
        self.carried: list[tuple[bytes, int, int]] = []  # (source, offset, bytes) of what data it fetched
        hub.fakes[self.peer_id] = self
        hub.regions[self.peer_id] = {}

    @property
    def depot(self) -> Fake:
        return self

    def sources(self) -> list[bytes]:
        return sorted(self.hub.alive - {self.peer_id})

    def step(self) -> None:
        if self.calls == self.dies_at:
            self.hub.kill(self.peer_id)
            raise Dead
        self.calls += 1

    def all_gather(self, tensor: Any, *, tag: str, timeout: float) -> Result:
        assert timeout > 0
        self.step()
        hub = self.hub
        name = (tag, self.counts.get(tag, 0))
        self.counts[tag] = name[1] + 1
        with hub.changed:
            hub.calls.setdefault(name, {})[self.peer_id] = tensor.copy()
            hub.changed.notify_all()
            hub.wait(
                lambda: self.peer_id not in hub.alive or name in hub.results or hub.alive <= hub.calls[name].keys()
            )
            if self.peer_id not in hub.alive:
                raise Dead
            if name not in hub.results:
                peers = tuple(sorted(hub.alive))
                hub.results[name] = peers, np.stack([hub.calls[name][peer] for peer in peers])
            peers, rows = hub.results[name]
        return Result(rows, len(peers), peers, 1, 0, 0, 0, 0.0)

    # -- the depot --

    def show(self, manifest: Manifest, parts: Sequence[Bytes], holds: Sequence[Any]) -> None:
        self.step()
        name, encoded = manifest.name, manifest.encode()
        with self.hub.changed:
            self.generation = max(self.generation, manifest.generation)
            regions = self.hub.regions[self.peer_id]
            regions[head_key(name), HEAD_GENERATION] = as_bytes(Head.of(manifest, encoded).encode())
            regions[manifest_key(name), manifest.generation] = as_bytes(encoded)
            for number, part in enumerate(parts):
                regions[data_key(name, number), HEAD_GENERATION] = part
            self.hub.changed.notify_all()

    def hide(self, name: str) -> None:
        raise AssertionError("nothing is on a device")

    def stager(self) -> Any:
        raise AssertionError("nothing is on a device")

    def serve(self, key: bytes, generation: int, offset: int, nbytes: int) -> Bytes | None:
        """What others read here."""
        region = self.hub.regions[self.peer_id].get((key, generation))
        if region is None or offset + nbytes > region.size:
            return None
        self.step()
        return region[offset : offset + nbytes]

    def pull(self, name: str, target: Target, sources: Sequence[bytes], wish: Wish, seconds: float) -> FakePull:
        return FakePull(self, name, target, tuple(sources), wish, seconds)


#: What anything takes that is done without waiting: a busy machine is no slow source.
TICK_S = 1e-4


class FakePull:
    """A Job whose asks are answered at once, from others' memory. Its time goes on by TICK_S for all that it does, and
    with the clock only while it waits.
    """

    def __init__(
        self, fake: Fake, name: str, target: Target, sources: tuple[bytes, ...], wish: Wish, seconds: float
    ) -> None:
        self.now = now = time.monotonic()
        self.hub = fake.hub
        self.port = FakePort(fake)
        self.answers = self.port.answers
        self.job = Job(
            self.port, name, sources, target, generation=wish.generation, root=wish.digest, priority=wish.priority,
            relay=False, now=now, deadline_at=now + seconds, changing=wish.changing,
        )  # fmt: skip

    @property
    def report(self) -> TransferReport:
        return self.job.report

    def have(self) -> bytes:
        return self.job.have()

    def progress(self) -> Progress:
        schedule = self.job.schedule
        return Progress(0, None) if schedule is None else Progress(schedule.done_bytes, schedule.done_bytes)

    def go_on(self) -> None:
        """`wait` looks again and again."""

    def cancel(self) -> bool:
        if not self.job.over:
            self.job.cancel()
            self.go()
        return self.job.error is not None

    def wait(self, timeout: float | None = None) -> None:
        self.go()
        if self.job.error is not None:
            raise self.job.error

    def tick(self) -> float:
        self.now += TICK_S
        return self.now

    def go(self) -> None:
        job = self.job
        while not job.over:
            try:
                job.pump(self.tick())
                while self.answers:
                    answer = self.answers.pop(0)
                    job.on_ended(*answer, self.tick())
                    job.pump(self.tick())
            except PcclError as error:
                job.fail(error)
            with self.hub.changed:
                left = job.deadline(self.now) - self.now
                if not job.over and not self.answers:
                    began = time.monotonic()
                    self.hub.changed.wait(min(max(left, 0.0), 0.05))
                    self.now += time.monotonic() - began


class FakePort:
    """Answers asks from others' memory."""

    def __init__(self, fake: Fake) -> None:
        self.fake, self.hub = fake, fake.hub
        self.paths: dict[bytes, Path] = {}
        self.answers: list[tuple[int, int]] = []
        self.tokens = 0

    def ask(
        self, job: Job, peer: bytes, key: bytes, generation: int, span: tuple[int, int], address: int, priority: int
    ) -> int:
        self.tokens += 1
        self.fake.step()
        status = self.answer(job.name, peer, key, generation, span, address)
        self.answers.append((self.tokens, status))
        return self.tokens

    def answer(self, name: str, peer: bytes, key: bytes, generation: int, span: tuple[int, int], address: int) -> int:
        with self.hub.changed:
            if peer not in self.hub.alive:
                return Status.EPEER
            try:
                data = self.hub.fakes[peer].serve(key, generation, *span)
            except Dead:
                return Status.EPEER
            if data is None:
                return Status.EGONE
            _native.byte_array(address, span[1])[:] = data
            if generation == HEAD_GENERATION and key != head_key(name):
                self.fake.carried.append((peer, *span))
            return Status.OK

    def cancel(self, token: int) -> None:
        """Every ask has been answered already."""

    def relay(self, job: Job, manifest: Manifest, parts: Sequence[Bytes]) -> Any:
        raise AssertionError("state is not relayed")


def as_bytes(data: bytes) -> Bytes:
    return np.frombuffer(data, np.uint8)


def run(fakes: list[Fake], body: Callable[[Fake, int], Any]) -> list[Any]:
    """Outcomes by rank: the result, or the exception."""
    outcomes: list[Any] = [None] * len(fakes)

    def peer(rank: int) -> None:
        try:
            outcomes[rank] = body(fakes[rank], rank)
        except BaseException as error:  # noqa: BLE001 - judged by the test
            outcomes[rank] = error

    threads = [threading.Thread(target=peer, args=(rank,), daemon=True) for rank in range(len(fakes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    return outcomes
