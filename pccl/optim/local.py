"""local.py - LocalComm: communicators of one process, for runs of pccl.optim that are simulated with threads.

Each of them is a pccl.Communicator: names, arguments, results and errors of ops, lists of tensors, sync_state and its
election are the real ones. Only what lies below is another: in place of the engine, the coordinator and the transfers
there is a Hub (local_hub.py), which has all peers' memory before it.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast, overload

import numpy as np

from pccl._native import Engine, OpRequest
from pccl.communicator import Communicator
from pccl.config import Settings
from pccl.control import Control
from pccl.errors import ArgumentError, Closed, PcclError, Timeout, TransferError
from pccl.optim.local_hub import Hub, Member
from pccl.runtime import Runtime
from pccl.sharing.depot import Depot
from pccl.transfer import Transfers
from pccl.transfer.fetch import Progress
from pccl.transfer.job import TransferReport
from pccl.transfer.manifest import Manifest, digest_of
from pccl.transfer.target import Bytes, Target
from pccl.transfer.transfers import Wish
from pccl.types import EngineStats, EpochView, Event, LinkStats, OpName, short_id

__all__ = ["LocalComm", "LocalCommunicator"]

T = TypeVar("T")

_LANE_KEY = b"local"
_SHOWN_MAX = 16  # contents that a peer keeps on offer


class LocalCommunicator(Communicator):
    """One replica of a LocalComm: a pccl.Communicator, to be used by the replica's own thread or threads.

    Beyond what its class says: `advance` never blocks; `bytes_sent` and `bytes_received` of results and `stats` are
    what the last attempt of an op would have cost over a network (an all-reduce of N values of b bytes on the wire
    among M peers: 2 N b (M - 1) / M each way); an op of a peer that goes before all have called it is retried without
    it, even if it had called it. There are no guests, no transfers and no links.
    """

    def __init__(self, runtime: Runtime, hub: Hub, member: Member, depots: dict[bytes, _Depot]) -> None:
        super().__init__(runtime)
        self._finalizer.detach()  # it holds nothing that must be given back
        self._hub = hub
        self._own = member
        self._depot = depots.setdefault(member.id, _Depot(hub, depots, member.id))

    @property
    def depot(self) -> Depot:
        """What this peer keeps of its state on offer; for pccl.sharing."""
        return cast(Depot, self._depot)

    @property
    def transfers(self) -> Transfers:
        """ArgumentError: peers of one process have no transfers."""
        raise ArgumentError("communicators of a LocalComm have no transfers")

    @property
    def closed(self) -> bool:
        """Whether this peer has left or died."""
        return bool(self._runtime.closed)

    def leave(self) -> None:
        """The same as `close`: the others go on without this peer."""
        self.close()

    def close(self) -> None:
        """Leaves the run. Idempotent; any thread. Own ops in flight end with Closed, those of others go on."""
        self._go("left")

    def die(self) -> None:
        """As if the replica's process were killed, at once; any thread. Its calls raise Closed from now on."""
        self._go("died")

    def _go(self, how: str) -> None:
        self._hub.remove(self._own.id, how)
        super().close()


