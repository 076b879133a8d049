"""The thread of transfers: steps are taken in the order in which they were told, however many there are at once."""

from __future__ import annotations

import threading
from typing import Any

from pccl.contacts import Way
from pccl.transfer.worker import Worker


class Links:
    def way_to(self, peer: bytes) -> Way:
        return Way.GROUP

    def seek(self, peers: frozenset[bytes]) -> None:
        raise AssertionError("nobody is named")


class Idle:
    """A task that waits for ever."""

    deadline_at = float("inf")
    over = False
    error = None

    def pump(self, now: float) -> None:
        pass

    def deadline(self, now: float) -> float:
        return float("inf")

    def fail(self, error: Any) -> None:
        self.over = True

    def describe(self) -> str:
        return "idle"


def test_steps_are_taken_in_their_order() -> None:
    worker = Worker(None, Links(), lambda task: None)  # type: ignore[arg-type]
    task: Any = Idle()
    began, go, done = threading.Event(), threading.Event(), threading.Event()
    taken: list[int] = []

    def first() -> Any:
        began.set()
        assert go.wait(10)
        return task

    worker.begin(task)
    worker.tell(first)
    assert began.wait(10)
    for number in range(2000):
        worker.tell(lambda number=number: taken.append(number))  # type: ignore[misc]
    worker.tell(done.set)  # type: ignore[arg-type]
    go.set()
    assert done.wait(10)
    worker.stop()
    assert taken == list(range(2000)) and task.over
