"""sync_state between real peers: what arrives, what is moved, who is believed, and what stays whole when peers die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pccl
from pccl.sharing import Strategy

try:
    import ml_dtypes

    SMALL_FLOATS = [ml_dtypes.bfloat16]
except ImportError:
    SMALL_FLOATS = []


def unaligned(rank: int) -> np.ndarray[Any, Any]:
    """float64 at an odd address."""
    memory = np.zeros(8 * 33 + 1, np.uint8)
    array = memory[1:].view(np.float64)
    array[:] = rank
    return array


def everything(rank: int) -> dict[str, Any]:
    """One entry of every kind, different on each rank."""
    dtypes = [np.float64, np.float32, np.float16, np.int8, np.int16, np.int64, np.uint8, np.uint32, np.bool_]
    dtypes += [np.complex64, np.complex128, *SMALL_FLOATS]
    entries: dict[str, Any] = {
        f"{np.dtype(dtype).name}/{count}": ((np.arange(count) + rank) % 2).astype(dtype)
        for dtype in dtypes
        for count in (0, 1, 257)
    }
    entries["0-d"] = np.array(float(rank))
    entries["matrix"] = np.full((3, 5, 2), rank, np.int32)
    entries["transposed"] = np.full((4, 6), rank, np.float32).T
    entries["big endian"] = np.full(5, rank, ">i4")
    entries["unaligned"] = unaligned(rank)
    entries |= {
        "step": 10**30 + rank,
        "negative": -rank,
        "loss": rank / 7,
        "flag": rank == 1,
        "none": None if rank else 3,
    }
    entries |= {
        "name": f"peer {rank} \u00fc",
        "raw": bytes([rank]) * rank,
        "numpy": np.int8(-rank),
        "half": np.float16(rank),
    }
    return entries


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and a == b


def assert_same_entries(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    assert not [name for name in found if not equal(found[name], expected[name])]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_every_kind_of_entry(cluster: Any, world: int) -> None:
    def body(comm: pccl.Communicator) -> pccl.SyncReport:
        ours = everything(comm.rank)
        arrays = {name: value for name, value in ours.items() if isinstance(value, np.ndarray)}
        report = comm.sync_state(ours)
        assert_same_entries(ours, everything(0))
        assert all(ours[name] is array for name, array in arrays.items()), "an array was replaced"
        again = comm.sync_state(ours)
        assert (again.received_bytes, again.sent_bytes, again.source, again.rounds) == (0, 0, None, 1)
        assert again.digest == report.digest
        return report

    reports = cluster(world, body)
    assert len({report.digest for report in reports}) == 1
    assert sum(report.sent_bytes for report in reports) == sum(report.received_bytes for report in reports)
    assert all(report.rounds == 1 for report in reports)


def test_only_what_differs_is_moved(cluster: Any) -> None:
    def body(comm: pccl.Communicator) -> pccl.SyncReport:
        ours = {name: np.full(1000, 1.0, np.float32) for name in "abcdefgh"}
        if comm.rank == 2:
            for name in "bdfh":
                ours[name][999] = 2.0
        return comm.sync_state(ours)

    first, second, third = cluster(3, body)
    assert third.entries_received == ("b", "d", "f", "h")
    assert (third.received_bytes, third.sent_bytes) == (16000, 0)
    assert first.sent_bytes + second.sent_bytes == 16000
    assert first.entries_received == second.entries_received == ()
    assert first.source == second.source == third.source is not None


@pytest.mark.parametrize(
    ("strategies", "winner"),
    [
        (("majority", "majority", "majority"), 0),
        (("majority", "send", "majority"), 1),
        (("receive", "majority", "majority"), 1),
        (("receive", "receive", "majority"), 2),
        (("send", "receive", "send"), 0),
    ],
)
def test_strategies(cluster: Any, strategies: tuple[Strategy, ...], winner: int) -> None:
    def body(comm: pccl.Communicator) -> None:
        ours = {"w": np.full(9, comm.rank)}
        winner_id = comm.peers[winner]
        report = comm.sync_state(ours, strategy=strategies[comm.rank])
        assert report.source == winner_id
        assert (ours["w"] == winner).all()

    cluster(3, body)


def test_the_majority_beats_the_lowest_rank(cluster: Any) -> None:
    def body(comm: pccl.Communicator) -> None:
        ours = {"w": np.full(9, min(comm.rank, 1)), "step": min(comm.rank, 1)}
        comm.sync_state(ours)
        assert ours["step"] == 1 and (ours["w"] == 1).all()

    cluster(3, body)


def test_nobody_offers(cluster: Any) -> None:
    def body(comm: pccl.Communicator) -> None:
        ours = {"w": np.full(9, comm.rank)}
        with pytest.raises(pccl.MismatchError, match="nobody offers"):
            comm.sync_state(ours, strategy="receive")
        assert (ours["w"] == comm.rank).all()

    cluster(2, body)


def test_different_keys_dtypes_and_shapes_are_named_on_every_peer(cluster: Any) -> None:
    def body(comm: pccl.Communicator) -> str:
        ours: dict[str, Any] = {"w": np.zeros(3 + comm.rank), "m": np.zeros(2, [np.float32, np.int32][comm.rank])}
        ours[f"only {comm.rank}"] = 1
        with pytest.raises(pccl.MismatchError) as caught:
            comm.sync_state(ours)
        comm.sync_state({"w": np.zeros(3)})
        return str(caught.value)

    first, second = cluster(2, body)
    assert first == second
    assert "'w' is float64[3] at rank 0, float64[4] at rank 1" in first
    assert "'m' is float32[2] at rank 0, int32[2] at rank 1" in first
    assert "'only 0' is scalar at rank 0, missing at rank 1" in first


def test_entries_that_may_drift_reach_only_those_that_are_outdated(cluster: Any) -> None:
    def body(comm: pccl.Communicator) -> float:
        ours = {"w": np.full(4, 1 if comm.rank < 2 else 7), "rng": np.full(4, float(comm.rank))}
        comm.sync_state(ours, allow_drift=["rng"])
        assert (ours["w"] == 1).all()
        return float(ours["rng"][0])

    assert cluster(3, body) == [0.0, 1.0, 0.0]


def test_read_only_entries_can_be_sent_but_not_received(cluster: Any) -> None:
    def body(comm: pccl.Communicator) -> None:
        weights = np.full(4, float(comm.rank))
        weights.flags.writeable = comm.rank != 0
        if comm.rank == 0:
            with pytest.raises(pccl.ArgumentError, match="read-only"):
                comm.sync_state({"w": weights})
        comm.sync_state({"w": weights}, strategy="send" if comm.rank == 0 else "majority")
        assert (weights == 0).all()

    cluster(2, body)


def test_a_joiner_receives_and_does_not_vote(cluster: Any) -> None:
    coordinator = cluster.coordinator(1)
    with cluster.connect(coordinator) as old:
        old.advance()
        weights = np.full(5, 3.0)
        joined: list[Any] = []

        def join() -> None:
            with cluster.connect(coordinator) as new:
                ours = {"w": np.zeros(5), "step": 0}
                joined.append((new.entered, new.boundary, new.sync_state(ours), ours))

        thread = threading.Thread(target=join, daemon=True)
        thread.start()
        while old.world_size == 1:
            old.barrier()
            old.advance()
        report = old.sync_state({"w": weights, "step": 5})
        thread.join(20)
        entered, boundary, theirs, ours = joined[0]
        assert entered == boundary > 0
        assert (ours["w"] == 3.0).all() and ours["step"] == 5
        assert theirs.source == report.source == old.peer_id
        assert (weights == 3.0).all()


def test_torch_entries(cluster: Any) -> None:
    torch = pytest.importorskip("torch")

    def body(comm: pccl.Communicator) -> None:
        rank = comm.rank
        ours = {
            str(dtype): torch.full((3, 4), rank, dtype=dtype)
            for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.bool, torch.complex64, torch.int64)
        }
        ours["0-d"] = torch.tensor(rank)
        ours["empty"] = torch.empty(0, 4)
        ours["transposed"] = torch.full((5, 3), float(rank)).t()
        ours["parameter"] = torch.nn.Parameter(torch.full((7,), float(rank)))
        ours["mixed"] = torch.zeros(4, dtype=torch.float32) if rank == 0 else np.ones(4, np.float32)
        comm.sync_state(ours)
        for name, tensor in ours.items():
            assert not np.any(
                np.asarray(tensor.detach().to(torch.complex64) if hasattr(tensor, "detach") else tensor)
            ), name

    cluster(2, body)


def test_many_entries_from_two_sources(cluster: Any) -> None:
    def body(comm: pccl.Communicator) -> pccl.SyncReport:
        good = comm.rank in (1, 3)
        ours = {f"e{i}": np.full(i * 37, 5 if good else comm.rank, np.int16) for i in range(40)}
        report = comm.sync_state(ours)
        assert all((array == 5).all() for array in ours.values())
        return report

    reports = cluster(5, body)
    sent = [report.sent_bytes for report in reports]
    assert sent[0] == sent[2] == sent[4] == 0
    assert sent[1] + sent[3] == sum(report.received_bytes for report in reports) > 0
    assert {report.differences for report in reports} == {reports[0].differences}


CHILD = """
import sys
import threading
from pathlib import Path
import numpy as np
import pccl
comm = pccl.connect(sys.argv[1], secret=sys.argv[2], listen="127.0.0.1:0", op_timeout=30)
while comm.world_size < 3:
    comm.barrier()
    comm.advance()
