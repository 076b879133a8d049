"""weights_run.py - a run whose peers publish and receive weights in this process, and end with the test."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import pccl
from pccl.weights import Receiver

WAIT_S = 60.0


class Run:
    """A coordinator, and n members of one group; every one is closed at the end."""

    def __init__(self, cluster: Any, n: int) -> None:
        self._cluster = cluster
        self._coordinator = cluster.coordinator(max(1, n))
        self.address = self._coordinator.address
        made: list[Any] = []
        threads = [threading.Thread(target=lambda: made.append(self.connect())) for _ in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.comms: list[pccl.Communicator] = made
        self.closing: list[Callable[[], None]] = []

    def connect(self, **options: Any) -> Any:
        return self._cluster.connect(self._coordinator, transport="tcp", **options)

    def keep(self, thing: Any) -> Any:
        self.closing.append(thing.close)
        return thing

    def close(self) -> None:
        for close in reversed(self.closing):
            close()
        for comm in self.comms:
            comm.close()


def apart(cluster: Any, n: int) -> Run:
    """A run whose n peers are in a group each: they have the links that weights want, and no others."""
    made = Run(cluster, 0)
    made.comms += [made.connect(group=group) for group in range(n)]
    return made


@pytest.fixture
def run(cluster: Any) -> Any:
    made: list[Run] = []

    def start(n: int) -> Run:
        made.append(Run(cluster, n))
        return made[-1]

    yield start
    for one in made:
        one.close()


def commit_until(rx: Receiver, version: int) -> list[int]:
    """Versions that were committed, up to this one."""
    seen = []
    while rx.version < version:
        update = rx.next(WAIT_S)
        with update.commit():
            pass
        seen.append(update.version)
    return seen
