"""A Port for jobs and pushes that a test answers by hand, from regions that it has made."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

from pccl.errors import PcclError
from pccl.transfer.manifest import HEAD_GENERATION, Head, Manifest, data_key, head_key, manifest_key
from pccl.transfer.schedule import Path
from pccl.types import Status


@dataclass(slots=True)
class Asked:
    """An ask that has not ended."""

    task: Any
    peer: bytes
    key: bytes
    generation: int
    span: tuple[int, int]
    address: int
    cancelled: bool = False


@dataclass
class RelayLog:
    """What was told to a relay."""

    parts: list[tuple[int, int]] = field(default_factory=list)
    withdrawn: bool = False

    def extend(self, first: int, end: int) -> None:
        self.parts.append((first, end))

    def withdraw(self) -> None:
        self.withdrawn = True


class FakePort:
    """`regions`: what each peer has, by (peer, key, generation). Nothing is answered before `answer`."""

    def __init__(self) -> None:
        self.regions: dict[tuple[bytes, bytes, int], bytes] = {}
        self.asked: dict[int, Asked] = {}
        self.log = RelayLog()
        self.paths: dict[bytes, Path] = {}
        self.now = 0.0
        self._tokens = 0

    def offer(self, peer: bytes, name: str, data: bytes, generation: int = 1, chunk_bytes: int = 1024) -> Manifest:
        """A peer has this to offer."""
        manifest = Manifest.of(name, generation, data, chunk_bytes)
        encoded = manifest.encode()
        self.regions[peer, head_key(name), HEAD_GENERATION] = Head.of(manifest, encoded).encode()
        self.regions[peer, manifest_key(name), generation] = encoded
        self.regions[peer, data_key(name), generation] = data
        return manifest

    # -- as a Port --

    def ask(
        self, task: Any, peer: bytes, key: bytes, generation: int, span: tuple[int, int], address: int, priority: int
    ) -> int:
        self._tokens += 1
        self.asked[self._tokens] = Asked(task, peer, key, generation, span, address)
        return self._tokens

    def cancel(self, token: int) -> None:
        self.asked[token].cancelled = True

    def relay(self, job: Any, manifest: Manifest, data: Any) -> RelayLog:
        return self.log

    # -- as a network --

    def end(self, token: int, status: Status) -> None:
        """One ask ends, as the worker would tell of it: an error that the task raises ends it."""
        task = self.asked.pop(token).task
        try:
            task.on_ended(token, status, self.now)
        except PcclError as error:
            task.fail(error)
        task.pump(self.now)

    def answer(self, token: int) -> None:
        """One ask ends as it would: with bytes, cancelled, or with nothing there."""
        asked = self.asked[token]
        found = self.regions.get((asked.peer, asked.key, asked.generation))
        if asked.cancelled or found is None:
            self.end(token, Status.ECANCELLED if asked.cancelled else Status.EGONE)
            return
        offset, nbytes = asked.span
        assert len(found[offset : offset + nbytes]) == nbytes, "what is asked for is in the region"
        ctypes.memmove(asked.address, found[offset : offset + nbytes], nbytes)
        self.end(token, Status.OK)

    def answer_all(self) -> None:
        """Until nothing is asked any more."""
        while self.asked:
            self.answer(next(iter(self.asked)))

    def of(self, peer: bytes) -> list[int]:
        """What is asked of a peer."""
        return [token for token, asked in self.asked.items() if asked.peer == peer]
