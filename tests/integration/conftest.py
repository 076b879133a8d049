"""A cluster in one process: a real coordinator, real engines, real sockets; one thread per peer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import forks
import pytest

import pccl
from pccl.coordinator.server import Coordinator

SECRET = "a secret of tests"
JOIN_S = 150.0  # less than what pytest gives a test, so that a peer that hangs is named


class Cluster:
    """Runs a function on n peers at once; everything is closed at the end of the test."""

    secret = SECRET

    def __init__(self) -> None:
        self._coordinators: list[Coordinator] = []

    def coordinator(self, min_peers: int, **options: Any) -> Coordinator:
        """A coordinator that lives until the end of the test."""
        coordinator = Coordinator(min_peers=min_peers, secret=SECRET, **options)
        coordinator.start()
        self._coordinators.append(coordinator)
        return coordinator

    def connect(self, coordinator: Coordinator, **options: Any) -> pccl.Communicator:
        """One more peer."""
        settings = {"secret": SECRET, "listen": "127.0.0.1:0", "timeout": 20.0, "op_timeout": 20.0} | options
        return pccl.connect(coordinator.address, **settings)

    def __call__(
        self,
        n: int,
        body: Callable[[pccl.Communicator], Any],
        *,
        min_peers: int | None = None,
        together: bool = True,
        **options: Any,
    ) -> list[Any]:
        """Results of `body(comm)` in the order of the ranks that the n peers begin with.

        Raises what the first failing peer raised. `min_peers`: so few may go on without the others; default n.
        `together`: nobody leaves before all have ended the body, so that ranks stay what they are.
        """
        coordinator = self.coordinator(n if min_peers is None else min_peers)
        outcomes: list[tuple[int, Any]] = []
        errors: list[BaseException] = []
        gathered = threading.Barrier(n)  # or whoever ends its body at once is gone before the others have seen it

        def peer() -> None:
            try:
                with self.connect(coordinator, **options) as comm:
                    gather(comm, n)
                    gathered.wait(JOIN_S)
                    rank = comm.rank
                    outcomes.append((rank, body(comm)))
                    if together:
                        comm.barrier(tag="the end of the body")
            except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
                errors.append(error)
                gathered.abort()

        threads = [threading.Thread(target=peer, daemon=True) for _ in range(n)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + JOIN_S
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        if errors:
            raise errors[0]
        assert not any(thread.is_alive() for thread in threads), "a peer hangs"
        return [outcome for _, outcome in sorted(outcomes, key=lambda pair: pair[0])]

    def close(self) -> None:
        """Ends the coordinators."""
        for coordinator in self._coordinators:
            coordinator.close()


def gather(comm: pccl.Communicator, n: int) -> None:
    """Passes boundaries until n peers are there; all of them leave at the same boundary."""
    while comm.world_size < n:
        comm.barrier()
        comm.advance()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """See Cluster."""
    made = Cluster()
    yield made
    made.close()


@pytest.fixture(scope="session")
def forked() -> Iterator[str]:
    """Stands before a program that imports torch, `python FORKED PROGRAM`, and makes that cheap: see forks.py."""
    with forks.server():
        yield forks.FORKED
