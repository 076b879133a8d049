"""The communicator against a real coordinator: names, order, errors, deadlines, the end, forking, Ctrl-C."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pccl

SOON_S = 1.0


def ones(count: int = 8) -> np.ndarray[Any, Any]:
    return np.ones(count, np.float32)


# -- names and order -------------------------------------------------------------------------------------------------


def test_facts(cluster: Any) -> None:
    def body(comm: pccl.Communicator) -> tuple[bytes, ...]:
        assert comm.peers[comm.rank] == comm.peer_id and len(comm.peer_id) == 16
        assert (comm.world_size, comm.epoch, comm.boundary, comm.entered) == (3, 1, 0, 0)
        assert f"rank {comm.rank} of 3" in repr(comm)
        view = comm.advance()
        assert comm.boundary == 1 and view.epoch == 1 and len(view.members) == 3
        comm.all_reduce(ones())
        others = set(comm.peers) - {comm.peer_id}
        end = time.monotonic() + 5
        while comm.stats()["ops_committed"] < 1 or {link["peer"] for link in comm.stats()["links"]} != others:
            assert time.monotonic() < end, comm.stats()  # the engine publishes a moment later
        comm.barrier()
        return comm.peers

    assert len(set(cluster(3, body))) == 1


def test_a_plan_that_the_operator_fixed(cluster: Any) -> None:
    """Streams and algorithm are as told, everybody knows it, and all-reduces that the mesh is for take the ring."""
    coordinator = cluster.coordinator(4, streams=5, algorithm="ring")
    status = []

    def body() -> tuple[pccl.PlanInfo, list[int]]:
        with cluster.connect(coordinator, transport="tcp") as comm:

            def links() -> list[dict[str, Any]]:
                return comm.stats()["links"]

            comm.all_reduce(ones(1 << 18))
            end = time.monotonic() + 5
            while {link["streams"] for link in links()} != {5} or max(link["sent_bytes"] for link in links()) < 1 << 20:
                assert time.monotonic() < end, comm.stats()  # the engine publishes a moment later
            status.append(coordinator.status())
            comm.barrier()
            return comm.plan, sorted(link["sent_bytes"] for link in links())

    with ThreadPoolExecutor(4) as threads:
        plans, sent = zip(*(future.result(60) for future in [threads.submit(body) for _ in range(4)]), strict=True)
    assert len(set(plans)) == 1 and (plans[0].algorithm.name, plans[0].streams) == ("RING", 5)
    assert plans[0].mesh_bytes_max == 0 and "the operator fixed the ring" in plans[0].reason
    for one, other, following in sent:
        assert max(one, other) < 1 << 18 and following > 1 << 20, "two neighbours, and data to one of them"
    (group,) = status[0].groups
    assert group.plan is not None and group.plan.reason == plans[0].reason and group.reality is None


def test_many_untagged_ops_in_flight_are_matched_by_order(cluster: Any) -> None:
    def body(comm: pccl.Communicator) -> None:
        for _ in range(3):
            arrays = [np.full(50, index, np.int64) for index in range(100)]
            works = [comm.all_reduce(array, async_op=True) for array in arrays]
            for index in random.Random(comm.rank).sample(range(100), 100):
                works[index].wait()
                assert (arrays[index] == 3 * index).all()
            comm.advance()
        comm.barrier()

    cluster(3, body)


@pytest.mark.parametrize("kind", [str, lambda index: index, lambda index: b"%d" % index])
def test_tags_are_matched_by_name_in_whatever_order(cluster: Any, kind: Any) -> None:
    def body(comm: pccl.Communicator) -> None:
        order = list(range(60))
        for turn in range(2):
            random.Random(100 * turn + comm.rank).shuffle(order)
            arrays = {index: np.full(1000, index, np.float64) for index in order}
            works = {index: comm.all_reduce(arrays[index], tag=kind(index), async_op=True) for index in order}
            for index, work in works.items():
                assert work.wait().tensor is arrays[index]
                assert (arrays[index] == 3 * index).all()

    cluster(3, body)


def test_ops_from_many_threads(cluster: Any) -> None:
    def body(comm: pccl.Communicator) -> None:
        failed: list[BaseException] = []

        def one(thread: int) -> None:
            try:
                for turn in range(20):
                    array = np.full(100, thread + turn)
                    comm.all_reduce(array, tag=f"thread {thread}")
                    assert (array == 2 * (thread + turn)).all()
            except BaseException as error:  # noqa: BLE001 - raised again below
                failed.append(error)

        threads = [threading.Thread(target=one, args=(index,)) for index in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not failed, failed[0]

    cluster(2, body)


def test_a_dropped_tensor_lives_until_its_op_has_ended(cluster: Any) -> None:
    def body(comm: pccl.Communicator) -> None:
        def start() -> pccl.Work:
            return comm.all_reduce(np.full(200_000, comm.rank + 1.0), async_op=True)

        works = [start() for _ in range(8)]
        gc.collect()
        waste = [np.zeros(200_000) for _ in range(8)]
        assert all((work.wait().tensor == 3.0).all() for work in works)
        assert not any(array.any() for array in waste)

    cluster(2, body)


def test_groups_of_a_run_do_not_meet(cluster: Any) -> None:
    coordinator = cluster.coordinator(1)
    with cluster.connect(coordinator, group=0) as a, cluster.connect(coordinator, group=1) as b:
        assert a.world_size == b.world_size == 1
        assert a.peers != b.peers


def test_listening_everywhere(cluster: Any) -> None:
    """The default address: IPv6 and IPv4 where there are both, IPv4 where there is no IPv6."""

    def body(comm: pccl.Communicator) -> None:
        array = ones()
        comm.all_reduce(array)
        assert (array == 2).all()

    cluster(2, body, listen=None)


def test_a_wrong_secret(cluster: Any) -> None:
    coordinator = cluster.coordinator(1)
    with pytest.raises(pccl.AuthError):
        cluster.connect(coordinator, secret="another")


def test_nobody_there() -> None:
    with pytest.raises(pccl.CoordinatorLost):
        pccl.connect("tcp://127.0.0.1:1", listen="127.0.0.1:0", timeout=0.3)


def test_others_that_never_come(cluster: Any) -> None:
    coordinator = cluster.coordinator(2)
    with pytest.raises(pccl.Timeout, match="1 more"):
        cluster.connect(coordinator, timeout=0.3)


# -- arguments -------------------------------------------------------------------------------------------------------


def test_arguments_that_are_refused_at_once(cluster: Any) -> None:
    def body(comm: pccl.Communicator) -> None:
        array, integers = ones(), np.ones(8, np.int32)
        refused: list[tuple[str, Any]] = [
            ("integers have no exact mean", lambda: comm.all_reduce(integers, op="avg")),
            ("op must be one of 'sum'", lambda: comm.all_reduce(array, op="median")),  # type: ignore[call-overload]
            ("algorithm must be", lambda: comm.all_reduce(array, algorithm="tree")),  # type: ignore[call-overload]
            ("codec must be one of", lambda: comm.all_reduce(array, codec="int7")),
            ("codec 'int8' is for float32", lambda: comm.all_reduce(array.astype("float64"), codec="int8")),
            ("codec 'int8' is for float32", lambda: comm.all_reduce(array, codec="int8", algorithm="ring")),
            ("on_peer_loss must be", lambda: comm.barrier(on_peer_loss="ignore")),  # type: ignore[call-overload]
            ("'high', 'normal', 'low', not 'x'", lambda: comm.all_reduce(array, priority="x")),  # type: ignore[call-overload]
            ("priority must be", lambda: comm.broadcast(array, priority=1)),  # type: ignore[call-overload]
            ("timeout must be", lambda: comm.barrier(timeout=0)),
            ("tag must be", lambda: comm.barrier(tag=1.5)),  # type: ignore[call-overload]
            ("out must hold 8 elements of float32", lambda: comm.all_reduce(array, out=integers)),
            ("out must hold 8 elements", lambda: comm.all_gather(array, out=ones(9))),
            ("overlaps", lambda: comm.all_reduce(array[:4], out=array[2:6])),
            ("rank 1 does not exist", lambda: comm.broadcast(array, root=1)),
            ("16 bytes", lambda: comm.broadcast(array, root=b"x")),
            ("cannot send to itself", lambda: comm.send(array, 0)),
            ("one row per peer", lambda: comm.all_to_all(array)),
            ("cannot work in place", lambda: comm.all_to_all(array[None], out=array[None])),
            ("contiguous", lambda: comm.all_reduce(np.ones((4, 4)).T)),
        ]
        for words, call in refused:
            with pytest.raises(pccl.ArgumentError, match=words):
                call()
        with pytest.raises(ValueError, match="read-only"):
            comm.all_reduce(b"1234")
        with pytest.raises(TypeError, match=r"tensor\[0\].*got float"):
            comm.all_reduce([1.0])
        with pytest.raises(pccl.PeerLost):
            comm.send(array, b"q" * 16)
        comm.all_reduce(array)
        assert (array == 1).all() and comm.stats()["ops_failed"] == 0

    cluster(1, body)


def test_a_tag_in_flight_is_refused_and_can_be_used_again(cluster: Any) -> None:
    def body(comm: pccl.Communicator) -> None:
        if comm.rank == 0:
            work = comm.all_reduce(ones(), tag="t", async_op=True)
            with pytest.raises(pccl.MismatchError, match="'t' is already in flight"):
                comm.all_reduce(ones(), tag="t")
            comm.barrier()
            work.wait()
        else:
            comm.barrier()
            comm.all_reduce(ones(), tag="t")
        comm.all_reduce(ones(), tag="t")

    cluster(2, body)


# -- errors in flight ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["count", "dtype", "shape", "op", "kind", "root"])
def test_a_mismatch_is_told_to_both_at_once_and_inputs_survive(cluster: Any, what: str) -> None:
    def call(comm: pccl.Communicator, array: Any) -> None:
        if what == "op":
            comm.all_reduce(array, op="max" if comm.rank else "sum")
        elif what == "kind" and comm.rank:
            comm.broadcast(array, root=1)
        elif what == "root":
            comm.broadcast(array, root=int(comm.rank == 2))
        else:
            comm.all_reduce(array)

    def body(comm: pccl.Communicator) -> str:
        shape: Any = (8,)
        if comm.rank:
            shape = {"count": (9,), "shape": (2, 4)}.get(what, shape)
        array = np.full(shape, 5, np.float64 if what == "dtype" and comm.rank else np.float32)
        comm.barrier()
        begin = time.monotonic()
        with pytest.raises(pccl.MismatchError) as caught:
            call(comm, array)
        assert time.monotonic() - begin < SOON_S
        assert (array == 5).all()
        comm.barrier()
        return str(caught.value)

    for text in cluster(3 if what == "root" else 2, body):
        assert "broadcast" in text if what in ("kind", "root") else "all_reduce" in text


def test_a_peer_that_never_calls(cluster: Any) -> None:
    def body(comm: pccl.Communicator) -> None:
        array = ones()
        if comm.rank == 0:
            with pytest.raises(pccl.Timeout) as caught:
                comm.all_reduce(array, tag="alone", timeout=0.2)
            assert comm.peers[1].hex()[:8] in str(caught.value) and "alone" in str(caught.value)
            assert (array == 1).all()
        comm.barrier()

    cluster(2, body)


def test_a_wait_that_times_out_leaves_the_op_in_flight(cluster: Any) -> None:
    def body(comm: pccl.Communicator) -> None:
        if comm.rank == 0:
            array = ones()
            work = comm.all_reduce(array, tag="late", async_op=True)
            with pytest.raises(pccl.Timeout, match="it goes on"):
                work.wait(timeout=0.05)
            comm.barrier()
            assert work.wait().tensor is array and (array == 2).all()
        else:
            comm.barrier()
            comm.all_reduce(ones(), tag="late")

    cluster(2, body)


def test_more_ops_or_tags_than_a_report_has_room_for_are_refused(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pccl.runtime.OPS_MAX", 3)
    monkeypatch.setattr("pccl.lanes.LANES_MAX", 5)

    def body(comm: pccl.Communicator) -> None:
        tags = [f"{comm.rank} {number}" for number in range(4)]
        works = [comm.barrier(tag=tag, async_op=True) for tag in tags[:3]]  # the other one does not call them
        with pytest.raises(pccl.ResourceError, match="3 ops are in flight here"):
            comm.barrier(tag=tags[3])
        for work in works:
            work.cancel()
            with pytest.raises(pccl.PcclError):
                work.wait()
        for tag in ("a", "b", "a"):
            comm.barrier(tag=tag)
        with pytest.raises(pccl.ResourceError, match="5 tags were used at boundary 0"):
            comm.barrier(tag="c")
        comm.barrier(tag="b")
        comm.advance()
        comm.barrier(tag="c")

    cluster(2, body, together=False)


def test_an_op_does_not_wait_for_ever_for_a_coordinator_that_is_gone(cluster: Any) -> None:
    lease_s = 0.2
    coordinator = cluster.coordinator(2, lease_s=lease_s)
    gone = threading.Barrier(2, action=coordinator.close)

    def peer(outcomes: list[Any]) -> None:
        with cluster.connect(coordinator) as comm:
            gone.wait(10)
            array = ones()
            try:
                comm.all_reduce(array, tag=comm.rank, timeout=0.2)  # nobody else calls it
            except pccl.PcclError as error:
                outcomes.append((error, array, time.monotonic() - began))

    outcomes: list[Any] = []
    began = time.monotonic()
    threads = [threading.Thread(target=peer, args=(outcomes,), daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(outcomes) == 2
    for error, array, seconds in outcomes:
        assert isinstance(error, pccl.CoordinatorLost)
        assert "no end 0.6 s after its deadline, and no word from the coordinator" in str(error)
        assert (array == 1).all()
        assert seconds < 5.0, "it follows the lease"


def test_cancelling(cluster: Any) -> None:
    def body(comm: pccl.Communicator) -> None:
        array = ones()
        if comm.rank == 0:
            work = comm.all_reduce(array, tag="c", async_op=True)
            assert work.cancel()
            with pytest.raises(pccl.Cancelled):
                work.wait()
            assert (array == 1).all() and not work.cancel()
        comm.barrier()
        if comm.rank == 1:  # the op was settled before it was called here
            with pytest.raises(pccl.Cancelled):
                comm.all_reduce(array, tag="c")
        comm.barrier()

    cluster(2, body)


def test_a_peer_that_leaves(cluster: Any) -> None:
    """The others go on without it, or are told, as they have asked."""
    leaving = threading.Barrier(3)

    def body(comm: pccl.Communicator) -> None:
        gone = comm.peers[2]
        comm.barrier()
        if comm.peer_id == gone:
            leaving.wait(10)
            return
        array, other = ones(), ones()
        retried = comm.all_reduce(array, tag="retried", async_op=True)
        raising = comm.all_reduce(other, tag="raising", on_peer_loss="raise", async_op=True)
        leaving.wait(10)
        result = retried.wait()
        assert (result.world_size, result.retries, gone in result.peers) == (2, 1, False)
        assert (array == 2).all()
        with pytest.raises(pccl.PeerLost):
            raising.wait()
        assert (other == 1).all()
        with pytest.raises(pccl.PeerLost):
            comm.recv(array, gone)
        comm.barrier()

    cluster(3, body, min_peers=2, together=False)


def test_a_broadcast_whose_root_has_gone_counts_for_everybody(cluster: Any) -> None:
    """One peer calls it while the root is there, the other when it is not: both are told, and their next ops meet."""
    leaving = threading.Barrier(3)

    def body(comm: pccl.Communicator) -> None:
        gone, calls_early = comm.peers[2], comm.rank == 0
        comm.barrier()
        if comm.peer_id == gone:
            leaving.wait(10)
            return
        array = ones()
        early = comm.broadcast(array, gone, async_op=True) if calls_early else None
        change = comm.barrier(tag="a change", async_op=True)
        leaving.wait(10)
        change.wait()
        assert gone not in comm.peers
        with pytest.raises(pccl.PeerLost):
            (early or comm.broadcast(array, gone, async_op=True)).wait()
        with pytest.raises(pccl.PeerLost):
            comm.broadcast(array, gone)
        comm.all_reduce(array, timeout=10)
        assert (array == 2).all()

    cluster(3, body, min_peers=2, together=False)


def test_too_few_peers(cluster: Any) -> None:
    coordinator = cluster.coordinator(2)
    found: list[pccl.Communicator] = []
    threads = [
        threading.Thread(target=lambda: found.append(cluster.connect(coordinator, too_few="raise"))) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stays, goes = found
    array = ones()
    work = stays.all_reduce(array, async_op=True)
    goes.close()
    with pytest.raises(pccl.TooFewPeers):
        work.wait()
    assert (array == 1).all()
    with pytest.raises(pccl.TooFewPeers):
        stays.all_reduce(array)
    with pytest.raises(pccl.TooFewPeers):
        stays.advance()
    stays.close()


# -- asyncio ---------------------------------------------------------------------------------------------------------


def test_await_from_any_loop(cluster: Any) -> None:
    def body(comm: pccl.Communicator) -> None:
        async def step() -> None:
            arrays = [np.full(10, index) for index in range(20)]
            works = [comm.all_reduce(array, async_op=True) for array in arrays]
            results = await asyncio.gather(*(wait(work) for work in works))
            assert [result.tensor[0] for result in results] == [2 * index for index in range(20)]
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(wait(comm.barrier(tag=comm.rank, async_op=True)), 0.05)

        asyncio.run(step())

    async def wait(work: pccl.Work) -> pccl.Result:
        return await work

    cluster(2, body)


# -- the end ---------------------------------------------------------------------------------------------------------


def test_closing_ends_what_is_in_flight_and_is_idempotent(cluster: Any) -> None:
    coordinator = cluster.coordinator(1)
    comm = cluster.connect(coordinator)
    other = cluster.connect(coordinator)
    while comm.world_size == 1:
        comm.advance()
    array = ones()
    works = [comm.all_reduce(array, tag=index, async_op=True) for index in range(3)]
    closers = [threading.Thread(target=comm.close) for _ in range(4)]
    for thread in closers:
        thread.start()
    for work in works:
        with pytest.raises(pccl.Closed):
            work.wait()
    for thread in closers:
        thread.join(10)
    comm.close()
    assert (array == 1).all() and "closed" in repr(comm)
    for call in (comm.barrier, comm.advance, comm.stats, lambda: comm.all_reduce(array), lambda: comm.sync_state({})):
        with pytest.raises(pccl.Closed):
            call()
    other.close()


@pytest.mark.parametrize("order", ["abc", "cab", "bca"])
def test_closing_in_any_order_the_coordinator_too(cluster: Any, order: str) -> None:
    coordinator = cluster.coordinator(1)
    ends = {"a": cluster.connect(coordinator).close, "c": coordinator.close}
    comm = cluster.connect(coordinator, group=5)
    ends["b"] = comm.close
    begin = time.monotonic()
    for name in order:
        ends[name]()
    assert time.monotonic() - begin < 15


def test_a_communicator_that_is_dropped_warns_and_closes(cluster: Any) -> None:
    coordinator = cluster.coordinator(1)
    comm: Any = cluster.connect(coordinator)
    runtime = comm._runtime
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        begin = time.monotonic()
        del comm
        gc.collect()
        assert time.monotonic() - begin < SOON_S
    assert [str(w.message) for w in caught if w.category is ResourceWarning and "without close()" in str(w.message)]
    for thread in threading.enumerate():
        if thread.name == "pccl-close":
            thread.join(10)
    assert runtime.closed


def test_a_forked_child_is_told_to_make_its_own(cluster: Any) -> None:
    coordinator = cluster.coordinator(1)
    comm = cluster.connect(coordinator)
    work = comm.barrier(async_op=True)

    def child(queue: Any) -> None:
        names = []
        for call in (comm.barrier, comm.advance, comm.stats, lambda: comm.peers, lambda: comm.rank, work.cancel):
            try:
                call()
                names.append("nothing")
            except pccl.ForkError:
                names.append("ForkError")
        comm.close()
        with cluster.connect(coordinator, group=1) as own:
            own.barrier()
        queue.put(names)

    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    names = queue.get(timeout=20)
    process.join(20)
    assert process.exitcode == 0
    assert names == ["ForkError"] * 5 + ["nothing"] or names == ["ForkError"] * 6
    work.wait()
    comm.barrier()
    comm.close()


PROGRAM = """
import sys, time, threading, signal, os
import numpy as np
import pccl

