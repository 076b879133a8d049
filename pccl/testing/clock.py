"""clock.py - virtual time: one heap of (time, sequence, action), and the futures and tasks that hang on it.

Nothing here looks at a real clock. Actions due at one time happen in the order in which they were asked for.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any

SECOND = 1_000_000_000
MILLISECOND = 1_000_000
NEVER = 2**64 - 1


def ns(seconds: float) -> int:
    """Seconds as nanoseconds."""
    return int(seconds * SECOND)


class Timer:
    """An action that waits for its time; `cancel` makes it nothing."""

    __slots__ = ("action", "at_ns")

    def __init__(self, at_ns: int, action: Callable[[], object]) -> None:
        self.at_ns = at_ns
        self.action: Callable[[], object] | None = action

    def cancel(self) -> None:
        """It will not happen."""
        self.action = None


class Clock:
    """Virtual time and what is to happen when."""

    def __init__(self) -> None:
        self.now_ns = 0
        self._heap: list[tuple[int, int, Timer]] = []
        self._sequence = 0

    @property
    def now(self) -> float:
        """Seconds."""
        return self.now_ns / SECOND

    def at(self, at_ns: int, action: Callable[[], object]) -> Timer:
        """Does something at a time; never before what is due already."""
        timer = Timer(max(at_ns, self.now_ns), action)
        self._sequence += 1
        heapq.heappush(self._heap, (timer.at_ns, self._sequence, timer))
        return timer

    def after(self, seconds: float, action: Callable[[], object]) -> Timer:
        """Does something so much later."""
        return self.at(self.now_ns + ns(seconds), action)

    @property
    def next_ns(self) -> int:
        """When the next action is due; NEVER if there is none."""
        while self._heap and self._heap[0][2].action is None:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else NEVER

    def run_due(self) -> None:
        """Does everything that is due now, also what that causes to be due now."""
        while self.next_ns <= self.now_ns:
            action = heapq.heappop(self._heap)[2].action
            if action is not None:
                action()


class Future:
    """Something that coroutines await. Resolved once."""

    __slots__ = ("done", "error", "value", "waiters")

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.waiters: list[Task] = []

    def resolve(self, value: Any = None, error: BaseException | None = None) -> None:
        """Wakes who waits."""
        if self.done:
            return
        self.done, self.value, self.error = True, value, error
        for task in self.waiters:
            task.ready.append(task)
        self.waiters = []

    def __await__(self) -> Generator[Future, None, Any]:
        if not self.done:
            yield self
        if self.error is not None:
            raise self.error
        return self.value


class Task(Future):
    """A coroutine under way. `ready`: where it queues up to run, one queue per simulated process."""

    __slots__ = ("coroutine", "ready", "waits_for")

    def __init__(self, coroutine: Coroutine[Any, None, Any], ready: deque[Task]) -> None:
        super().__init__()
        self.coroutine = coroutine
        self.ready = ready
        self.waits_for: Future | None = None
        ready.append(self)

    def step(self) -> None:
        """Runs until it waits or ends. What it raises belongs to who awaits it."""
        try:
            future = self.coroutine.send(None)
        except StopIteration as stop:
            self.waits_for = None
            self.resolve(stop.value)
        except Exception as error:  # noqa: BLE001 - kept for whoever looks at the task
            self.waits_for = None
            self.resolve(None, error)
        else:
            self.waits_for = future
            future.waiters.append(self)
