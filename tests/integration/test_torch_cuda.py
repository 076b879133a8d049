"""Tensors of a real GPU: the same as test_device.py and test_device_state.py, and what only streams of a GPU can show.

    pytest tests/integration/test_torch_cuda.py

One GPU is enough: all peers share it. Without one everything is skipped, but for the programs that ranks and the
benchmark run, which are tried in host memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from integration.test_torch import run_ranks

import pccl
from pccl.device.cuda import Cuda

ROOT = Path(__file__).resolve().parents[2]
HAS_GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(
    not HAS_GPU, reason=f"no GPU: torch.cuda.is_available() is False in torch {torch.__version__}"
)
devices = pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=needs_gpu)])

MIB = 1 << 20
LARGE = 5 * MIB  # elements of float32: five pieces
BUSY_CYCLES = 2_000_000_000  # about a second


@pytest.fixture
def no_synchronize(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody waits for the whole device."""

    def refuse(*arguments: Any) -> None:
        raise AssertionError("torch.cuda.synchronize was called")

    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "synchronize", refuse)
        yield


def filled(rank: int, count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return ((torch.arange(count, device="cuda") * 3 + rank * 5) % 7).to(dtype)


def total(count: int, world: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return sum((filled(rank, count, dtype) for rank in range(world)), torch.zeros(count, dtype=dtype, device="cuda"))


@needs_gpu
@pytest.mark.usefixtures("no_synchronize")
@pytest.mark.parametrize("count", [0, 1, 1000, LARGE])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8]
)
def test_sums(cluster: Any, count: int, dtype: torch.dtype) -> None:
    def body(comm: pccl.Communicator) -> None:
        tensor = filled(comm.rank, count, dtype)
        assert comm.all_reduce(tensor).tensor is tensor
        assert torch.equal(tensor, total(count, 3, dtype))

    cluster(3, body)


@needs_gpu
@pytest.mark.usefixtures("no_synchronize")
def test_out_lists_and_any_layout(cluster: Any) -> None:
    def body(comm: pccl.Communicator) -> None:
        rank = comm.rank
        tensor, out = filled(rank, LARGE), torch.empty(LARGE, device="cuda")
        comm.all_reduce(tensor, out=out)
        assert torch.equal(out, total(LARGE, 2))
        assert torch.equal(tensor, filled(rank, LARGE))
        wide = filled(rank, 2000)
        comm.all_reduce(wide[::2])
        assert torch.equal(wide[::2], total(2000, 2)[::2])
        assert torch.equal(wide[1::2], filled(rank, 2000)[1::2])
        tensors = [filled(rank, 10), filled(rank, 6, torch.int32).view(2, 3).t(), filled(rank, LARGE)]
        comm.all_reduce(tensors)
        assert torch.equal(tensors[0], total(10, 2))
        assert torch.equal(tensors[1], total(6, 2, torch.int32).view(2, 3).t())
        assert torch.equal(tensors[2], total(LARGE, 2))

    cluster(2, body)


@needs_gpu
@pytest.mark.usefixtures("no_synchronize")
def test_streams(cluster: Any) -> None:
    """The op sees what the caller's stream had to do; the call does not wait for it; who waits has its stream wait."""

    def body(comm: pccl.Communicator) -> None:
        warm = torch.zeros(LARGE, device="cuda")
        comm.all_reduce(warm)  # pinned memory is there
        mine, other = torch.cuda.Stream(), torch.cuda.Stream()
        with torch.cuda.stream(mine):
            tensor = torch.zeros(LARGE, device="cuda")
            torch.cuda._sleep(BUSY_CYCLES)
            tensor += comm.rank + 1
            work = comm.all_reduce(tensor, async_op=True)
            filled_at = torch.cuda.Event()
            filled_at.record()
            assert not filled_at.query(), "the call waited for the stream"
            work.wait()
            mine_sum = tensor.sum()
        with torch.cuda.stream(other):
            work.wait()
            other_sum = tensor.sum()
        mine.synchronize()
        other.synchronize()
        assert mine_sum.item() == other_sum.item() == 3 * LARGE

    cluster(2, body)


@needs_gpu
@pytest.mark.usefixtures("no_synchronize")
def test_other_streams_are_not_waited_for(cluster: Any) -> None:
    def body(comm: pccl.Communicator) -> None:
        mine, busy = torch.cuda.Stream(), torch.cuda.Stream()
        pool, device = comm.stager().pool, Cuda(0)
        for block in [
            pool.take(4 * MIB, device.pinned) for _ in range(8)
        ]:  # making pinned memory may wait for a device
            assert block is not None
            pool.give(block)
        with torch.cuda.stream(mine):
            for _ in range(2):  # and so may loading a kernel, or more memory of the device
                tensor, expected = filled(comm.rank, LARGE), total(LARGE, 2)
                comm.all_reduce(tensor)
                assert (tensor == expected).all().item()
            tensor.copy_(filled(comm.rank, LARGE))
            mine.synchronize()
        comm.barrier()
        with torch.cuda.stream(busy):
            torch.cuda._sleep(4 * BUSY_CYCLES)
            end = torch.cuda.Event()
            end.record()
        with torch.cuda.stream(mine):
            comm.all_reduce(tensor)
            equal = (tensor == expected).all()
            mine.synchronize()
        assert not end.query(), "the op waited for a stream that has nothing to do with it"
        assert equal.item()

    cluster(2, body)


