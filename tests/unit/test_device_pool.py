"""Pinned memory: sizes, reuse, the limit, and who waits for whom."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from pccl.config import pinned_bytes_max
from pccl.device.pool import Block, Pool, size_class
from pccl.errors import ArgumentError, Closed, ResourceError, Timeout

MIB = 1 << 20


class Mark:
    """An event that is done when the test says so."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.waited = threading.Event()

    def query(self) -> bool:
        return self.reached.is_set()

    def synchronize(self) -> None:
        self.waited.set()
        self.reached.wait()


def pinned(nbytes: int) -> torch.Tensor:
    return torch.empty(nbytes, dtype=torch.uint8)


def refused(nbytes: int) -> torch.Tensor:
    raise RuntimeError("cudaErrorMemoryAllocation")


def taken(pool: Pool, nbytes: int, until: float | None = None) -> Block:
    block = pool.take(nbytes, pinned, until)
    assert block is not None
    return block


def soon() -> float:
    return time.monotonic() + 20


@pytest.mark.parametrize(
    ("nbytes", "size"),
    [(0, 65536), (1, 65536), (65536, 65536), (65537, 131072), (4 * MIB, 4 * MIB), (5 * MIB, 8 * MIB)],
)
def test_sizes_are_powers_of_two(nbytes: int, size: int) -> None:
    assert size_class(nbytes) == size
    assert taken(Pool(64 * MIB), nbytes).memory.numel() == size


def test_a_block_is_used_again_and_not_before_its_last_copy_is_done() -> None:
    pool, mark = Pool(64 * MIB), Mark()
    first = taken(pool, MIB)
    pool.give(first, mark)
    second = taken(pool, MIB)
    assert second is not first
    mark.reached.set()
    assert taken(pool, MIB) is first
    pool.give(second)
    assert taken(pool, MIB) is second
    assert pool.held_bytes == 2 * MIB


def test_who_does_not_wait_gets_none_at_the_limit() -> None:
    pool = Pool(2 * MIB)
    blocks = [taken(pool, MIB), taken(pool, MIB)]
    assert pool.take(1, pinned) is None
    pool.give(blocks[0])
    assert taken(pool, MIB) is blocks[0]


def test_idle_blocks_of_another_size_make_room() -> None:
    pool = Pool(2 * MIB)
    for block in [taken(pool, MIB), taken(pool, MIB)]:
        pool.give(block)
    big = taken(pool, 2 * MIB)
    assert big.nbytes == pool.held_bytes == 2 * MIB
    assert pool.take(1, pinned) is None


def test_who_waits_gets_what_another_gives_back() -> None:
    pool = Pool(MIB)
    block, got = taken(pool, MIB), []
    thread = threading.Thread(target=lambda: got.append(pool.take(MIB, pinned, soon())))
    thread.start()
    pool.give(block)
    thread.join()
    assert got == [block]


def test_who_waits_sleeps_until_a_copy_is_done() -> None:
    pool, mark = Pool(MIB), Mark()
    block, got = taken(pool, MIB), []
    pool.give(block, mark)
    thread = threading.Thread(target=lambda: got.append(pool.take(MIB, pinned, soon())))
    thread.start()
    assert mark.waited.wait(20)
    assert not got
    mark.reached.set()
    thread.join()
    assert got == [block]


def test_errors_name_the_limit() -> None:
    pool = Pool(MIB)
    with pytest.raises(ResourceError, match=r"2097152 bytes of pinned memory are more than the limit, 1048576 \(PCCL_"):
        pool.take(2 * MIB, pinned)
    taken(pool, MIB)
    with pytest.raises(Timeout, match="calls in flight hold 1048576, and the limit is 1048576"):
        pool.take(MIB, pinned, time.monotonic())


def test_what_could_not_be_made_is_not_counted() -> None:
    pool = Pool(MIB)
    with pytest.raises(RuntimeError, match="cudaErrorMemoryAllocation"):
        pool.take(MIB, refused)
    assert pool.held_bytes == 0
    taken(pool, MIB)


def test_closing_wakes_who_waits() -> None:
    pool, errors = Pool(MIB), []
    taken(pool, MIB)

    def wait() -> None:
        with pytest.raises(Closed) as caught:
            pool.take(MIB, pinned, soon())
        errors.append(caught.value)

    thread = threading.Thread(target=wait)
    thread.start()
    pool.close()
    thread.join()
    assert len(errors) == 1


def test_the_limit_comes_from_the_environment() -> None:
    assert pinned_bytes_max({}) == 512 * MIB
    assert pinned_bytes_max({"PCCL_PINNED_BYTES": "2GiB"}) == 2 << 30
    for text, words in (("much", "PCCL_PINNED_BYTES: 'much' is not a size"), ("1MiB", "must be at least 33554432")):
        with pytest.raises(ArgumentError, match=words):
            pinned_bytes_max({"PCCL_PINNED_BYTES": text})