ours = {"w": np.full(1 << 20, 9.0), "step": 9}
comm.transfers.limit("normal", 2 << 20)
gather = comm.all_gather

def watched(tensor, **options):
    if options["tag"].endswith("/vote"):
        print("serves", flush=True)
    return gather(tensor, **options)

comm.all_gather = watched
comm.sync_state(ours, strategy="send")
"""


def test_the_death_of_the_only_source_leaves_everything_whole(cluster: Any, tmp_path: Path) -> None:
    """The survivors begin another round and agree on what they hold themselves; nothing of the dead source is left."""
    coordinator = cluster.coordinator(2)
    command = [sys.executable, "-c", CHILD, coordinator.address, cluster.secret]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as child:
        assert child.stdout is not None
        lines = child.stdout

        def kill_it() -> None:
            assert lines.readline().strip() == "serves"
            os.kill(child.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill_it, daemon=True)
        killer.start()
        results = run_survivors(cluster, coordinator)
        killer.join(20)
        child.wait(20)
    for report, ours in results:
        assert report.rounds > 1
        assert np.unique(ours["w"]).tolist() == [ours["step"]]
    assert results[0][1]["step"] == results[1][1]["step"] in (1, 2)


def run_survivors(cluster: Any, coordinator: Any) -> list[tuple[pccl.SyncReport, dict[str, Any]]]:
    """Two peers that synchronise with a child that dies meanwhile."""
    results: list[tuple[pccl.SyncReport, dict[str, Any]]] = []

    def peer(value: float) -> None:
        with cluster.connect(coordinator) as comm:
            while comm.world_size < 3:
                comm.barrier()
                comm.advance()
            ours = {"w": np.full(1 << 20, value), "step": int(value)}
            results.append((comm.sync_state(ours), ours))

    threads = [threading.Thread(target=peer, args=(value,), daemon=True) for value in (1.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert len(results) == 2, "a survivor hangs"
    return results
