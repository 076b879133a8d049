"""Staging: what waits for what, what is written when, and where memory is after anything went wrong.

The pipeline is the real one; streams are threads (tests/streams.py); the ops end when a test says so.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest
import torch
from streams import Threads, far, installed, near

from pccl.device.pieces import cut, piece_bytes
from pccl.device.pipeline import Call, Stager
from pccl.device.pool import size_class
from pccl.errors import Cancelled, Closed, DeviceError, MismatchError, PcclError, ResourceError, Timeout
from pccl.runtime import Named, Op
from pccl.types import OpName
from pccl.work import Result, Work

MIB = 1 << 20
PATIENCE_S = 20.0


class Port:
    """A Runtime whose ops end when the test ends them."""

    def __init__(self) -> None:
        self.handed: SimpleQueue[FakeOp] = SimpleQueue()
        self.settled: list[Any] = []
        self.cancelled: list[int] = []
        self.forgone: list[tuple[int, str]] = []
        self.refuses: PcclError | None = None
        self.calls = 0
        self.timeout_s = PATIENCE_S

    def check_pid(self) -> None:
        """See Port."""

    def describe_token(self, token: int) -> str:
        """For the works of ops."""
        return f"op {token}"

    def waited(self, token: int, begin_ns: int) -> None:
        """See Port."""

    def cancel_token(self, token: int) -> bool:
        """See Port."""
        self.cancelled.append(token)
        return True

    def settle(self, ops: Sequence[Op]) -> None:
        """See Port."""
        self.settled += ops
        if self.refuses is not None:
            raise self.refuses

    def name_parts(self, tag: Any, count: int, timeout: float | None) -> Named:
        """See Port."""
        if self.refuses is not None:
            raise self.refuses
        self.calls += 1
        return Limited([OpName(0, 7 + number, self.calls) for number in range(count)], tag, 0, self.timeout_s)

    def hand_over(self, op: Any, named: Named, number: int) -> None:
        """See Port."""
        op.name = named.names[number]
        op.work = Work(self, number)
        self.handed.put(op)

    def forgo(self, named: Named, number: int, what: str) -> None:
        """See Port."""
        self.forgone.append((number, what))

    def next(self) -> FakeOp:
        """The next op that was handed over."""
        return self.handed.get(timeout=PATIENCE_S)


@dataclass(frozen=True)
class Limited(Named):
    """Names with a time that does not pass."""

    seconds: float = PATIENCE_S

    @property
    def left_s(self) -> float:
        """See Named."""
        return self.seconds


class FakeOp:
    """Doubles its memory when it is told to."""

    is_lent = False

    def __init__(self, number: int, memory: torch.Tensor) -> None:
        self.number = number
        self.memory = memory
        self.name: OpName
        self.work: Work
        self.request = self
        self.token = number

    def succeed(self) -> None:
        """Ends it well."""
        self.memory.mul_(2)
        self.work._resolve(Result(None, 1, (b"p",), 1, 0, 4, 4, 0.1), None)

    def fail(self, error: PcclError) -> None:
        """Ends it badly."""
        self.memory.fill_(-1)
        self.work._resolve(None, error)


class Part:
    """A piece: numbers out, their doubles back."""

    def __init__(self, number: int, source: torch.Tensor, target: torch.Tensor) -> None:
        self.number, self.source, self.target = number, source, target
        self.nbytes = source.numel() * 4

    def out(self, memory: torch.Tensor) -> Any:
        """See Piece."""
        return [(self._view(memory), self.source)]

    def op(self, memory: torch.Tensor) -> Any:
        """See Piece."""
        return FakeOp(self.number, self._view(memory))

    def back(self, memory: torch.Tensor) -> Any:
        """See Piece."""
        return [(self.target, self._view(memory))]

    def _view(self, memory: torch.Tensor) -> torch.Tensor:
        return memory[: self.nbytes].view(torch.float32)


@dataclass
class Bench:
    """A stager, its device and its port."""

    port: Port
    device: Threads
    stager: Stager

    def call(self, tensor: torch.Tensor, pieces: int) -> Work:
        """Doubles a tensor of the device, in so many pieces."""
        aside = torch.empty_like(tensor)
        parts = zip(tensor.chunk(pieces), aside.chunk(pieces), strict=True)
        call = Call(
            self.port,
            self.device,
            [Part(i, *pair) for i, pair in enumerate(parts)],
            [(tensor, aside)],
            tensor,
            "double",
        )
        return self.stager.start(call, None, None)

    def seen(self, tensor: torch.Tensor) -> list[float]:
        """What the current stream sees of a tensor, now that it is its turn."""
        found: list[list[float]] = []
        self.device.current.put(lambda: found.append(near(tensor).unique().tolist()))
        self.device.mark().synchronize()
        return found[0]


@pytest.fixture
def bench() -> Iterator[Bench]:
    """With room for eight blocks of a piece."""
    yield from made(8)


@pytest.fixture
def narrow() -> Iterator[Bench]:
    """With room for one."""
    yield from made(1)


def made(blocks: int) -> Iterator[Bench]:
    port = Port()
    with installed() as device:
        stager = Stager(port, blocks * size_class(1))
        yield Bench(port, device, stager)
        stager.close()


def numbers(count: int = 64) -> torch.Tensor:
    return far(torch.full((count,), 3.0))


def test_a_copy_waits_for_the_caller_s_stream_and_the_caller_for_nothing(bench: Bench) -> None:
    tensor = numbers()
    gate = bench.device.current.stall()
    bench.device.current.put(lambda: near_fill(tensor, 5.0))
    work = bench.call(tensor, 4)  # returns although the stream stands still
    gate.set()
    for number in range(4):
        op = bench.port.next()
        assert op.number == number
        assert op.memory.unique().tolist() == [5.0]
        op.succeed()
    assert work.wait(PATIENCE_S).tensor is tensor
    assert bench.seen(tensor) == [10.0]


def near_fill(tensor: torch.Tensor, value: float) -> None:
    tensor.as_subclass(torch.Tensor).fill_(value)


def test_wait_blocks_the_stream_and_not_the_thread(bench: Bench) -> None:
    tensor = numbers()
    work = bench.call(tensor, 2)
    gate = bench.device.sides["back"].stall()
    for _ in range(2):
        bench.port.next().succeed()
    result = work.wait(PATIENCE_S)  # returns although no copy back has been done
    assert near(tensor).unique().tolist() == [3.0]
    mark = bench.device.mark()
    assert not mark.query()
    gate.set()
    assert bench.seen(tensor) == [6.0]
    assert (result.bytes_sent, len(result.parts), result.world_size) == (8, 2, 1)


def test_every_thread_that_waits_has_its_own_stream_wait(bench: Bench) -> None:
    tensor, seen = numbers(), []
    work = bench.call(tensor, 1)
    bench.port.next().succeed()

    def other() -> None:
        work.wait(PATIENCE_S)
        seen.append(bench.seen(tensor))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    work.wait(PATIENCE_S)
    assert [*seen, bench.seen(tensor)] == [[6.0], [6.0]]


def test_ops_may_end_in_any_order(bench: Bench) -> None:
    tensor = numbers()
    work = bench.call(tensor, 4)
    for op in reversed([bench.port.next() for _ in range(4)]):
        op.succeed()
    work.wait(PATIENCE_S)
    assert bench.seen(tensor) == [6.0]


def test_calls_go_in_their_order(bench: Bench) -> None:
    tensors = [numbers(), numbers()]
    works = [bench.call(tensor, 3) for tensor in tensors]
    ops = [bench.port.next() for _ in range(6)]
    assert [(op.name.seq, op.number) for op in ops] == [(call, number) for call in (1, 2) for number in range(3)]
    for op in ops:
        op.succeed()
    for work, tensor in zip(works, tensors, strict=True):
        work.wait(PATIENCE_S)
        assert bench.seen(tensor) == [6.0]


def test_memory_is_used_again_only_after_the_copy_back(narrow: Bench) -> None:
    tensor = far(torch.arange(64.0))
    work = narrow.call(tensor, 2)
    first = narrow.port.next()
    gate = narrow.device.sides["back"].stall()
    first.succeed()
    with pytest.raises(Empty):
        narrow.port.handed.get(timeout=0.1)  # there is one block, and a copy still reads it
    gate.set()
    second = narrow.port.next()
    assert second.memory.data_ptr() == first.memory.data_ptr()
    second.succeed()
    work.wait(PATIENCE_S)
    narrow.device.mark().synchronize()
    assert near(tensor).tolist() == (torch.arange(64.0) * 2).tolist()
    assert narrow.stager.pool.held_bytes == size_class(1) == narrow.device.pinned_bytes


def test_after_an_error_the_tensor_is_as_it_was_and_the_memory_there(bench: Bench) -> None:
    tensor = numbers()
    work = bench.call(tensor, 4)
    ops = [bench.port.next() for _ in range(4)]
    ops[0].succeed()
    ops[2].fail(MismatchError("peers differ"))
    with pytest.raises(Empty):
        bench.port.handed.get(timeout=0)
    assert not work.done()  # the engine has the memory of two
    ops[1].succeed()
    ops[3].fail(Cancelled("settled"))
    with pytest.raises(MismatchError, match="peers differ"):
        work.wait(PATIENCE_S)
    assert bench.seen(tensor) == [3.0]
    assert {op.number for op in bench.port.settled} >= {0, 1, 3}
    held = bench.stager.pool.held_bytes
    again = bench.call(tensor, 4)
    for _ in range(4):
        bench.port.next().succeed()
    again.wait(PATIENCE_S)
    assert bench.seen(tensor) == [6.0]
    assert bench.stager.pool.held_bytes == held


def test_a_communicator_that_ends_meanwhile_does_not_stop_the_threads(bench: Bench) -> None:
    work = bench.call(numbers(), 2)
    ops = [bench.port.next() for _ in range(2)]
    bench.port.refuses = Closed("the communicator is closed")
    for op in ops:
        op.fail(Closed("the communicator is closed"))
    with pytest.raises(Closed):
        work.wait(PATIENCE_S)


def test_what_was_not_sent_when_an_op_fails_is_never_sent(narrow: Bench) -> None:
    work = narrow.call(numbers(), 4)
    narrow.port.next().fail(Timeout("late"))
    with pytest.raises(Timeout, match="late"):
        work.wait(PATIENCE_S)
    assert narrow.port.forgone == [(1, ""), (2, ""), (3, "")], "the others know as much"
    assert narrow.port.handed.empty()


@pytest.mark.parametrize("way", ["out", "back"])
def test_a_device_that_fails_is_named(bench: Bench, way: str) -> None:
    tensor = numbers()
    bench.device.broken[way] = RuntimeError("CUDA error: an illegal memory access was encountered")
    work = bench.call(tensor, 1)
    if way == "back":
        bench.port.next().succeed()
    with pytest.raises(DeviceError, match="RuntimeError: CUDA error: an illegal memory access"):
        work.wait(PATIENCE_S)
    assert bench.seen(tensor) == [3.0]


def test_a_copy_home_that_fails_is_an_error_too(bench: Bench) -> None:
    tensor = numbers()
    work = bench.call(tensor, 1)
    op = bench.port.next()
    back = bench.device.sides["back"].stall()
    bench.device.copies["back"] = 0
    failing = bench.device

    original = failing.copy

    def copy(way: str, copies: Any, after: Any) -> Any:
        if way == "back" and failing.copies["back"]:
            raise RuntimeError("out of memory")
        return original(way, copies, after)

    failing.copy = copy  # type: ignore[method-assign]
    back.set()
    op.succeed()
    with pytest.raises(DeviceError, match="out of memory"):
        work.wait(PATIENCE_S)


def test_no_memory_in_time_is_said(narrow: Bench) -> None:
    first = narrow.call(numbers(), 1)
    op = narrow.port.next()
    narrow.port.timeout_s = 0.0
    second = narrow.call(numbers(), 1)
    with pytest.raises(Timeout, match="PCCL_PINNED_BYTES"):
        second.wait(PATIENCE_S)
    op.succeed()
    first.wait(PATIENCE_S)


def test_a_piece_that_never_fits_is_refused(narrow: Bench) -> None:
    work = narrow.call(numbers(1 << 20), 1)
    with pytest.raises(ResourceError, match="more than the limit"):
        work.wait(PATIENCE_S)


def test_a_call_that_cannot_be_named_has_not_happened(bench: Bench) -> None:
    bench.port.refuses = MismatchError("the tag is in flight")
    with pytest.raises(MismatchError, match="the tag is in flight"):
        bench.call(numbers(), 2)
    bench.stager.flush(0)


def test_a_boundary_waits_until_all_is_handed_over(narrow: Bench) -> None:
    work = narrow.call(numbers(), 2)
    first = narrow.port.next()
    with pytest.raises(Timeout, match="1 ops on device memory that were called before the boundary"):
        narrow.stager.flush(0)
    first.succeed()
    second = narrow.port.next()
    narrow.stager.flush(PATIENCE_S)
    second.succeed()
    work.wait(PATIENCE_S)


def test_a_cancelled_call_cancels_also_what_is_sent_later(narrow: Bench) -> None:
    work = narrow.call(numbers(), 2)
    first = narrow.port.next()
    assert work.cancel()
    assert narrow.port.cancelled == [0]
    first.succeed()  # the others had finished it
    second = narrow.port.next()
    second.work._when_done(lambda: None)
    second.fail(Cancelled("as asked"))
    with pytest.raises(Cancelled, match="as asked"):
        work.wait(PATIENCE_S)
    assert narrow.port.cancelled == [0, 1]
    assert not work.cancel()


def test_closing_ends_what_waits_for_memory(narrow: Bench) -> None:
    works = [narrow.call(numbers(), 2), narrow.call(numbers(), 1)]
    narrow.port.next().fail(Closed("the communicator is closed"))
    narrow.stager.close()
    for work in works:
        with pytest.raises(Closed):
            work.wait(PATIENCE_S)
    with pytest.raises(Closed):
        narrow.call(numbers(), 1)


def test_memory_that_an_engine_never_gave_back_is_not_used_again(narrow: Bench) -> None:
    work = narrow.call(numbers(), 1)
    op = narrow.port.next()
    op.is_lent = True
    op.fail(Timeout("the engine does not answer"))
    with pytest.raises(Timeout, match="does not answer"):
        work.wait(PATIENCE_S)
    assert narrow.stager.pool.take(1, narrow.device.pinned) is None


@pytest.mark.parametrize(
    ("mib", "piece"),
    [(0, 4), (1, 4), (4, 4), (64, 4), (65, 8), (128, 8), (256, 16), (512, 32), (1024, 32), (16384, 32)],
)
def test_pieces_are_a_sixteenth_within_bounds(mib: int, piece: int) -> None:
    assert piece_bytes(mib * MIB) == piece * MIB


@pytest.mark.parametrize(
    ("count", "itemsize", "copies"), [(0, 4, 1), (1, 8, 1), (3 * MIB + 1, 4, 1), (MIB, 2, 12), (5, 4, 10**9)]
)
def test_pieces_cover_everything_once_and_fit(count: int, itemsize: int, copies: int) -> None:
    pieces = list(cut(count, itemsize, copies))
    assert [i for s in (pieces[0], pieces[-1]) for i in (s.start, s.stop)][::3] == [0, count]
    assert all(a.stop == b.start for a, b in itertools.pairwise(pieces))
    assert all((s.stop - s.start) * itemsize * copies <= 32 * MIB or s.stop - s.start == 1 for s in pieces)


def test_nothing_of_this_is_imported_before_a_tensor_of_a_device_comes(tmp_path: Path) -> None:
    program = (
        "import sys, pccl.communicator, pccl.sharing\n"
        "assert not [name for name in sys.modules if name == 'torch' or name.startswith('pccl.device')]\n"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ended.returncode == 0, ended.stderr
