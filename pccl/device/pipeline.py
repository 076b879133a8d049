"""pipeline.py - collectives on device memory: copied out, reduced by the engine, copied back, all at the same time.

A call is cut into pieces (pieces.py), each an op on a block of pinned memory (pool.py). Two threads move them on:

out    takes pieces in the order of the calls: memory for one, a copy on the side stream "out", behind what the
       caller's stream had to do when it called. It copies a little ahead, sleeps until the oldest copy's event is done,
       hands the op to the engine. That order is the same on all peers: the oldest piece has memory everywhere.
back   takes pieces whose op has ended, in any order: a copy on the side stream "back", and the memory goes to the pool
       with that copy's event.

Nobody waits for a device, only for events; the control thread never talks to a device. A call's ops are named when it
is called, and handed over later; `flush` waits until they all are, for whoever passes a boundary.

A call has one outcome, the same on all survivors, since each of its ops has: it succeeds if all do, and only then is
anything written that was an input (`land`). When an op fails, the others are ended, and what was not yet sent is not.
When something fails at this peer alone (its device), the other peers are told of each op that is not sent any more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol

from pccl.device.pieces import Piece
from pccl.device.pool import Block, Pool
from pccl.device.streams import Copies, Device, Event
from pccl.errors import Closed, DeviceError, PcclError, Timeout
from pccl.lanes import Tag
from pccl.runtime import Named, Op
from pccl.work import Result, Work, together

__all__ = ["Call", "Port", "StagedWork", "Stager"]

log = logging.getLogger("pccl")

#: So many pieces are copied out before the first of them is handed over.
_AHEAD = 2
_CLOSE_S = 2.0


class Port(Protocol):
    """What staging needs of a communicator's Runtime."""

    def check_pid(self) -> None: ...
    def waited(self, token: int, begin_ns: int) -> None: ...
    def cancel_token(self, token: int) -> bool: ...
    def settle(self, ops: Sequence[Op]) -> None: ...
    def name_parts(self, tag: Tag, count: int, timeout: float | None) -> Named: ...
    def hand_over(self, op: Op, named: Named, number: int) -> None: ...
    def forgo(self, named: Named, number: int, what: str) -> None: ...


class StagedWork(Work):
    """A Work whose result lies in device memory. `wait()`, and `await`, block until the network is done and the last
    copy has been put on its stream; then the current stream of who waits, and not the thread, waits for that copy.
    """

    __slots__ = ("arrived", "device")

    def __init__(self, call: Call, device: Device) -> None:
        super().__init__(call, 0)
        self.device = device
        self.arrived: Event | None = None

    def _outcome(self) -> Result:
        result = super()._outcome()
        assert self.arrived is not None
        self.device.fence(self.arrived)
        return result


class Call:
    """One call. `land`: the copies within the device that come last; `shown`: the tensor of its result."""

    def __init__(
        self, port: Port, device: Device, pieces: Sequence[Piece], land: Copies, shown: Any, words: str
    ) -> None:
        self.device = device
        self.flights = [_Flight(self, number, piece) for number, piece in enumerate(pieces)]
        self.land = land
        self.shown = shown
        self.begun = device.mark()
        self.work = StagedWork(self, device)
        self.named: Named
        self.ops: list[Op] = []
        self.error: PcclError | None = None
        self.alone = False  # the error is this peer's, and nothing tells the others but this peer
        self.left = len(pieces)
        self.cancelled = False
        self._port = port
        self._words = words

    def check_pid(self) -> None:
        """Raises ForkError in a forked child."""
        self._port.check_pid()

    def describe_token(self, token: int) -> str:
        """The call in words."""
        return self._words

    def waited(self, token: int, begin_ns: int) -> None:
        """A thread was blocked by the call."""
        self._port.waited(token, begin_ns)

    def cancel_token(self, token: int) -> bool:
        """Asks the coordinator to settle every op of the call, those too that are handed over later."""
        self.cancelled = True
        for op in list(self.ops):
            self._port.cancel_token(op.request.token)
        return self.left > 0


@dataclass(eq=False, slots=True)
class _Flight:
    """A piece on its way."""

    call: Call
    number: int
    piece: Piece
    block: Block | None = None
    copied: Event | None = None
    op: Op | None = None