class LocalComm(Sequence[LocalCommunicator]):
    """`replicas` peers of one run, each to be used by a thread of its own, that talk through memory. A context manager.

        comms = LocalComm(4)
        results = comms.run(train)  # train(comm) in a thread for each of them

    A sequence of all communicators that there have been, in the order in which they came: those that left or died keep
    their places. `seed`: ids of peers are a function of it and of that order. `op_timeout`: seconds, as of
    `pccl.connect`. A deadline that passes ends its op on every peer. Raises ArgumentError.
    """

    def __init__(self, replicas: int, *, seed: int = 0, op_timeout: float = 60.0) -> None:
        if isinstance(replicas, bool) or not isinstance(replicas, int) or replicas < 1:
            raise ArgumentError(f"replicas must be a positive number of peers, not {replicas!r}")
        if not op_timeout > 0:
            raise ArgumentError(f"op_timeout must be a positive number of seconds, not {op_timeout!r}")
        self._seed = seed
        self._settings = _settings(op_timeout)
        self._hub = Hub()
        self._depots: dict[bytes, _Depot] = {}
        members = self._hub.form([_peer_id(seed, number) for number in range(replicas)])
        self._comms = [self._communicator(member) for member in members]

    def __enter__(self) -> LocalComm:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        members = sum(not comm.closed for comm in self._comms)
        return f"<pccl.optim.LocalComm of {members} members, {len(self._comms)} in all>"

    def __len__(self) -> int:
        return len(self._comms)

    def __iter__(self) -> Iterator[LocalCommunicator]:
        return iter(list(self._comms))

    @overload
    def __getitem__(self, index: int) -> LocalCommunicator: ...
    @overload
    def __getitem__(self, index: slice) -> list[LocalCommunicator]: ...
    def __getitem__(self, index: int | slice) -> LocalCommunicator | list[LocalCommunicator]:
        return self._comms[index]

    def run(self, train: Callable[[LocalCommunicator], T]) -> list[T]:
        """Calls train(comm) for every present member, each in a thread of its own; returns what they return, in order.

        A member whose call raises dies, so that the others go on without it or learn that it is gone; when all have
        ended the first exception is raised. One that was closed or killed, and so raises Closed, returns None. A member
        whose call returns stays a member. Ctrl-C kills all.
        """
        present = [comm for comm in self._comms if not comm.closed]
        results: list[Any] = [None] * len(present)
        errors: list[BaseException] = []

        def replica(place: int, comm: LocalCommunicator) -> None:
            try:
                results[place] = train(comm)
            except BaseException as error:  # noqa: BLE001 - raised again below
                if not (isinstance(error, Closed) and comm.closed):
                    errors.append(error)
                comm.die()

        threads = [
            threading.Thread(target=replica, args=pair, name=f"pccl-replica-{pair[0]}", daemon=True)
            for pair in enumerate(present)
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException:
            for comm in present:
                comm.die()
            raise
        self._hub.rest()
        if errors:
            raise errors[0]
        return cast("list[T]", results)

    def join(self, timeout: float | None = None) -> LocalCommunicator:
        """A newcomer enters at the members' next boundary; returns its communicator, which is then the last of all.

        Blocks until all members have come to that boundary, so it is not for a member's own thread. Without members it
        forms the run anew. Raises Timeout after `timeout` seconds (default: `op_timeout`): then it has not entered.
        """
        seconds = self._settings.op_timeout if timeout is None else timeout
        with self._hub.lock:
            member = self._hub.enter(_peer_id(self._seed, len(self._comms)))
            comm = self._communicator(member)
            self._comms.append(comm)
        try:
            self._hub.entered(member, seconds)
        except BaseException:
            comm.die()
            raise
        return comm

    def close(self) -> None:
        """All members leave. Idempotent."""
        for comm in self:
            comm.close()
        self._hub.rest()

    def _communicator(self, member: Member) -> LocalCommunicator:
        hub, engine = self._hub, _Engine(self._hub, member)

        def control_of(runtime: Runtime) -> Control:
            engine.runtime = runtime
            return cast(Control, _Control(hub, member))

        runtime = Runtime(self._settings, cast(Engine, engine), control_of, _LANE_KEY)
        return LocalCommunicator(runtime, hub, member, self._depots)


def _peer_id(seed: int, number: int) -> bytes:
    return hashlib.blake2b(f"pccl.optim.LocalComm {seed} {number}".encode(), digest_size=16).digest()


def _settings(op_timeout: float) -> Settings:
    return Settings(
        coordinator="local",
        run="local",
        secret="",
        token="",
        group=0,
        listen=(),
        advertise=(),
        congestion="",
        too_few="wait",
        enter=True,
        join_timeout=op_timeout,
        op_timeout=op_timeout,
        transport="local",
        tls=None,
        fault_seed=0,
    )


# -- what a Runtime has below it -------------------------------------------------------------------------------------


class _Control:
    """The part of pccl.control.Control that a Runtime and a Communicator use."""

    error: PcclError | None = None
    hosts = None
    lease_s = float("inf")

    def __init__(self, hub: Hub, member: Member) -> None:
        self.lock = hub.lock
        self._hub = hub
        self._member = member

    @property
    def boundary(self) -> int:
        return self._member.boundary

    def view(self, boundary: int | None = None) -> EpochView:
        return self._hub.view(self._member.boundary if boundary is None else boundary)

    def epoch_view(self, epoch: int) -> EpochView | None:
        return self._hub.epoch_view(epoch)

    def advance(self, timeout: float | None, *, wait_for_peers: bool) -> EpochView:
        return self._hub.advance(self._member)

    def enter(self, timeout: float) -> EpochView:
        return self.view()

    def verdict_text(self, name: OpName) -> str:
        return self._hub.verdict_text()

    def judged(self, name: OpName) -> bool:
        return self._hub.is_over(name)

    def fault(self, token: int, kind: str) -> None:
        self._hub.cancel(self._member, token)

    def close(self) -> None:
        """Nothing runs here."""


class _Engine:
    """The part of pccl._native.Engine that a Runtime uses."""

    runtime: Runtime
    closed = True  # there is no thread

    def __init__(self, hub: Hub, member: Member) -> None:
        self.peer_id = member.id
        self._hub = hub
        self._member = member

    def submit(self, request: OpRequest) -> None:
        info = self.runtime.describe(request.token)
        assert info is not None
        self._hub.post(self._member, self.runtime, request, info)

    def stats(self) -> EngineStats:
        member = self._member
        known = {
            "ops_pending": self._hub.pending(member),
            "ops_committed": member.committed,
            "ops_failed": member.failed,
            "ops_retried": member.retried,
            "sent_bytes": member.sent_bytes,
            "received_bytes": member.received_bytes,
        }
        return EngineStats(**(dict.fromkeys(EngineStats.__slots__, 0) | known))

    def links(self) -> Sequence[LinkStats]:
        return ()

    def events(self) -> list[Event]:
        return []

    def close(self) -> None:
        self._hub.remove(self._member.id, "left")

    def free(self) -> None:
        """It has no memory of its own."""

    def drop(self) -> None:
        """A forked child has none of the threads that this is for."""


# -- state, as pccl.sharing moves it -----------------------------------------------------------------------------------


class _Depot:
    """That of one peer: pccl.sharing.depot.Stock."""

    def __init__(self, hub: Hub, depots: dict[bytes, _Depot], own: bytes) -> None:
        self.generation = 0
        self.mixed: set[str] = set()
        self.shown: OrderedDict[str, tuple[Manifest, list[Bytes], list[Any]]] = OrderedDict()
        self._hub = hub
        self._depots = depots
        self._own = own

    def show(self, manifest: Manifest, parts: Sequence[Bytes], holds: Sequence[Any]) -> None:
        with self._hub.lock:
            self.generation = max(self.generation, manifest.generation)
            self.shown[manifest.name] = manifest, list(parts), list(holds)
            self.shown.move_to_end(manifest.name)
            while len(self.shown) > _SHOWN_MAX:
                self.shown.popitem(last=False)
            self._hub.changed.notify_all()

    def hide(self, name: str) -> None:
        with self._hub.lock:
            self.shown.pop(name, None)

    def pull(self, name: str, target: Target, sources: Sequence[bytes], wish: Wish, seconds: float) -> _Pull:
        return _Pull(self._hub, self._depots, self._own, name, target, sources, wish, seconds)


class _Pull:
    """A copy of what differs, out of the memory of the first source that is there, once it offers it."""

    def __init__(
        self,
        hub: Hub,
        depots: dict[bytes, _Depot],
        own: bytes,
        name: str,
        target: Target,
        sources: Sequence[bytes],
        wish: Wish,
        seconds: float,
    ) -> None:
        self.report = TransferReport()
        self._hub = hub
        self._depots = depots
        self._own = own
        self._name = name
        self._target = target
        self._sources = tuple(sources)
        self._wish = wish
        self._due = time.monotonic() + seconds
        self._there = np.zeros(0, np.uint8)  # for each chunk whether it is in its place

    def wait(self, timeout: float | None = None) -> None:
        hub = self._hub
        with hub.lock:
            seconds = self._due - time.monotonic()
            if not hub.changed.wait_for(lambda: self._is_hopeless() or self._has(self._alive()[0]), max(0.0, seconds)):
                raise Timeout(f"no source of {self._name!r} in time")
            if self._is_hopeless():
                raise TransferError(f"no source of {self._name!r} is left", name=self._name, cause="lost")
            self._copy(self._alive()[0])

    def have(self) -> bytes:
        return bytes(np.packbits(self._there, bitorder="little").tobytes())

    def progress(self) -> Progress:
        done = sum(self.report.received.values())
        return Progress(done, done if self._there.size else None)

    def go_on(self) -> None:
        """`wait` begins it."""

    def cancel(self) -> bool:
        return False

    def _alive(self) -> list[bytes]:
        return [source for source in self._sources if source in self._hub.members]

    def _is_hopeless(self) -> bool:
        return self._own not in self._hub.members or not self._alive()

    def _has(self, source: bytes) -> bool:
        shown = self._depots[source].shown.get(self._name)
        if shown is None:
            return False
        manifest, wish = shown[0], self._wish
        right = wish.digest is None or manifest.root == wish.digest
        return right and (wish.generation is None or manifest.generation == wish.generation)

    def _copy(self, source: bytes) -> None:
        manifest, parts, _ = self._depots[source].shown[self._name]
        unwanted = set(self._target.begin(manifest) or ())
        self._there = np.zeros(manifest.count, np.uint8)
        received = 0
        for chunk in range(manifest.count):
            if chunk in unwanted:
                continue
            start, end = manifest.span(chunk)
            part, offset = manifest.layout.place(chunk)
            place = self._target.place(chunk, 1)
            place[:] = parts[part][offset : offset + end - start]
            if digest_of(place) != manifest.digest(chunk):  # its owner did not wait
                text = f"chunk {chunk} of {self._name!r} changed at peer {short_id(source)}"
                raise TransferError(text, peer=source, name=self._name, chunk=chunk, cause="digest")
            self._there[chunk] = 1
            received += end - start
        self.report.received[source] = received