@needs_gpu
def test_memory_that_is_dropped_while_the_op_runs(cluster: Any) -> None:
    def body(comm: pccl.Communicator) -> None:
        out = torch.empty(LARGE, device="cuda")
        for step in range(20):
            tensor = torch.full((LARGE,), float(step + comm.rank), device="cuda")
            work = comm.all_reduce(tensor, out=out, async_op=True)
            del tensor
            junk = [torch.full((LARGE,), -1.0, device="cuda") for _ in range(4)]
            work.wait()
            assert out.unique().tolist() == [2.0 * step + 1]
            del junk

    cluster(2, body)


@needs_gpu
def test_after_an_error_tensors_are_as_they_were(cluster: Any) -> None:
    def body(comm: pccl.Communicator) -> None:
        rank = comm.rank
        tensor = filled(rank, LARGE + rank)
        with pytest.raises(pccl.MismatchError):
            comm.all_reduce(tensor)
        assert torch.equal(tensor, filled(rank, LARGE + rank))
        again = filled(rank, LARGE)
        comm.all_reduce(again)
        assert torch.equal(again, total(LARGE, 2))

    cluster(2, body)


@needs_gpu
def test_less_pinned_memory_than_the_tensor_has(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCCL_PINNED_BYTES", "32MiB")

    def body(comm: pccl.Communicator) -> None:
        tensor = filled(comm.rank, 64 * MIB)
        assert len(comm.all_reduce(tensor).parts) == 16
        assert torch.equal(tensor, total(64 * MIB, 2))
        assert comm.stager().pool.held_bytes <= 32 * MIB

    cluster(2, body)


@needs_gpu
def test_what_only_takes_host_memory_names_tensor_and_device(cluster: Any) -> None:
    def body(comm: pccl.Communicator) -> None:
        with pytest.raises(TypeError, match="tensor: the tensor is on cuda:0, and only all_reduce"):
            comm.broadcast(torch.ones(3, device="cuda"))
        with pytest.raises(TypeError, match=r"tensor\[1\] is on cpu, the first on cuda:0"):
            comm.all_reduce([torch.ones(3, device="cuda"), torch.ones(3)])

    cluster(1, body)


@needs_gpu
def test_state(cluster: Any) -> None:
    def entries_of(step: int) -> dict[str, Any]:
        return {
            "large": filled(step, 10 * MIB),
            "strided": filled(step, 24).view(6, 4).t(),
            "flags": filled(step, 100) == 0,
            "scalar": torch.tensor(step, dtype=torch.bfloat16, device="cuda"),
            "step": step,
        }

    def body(comm: pccl.Communicator) -> None:
        entries, expected = entries_of(7 if comm.rank else 3), entries_of(7)
        comm.sync_state(entries)
        for name, value in expected.items():
            assert torch.equal(torch.as_tensor(entries[name]), torch.as_tensor(value)), name
        assert comm.sync_state(entries).source is None

    cluster(3, body)


@needs_gpu
def test_the_device_as_staging_sees_it() -> None:
    device = Cuda(0)
    memory = device.pinned(1 << 16)
    assert memory.is_pinned()
    source = (torch.arange(1 << 16, device="cuda") % 251).to(torch.uint8)
    event = device.copy("out", [(memory, source)], device.mark())
    event.synchronize()
    assert event.query()
    assert torch.equal(memory, source.cpu())
    target = torch.zeros_like(source)
    device.fence(device.copy("back", [(target, memory)], device.mark()))
    assert torch.equal(target, source)
    with device.aside():
        assert torch.cuda.current_stream() == device._streams["back"]


# -- programs --------------------------------------------------------------------------------------------------------


@devices
def test_process_groups_ddp_and_fsdp(forked: str, tmp_path: Path, kind: str) -> None:
    """Every collective against gloo in host memory, then training; in host memory only the training."""
    for seen in run_ranks(forked, "torch_cuda_peer.py", tmp_path, 2, kind):
        assert seen["wrong"] == []
        assert seen["count"] > 500 or kind == "cpu"
        for name in ("ddp", "fsdp"):
            assert seen[f"{name} pccl"] == pytest.approx(seen["gloo"], rel=1e-3), name
        assert seen["int8"] == pytest.approx(seen["gloo"], rel=5e-2)


@devices
def test_the_table_of_staging_overlap(forked: str, kind: str) -> None:
    rows = run_benchmark(forked, "--device", kind, "--mib", "1", "8", "--rounds", "2", "--json")
    found = json.loads(rows.stdout)
    assert [row["mib"] for row in found["rows"]] == [1, 8]
    assert all(row[name] > 0 for row in found["rows"] for name in ("naive_s", "pipeline_s", "network_s", "copies_s"))


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_the_benchmark_says_why_it_cannot_run(forked: str) -> None:
    ended = run_benchmark(forked, expect=2)
    assert "torch_staging needs a GPU: torch.cuda.is_available() is False" in ended.stderr


def run_benchmark(forked: str, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, forked, "-m", "stress.torch_staging", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert ended.returncode == expect, ended.stderr
    return ended
