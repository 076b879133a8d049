"""offers.py - what this peer offers: head, manifest and data of each name, and the memory that they keep alive.

The head is offered last and withdrawn first, so that whoever has read it finds the rest, or learns that it is gone.
Regions stay in the registry, with their memory, until the engine has said that it does not read them any more. Any
thread; WITHDRAWN events come on the control thread.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from pccl import _native
from pccl.buffers import as_buffer
from pccl.errors import ArgumentError, Closed, HungError, PcclError, ResourceError
from pccl.transfer.manifest import HEAD_GENERATION, Head, Manifest, data_key, head_key, manifest_key
from pccl.transfer.target import Bytes
from pccl.types import Event, Status

__all__ = ["FENCE_S", "Offer", "Offers", "log", "writable"]

log = logging.getLogger("pccl.transfer")

#: How long a fence is waited for: it needs nobody but this process's engine.
FENCE_S = 5.0


class Host(Protocol):
    """What offers need of the communicator."""

    @property
    def engine(self) -> _native.Engine:
        """The engine."""

    def check(self) -> None:
        """Raises what forbids any further transfer."""

    def check_pid(self) -> None:
        """Raises ForkError in a forked child."""


class _Region:
    """One region, and what must live as long as it."""

    __slots__ = ("gone", "hold", "on_asked", "on_gone", "status")

    def __init__(self, hold: Any, on_asked: Callable[[bytes], None] | None) -> None:
        self.hold = hold
        self.gone = threading.Event()
        self.status = int(Status.OK)
        self.on_asked = on_asked
        self.on_gone: Callable[[], None] | None = None


class Offer:
    """A name that this peer offers. Made by `Transfers.offer`, and by fetches with `relay=True`.

    The memory must not be written to until `withdraw` or `update` has returned: whoever fetches would find chunks that
    are not what their digests say, and refuse them. It is kept alive until then.
    """

    def __init__(self, owner: Offers, manifest: Manifest, parts: Sequence[Bytes], hold: Any, whole: bool) -> None:
        self._owner = owner
        self._lock = threading.Lock()
        self._regions: list[_Region] = []
        self._withdrawn = False
        self.manifest = manifest
        self._publish(manifest, parts, hold, whole)

    def __repr__(self) -> str:
        state = " withdrawn" if self._withdrawn else ""
        return f"<pccl.Offer {self.name!r} generation {self.generation}, {self.nbytes} bytes{state}>"

    @property
    def name(self) -> str:
        """By which others fetch it."""
        return self.manifest.name

    @property
    def generation(self) -> int:
        """The present one."""
        return self.manifest.generation

    @property
    def nbytes(self) -> int:
        """Of the data."""
        return self.manifest.nbytes

    @property
    def digest(self) -> bytes:
        """16 bytes of the whole content, for `fetch(digest=...)`: equal for equal bytes in chunks of equal size."""
        return self.manifest.root

    def withdraw(self, timeout: float = FENCE_S) -> None:
        """Ends the offer; when it returns the memory is not read any more. Blocks for milliseconds. Idempotent.

        Fetches of others that are under way go on with their other sources. Raises HungError if the engine does not
        answer within `timeout` seconds: then the memory stays borrowed.
        """
        self._owner.host.check_pid()
        with self._lock:
            if not self._withdrawn:
                self._end()
                self._wait(timeout)
                self._owner.free_name(self.name)

    def update(self, generation: int, array: Any, timeout: float = FENCE_S) -> None:
        """Offers other content, of a later generation, under the same name; when it returns the former memory is not
        read any more. Reads all of `array` first, to know its digests, while the former content is still offered.

        Raises ArgumentError (not a later generation; an array that cannot be offered), Closed, HungError.
        """
        self._owner.host.check()
        if generation <= self.generation:
            raise ArgumentError(f"generation {generation} is not later than {self.generation}, which is offered")
        parts, hold = readable(array)
        manifest = Manifest.of(self.name, generation, parts, self.manifest.chunk_bytes)
        with self._lock:
            if self._withdrawn:
                raise ArgumentError(f"{self.name!r} is not offered any more")
            self._end()
            self._wait(timeout)
            self.manifest = manifest
            self._withdrawn = False
            self._publish(manifest, parts, hold, True)

    def extend(self, first: int, end: int) -> None:
        """Bytes `first` to `end` of a relayed offer are there and verified."""
        offsets, generation = self.manifest.layout.offsets, self.manifest.data_generation
        for part in range(bisect_right(offsets, first) - 1, len(self.manifest.parts)):
            begin, until = max(first, offsets[part]), min(end, offsets[part + 1])
            if begin < until:
                self._owner.quietly(
                    "extend", data_key(self.name, part), generation, begin - offsets[part], until - begin
                )
            if until == end:
                return

    def withdraw_soon(self, then: Callable[[], None]) -> None:
        """Ends the offer without waiting; calls back, on any thread, when its memory is not read any more."""
        with self._lock:
            self._withdrawn = True
            left = itertools.count(len(self._regions), -1)

            def one_gone() -> None:
                if next(left) == 1:
                    self._owner.free_name(self.name)
                    then()

            self._owner.when_gone(self._regions, one_gone)
            self._end()

    def _publish(self, manifest: Manifest, parts: Sequence[Bytes], hold: Any, whole: bool) -> None:
        encoded = manifest.encode()
        head = Head.of(manifest, encoded).encode()
        name, generation = manifest.name, manifest.generation
        self._regions = []
        for number, part in enumerate(parts):
            if part.size:
                self._offer(data_key(name, number), generation, part, hold, whole)
        self._offer(manifest_key(name), generation, np.frombuffer(encoded, np.uint8), None, True)
        self._offer(head_key(name), HEAD_GENERATION, np.frombuffer(head, np.uint8), None, True)

    def _offer(self, key: bytes, generation: int, data: np.ndarray[Any, Any], hold: Any, whole: bool) -> None:
        self._regions.append(self._owner.offer_region(key, generation, data, hold, whole))

    def _end(self) -> None:
        self._withdrawn = True
        name, generation = self.name, self.generation
        self._owner.quietly("withdraw", head_key(name), HEAD_GENERATION)
        self._owner.quietly("withdraw", manifest_key(name), generation)
        for number, size in enumerate(self.manifest.parts):
            if size:
                self._owner.quietly("withdraw", data_key(name, number), generation)

    def _wait(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        for region in self._regions:
            if not region.gone.wait(max(0.0, deadline - time.monotonic())):
                raise HungError(f"the engine did not let go of {self.name!r} within {timeout:g} s")


class Offers:
    """The names and regions of one communicator."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._regions: dict[int, _Region] = {}
        self._names: set[str] = set()
        self._tokens = itertools.count(1)
        self._lock = threading.Lock()

    @property
    def regions(self) -> int:
        """How many the engine has not let go of."""
        return len(self._regions)

    def offer(self, name: str, array: Any, generation: int, chunk_bytes: int | None) -> Offer:
        """Reads all of it, then offers it."""
        parts, hold = readable(array)
        manifest = Manifest.of(name, generation, parts, chunk_bytes)
        return self._made(manifest, parts, hold, True)

    def relay(self, manifest: Manifest, parts: Sequence[Bytes]) -> Offer:
        """Offers what will be there; see Offer.extend."""
        return self._made(dataclasses.replace(manifest, data_generation=manifest.generation), parts, None, False)

    def _made(self, manifest: Manifest, parts: Sequence[Bytes], hold: Any, whole: bool) -> Offer:
        with self._lock:
            if manifest.name in self._names:
                raise ArgumentError(f"{manifest.name!r} is offered here already; update() or withdraw() that")
            self._names.add(manifest.name)
        try:
            return Offer(self, manifest, parts, hold, whole)
        except PcclError:
            self.free_name(manifest.name)
            raise

    def free_name(self, name: str) -> None:
        """It can be offered again."""
        with self._lock:
            self._names.discard(name)

    def offer_region(
        self,
        key: bytes,
        generation: int,
        data: Bytes,
        hold: Any,
        whole: bool,
        changes: bool = False,
        on_asked: Callable[[bytes], None] | None = None,
    ) -> _Region:
        """Into the registry first: the engine may answer before the call has returned. `changes`: it is written to
        while it is offered. `on_asked`: called, on the
        control thread, with each peer that begins to fetch it.
        """
        address, pinned = _native.pin(data)
        region = _Region((data, pinned, hold), on_asked)
        token = next(self._tokens)
        self._regions[token] = region
        watched = on_asked is not None
        try:
            raw = _native.Region(key, generation, address, data.size, token, changes, watched)
            self.host.engine.offer(raw, whole=whole)
        except BaseException:
            del self._regions[token]
            raise
        return region

    def quietly(self, command: str, *arguments: Any) -> None:
        """Tells an engine that may be closed: then its regions are gone, or go, anyway."""
        try:
            getattr(self.host.engine, command)(*arguments)
        except (Closed, ResourceError) as error:
            log.debug("transfers: %s", error)

    def when_gone(self, regions: list[_Region], callback: Callable[[], None]) -> None:
        """Calls back once for each region that goes, or has gone."""
        with self._lock:
            gone = [region for region in regions if region.gone.is_set()]
            for region in regions:
                region.on_gone = callback
        for _ in gone:
            callback()

    def on_asked(self, event: Event) -> None:
        """A peer has begun to fetch from a region that is watched."""
        region = self._regions.get(event.token)
        if region is not None and region.on_asked is not None:
            region.on_asked(event.peer)

    def on_withdrawn(self, event: Event) -> None:
        """The engine has let go of a region."""
        region = self._regions.pop(event.token, None)
        if region is None:
            return
        with self._lock:
            region.status = event.status
            region.hold = None
            region.gone.set()
            callback = region.on_gone
        if event.status not in (Status.OK, Status.ECLOSED):
            log.warning("an offer was refused by the engine: %s", _native.err_name(event.status))
        if callback is not None:
            callback()

    def end(self) -> None:
        """The engine is gone: so is every region."""
        for token in list(self._regions):
            self.on_withdrawn(Event(kind=0, status=Status.ECLOSED, token=token))


def readable(array: Any) -> tuple[list[Bytes], Any]:
    """(flat bytes of each part, hold) of what is to be offered: views, never copies."""
    return _views(array, False, "array")


def writable(array: Any) -> tuple[list[Bytes], Any]:
    """(flat bytes of each part, hold) of a target."""
    return _views(array, True, "into")


def _views(array: Any, writable: bool, what: str) -> tuple[list[Bytes], Any]:
    arrays = array if isinstance(array, list | tuple) else [array]
    buffers = [as_buffer(one, writable=writable, what=what) for one in arrays]
    return [_native.byte_array(b.address, b.nbytes) for b in buffers], [b.owner for b in buffers]
