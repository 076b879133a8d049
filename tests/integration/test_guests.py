"""Guests: peers that know the run and are not members yet, and fetch state while the others go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pccl
from pccl.sharing import join, prefetch

Group = tuple[list[threading.Thread], threading.Event, list[Any]]


def members(cluster: Any, coordinator: Any, n: int, step: Any) -> Group:
    """Peers that call `step(comm, number)` and advance, until the event is set on all of them."""
    end = threading.Event()
    failures: list[BaseException] = []
    ready = threading.Barrier(n + 1)

    def member() -> None:
        try:
            with cluster.connect(coordinator) as comm:
                number = 0
                while comm.world_size < n:
                    comm.barrier()
                    comm.advance()
                over = np.zeros(1)
                while not over[0]:
                    step(comm, number)
                    if number == 1:
                        ready.wait(20)
                    number += 1
                    over[0] = end.is_set()
                    comm.all_reduce(over, op="max", tag="over")
                    if not over[0]:  # else the first to leave would leave the other with too few
                        comm.advance()
        except BaseException as error:  # noqa: BLE001 - raised by the test
            failures.append(error)
            ready.abort()

    threads = [threading.Thread(target=member, daemon=True) for _ in range(n)]
    for thread in threads:
        thread.start()
    ready.wait(30)
    return threads, end, failures


def finish(threads: list[threading.Thread], failures: list[Any]) -> None:
    for thread in threads:
        thread.join(30)
    if failures:
        raise failures[0]
    assert not any(thread.is_alive() for thread in threads)


def test_a_guest_fetches_while_members_go_on_and_then_receives_only_what_changed(cluster: Any) -> None:
    coordinator = cluster.coordinator(2)
    right = np.arange(1 << 20, dtype=np.float64)
    worlds: set[int] = set()

    def state_of(number: int) -> dict[str, Any]:
        weights = right.copy()
        weights[0] = number
        return {"w": weights, "step": number}

    states: dict[bytes, dict[str, Any]] = {}

    def step(comm: pccl.Communicator, number: int) -> None:
        state = states.setdefault(comm.peer_id, state_of(0))
        comm.sync_state(state)
        worlds.add(comm.world_size)
        state["w"][0] += 1
        state["step"] += 1

    threads, end, failures = members(cluster, coordinator, 2, step)
    with cluster.connect(coordinator, enter=False) as guest:
        assert "guest" in repr(guest) and len(guest.sources()) == 2
        with pytest.raises(pccl.PcclError, match="enter"):
            guest.barrier()
        ours = {"w": np.zeros(1 << 20), "step": 0}
        report = guest.prefetch_state(ours)
        assert worlds == {2}, "it was counted before it entered"
        assert report.held_bytes >= report.total_bytes - (256 << 10)
        assert np.array_equal(ours["w"][1 << 16 :], right[1 << 16 :])
        guest.enter()
        synced = guest.sync_state(ours)
        assert synced.received_bytes <= 3 * (256 << 10)
        assert np.array_equal(ours["w"][1:], right[1:]) and ours["w"][0] == ours["step"] > 0
        over = np.zeros(1)
        end.set()
        while not over[0]:
            ours["w"][0] += 1
            ours["step"] += 1
            guest.all_reduce(over, op="max", tag="over")
            if not over[0]:  # else the members may have left
                guest.advance()
                assert guest.sync_state(ours).source is None
        finish(threads, failures)
    assert worlds == {2, 3}


def marks_of(guest: pccl.Communicator, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[int]]:
    """How far its first fetch was whenever the guest asked to enter, and when it went on with what has changed."""
    pulls: list[Any] = []
    asked: list[int] = []
    went_on: list[int] = []
    pull, ask, go_on = guest.depot.pull, guest._runtime.control.enter, join._Entering.go_on

    def watched(*arguments: Any) -> Any:
        pulls.append(pull(*arguments))
        return pulls[-1]

    def noted(timeout: float | None) -> Any:
        asked.append(pulls[0].progress().done_bytes)
        return ask(timeout)

    def followed(entering: Any) -> None:
        went_on.append(pulls[0].progress().done_bytes)
        go_on(entering)

    guest.depot.pull = watched  # type: ignore[method-assign]
    guest._runtime.control.enter = noted  # type: ignore[method-assign]
    monkeypatch.setattr(join._Entering, "go_on", followed)
    return asked, went_on


def train(state: dict[str, Any]) -> None:
    """Changes one chunk or two."""
    state["w"][0] += 1
    state["w"][state["step"] % state["w"].size] += 1
    state["step"] += 1


def training(states: dict[bytes, dict[str, Any]], nbytes: int, low_bytes_per_s: int) -> Any:
    """What members do: they synchronise in the beginning and when somebody has come, and train."""

    def step(comm: pccl.Communicator, number: int) -> None:
        state = states.setdefault(comm.peer_id, {"w": np.arange(nbytes / 8), "step": 0})
        if number == 0:
            comm.transfers.limit("low", low_bytes_per_s)
        if number == 0 or comm.world_size == 3:
            comm.sync_state(state)
        comm.barrier(tag="step")
        train(state)

    return step


def train_along(comm: pccl.Communicator, state: dict[str, Any], end: threading.Event) -> None:
    """The third of them, until they end."""
    over = np.zeros(1)
    end.set()
    while not over[0]:
        comm.barrier(tag="step")
        train(state)
        comm.all_reduce(over, op="max", tag="over")
        if not over[0]:
            comm.advance()
            assert comm.sync_state(state).source is None


def test_join_state_enters_while_the_last_of_the_state_is_coming(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes at 8 MiB/s, three seconds long. When the guest asks to enter, about half-way, something is missing
    still, and what the members do until their boundary changes what it holds: that is fetched at once, with the rest.
    In the end all are equal.
    """
    monkeypatch.setattr(join, "_ENTER_S", 1.5)
    coordinator = cluster.coordinator(2)
    nbytes = 24 << 20
    states: dict[bytes, dict[str, Any]] = {}
    threads, end, failures = members(cluster, coordinator, 2, training(states, nbytes, 4 << 20))
    with cluster.connect(coordinator, enter=False) as guest:
        ours = {"w": np.zeros(nbytes // 8), "step": 0}
        asked, went_on = marks_of(guest, monkeypatch)
        report, synced = guest.join_state(ours)
        assert report.passes == 1 and report.received_bytes == nbytes
        assert 0 < asked[0] < nbytes, "neither at once nor in the end"
        assert asked[0] <= went_on[0] < nbytes and synced.rounds == 1
        assert synced.received_bytes <= 6 * (256 << 10) and ours["step"] > 0
        train_along(guest, ours, end)
        finish(threads, failures)
        assert all(np.array_equal(ours["w"], state["w"]) for state in states.values())


def test_join_state_whose_time_is_up_leaves_the_rest_to_the_sync(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take a minute; a sync is not held to what low priority may send."""
    monkeypatch.setattr(prefetch, "_OFFERED_WITHIN_S", 0.5)
    coordinator = cluster.coordinator(2)
    nbytes = 8 << 20
    states: dict[bytes, dict[str, Any]] = {}
    threads, end, failures = members(cluster, coordinator, 2, training(states, nbytes, 64 << 10))
    with cluster.connect(coordinator, enter=False) as guest:
        ours = {"w": np.zeros(nbytes // 8), "step": 0}
        used = time.thread_time()
        report, synced = guest.join_state(ours, timeout=2.0)
        assert report.why == "the time is up" and report.held_bytes < nbytes
        assert synced.received_bytes > nbytes / 2
        assert time.thread_time() - used < 0.4, "it did not wait, it asked again and again"
        train_along(guest, ours, end)
        finish(threads, failures)
        assert all(np.array_equal(ours["w"], state["w"]) for state in states.values())


def test_join_state_of_those_who_begin(cluster: Any) -> None:
    coordinator = cluster.coordinator(2)
    states = [{"w": np.full(10, float(rank)), "rng": np.full(3, rank), "step": rank} for rank in range(2)]
    failures: list[BaseException] = []

    def peer(rank: int) -> None:
        try:
            with cluster.connect(coordinator, enter=False) as comm:
                report, synced = comm.join_state(states[rank], ["rng"])
                assert report.why == "the run has no members yet" and len(synced.differences) in (2, 3)
                comm.barrier()
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)

    threads = [threading.Thread(target=peer, args=(rank,), daemon=True) for rank in range(2)]
    for thread in threads:
        thread.start()
    finish(threads, failures)
    assert np.array_equal(states[0]["w"], states[1]["w"]) and states[0]["step"] == states[1]["step"]


def test_all_may_begin_as_guests(cluster: Any) -> None:
    coordinator = cluster.coordinator(3)

    def body() -> None:
        with cluster.connect(coordinator, enter=False) as comm:
            ours = {"w": np.ones(10)}
            assert comm.prefetch_state(ours).why == "the run has no members yet"
            comm.enter()
            assert comm.world_size == 3
            comm.sync_state(ours)
            comm.barrier()

    failures: list[BaseException] = []

    def peer() -> None:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)

    threads = [threading.Thread(target=peer, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    finish(threads, failures)


GUEST = """
import sys
import numpy as np
import pccl

comm = pccl.connect(sys.argv[1], secret=sys.argv[2], listen="127.0.0.1:0", enter=False)
ours = {"w": np.zeros(1 << 20), "step": 0}
pull = comm.depot.pull

def told(*arguments):
    print("fetches", flush=True)
    return pull(*arguments)

comm.depot.pull = told
comm.prefetch_state(ours)
"""


def test_a_guest_that_is_killed_disturbs_nobody(cluster: Any, tmp_path: Path) -> None:
    coordinator = cluster.coordinator(2)
    states: dict[bytes, dict[str, Any]] = {}
    retries: set[int] = set()

    def step(comm: pccl.Communicator, number: int) -> None:
        comm.transfers.limit("low", 1 << 20)
        state = states.setdefault(comm.peer_id, {"w": np.ones(1 << 20), "step": 0})
        comm.sync_state(state)
        retries.add(comm.all_reduce(np.ones(10)).retries)
        state["step"] += 1

    threads, end, failures = members(cluster, coordinator, 2, step)
    command = [sys.executable, "-c", GUEST, coordinator.address, cluster.secret]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as child:
        assert child.stdout is not None and child.stdout.readline().strip() == "fetches"
        os.kill(child.pid, signal.SIGKILL)
        child.wait(20)
    with cluster.connect(coordinator, enter=False) as second:
        assert len(second.sources()) == 2
    end.set()
    finish(threads, failures)
    assert retries == {0}