class Stager:
    """The staging of one communicator: its pinned memory, and the threads, which start with the first call."""

    def __init__(self, port: Port, limit_bytes: int) -> None:
        self.pool = Pool(limit_bytes)
        self._port = port
        self._lock = threading.Condition()
        self._todo: deque[_Flight] = deque()  # what is still to be copied out
        self._unsent = 0  # what has been named and not been handed over
        self._ended: SimpleQueue[_Flight | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def start(self, call: Call, tag: Tag, timeout: float | None) -> Work:
        """Begins a call. Raises what naming ops does; then nothing has happened."""
        with self._lock:
            if self._closed:
                raise Closed("the communicator is closed")
            call.named = self._port.name_parts(tag, len(call.flights), timeout)
            self._todo.extend(call.flights)
            self._unsent += len(call.flights)
            call.flights = []
            self._run()
            self._lock.notify_all()
        return call.work

    def flush(self, timeout: float) -> None:
        """Blocks until the ops of all calls have been handed over. Raises Timeout."""
        with self._lock:
            if not self._lock.wait_for(lambda: not self._unsent, timeout):
                raise Timeout(
                    f"{self._unsent} ops on device memory that were called before the boundary were not begun within "
                    f"{timeout:g} s"
                )

    def close(self) -> None:
        """Ends what has not been handed over with Closed; for when everything else has ended. Idempotent. What still
        waits for a busy device ends when that comes to it: nobody waits for it longer than some seconds.
        """
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        self.pool.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_CLOSE_S)
                if thread.is_alive():
                    log.warning("%s still waits for a device after %g s", thread.name, _CLOSE_S)

    def _run(self) -> None:
        if not self._threads:
            self._threads = [
                threading.Thread(target=target, name=f"pccl-staging-{name}", daemon=True)
                for name, target in (("out", self._out), ("back", self._back))
            ]
            for thread in self._threads:
                thread.start()

    # -- the thread "out" --

    def _out(self) -> None:
        ahead: deque[_Flight] = deque()
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._todo or ahead or self._closed)
                if not self._todo and not ahead:
                    break
                flight = self._todo[0] if self._todo and len(ahead) < _AHEAD else None
            if flight is not None and self._copied_out(flight, wait=not ahead):
                ahead.append(self._todo.popleft())
            elif ahead:
                self._hand_over(ahead.popleft())
        self._ended.put(None)

    def _copied_out(self, flight: _Flight, wait: bool) -> bool:
        """False if there is no memory for it now, and it is not worth waiting for."""
        call = flight.call
        if call.error is not None:
            return True
        try:
            until = time.monotonic() + call.named.left_s if wait else None
            flight.block = self.pool.take(flight.piece.nbytes, call.device.pinned, until)
            if flight.block is None:
                return False
            flight.copied = call.device.copy("out", flight.piece.out(flight.block.memory), call.begun)
        except Exception as error:  # noqa: BLE001 - the call's, whatever the device raises
            self._fail(call, error)
        return True

    def _hand_over(self, flight: _Flight) -> None:
        call = flight.call
        try:
            if flight.copied is not None:
                flight.copied.synchronize()
            if call.error is None:
                assert flight.block is not None
                op = flight.piece.op(flight.block.memory)
                self._port.hand_over(op, call.named, flight.number)
                flight.op = op
        except Exception as error:  # noqa: BLE001 - the same
            self._fail(call, error)
        with self._lock:
            self._unsent -= 1
            self._lock.notify_all()
        if flight.op is None:
            self._forgo(call, flight.number)
            self._ended.put(flight)
        else:
            self._sent(flight, flight.op)

    def _sent(self, flight: _Flight, op: Op) -> None:
        call = flight.call
        call.ops.append(op)
        if call.cancelled:
            self._port.cancel_token(op.request.token)
        if call.error is not None:  # since it was looked at
            self._settle([op])
        op.work._when_done(partial(self._ended.put, flight))

    # -- the thread "back" --

    def _back(self) -> None:
        while (flight := self._ended.get()) is not None:
            self._land(flight)
            del flight

    def _land(self, flight: _Flight) -> None:
        call, last = flight.call, flight.copied
        try:
            if flight.op is not None and self._succeeded(call, flight.op) and flight.block is not None:
                last = call.device.copy("back", flight.piece.back(flight.block.memory), call.begun)
        except Exception as error:  # noqa: BLE001 - the same
            self._fail(call, error)
        if flight.block is not None and not (flight.op is not None and flight.op.is_lent):
            self.pool.give(flight.block, last)
        call.left -= 1
        if not call.left:
            self._end(call)

    def _end(self, call: Call) -> None:
        try:
            if call.error is None:
                call.work.arrived = call.device.copy("back", call.land, call.begun)
        except Exception as error:  # noqa: BLE001 - the same
            self._fail(call, error)
        ops, call.ops, call.land = call.ops, [], ()
        result = None if call.error else together([op.work._outcome() for op in ops], call.shown)
        call.work._resolve(result, call.error)

    # -- trouble --

    def _succeeded(self, call: Call, op: Op) -> bool:
        """Whether the op, which has ended, and the call so far have. An op's error is the same on all survivors."""
        try:
            op.work.wait()
        except PcclError as error:
            self._fail(call, error, alone=False)
        return call.error is None

    def _forgo(self, call: Call, number: int) -> None:
        try:
            self._port.forgo(call.named, number, call.describe_token(0) if call.alone else "")
        except PcclError as lost:  # the communicator ends, and the others hear that
            log.debug("nobody was told that an op is forgone: %s", lost)

    def _fail(self, call: Call, error: Exception, alone: bool = True) -> None:
        """The first error is the call's; nobody wants its other ops any more."""
        if not isinstance(error, PcclError):
            error = DeviceError(f"{type(error).__name__}: {error}", op=call.describe_token(0))
        with self._lock:
            is_first = call.error is None
            call.error = call.error or error
            call.alone |= is_first and alone
        if is_first:
            self._settle(call.ops)

    def _settle(self, ops: Sequence[Op]) -> None:
        try:
            self._port.settle(list(ops))
        except PcclError as lost:  # the communicator ends, and its ops with it
            log.debug("ops were not settled: %s", lost)