comm = pccl.connect(sys.argv[1], secret=sys.argv[2], listen="127.0.0.1:0")
mode = sys.argv[3]
if mode == "exit":
    comm.all_reduce(np.ones(3))
    sys.exit(0)
while comm.world_size < 2:
    comm.barrier()
    comm.advance()
try:
    print("ready", flush=True)
    comm.barrier(tag="never called by the other")
except KeyboardInterrupt:
    print(time.time(), flush=True)
    comm.close()
    print("closed", flush=True)
"""


def program(cluster: Any, coordinator: Any, mode: str, directory: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", PROGRAM, coordinator.address, cluster.secret, mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=directory)


def test_control_c_interrupts_a_wait(cluster: Any, tmp_path: Path) -> None:
    coordinator = cluster.coordinator(1)
    with cluster.connect(coordinator) as comm, program(cluster, coordinator, "wait", tmp_path) as process:
        assert process.stdout is not None
        while comm.world_size < 2:
            comm.barrier()
            comm.advance()
        assert process.stdout.readline() == "ready\n"
        sent = time.time()
        os.kill(process.pid, signal.SIGINT)
        assert float(process.stdout.readline()) - sent < 0.1 + SOON_S * (os.getloadavg()[0] > (os.cpu_count() or 1))
        assert process.stdout.readline() == "closed\n"
        assert process.wait(20) == 0


def test_a_program_that_forgets_to_close_exits(cluster: Any, tmp_path: Path) -> None:
    coordinator = cluster.coordinator(1)
    with program(cluster, coordinator, "exit", tmp_path) as process:
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, "")
