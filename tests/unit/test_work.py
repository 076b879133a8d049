"""Work: one op in flight, for threads and coroutines, resolved exactly once."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pccl.errors import ForkError, PeerLost, Timeout
from pccl.work import Result, Work


class Owner:
    """A communicator that only answers."""

    def __init__(self) -> None:
        self.cancelled: list[int] = []
        self.waits: list[int] = []
        self.forked = False

    def check_pid(self) -> None:
        if self.forked:
            raise ForkError("forked")

    def describe_token(self, token: int) -> str:
        return f"op {token}"

    def cancel_token(self, token: int) -> bool:
        self.cancelled.append(token)
        return True

    def waited(self, token: int, begin_ns: int) -> None:
        self.waits.append(token)


RESULT = Result(None, 1, (), 1, 0, 0, 0, 0.0)


def test_it_resolves_once_for_every_waiter() -> None:
    work = Work(Owner(), 1)
    assert not work.done() and "in flight" in repr(work)
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(work.wait) for _ in range(8)]
        work._resolve(RESULT, None)
        assert all(future.result(5) is RESULT for future in waiting)
    assert work.done() and work.wait(0) is RESULT and "done" in repr(work)


def test_its_owner_hears_of_threads_that_were_blocked() -> None:
    owner = Owner()
    work = Work(owner, 5)
    with pytest.raises(Timeout):
        work.wait(timeout=0.001)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(work.wait)
        work._resolve(RESULT, None)
        assert waiting.result(5) is RESULT
    before = list(owner.waits)
    work.wait()
    assert before == owner.waits and set(before) == {5} and len(before) in (1, 2), "not of one that finds it ended"


def test_an_error_is_raised_by_every_wait() -> None:
    work = Work(Owner(), 1)
    work._resolve(None, PeerLost("gone"))
    for _ in range(2):
        with pytest.raises(PeerLost, match="gone"):
            work.wait()
    assert "failed" in repr(work)


def test_a_wait_that_times_out_leaves_the_op_in_flight() -> None:
    work = Work(Owner(), 3)
    with pytest.raises(Timeout, match=r"it goes on.*op 3"):
        work.wait(timeout=0.001)
    with pytest.raises(TimeoutError):
        work.wait(timeout=0)
    work._resolve(RESULT, None)
    assert work.wait(timeout=0) is RESULT


def test_cancel_asks_only_while_in_flight() -> None:
    owner = Owner()
    work = Work(owner, 4)
    assert work.cancel() and owner.cancelled == [4]
    work._resolve(RESULT, None)
    assert not work.cancel() and owner.cancelled == [4]


def test_a_forked_child_is_told_so() -> None:
    owner = Owner()
    work = Work(owner, 1)
    owner.forked = True
    for call in (work.wait, work.cancel):
        with pytest.raises(ForkError):
            call()


async def test_it_can_be_awaited_by_many() -> None:
    work = Work(Owner(), 1)

    async def waiter() -> Result:
        return await work

    tasks = [asyncio.create_task(waiter()) for _ in range(5)]
    await asyncio.sleep(0)
    cancelled = tasks.pop()
    cancelled.cancel()
    threading.Thread(target=work._resolve, args=(RESULT, None)).start()
    assert await asyncio.gather(*tasks) == [RESULT] * 4
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert await work is RESULT


async def test_an_awaited_error() -> None:
    work = Work(Owner(), 1)
    task = asyncio.ensure_future(asyncio.wait_for(_await(work), 5))
    await asyncio.sleep(0)
    work._resolve(None, PeerLost("gone"))
    with pytest.raises(PeerLost):
        await task


async def _await(work: Work) -> Result:
    return await work


def test_a_loop_that_was_closed_meanwhile_is_no_harm() -> None:
    work = Work(Owner(), 1)

    async def give_up() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(_await(work), 0.001)

    asyncio.run(give_up())
    work._resolve(RESULT, None)
    assert work.wait() is RESULT


def test_await_and_resolve_race() -> None:
    """Resolved from another thread at a random moment, never lost, never twice."""

    async def one() -> None:
        work = Work(Owner(), 1)
        thread = threading.Thread(target=work._resolve, args=(RESULT, None))
        thread.start()
        assert await asyncio.wait_for(_await(work), 5) is RESULT
        thread.join()

    async def many() -> None:
        for _ in range(300):
            await one()

    asyncio.run(many())
