"""An accelerator made of threads, for tests of staging where there is none: streams that run behind whoever fills them.

A stream is a thread with a queue. What is put on it is done later, in order; an event is set when the stream comes to
it. Memory of the device is that of `Far` tensors, host memory that says it lies elsewhere. So what staging gets wrong
about streams goes wrong here too: a copy that does not wait for what it must wait for reads or writes too early.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from queue import SimpleQueue
from typing import Any

import torch

from pccl.device import streams

KIND = "privateuseone"


class Far(torch.Tensor):
    """Memory of the device."""

    is_cpu = False  # type: ignore[assignment]
    device = torch.device(KIND, 0)  # type: ignore[assignment]

    def to(self, *where: Any, **options: Any) -> torch.Tensor:
        """To the host, when the current stream has come so far."""
        assert where == ("cpu",) and not options
        streams._made[KIND, 0].mark().synchronize()  # type: ignore[attr-defined]
        return near(self)


def far(tensor: torch.Tensor) -> Far:
    """The tensor, as memory of the device."""
    return tensor.as_subclass(Far)


def near(tensor: torch.Tensor) -> torch.Tensor:
    """And back: what the device's memory holds now, whatever its streams have still to do."""
    return tensor.as_subclass(torch.Tensor).clone()


class Mark:
    """An event of a stream."""

    def __init__(self) -> None:
        self._reached = threading.Event()

    def query(self) -> bool:
        """See Event."""
        return self._reached.is_set()

    def synchronize(self) -> None:
        """See Event."""
        self._reached.wait()


class Stream:
    """Does one thing after the other, on a thread of its own."""

    def __init__(self) -> None:
        self._todo: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, do: Callable[[], object]) -> None:
        """Does it later."""
        self._todo.put(do)

    def mark(self) -> Mark:
        """An event behind all that was put so far."""
        mark = Mark()
        self.put(mark._reached.set)
        return mark

    def stall(self) -> threading.Event:
        """Nothing goes on behind this before the event is set."""
        gate = threading.Event()
        self.put(gate.wait)
        return gate

    def end(self) -> None:
        """Does what there is, then ends."""
        self._todo.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (do := self._todo.get()) is not None:
            do()


class Threads:
    """A Device. `current` is a thread's own stream; `copies` counts what was put on the side streams; `broken`: what
    the next copy of that way raises.
    """

    def __init__(self, index: int = 0) -> None:
        self.sides: dict[str, Stream] = {"out": Stream(), "back": Stream()}
        self.copies = {"out": 0, "back": 0}
        self.broken: dict[str, Exception] = {}
        self.pinned_bytes = 0
        self._threads = threading.local()
        self._streams = list(self.sides.values())

    @property
    def current(self) -> Stream:
        """The current stream of the calling thread."""
        if not hasattr(self._threads, "stream"):
            self._threads.stream = Stream()
            self._streams.append(self._threads.stream)
        stream: Stream = self._threads.stream
        return stream

    def pinned(self, nbytes: int) -> torch.Tensor:
        """See Device."""
        self.pinned_bytes += nbytes
        return torch.empty(nbytes, dtype=torch.uint8)

    def mark(self) -> Mark:
        """See Device."""
        return self.current.mark()

    def fence(self, event: Any) -> None:
        """See Device."""
        self.current.put(event.synchronize)

    def copy(self, way: str, copies: Any, after: Any) -> Mark:
        """See Device."""
        stream = self.sides[way]
        if after is not None:
            stream.put(after.synchronize)
        for to, source in copies:
            if way in self.broken:
                raise self.broken.pop(way)
            self.copies[way] += 1
            stream.put(partial(to.as_subclass(torch.Tensor).copy_, source.as_subclass(torch.Tensor)))
        return stream.mark()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """See Device."""
        before, self._threads.stream = self.current, self.sides["back"]
        try:
            yield
        finally:
            self._threads.stream = before

    def end(self) -> None:
        """Ends all streams."""
        for stream in self._streams:
            stream.end()


@contextlib.contextmanager
def installed(kind: type[Threads] = Threads) -> Iterator[Threads]:
    """The device of all `Far` tensors."""
    streams._made[KIND, 0] = device = kind()
    streams.MAKERS[KIND] = kind
    try:
        yield device
    finally:
        del streams.MAKERS[KIND]
        streams._made.pop((KIND, 0), None)
        device.end()
