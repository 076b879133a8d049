"""sync_state with entries on devices, between real peers; threads in the place of a device's streams."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from streams import Threads, far, installed, near

import pccl
from pccl.device.contents import Contents
from pccl.device.pipeline import Stager
from pccl.sharing.chunks import CHUNK_BYTES, digests_of

MIB = 1 << 20


@pytest.fixture
def device() -> Iterator[Threads]:
    """The device of all `far` tensors, and of all peers."""
    with installed() as made:
        yield made


def wide(step: float) -> torch.Tensor:
    return torch.arange(10.0 * MIB) + step


def entries_of(step: int) -> dict[str, Any]:
    return {
        "large": far(wide(step)),
        "strided": far(torch.full((6, 4), float(step)).t()),
        "flags": far(torch.arange(100) % (2 + step) == 0),
        "scalar": far(torch.tensor(step, dtype=torch.bfloat16)),
        "none": far(torch.zeros(0)),
        "host": np.full(1000, step),
        "step": step,
    }


def is_whole(entries: dict[str, Any], step: int) -> bool:
    expected = entries_of(step)
    return entries["step"] == step and all(
        torch.equal(near(entries[name]), near(value))
        if isinstance(value, torch.Tensor)
        else np.all(entries[name] == value)
        for name, value in expected.items()
    )


def test_who_is_outdated_gets_what_differs(cluster: Any, device: Threads) -> None:
    def body(comm: pccl.Communicator) -> pccl.SyncReport:
        entries = entries_of(7 if comm.rank else 3)
        report = comm.sync_state(entries)
        assert is_whole(entries, 7)
        held = comm.stager().pool.held_bytes
        assert held <= 32 * MIB
        again = comm.sync_state(entries)
        assert (again.source, again.received_bytes) == (None, 0)
        return report

    first, *others = cluster(3, body)
    assert set(first.entries_received) == {"large", "strided", "flags", "scalar", "host", "step"}
    assert not any(other.entries_received for other in others)


def test_only_chunks_that_differ_are_moved_and_written(cluster: Any, device: Threads) -> None:
    def body(comm: pccl.Communicator) -> None:
        entries: dict[str, Any] = {"w": far(wide(0))}
        if comm.rank == 0:
            near_of(entries["w"])[5 * MIB] = -1
        report = comm.sync_state(entries)
        assert torch.equal(near(entries["w"]), wide(0))
        assert report.received_bytes == (CHUNK_BYTES if comm.rank == 0 else 0)
        assert [difference.chunks for difference in report.differences] == [(5 * MIB * 4 // CHUNK_BYTES,)]

    cluster(3, body)


def near_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_subclass(torch.Tensor)


def test_equal_contents_are_read_once_and_not_copied(cluster: Any, device: Threads, monkeypatch: Any) -> None:
    monkeypatch.setattr(Contents, "read", lambda self: pytest.fail("a copy of everything"))

    def body(comm: pccl.Communicator) -> str:
        return comm.sync_state({"w": far(wide(1)), "n": 1}).digest

    in_host_memory = cluster(1, lambda comm: comm.sync_state({"w": wide(1), "n": 1}).digest)
    assert cluster(2, body) == in_host_memory * 2


def test_a_peer_with_the_same_state_in_host_memory(cluster: Any, device: Threads) -> None:
    def body(comm: pccl.Communicator) -> None:
        tensor = wide(2) if comm.rank == 0 else far(wide(9))
        comm.sync_state({"w": tensor}, "send" if comm.rank == 0 else "majority")
        assert torch.equal(near(tensor) if comm.rank else tensor, wide(2))

    cluster(2, body)


def test_newcomers_get_the_state_from_devices_when_they_enter(cluster: Any, device: Threads) -> None:
    def body(comm: pccl.Communicator) -> None:
        entries = entries_of(5)
        comm.sync_state(entries)
        epoch = comm.epoch
        if comm.rank == 0:
            thread.start()
        while comm.epoch == epoch:
            comm.advance()
            comm.barrier()
        comm.sync_state(entries)
        assert is_whole(entries, 5)

    def newcomer() -> None:
        try:
            with cluster.connect(coordinator) as comm:
                comm.barrier()
                entries = entries_of(0)
                report = comm.sync_state(entries)
                assert report.received_bytes > 40 * MIB
                assert is_whole(entries, 5)
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    errors: list[BaseException] = []
    coordinator = cluster.coordinator(1)
    thread = threading.Thread(target=newcomer)
    with cluster.connect(coordinator) as comm:
        body(comm)
        thread.join()
    assert not errors, errors


def test_what_cannot_be_read_is_named(cluster: Any, device: Threads) -> None:
    def body(comm: pccl.Communicator) -> None:
        with pytest.raises(TypeError, match="sync_state entry 'w': the tensor is on meta; only cuda"):
            comm.sync_state({"w": torch.zeros(3, device="meta")})
        with pytest.raises(pccl.ArgumentError, match="sync_state entry 'w': elements of the tensor share memory"):
            comm.sync_state({"w": far(torch.zeros(1)).expand(4)})

    cluster(1, body)


@pytest.mark.parametrize("nbytes", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 20 * MIB + 5])
def test_digests_and_copies_are_those_of_the_bytes(device: Threads, nbytes: int) -> None:
    data = torch.randint(0, 256, (nbytes,), dtype=torch.uint8)
    stager = Stager(None, 32 * MIB)  # type: ignore[arg-type]
    tensor = far(data)
    contents = Contents(tensor, stager, True, "x")
    assert contents.nbytes == nbytes
    assert contents.digests(CHUNK_BYTES) == digests_of([data.numpy()], CHUNK_BYTES)
    assert contents.read().tobytes() == data.numpy().tobytes()
    contents.write([(nbytes // 2, np.zeros(nbytes - nbytes // 2, np.uint8))])
    assert not near(tensor)[nbytes // 2 :].any()
    assert torch.equal(near(tensor)[: nbytes // 2], data[: nbytes // 2])


def test_what_the_stream_had_to_do_comes_first(device: Threads) -> None:
    tensor = far(torch.zeros(MIB))
    stager = Stager(None, 32 * MIB)  # type: ignore[arg-type]
    gate = device.current.stall()
    device.current.put(lambda: near_of(tensor).fill_(1))
    threading.Timer(0.05, gate.set).start()
    assert Contents(tensor, stager, True, "x").read().tobytes() == torch.ones(MIB).numpy().tobytes()
